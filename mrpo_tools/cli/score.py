"""`mrpo score`: scores of responses, by rules, reward models and judges, into the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from mrpo_tools.cli.completion import files
from mrpo_tools.cli.help import Command
from mrpo_tools.cli.options import (
    Row,
    cache_option,
    dataset_of,
    dataset_options,
    json_option,
    print_json,
    print_records,
    print_timed,
    read_groups,
    reference_options,
)
from mrpo_tools.cli.scorers import judge_option, reward_model_option, scorers_named
from mrpo_tools.cli.shards import shard_of, shard_option

if TYPE_CHECKING:
    from mrpo_tools.cache import Cache
    from mrpo_tools.cache.missing import Shard
    from mrpo_tools.config import Project
    from mrpo_tools.groups import Group
    from mrpo_tools.scoring import Scorer
    from mrpo_tools.scoring.ensure import ScoreSummary


@click.command(cls=Command)
@click.argument("source", metavar="[DATA]", required=False, shell_complete=files)
@reward_model_option
@click.option("--rule", "rules", multiple=True, metavar="MODULE:FUNCTION",
              help="FUNCTION(messages, answer) gives the score. Repeats.")  # fmt: skip
@judge_option
@click.option("--template", metavar="NAME|FILE",
              help="What the judge is asked.  [default: rating]")  # fmt: skip
@click.option("--name", help="What --score is to call the rule or judge.  "
              "[default: MODULE.FUNCTION, MODEL-TEMPLATE]")  # fmt: skip
@click.option("--full-marks", type=float, help="Of the rule.  [default: its `full_marks`]")
@dataset_options
@click.option("--split", help="Score this split only.")
@cache_option
@shard_option
@click.option("--dry-run", is_flag=True, help="Count what is missing; score nothing.")
@reference_options
@json_option
def score(
    source: str | None, name: str | None, split: str | None, shard: str | None, **options: Any
) -> None:
    """Score every response by rules, reward models and judges, and keep the scores in the cache.

    What has a score of this very scorer (its weights, template, settings; a rule's source) is not
    scored again, so this command also resumes an interrupted one. Several scorers stand side by
    side; `--score NAME` of train, evaluate, rank, data show and sql says which counts. Without
    --rule, --reward-model and --judge, all `scorers:` of mrpo.yaml.

    \b
    Example:
        mrpo score pairs.jsonl --rule rules:score
        mrpo score --reward-model skywork=Skywork/Skywork-Reward-Llama-3.1-8B-v0.2 --dry-run
    """
    from mrpo_tools.cache import Cache
    from mrpo_tools.config import load_project

    project = load_project()
    cache = Cache(options["cache"] or project.cache)
    chosen = _chosen(options, project, cache, name)
    part = shard_of(shard)
    named = {**options, "dataset": source or options["dataset"]}
    data = read_groups(dataset_of(project, named))
    from mrpo_tools.groups import in_split

    groups = in_split(data.groups, split)
    if options["dry_run"]:
        _print_missing(
            [_missing(scorer, groups, cache, part) for scorer in chosen],
            as_json=options["as_json"],
        )
        return
    from mrpo_tools.progress import say
    from mrpo_tools.scoring import ensure_scores

    if part[0] == 0:
        cache.save_groups(data.name, data.groups)
    summaries = []
    for scorer in chosen:
        summaries.append(ensure_scores(scorer, groups, cache, part))
        for warning in summaries[-1].warnings:  # at once: the next scorer may fail
            say(f"warning: {warning}")
    if part[0] != 0:
        cache.save_groups(data.name, data.groups)
    _print(summaries, as_json=options["as_json"])


def _chosen(
    options: dict[str, Any], project: Project, cache: Cache, name: str | None
) -> list[Scorer]:
    from mrpo_tools.errors import UsageError
    from mrpo_tools.scoring.named import scorer_of

    chosen = scorers_named(options, project, cache, name)
    if not chosen:
        chosen = [scorer_of(known, words) for known, words in project.scorers.items()]
    if not chosen:
        raise UsageError(
            "no scorer is named",
            "mrpo score --rule MODULE:FUNCTION, --reward-model NAME=MODEL, or --judge URL#MODEL",
        )
    return chosen


def _missing(scorer: Scorer, groups: Sequence[Group], cache: Cache, shard: Shard) -> Row:
    """What a scorer would score now; a reward model's tokenizer is loaded, no weights."""
    from mrpo_tools.cache.missing import missing_from
    from mrpo_tools.scoring.lines import lines_of
    from mrpo_tools.scoring.reward import RewardModel

    store = cache.score_store(scorer.store_name, scorer.stored_identity)
    incomplete, reused = missing_from(store, groups, shard)
    row: dict[str, object] = {
        "scorer": scorer.store_name,
        "identity": store.short,
        "reused": reused,
        "missing": sum(len(group.responses) for group in incomplete),
        "tokens": None,
        "overlong": None,
    }
    if isinstance(scorer, RewardModel):
        lines = list(lines_of(scorer.resolved, incomplete))
        row["tokens"] = sum(len(line.ids) for line in lines if not line.overlong)
        row["overlong"] = sum(line.overlong for line in lines)
    return row


def _print_missing(rows: Sequence[Row], *, as_json: bool) -> None:
    if as_json:
        print_json(rows)
        return
    print_records(rows)
    print("tokens are of prompts and responses, a prompt counted for each response")


def _print(summaries: Sequence[ScoreSummary], *, as_json: bool) -> None:
    from mrpo_tools.cache.parts import SCORES
    from mrpo_tools.progress import is_first_process

    rows = []
    for summary in summaries:
        counts = {status: summary.computed[status] for status in SCORES.statuses}
        names = {"scorer": summary.store.name, "identity": summary.store.short}
        counts = {"reused": summary.reused, "scored": counts.pop("ok"), **counts}
        rows.append({**names, **counts, "tokens": summary.tokens})
    print_timed(rows, [summary.seconds for summary in summaries], as_json=as_json)
    if is_first_process() and not as_json:
        name = summaries[0].store.name
        print(f"next: mrpo data show --score {name}, or mrpo train --score {name} …")
