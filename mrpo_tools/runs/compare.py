"""Methods side by side: mean ± std over seeds, differences paired by seed, and marks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from mrpo_tools.maths.statistics import PairedDifference, cohens_d, mean_and_std
from mrpo_tools.progress import say
from mrpo_tools.runs.columns import UNTRAINED, Column, columns_of
from mrpo_tools.runs.comparable import check_comparable
from mrpo_tools.runs.marks import Judged, Values, difference, is_crossed, judge
from mrpo_tools.runs.methods import MethodRuns, by_method
from mrpo_tools.runs.read import DATA_SPLIT, Replicate, Result, plain_names

NOT_COMPARABLE = (
    "The accuracy of the own reward is not comparable between methods: a reference that ranks well "
    "lowers it, one that ranks badly lifts it, with no training at all."
)
LONGER = "always the longer"
TIES = "ties"
"""In place of an untrained policy's accuracy where every pair was tied: no pair is ranked wrong."""


@dataclass(frozen=True)
class Cell:
    """One number of one method.

    Attributes:
        values: one for each run that measured it.
        mean: over runs; None without any.
        std: sample standard deviation; None for fewer than two.
        d: Cohen's d against the best baseline; None for that baseline itself and without spread.
        difference: to the best baseline, paired by seed; None for that baseline itself.
        p: of the difference to every baseline, corrected; None where nothing is marked.
        mark: `better` or `worse` than every baseline, or None.
        tied: whether the untrained policy tied every pair.
    """

    values: tuple[float, ...]
    mean: float | None = None
    std: float | None = None
    d: float | None = None
    difference: PairedDifference | None = None
    p: float | None = None
    mark: str | None = None
    tied: bool = False


@dataclass(frozen=True)
class Row:
    """A method with its evaluated seeds and its cells, by column key.

    Attributes:
        pairs: the fewest runs in the marked column that it shares with any baseline; None of
            baselines.
    """

    label: str
    baseline: bool
    seeds: tuple[int, ...]
    cells: dict[str, Cell]
    pairs: int | None = None


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
        columns: in order; the first is the one that is marked.
        rows: baselines first.
        untrained: each reference alone, and always preferring the longer.
    """

    split: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    untrained: tuple[Untrained, ...]

    @property
    def marked(self) -> Column:
        """The column that tells methods apart: an outcome where there is one."""
        return self.columns[0]

    @property
    def pairs(self) -> list[int]:
        """How many runs each method shares with every baseline, the fewest first."""
        return sorted(row.pairs for row in self.rows if row.pairs is not None)


def compare(
    results: Sequence[Result], split: str = "test", baselines: Sequence[str] = ()
) -> Comparison:
    """Group runs into methods and compare them.

    Runs of two methods with the same seed (and the same draw of the split) are a pair. In the
    first column a method is marked that differs from every baseline in one direction, by paired t
    tests with Holm's correction over the methods, from five pairs on (docs/methods.md §7). The
    baseline beside which differences and Cohen's d are shown is the one with the largest mean.

    Args:
        results: finished runs.
        split: that the evaluations are of.
        baselines: labels; none means DPO with a single reference.

    Raises:
        UsageError: no run was evaluated on the split, runs were measured on different data, or a
            baseline that is none of the methods.
    """
    methods = by_method(results)
    check_comparable(methods, split, baselines)
    is_baseline = [
        method.label in baselines if baselines else method.baseline for method in methods
    ]
    columns = columns_of([run for method in methods for run in method.runs])
    marked = [_values(method, columns[0]) for method in methods]
    judged = judge(marked, is_baseline)
    _tell_unpaired(methods, marked, is_baseline)
    cells = {column.key: _cells(column, methods, is_baseline) for column in columns}
    cells[columns[0].key] = _marked(cells[columns[0].key], judged)
    rows = tuple(
        Row(
            method.label,
            baseline,
            tuple(run.seed for run in method.runs if run.evaluation is not None),
            {key: of_column[place] for key, of_column in cells.items()},
            None if judgement is None else judgement.pairs,
        )
        for place, (method, baseline, judgement) in enumerate(
            zip(methods, is_baseline, judged, strict=True)
        )
    )
    return Comparison(split, columns, rows, _untrained(results))


def _values(method: MethodRuns, column: Column) -> dict[Replicate, float]:
    values = {run.replicate: column.of(run) for run in method.runs}
    return {each: value for each, value in values.items() if value is not None}


def _cells(
    column: Column, methods: Sequence[MethodRuns], is_baseline: Sequence[bool]
) -> list[Cell]:
    """A column's cell of each method, without marks."""
    values = [_values(method, column) for method in methods]
    measured = [place for place, of_method in enumerate(values) if of_method]
    rivals = [place for place in measured if is_baseline[place]]
    best = max(rivals, key=lambda place: fmean(values[place].values()), default=None)
    crossed = is_crossed(values)
    cells = []
    for place, (method, mine) in enumerate(zip(methods, values, strict=True)):
        if not mine:
            cells.append(Cell((), tied=_is_tied(column, method)))
            continue
        numbers = tuple(mine.values())
        beside = None if best in (None, place) else values[best]
        cells.append(
            Cell(
                numbers,
                *mean_and_std(numbers),
                None if beside is None else cohens_d(numbers, tuple(beside.values())),
                None if beside is None else difference(mine, beside, crossed=crossed),
            )
        )
    return cells


