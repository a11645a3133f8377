"""Methods side by side: mean ± std over seeds, marked as in MRPO's Tables 1 and 5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mrpo_tools.errors import UsageError, did_you_mean
from mrpo_tools.maths.statistics import LARGE_ENOUGH, cohens_d, mean_and_std
from mrpo_tools.progress import say
from mrpo_tools.runs.methods import MethodRuns, by_method
from mrpo_tools.runs.read import Result, plain_names

NOT_COMPARABLE = (
    "The accuracy of the own reward is not comparable between methods: a reference that ranks well "
    "lowers it, one that ranks badly lifts it, with no training at all."
)
BEST, SECOND = "best", "second"
LONGER = "always the longer"


@dataclass(frozen=True)
class Column:
    """A metric of evaluations.

    Attributes:
        key: its name in `RUN/evaluation/<split>.json`.
        title: for people.
        scale: shown is value × scale.
        decimals: shown.
        marked: whether the best is marked: only what is one thing for every method.
    """

    key: str
    title: str
    scale: float = 100.0
    decimals: int = 1
    marked: bool = False


COLUMNS = (
    Column("accuracies_logp", "log-prob", marked=True),
    Column("accuracies_logp_per_token", "per token"),
    Column("accuracies_reference_1", "vs reference 1"),
    Column("margins", "margin", 1.0, 3),
    Column("accuracies_step0", "own, untrained"),
    Column("accuracies", "own reward"),
)
"""What is one thing for every method first, what is not comparable last."""


@dataclass(frozen=True)
class Cell:
    """One metric of one method.

    Attributes:
        values: one for each seed that was evaluated.
        mean: over seeds; None without any.
        std: sample standard deviation; None for fewer than two.
        d: Cohen's d against the best baseline; None for that baseline itself and without spread.
        mark: `best`, `second` or None.
    """

    values: tuple[float, ...]
    mean: float | None = None
    std: float | None = None
    d: float | None = None
    mark: str | None = None


@dataclass(frozen=True)
class Row:
    """A method with its evaluated seeds and its cells, by column key."""

    label: str
    baseline: bool
    seeds: tuple[int, ...]
    cells: dict[str, Cell]


@dataclass(frozen=True)
class Untrained:
    """Accuracies that need no training.

    Attributes:
        what: prefers.
        summed: by the log-prob of the whole response, or its length.
        per_token: by the mean log-prob of a token; None where that was not measured.
    """

    what: str
    summed: float
    per_token: float | None = None


@dataclass(frozen=True)
class Comparison:
    """A table of methods, and accuracies that need no training at all.

    Attributes:
        split: of the evaluations.
        columns: in order.
        rows: baselines first.
        untrained: each reference alone, and always preferring the longer.
    """

    split: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    untrained: tuple[Untrained, ...]


def compare(
    results: Sequence[Result], split: str = "test", baselines: Sequence[str] = ()
) -> Comparison:
    """Group runs into methods and compare them.

    The best baseline of a column is the one with the largest mean. In a marked column, the largest
    mean is `best` if it is a clear one: Cohen's d of at least 0.5 against the best baseline, or, if
    it is that baseline itself, against every other method. The second largest is `second`.

    Args:
        results: finished runs.
        split: that the evaluations are of.
        baselines: labels; none means DPO with a single reference.

    Raises:
        UsageError: no run was evaluated on the split, or a baseline that is none of the methods.
    """
    methods = by_method(results)
    _check(methods, split, baselines)
    is_baseline = [
        method.label in baselines if baselines else method.baseline for method in methods
    ]
    columns = [_column(column, methods, is_baseline) for column in COLUMNS]
    rows = tuple(
        Row(
            method.label,
            baseline,
            tuple(run.seed for run in method.runs if run.evaluation is not None),
            {column.key: cells[place] for column, cells in zip(COLUMNS, columns, strict=True)},
        )
        for place, (method, baseline) in enumerate(zip(methods, is_baseline, strict=True))
    )
    return Comparison(split, COLUMNS, rows, _untrained(results))


def _check(methods: Sequence[MethodRuns], split: str, baselines: Sequence[str]) -> None:
    labels = [method.label for method in methods]
    for wanted in baselines:
        if wanted not in labels:
            raise UsageError(
                f"no method is labelled {wanted!r}; there are: {', '.join(labels)}",
                did_you_mean(wanted, labels),
            )
    runs = [run for method in methods for run in method.runs]
    missing = [run for run in runs if run.evaluation is None]
    if len(missing) == len(runs):
        raise UsageError(
            f"no run was evaluated on split {split!r}", f"mrpo evaluate RUN --split {split}"
        )
    for run in missing:
        say(f"warning: {run.path} was not evaluated on split {split!r}: mrpo evaluate {run.path}")
    for run in runs:
        if run.evaluation and run.evaluation.hardly_moved:
            say(f"warning: {run.path}: {run.evaluation.hardly_moved}")
    _check_data(runs, split)
    sizes = {run.evaluation.groups for run in runs if run.evaluation}
    if len(sizes) > 1:
        say("warning: the runs were evaluated on different numbers of groups")


def _check_data(runs: Sequence[Result], split: str) -> None:
    """Refuse evaluations of different groups; older ones do not say which theirs were."""
    first: dict[str, Result] = {}
    for run in runs:
        if run.evaluation and run.evaluation.groups_hash:
            first.setdefault(run.evaluation.groups_hash, run)
    if len(first) > 1:
        named = ", ".join(f"{run.path} (groups {key[:8]})" for key, run in first.items())
        raise UsageError(
            f"split {split!r} was not the same groups for all runs: {named}",
            f"mrpo evaluate RUN --split {split} with the same data for all, or compare them apart",
        )


def _values(method: MethodRuns, key: str) -> tuple[float, ...]:
    evaluations = [run.evaluation for run in method.runs if run.evaluation]
    if key == "accuracies_step0":
        evaluations = [each for each in evaluations if not each.untrained_is_tied]
    values = [getattr(evaluation, key) for evaluation in evaluations]
    return tuple(value for value in values if value is not None)


def _column(
    column: Column, methods: Sequence[MethodRuns], is_baseline: Sequence[bool]
) -> list[Cell]:
    """A column's cell of each method."""
    values = [_values(method, column.key) for method in methods]
    summary = {place: mean_and_std(seeds) for place, seeds in enumerate(values) if seeds}
    order = sorted(summary, key=lambda place: -summary[place][0])
    best_baseline = next((place for place in order if is_baseline[place]), None)
    effects: dict[int, float | None] = {}
    if best_baseline is not None:
        effects = {
            place: cohens_d(values[place], values[best_baseline])
            for place in summary
            if place != best_baseline
        }
    marks: dict[int, str] = {}
    if column.marked and len(order) > 1:
        if _is_clear(order, best_baseline, values):
            marks[order[0]] = BEST
        marks[order[1]] = SECOND
    return [
        Cell(seeds, *summary[place], effects.get(place), marks.get(place)) if seeds else Cell(())
        for place, seeds in enumerate(values)
    ]


