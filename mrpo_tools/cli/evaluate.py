"""`mrpo evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mrpo_tools.cli.benchmarks import harness_options, print_benchmarks, wanted_of
from mrpo_tools.cli.completion import references, runs, scorers
from mrpo_tools.cli.help import Command
from mrpo_tools.cli.leaks import own_groups, refuse_others, warn_of_leaks
from mrpo_tools.cli.options import (
    cache_option,
    dataset_of,
    json_option,
    print_json,
    print_table,
    read_groups,
    scored_dataset_options,
    truncated_option,
    with_interval,
)
from mrpo_tools.cli.outcomes import print_outcomes, rule_options, sampling_of
from mrpo_tools.cli.scorers import pinned_scores, reward_model_option, scorer_word, scorers_named

if TYPE_CHECKING:
    from mrpo_tools.cache import Cache
    from mrpo_tools.config import Project, Reference
    from mrpo_tools.evaluation.harness import Wanted
    from mrpo_tools.runs.outcomes import OutcomesRecord
    from mrpo_tools.runs.record import EvaluationRecord
    from mrpo_tools.runs.run import Run
    from mrpo_tools.scoring import Scorer
    from mrpo_tools.sources import Source

LONGER = "always the longer (a tie counts 0)"
TIED = "– (every pair is tied)"


@click.command(cls=Command)
@click.argument("subjects", metavar="RUN_OR_MODEL…", nargs=-1, required=True, shell_complete=runs)
@click.option(
    "--refs", metavar="A,B,…", shell_complete=references,
    help="What a model is compared with.  [default: the project's]",
)  # fmt: skip
@scored_dataset_options
@click.option("--split", default="test", show_default=True, help="`all` for everything.")
@truncated_option
@click.option("--precompute", is_flag=True, help="Compute what the references have no numbers for.")
@rule_options
@reward_model_option
@click.option("--held-out-score", metavar="NAME", shell_complete=scorers,
              help="Scorer whose mean stands beside.  [default: the recipe's]")  # fmt: skip
@harness_options
@cache_option
@json_option
def evaluate(subjects: tuple[str, ...], refs: str | None, split: str, **options: Any) -> None:
    """Measure policies on held-out groups: runs, or any models.

    With --rule or --reward-model, first what matters: the mean score of generated answers, greedy
    and sampled, before training and after, and KL(π‖reference 1) of the samples. Then, with 95 %
    intervals (bootstrap over prompts), the method's own accuracy, the same for the untrained
    policy, against reference 1 and by log-prob alone; each reference's own accuracy; and that of
    always preferring the longer answer. A model is a name of the project, a directory or a hub id;
    its own reward is that of MRPO against the references.

    \b
    Example:
        mrpo evaluate runs/mrpo --split test
        mrpo evaluate runs/mrpo --rule rules:score --samples 4
        mrpo evaluate runs/mrpo --reward-model skywork=Skywork/Skywork-Reward-Llama-3.1-8B-v0.2
        mrpo evaluate runs/mrpo --harness glu
        mrpo evaluate runs/*
        mrpo evaluate Qwen/Qwen2.5-0.5B-Instruct --refs llama,qwen --precompute
    """
    from mrpo_tools.config import load_project
    from mrpo_tools.runs.run import is_run

    project = load_project()
    options["scorer"] = scorer_word(options)
    wanted = wanted_of(options)
    records = []
    for subject in subjects:
        benchmarks = None if wanted is None else _benchmarks(subject, wanted, project, options)
        if wanted is not None and benchmarks is not None and not options["as_json"]:
            print_benchmarks(benchmarks, wanted)
        record, outcomes = _records(
            subject, refs=refs, split=split, project=project, options=options
        )
        beside = {} if outcomes is None else {"outcomes": outcomes.as_json()}
        beside |= {} if benchmarks is None else {"benchmarks": benchmarks.as_json()}
        records.append(beside | record.as_json())
        if not options["as_json"]:
            if len(subjects) > 1:
                print(f"\n{subject}")
            if outcomes is not None:
                print_outcomes(outcomes)
            _print(record)
    if options["as_json"]:
        print_json(records if len(records) > 1 else records[0])
    elif runs := " ".join(subject for subject in subjects if is_run(Path(subject))):
        print(f"next: mrpo compare {runs}, or mrpo report {runs}")
    else:
        print(f"next: mrpo generate {subjects[0]} -o answers.jsonl")


def _benchmarks(
    subject: str, wanted: Wanted, project: Project, options: dict[str, Any]
) -> OutcomesRecord:
    """The tasks of the harness, of a run beside its untrained policy or of a model."""
    from mrpo_tools.cache import Cache
    from mrpo_tools.config import DEFAULT_CACHE
    from mrpo_tools.evaluation.benchmarks import measure_benchmarks, model_benchmarks
    from mrpo_tools.runs.run import is_run, load_run

    model = None if is_run(Path(subject)) else _model(subject, project)
    if model is not None:
        return model_benchmarks(model, wanted, Cache(options["cache"] or project.cache))
    run = load_run(Path(subject))
    return measure_benchmarks(
        run, wanted, Cache(options["cache"] or run.record.cache or DEFAULT_CACHE)
    )


Records = tuple["EvaluationRecord", "OutcomesRecord | None"]


def _records(
    subject: str, *, refs: str | None, split: str, project: Project, options: dict[str, Any]
) -> Records:
    """What is measured of a run or of a model."""
    from mrpo_tools.runs.run import is_run, load_run

    model = None if is_run(Path(subject)) else _model(subject, project)
    if model is None:
        run = load_run(Path(subject))
        return _of_run(run=run, refs=refs, split=split, project=project, options=options)
    return _of_model(
        word=subject, model=model, refs=refs, split=split, project=project, options=options
    )


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
) -> Records:
    from mrpo_tools.cache import Cache
    from mrpo_tools.config import DEFAULT_CACHE, pinned

    refuse_others(run, refs, options["truncated"])
    recorded = project.model_copy(update={"dataset": run.record.dataset or project.dataset})
    dataset = dataset_of(recorded, options)
    source = read_groups(dataset)
    from mrpo_tools.evaluation.evaluate import evaluate as verb
    from mrpo_tools.progress import say

    cache = Cache(options["cache"] or run.record.cache or DEFAULT_CACHE)
    scorers = scorers_named(options, project, cache)
    by = pinned_scores(options["scorer"], cache, project)
    if options["precompute"]:
        _precompute(
            names=run.record.references, source=source, cache=cache, project=project, split=split
        )
    named = pinned(dataset, source.revision)
    held_out = _held_out(options["held_out_score"], run.recipe.held_out_score, project, cache)
    evaluation = verb(run, source.groups, cache, split, named, own_groups(run, named), by)
    warn_of_leaks(run, evaluation.record)
    if evaluation.path is not None and evaluation.path.stem != split:
        say(f"these are not the run's own data or scores: kept apart, in {evaluation.path}")
    from mrpo_tools.evaluation.outcomes import measure_outcomes, measured_outcomes

    if not scorers and options["held_out_score"] is None:
        return evaluation.record, measured_outcomes(run, source.groups, split, named)
    outcomes = measure_outcomes(
        run, source.groups, scorers, cache, sampling_of(options), split, named, held_out
    )
    return evaluation.record, outcomes


def _held_out(
    named: str | None, recorded: str | None, project: Project, cache: Cache
) -> list[Scorer]:
    """The held-out scorer: as named, or the recipe's where it can be had."""
    from mrpo_tools.errors import UsageError
    from mrpo_tools.progress import say
    from mrpo_tools.scoring.named import scorer_named

    if named is None and recorded is None:
        return []
    try:
        return [scorer_named(named or recorded or "", project.scorers, cache)]
    except UsageError as error:
        if named is not None:
            raise
        say(f"note: the run's held-out scorer takes no part: {error}")
        return []


def _of_model(
    word: str,
    model: Reference,
    refs: str | None,
    split: str,
    project: Project,
    options: dict[str, Any],
) -> Records:
    from mrpo_tools.cache import Cache

    names = list(project.references) if refs is None else [name for name in refs.split(",") if name]
    source = read_groups(dataset_of(project, options))
    from mrpo_tools.evaluation.evaluate import evaluate_model

    cache = Cache(options["cache"] or project.cache)
    scorers = scorers_named(options, project, cache)
    by = pinned_scores(options["scorer"], cache, project)
    if options["precompute"]:
        _precompute(names=names, source=source, cache=cache, project=project, split=split)
    known = project.references
    record = evaluate_model(
        word if word in known else "model", model, source.groups, cache, names, split, known,
        options["truncated"] or "drop", by,
    ).record  # fmt: skip
    record = record.model_copy(update={"model": word})
    held_out = _held_out(options["held_out_score"], None, project, cache)
    if not scorers and not held_out:
        return record, None
    from mrpo_tools.evaluation.outcomes import model_outcomes

    return record, model_outcomes(
        model, source.groups, scorers, cache, sampling_of(options), split,
        next(iter(names), None), held_out,
    )  # fmt: skip


def _precompute(
    names: list[str], source: Source, cache: Cache, project: Project, split: str
) -> None:
    """The references' missing numbers."""
    if not names:
        return
    from mrpo_tools.evaluation.evaluate import references_to_compute
    from mrpo_tools.precomputing.precompute import precompute

    references = references_to_compute(names, cache, project.references)
    precompute(
        references=references, groups=source.groups, cache=cache, dataset=source.name, split=split
    )


def _print(record: EvaluationRecord) -> None:
    from mrpo_tools.runs.compare import NOT_COMPARABLE

    untrained = "untrained" if record.model is None else "reference 1"
    labels = {
        "accuracies": "own reward",
        "accuracies_step0": f"own reward, {untrained}",
        "accuracies_reference_1": "against reference 1",
        "accuracies_logp": "log-prob",
        "accuracies_logp_per_token": "log-prob per token",
        "accuracies_logp_step0": f"log-prob, {untrained}",
    }
    estimates = [(label, record.estimate(metric)) for metric, label in labels.items()]
    estimates += [
        (f"reference {name.partition('@')[0]} alone", accuracy)
        for name, accuracy in record.references_alone()
    ]
    estimates.append((LONGER, record.estimate("accuracies_longer")))
    own = f"own reward, {untrained}"
    rows = [
        (label, TIED if label == own and record.untrained_is_tied else with_interval(value))
        for label, value in estimates
        if value is not None
    ]
    print_table(("accuracy by", record.loss or record.model or ""), rows)
    if record.margins is None:
        print(f"no group of split {record.split} has a pair")
    else:
        before = record.margins_step0
        beside = "" if before is None else f" ({untrained} {before:.4f})"
        print(
            f"margin {record.margins:.4f}{beside} on {record.groups:,} groups of split "
            f"{record.split}"
        )
    if record.parts:
        _print_parts(record)
    if record.hardly_moved:
        print(record.hardly_moved)
    print(NOT_COMPARABLE)


def _print_parts(record: EvaluationRecord) -> None:
    """The policy as a reward model on each part of the data."""
    rows = []
    for name, part in record.parts.items():
        own, first = part.estimate("accuracies"), part.estimate("top1")
        rows.append(
            (
                name,
                f"{part.groups:,}",
                "–" if own is None else with_interval(own),
                "–" if first is None else with_interval(first),
            )
        )
    print_table(("accuracy by part, own reward", "groups", "of pairs", "of the best"), rows)
