"""`mrpo precompute`: phase 1."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from mrpo_tools.cli.completion import references
from mrpo_tools.cli.help import Command
from mrpo_tools.cli.options import (
    cache_option,
    dataset_of,
    dataset_options,
    json_option,
    placement_options,
    print_json,
    print_records,
    print_timed,
    read_groups,
    reference_options,
    references_named,
    rounded_up,
)
from mrpo_tools.cli.shards import AUTO, shard_of, shard_option

if TYPE_CHECKING:
    import torch

    from mrpo_tools.cache import Cache
    from mrpo_tools.config import Reference
    from mrpo_tools.groups import Group
    from mrpo_tools.precomputing.estimate import Estimate
    from mrpo_tools.precomputing.summary import Summary
    from mrpo_tools.references.resolved import ResolvedReference
    from mrpo_tools.scorer.engine import Engine


@click.command(cls=Command)
@click.option(
    "--ref", "refs", multiple=True, metavar="NAME[=MODEL]", shell_complete=references,
    help="Reference by name, or name and model. Repeats and takes commas.",
)  # fmt: skip
@dataset_options
@click.option("--split", help="Score this split only.")
@cache_option
@shard_option
@click.option("--take-over/--no-take-over", default=None,
              help="After this part, compute what others have not written of theirs.  "
              "[default: with --shard auto]")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Count tokens; load no weights, write nothing.")
@reference_options
@placement_options
@json_option
def precompute(refs: tuple[str, ...], split: str | None, shard: str | None, **options: Any) -> None:
    """Cache each reference's log-probs of every response.

    One model is in memory at a time. What is cached already is not computed again, so this command
    also resumes an interrupted one. Without --ref, all references of mrpo.yaml. Many machines, one
    cache: --shard auto on each; who is done takes what the others have not written.

    \b
    Example:
        mrpo precompute --ref mistral
        mrpo precompute --ref llama=./models/llama --dataset pairs.jsonl --cache cache
    """
    from mrpo_tools.cache import Cache
    from mrpo_tools.config import load_project
    from mrpo_tools.errors import UsageError

    project = load_project()
    wanted = refs or tuple(project.references)
    if not wanted:
        raise UsageError("no reference is named", "mrpo precompute --ref NAME=PATH_OR_HUB_ID")
    references = references_named(wanted, project, options)
    if not references:
        raise UsageError("--ref names no reference", "mrpo precompute --ref NAME=PATH_OR_HUB_ID")
    part = shard_of(shard)
    taking = shard == AUTO if options["take_over"] is None else options["take_over"]
    dataset = dataset_of(project, options)
    cache = Cache(options["cache"] or project.cache)
    source = read_groups(dataset, cache)
    if options["dry_run"]:
        estimates = _estimates(
            references=references, groups=source.groups, cache=cache, split=split, shard=part
        )
        _print_estimates(estimates, as_json=options["as_json"])
        return
    from mrpo_tools.precomputing.precompute import precompute as phase1

    summaries = phase1(
        references=references,
        groups=source.groups,
        cache=cache,
        dataset=source.name,
        split=split,
        shard=part,
        load=_load if shard is None else None,
        take_over=taking,
    )
    _print(summaries, taking=taking, as_json=options["as_json"])


def _load(resolved: ResolvedReference, dtype: str, device: torch.device) -> Engine:
    """A reference's model; before the first one, a word about GPUs that lie idle."""
    from mrpo_tools.scorer.choose import load_engine
    from mrpo_tools.scorer.room import place

    placed = place(resolved, dtype, device)
    if placed.kind not in ("server", "too large"):
        _tell_idle_gpus(max(1, placed.cards))
    return load_engine(resolved, dtype, device, placed)


@functools.cache
def _tell_idle_gpus(used: int) -> None:
    from mrpo_tools.progress import say
    from mrpo_tools.references.devices import idle_gpus, visible_gpus

    if idle := idle_gpus("precompute", visible_gpus(), used):
        say(idle)


def _estimates(
    references: dict[str, Reference],
    groups: Sequence[Group],
    cache: Cache,
    split: str | None,
    shard: tuple[int, int],
) -> list[Estimate]:
    from mrpo_tools.precomputing.estimate import estimate
    from mrpo_tools.references.resolved import resolve

    every = [resolve(name, reference) for name, reference in references.items()]
    return [estimate(resolved, groups, cache, split=split, shard=shard) for resolved in every]


def _print_estimates(estimates: list[Estimate], *, as_json: bool) -> None:
    if as_json:
        print_json([dataclasses.asdict(estimate) for estimate in estimates])
        return
    missing = [estimate for estimate in estimates if estimate.responses]
    _print_requests([estimate for estimate in missing if estimate.requests is not None])
    here = [estimate for estimate in missing if estimate.requests is None]
    rows = [
        {
            "reference": estimate.name,
            "responses": estimate.responses,
            "tokens": estimate.tokens,
            "unique tokens": estimate.unique_tokens,
            "padding": estimate.padding,
            "overlong": estimate.overlong,
            "memory MB": round(estimate.memory_bytes / 1e6),
            "disk kB": math.ceil(estimate.disk_bytes / 1e3),
            "loading s": rounded_up(estimate.loading_seconds),
            "computing s": rounded_up(estimate.seconds),
        }
        for estimate in here
    ]
    if rows:
        print_records(rows)
        print("memory is of tensors: weights, and what the largest batch takes beside them")
    for estimate in missing:
        if estimate.where is not None:
            print(f"{estimate.name}: {estimate.where}")
    done = ", ".join(estimate.name for estimate in estimates if not estimate.responses)
    if done:
        print(f"nothing to compute, as every response has its number in the cache: {done}")
    rough = ", ".join(estimate.name for estimate in missing if estimate.about)
    if rough:
        print(f"about, by a rough formula, as no model can be made of the configuration: {rough}")


def _print_requests(estimates: list[Estimate]) -> None:
    """What servers would be asked for."""
    rows = [
        {
            "reference": estimate.name,
            "responses": estimate.responses,
            "requests": estimate.requests,
            "prompt tokens": estimate.tokens,
            "prompts once": estimate.unique_tokens,
            "overlong": estimate.overlong,
            "calibration": estimate.calibration_requests,
            "disk kB": math.ceil(estimate.disk_bytes / 1e3),
        }
        for estimate in estimates
    ]
    if not rows:
        return
    print_records(rows)
    print(
        "each response is a request of its own, and N responses compute their prompt N times: vLLM "
        "bypasses its prefix cache where log-probs of a prompt are asked for"
    )
    print("calibration: requests before the first number is kept, at most")


def _print(summaries: list[Summary], *, taking: bool, as_json: bool) -> None:
    from mrpo_tools.progress import is_first_process

    rows = [
        {
            "reference": summary.store.name,
            "identity": summary.store.short,
            "reused": summary.reused,
            "scored": summary.computed["ok"],
            "overlong": summary.computed["overlong"],
            "nonfinite": summary.computed["nonfinite"],
            **({"taken over": summary.taken_over} if taking else {}),
            "tokens": summary.tokens,
        }
        for summary in summaries
    ]
    print_timed(rows, [summary.seconds for summary in summaries], as_json=as_json)
    if as_json:
        return
    print("seconds are of the clock, the loading of the model included")
    if is_first_process():
        names = ",".join(str(row["reference"]) for row in rows)
        print(f"next: mrpo rank, or mrpo train --refs {names} --output RUN")
