"""What a table of methods has columns of: outcomes first, then preference accuracies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from mrpo_tools.runs.outcomes import Outcome
from mrpo_tools.runs.read import Result

LOGP = "accuracies_logp"
PER_TOKEN = "accuracies_logp_per_token"
UNTRAINED = "accuracies_step0"


@dataclass(frozen=True)
class Column:
    """A number that a run measured.

    Attributes:
        key: its name for programs: of a metric of evaluations, or of an outcome and what of it.
        title: for people.
        of: a run's number; None where it was not measured.
        scale: shown is value × scale.
        decimals: shown.
    """

    key: str
    title: str
    of: Callable[[Result], float | None]
    scale: float = 100.0
    decimals: int = 1

    @property
    def is_outcome(self) -> bool:
        """Whether it is of generated answers."""
        return self not in ACCURACIES


def _accuracy(key: str, title: str, scale: float = 100.0, decimals: int = 1) -> Column:
    """A column of evaluations; an untrained policy that ties every pair has no accuracy."""

    def of(result: Result) -> float | None:
        evaluation = result.evaluation
        if evaluation is None or (key == UNTRAINED and evaluation.untrained_is_tied):
            return None
        value: float | None = getattr(evaluation, key)
        return value

    return Column(key, title, of, scale, decimals)


ACCURACIES = (
    _accuracy(LOGP, "log-prob"),
    _accuracy(PER_TOKEN, "per token"),
    _accuracy("accuracies_reference_1", "vs reference 1"),
    _accuracy("margins", "margin", 1.0, 3),
    _accuracy(UNTRAINED, "own, untrained"),
    _accuracy("accuracies", "own reward"),
)
"""What is one thing for every method first, what is not comparable last."""


def columns_of(results: Sequence[Result]) -> tuple[Column, ...]:
    """Outcomes, KL from reference 1, accuracies; the first column is the one that is marked.

    Outcomes stand in the order of the runs, of sampled answers before greedy ones; one that fewer
    runs have stands behind those that more have.
    """
    outcomes: dict[str, Outcome] = {}
    runs: Counter[str] = Counter()
    distances: dict[str, Outcome] = {}
    for outcome in (outcome for result in results for outcome in outcomes_of(result)):
        outcomes.setdefault(outcome.key, outcome)
        runs[outcome.key] += outcome.mean is not None
        if outcome.kl_nats is not None:
            distances.setdefault(outcome.key, outcome)
    ordered = sorted(
        outcomes.values(), key=lambda each: (-runs[each.key], each.decoding != "sampled")
    )
    titles = _titles(ordered)
    columns = [
        _outcome(each, what, titles[each.key]) for each in ordered for what in _parts(each, results)
    ]
    nearest = next((each for each in ordered if each.key in distances), None)
    if nearest is not None:
        columns.append(_outcome(nearest, "kl_nats", ""))
    return (*columns, *ACCURACIES)


def outcomes_of(result: Result) -> list[Outcome]:
    """A run's outcomes; none where nothing was generated."""
    return [] if result.outcomes is None else result.outcomes.outcomes


def _parts(outcome: Outcome, results: Sequence[Result]) -> list[Literal["mean", "full"]]:
    """The mean score, and the share at full marks where scores have a largest."""
    full = [
        each.full for result in results for each in outcomes_of(result) if each.key == outcome.key
    ]
    return ["mean", "full"] if any(share is not None for share in full) else ["mean"]


def _titles(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """`sampled`, after the scorer where there are several, as briefly as tells them apart; a
    benchmark's task."""
    benchmarks = {outcome.key: outcome.scorer for outcome in outcomes if _is_benchmark(outcome)}
    outcomes = [outcome for outcome in outcomes if outcome.key not in benchmarks]
    scorers = list(dict.fromkeys(outcome.scorer for outcome in outcomes))
    brief = {scorer: scorer.rpartition(":")[2] for scorer in scorers}
    if len(set(brief.values())) < len(scorers):
        brief = {scorer: scorer for scorer in scorers}
    return benchmarks | {
        outcome.key: f"{brief[outcome.scorer]}, {outcome.decoding}"
        if len(scorers) > 1
        else outcome.decoding
        for outcome in outcomes
    }


def _is_benchmark(outcome: Outcome) -> bool:
    return outcome.kind == "benchmark"


def _outcome(outcome: Outcome, what: Literal["mean", "full", "kl_nats"], title: str) -> Column:
    key = outcome.key

    def of(result: Result) -> float | None:
        values = [each for each in outcomes_of(result) if each.key == key]
        return values[0].estimate(what).value if values else None

    shown: dict[str, tuple[str, float, int]] = {
        "mean": (f"score, {title}", 1.0, 3),
        "full": (f"full marks, {title}", 100.0, 1),
        "kl_nats": ("KL, nats", 1.0, 2),
    }
    if _is_benchmark(outcome):
        shown["mean"] = (title, 100.0, 1)
    return Column(f"{key} {what}", shown[what][0], of, *shown[what][1:])
