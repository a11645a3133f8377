"""`mrpo evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mrpo_tools.cli.options import (
    cache_option,
    dataset_of,
    dataset_options,
    json_option,
    print_json,
    print_table,
    read_groups,
    with_interval,
)

if TYPE_CHECKING:
    from mrpo_tools.config import Project, Reference
    from mrpo_tools.runs.run import Run

LONGER = "always the longer (a tie counts 0)"


@click.command()
@click.argument("run_or_model", metavar="RUN_OR_MODEL")
@click.option(
    "--refs", metavar="A,B,…", help="What a model is compared with.  [default: the project's]"
)
@dataset_options
@click.option("--split", default="test", show_default=True, help="`all` for everything.")
@click.option("--precompute", is_flag=True, help="Score what the references have no numbers for.")
@cache_option
@json_option
def evaluate(run_or_model: str, refs: str | None, split: str, **options: Any) -> None:
    """Measure a policy on held-out groups: a run, or any model.

    Prints, with 95 % intervals (bootstrap over prompts), the method's own accuracy, the same for
    the untrained policy, against reference 1 and by log-prob alone; each reference's own accuracy;
    and that of always preferring the longer answer. A model is a name of the project, a directory
    or a hub id; its own reward is that of MRPO against the references.

    \b
    Example:
        mrpo evaluate runs/mrpo --split test
        mrpo evaluate Qwen/Qwen2.5-0.5B-Instruct --refs llama,qwen --precompute
    """
    from mrpo_tools.config import load_project
    from mrpo_tools.runs.run import is_run, load_run

    project = load_project()
    path = Path(run_or_model)
    model = None if is_run(path) else _model(run_or_model, project)
    metrics = (
        _of_run(load_run(path), refs, split, project, options)
        if model is None
        else _of_model(run_or_model, model, refs, split, project, options)
    )
    if options["as_json"]:
        print_json(metrics)
    else:
        _print(metrics)


def _model(word: str, project: Project) -> Reference | None:
    """The model that a word means; None where it looks like a run."""
    from mrpo_tools.config import Reference

    if word in project.references:
        return project.references[word]
    path = Path(word).expanduser()
    looks_like_hub = word.count("/") == 1 and not path.exists() and not path.parent.exists()
    return Reference(model=word) if (path / "config.json").exists() or looks_like_hub else None


def _of_run(
    run: Run, refs: str | None, split: str, project: Project, options: dict[str, Any]
) -> dict[str, Any]:
    from mrpo_tools.cache import Cache
    from mrpo_tools.config import Project, pinned
    from mrpo_tools.errors import UsageError

    if refs is not None:
        raise UsageError(
            f"{run.path} is a run: it is compared with its own references", "leave --refs out"
        )
    recorded = Project(dataset=run.record["dataset"])
    dataset = dataset_of(recorded if recorded.dataset else project, options)
    source = read_groups(dataset)
    from mrpo_tools.evaluation.evaluate import evaluate as verb
    from mrpo_tools.progress import say

    cache = Cache(options["cache"] or run.record["cache"])
    _precompute(run.reference_stores, source, cache, project, split, options)
    found = verb(run, source.groups, cache, split, pinned(dataset, source.revision))
    if found.path is not None and found.path.stem != split:
        say(f"these are not the run's own data: kept apart, in {found.path}")
    return found.metrics


def _of_model(
    word: str,
    model: Reference,
    refs: str | None,
    split: str,
    project: Project,
    options: dict[str, Any],
) -> dict[str, Any]:
    from mrpo_tools.cache import Cache

    names = list(project.references) if refs is None else [one for one in refs.split(",") if one]
    source = read_groups(dataset_of(project, options))
    from mrpo_tools.evaluation.evaluate import evaluate_model

    cache = Cache(options["cache"] or project.cache)
    _precompute(names, source, cache, project, split, options)
    name = word if word in project.references else "model"
    found = evaluate_model(
        name, model, source.groups, cache, names, split, project.references
    ).metrics
    return {**found, "model": word}


def _precompute(
    names: list[str],
    source: Any,
    cache: Any,
    project: Project,
    split: str,
    options: dict[str, Any],
) -> None:
    """With --precompute: the references' missing numbers."""
    if not options["precompute"] or not names:
        return
    from mrpo_tools.evaluation.evaluate import references_to_score
    from mrpo_tools.precomputing.precompute import precompute

    references = references_to_score(names, cache, project.references)
    precompute(references, source.groups, cache, source.name, split)


def _print(found: dict[str, Any]) -> None:
    from mrpo_tools.runs.compare import NOT_COMPARABLE

    def shown(value: float | None, ends: list[float | None] | None) -> str:
        low, high = ends or (None, None)
        return with_interval({"value": value, "low": low, "high": high})

    untrained = "reference 1" if "model" in found else "untrained"
    labels = {
        "accuracies": "own reward",
        "accuracies_step0": f"own reward, {untrained}",
        "accuracies_reference_1": "against reference 1",
        "accuracies_logp": "log-prob",
        "accuracies_logp_step0": f"log-prob, {untrained}",
    }
    intervals = found["intervals"]
    rows = [
        (label, shown(found[key], intervals[key])) for key, label in labels.items() if key in found
    ]
    names = [f"reference {name.partition('@')[0]} alone" for name in found["references"]]
    alone = found["reference_accuracies"]["summed"]
    ends = intervals["reference_accuracies"]["summed"]
    rows += [(name, shown(*one)) for name, *one in zip(names, alone, ends, strict=True)]
    rows.append((LONGER, shown(found["accuracies_longer"], intervals["accuracies_longer"])))
    print_table(("accuracy by", found.get("loss") or found["model"]), rows)
    if found["margins"] is None:
        print(f"no group of split {found['split']} has a pair")
    else:
        before = found.get("margins_step0")
        known = "" if before is None else f" ({untrained} {before:.4f})"
        print(
            f"margin {found['margins']:.4f}{known} on {found['groups']:,} groups of split "
            f"{found['split']}"
        )
    print(NOT_COMPARABLE)