def _is_tied(column: Column, method: MethodRuns) -> bool:
    evaluations = [run.evaluation for run in method.runs if run.evaluation is not None]
    return (
        column.key == UNTRAINED
        and bool(evaluations)
        and all(evaluation.untrained_is_tied for evaluation in evaluations)
    )


def _marked(cells: Sequence[Cell], judged: Sequence[Judged | None]) -> list[Cell]:
    return [
        cell if verdict is None else replace(cell, p=verdict.p, mark=verdict.mark)
        for cell, verdict in zip(cells, judged, strict=True)
    ]


def _tell_unpaired(
    methods: Sequence[MethodRuns], values: Sequence[Values], is_baseline: Sequence[bool]
) -> None:
    """Warn of runs that no baseline's run pairs with."""
    places = [place for place, baseline in enumerate(is_baseline) if baseline and values[place]]
    for place, mine in enumerate(values):
        for other in places if mine and not is_baseline[place] else []:
            alone = sorted(mine.keys() ^ values[other].keys())
            if alone:
                say(
                    f"warning: {methods[place].label} and {methods[other].label} do not both have "
                    f"{', '.join(map(_named, alone))}: left out of their difference"
                )


def _named(replicate: Replicate) -> str:
    drawn = replicate.split_seed
    return f"seed {replicate.seed}" + ("" if drawn == DATA_SPLIT else f" (split seed {drawn})")


def _untrained(results: Sequence[Result]) -> tuple[Untrained, ...]:
    """Each reference alone and always the longer, over the draws of the split; every run of one
    draw has the same."""
    measured = [(run.replicate.split_seed, run.evaluation) for run in results if run.evaluation]
    names = plain_names(name for _, evaluation in measured for name in evaluation.references)
    summed: dict[str, dict[int, float]] = {}
    per_token: dict[str, dict[int, float]] = {}
    for drawn, evaluation in measured:
        for kind, values in (("summed", summed), ("per_token", per_token)):
            for name, accuracy in evaluation.references_alone(kind):
                if accuracy.value is not None:
                    of_draws = values.setdefault(f"{names[name]} alone", {})
                    of_draws.setdefault(drawn, accuracy.value)
    longer: dict[int, float] = {}
    for drawn, evaluation in measured:
        if evaluation.accuracies_longer is not None:
            longer.setdefault(drawn, evaluation.accuracies_longer)
    rows = [
        Untrained(what, fmean(values.values()), _mean(per_token.get(what)))
        for what, values in sorted(summed.items())
    ]
    return (*rows, Untrained(LONGER, fmean(longer.values()))) if longer else tuple(rows)


def _mean(of_draws: dict[int, float] | None) -> float | None:
    return fmean(of_draws.values()) if of_draws else None
