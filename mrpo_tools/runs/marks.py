"""Which methods differ from the baselines by more than chance: pairs of runs, Holm's correction.

A method is better where it is better than *every* baseline: its p is the largest of those against
each of them, which needs no correction for how many there are (an intersection-union test, Berger
1982) and does not depend on which baseline happens to look best. Over methods Holm corrects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeAlias

from mrpo_tools.maths.statistics import CONFIDENCE, PairedDifference, holm, paired_difference
from mrpo_tools.runs.read import Replicate

BETTER, WORSE = "better", "worse"
FEWEST_PAIRS = 5
"""Below, nothing is marked: an interval of so few rests on the shape of chance alone."""

Values: TypeAlias = Mapping[Replicate, float]
"""A method's number in each of its runs that measured it."""


@dataclass(frozen=True)
class Judged:
    """A method beside all baselines.

    Attributes:
        pairs: the fewest that it has with any of them.
        p: of the difference to every baseline, by Holm over the methods; None for fewer pairs
            than `FEWEST_PAIRS`.
        mark: `better` or `worse` than every baseline, or None.
    """

    pairs: int
    p: float | None = None
    mark: str | None = None


def difference(first: Values, second: Values, *, crossed: bool) -> PairedDifference | None:
    """first − second over the runs that both have; None without any.

    Args:
        first: of one method.
        second: of another.
        crossed: whether several runs share a split that was drawn anew. They share its data, so
            they are averaged first and the split is the pair.
    """
    pairs: dict[Replicate, list[Replicate]] = {}
    for each in sorted(first.keys() & second.keys()):
        unit = Replicate(0, each.split_seed) if crossed else each
        pairs.setdefault(unit, []).append(each)
    return paired_difference(
        [fmean(first[each] for each in same) for same in pairs.values()],
        [fmean(second[each] for each in same) for same in pairs.values()],
    )


def is_crossed(methods: Sequence[Values]) -> bool:
    """Whether any seed was trained on several draws of the split."""
    replicates = {each for values in methods for each in values}
    return len({each.seed for each in replicates}) < len(replicates)


def judge(methods: Sequence[Values], is_baseline: Sequence[bool]) -> list[Judged | None]:
    """Each method against every baseline; None for baselines, and where there is none."""
    crossed = is_crossed(methods)
    baselines = [values for values, baseline in zip(methods, is_baseline, strict=True) if baseline]
    beside = [
        None
        if baseline or not values or not baselines
        else [difference(values, other, crossed=crossed) for other in baselines]
        for values, baseline in zip(methods, is_baseline, strict=True)
    ]
    pairs = [
        None if many is None else min(0 if one is None else one.pairs for one in many)
        for many in beside
    ]
    places = [place for place, fewest in enumerate(pairs) if fewest and fewest >= FEWEST_PAIRS]
    against = {place: [one for one in beside[place] or [] if one is not None] for place in places}
    adjusted = dict(zip(places, holm([_p(against[place]) for place in places]), strict=True))
    return [
        None if fewest is None else _judged(fewest, against.get(place, []), adjusted.get(place))
        for place, fewest in enumerate(pairs)
    ]


def _p(against: Sequence[PairedDifference]) -> float:
    """Of being better than every baseline, or worse than every one."""
    if not (all(one.mean > 0 for one in against) or all(one.mean < 0 for one in against)):
        return 1.0
    return max(1.0 if one.p is None else one.p for one in against)


def _judged(pairs: int, against: Sequence[PairedDifference], p: float | None) -> Judged:
    if p is None or p >= 1 - CONFIDENCE:
        return Judged(pairs, p)
    return Judged(pairs, p, BETTER if against[0].mean > 0 else WORSE)