def _is_clear(
    order: Sequence[int], best_baseline: int | None, values: Sequence[tuple[float, ...]]
) -> bool:
    """Whether the first of the order is better by d ≥ 0.5 than what it is measured against."""
    if best_baseline is None:
        return False
    rivals = order[1:] if order[0] == best_baseline else [best_baseline]
    effects = [cohens_d(values[order[0]], values[rival]) for rival in rivals]
    return all(d is not None and d >= LARGE_ENOUGH for d in effects)


def _untrained(results: Sequence[Result]) -> tuple[Untrained, ...]:
    """Each reference alone and always the longer; every run of the same data has the same."""
    evaluations = [result.evaluation for result in results if result.evaluation is not None]
    names = plain_names(name for evaluation in evaluations for name in evaluation.references)
    alone: dict[str, Untrained] = {}
    longer: float | None = None
    for evaluation in evaluations:
        per_token = dict(evaluation.references_alone("per_token"))
        for name, accuracy in evaluation.references_alone():
            if accuracy.value is not None:
                what = f"{names[name]} alone"
                beside = per_token[name].value if name in per_token else None
                alone.setdefault(what, Untrained(what, accuracy.value, beside))
        longer = evaluation.accuracies_longer if longer is None else longer
    rows = tuple(alone[what] for what in sorted(alone))
    return rows if longer is None else (*rows, Untrained(LONGER, longer))
