"""Differences of two arms, paired by replicate: interval, exact test, and Holm over a family."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import TypeVar

from mrpo_tools.maths.statistics import holm, t_quantile

FLOOR = 5
"""Replicates below which nothing is tested."""
LEVELS = (0.95, 0.90)

Name = TypeVar("Name")
Scores = Mapping[int, float]
"""A number by replicate."""


@dataclass(frozen=True)
class Contrast:
    """One arm's score minus another's at one KL.

    Attributes:
        mean: over the replicates that have both, points of ten; None where there are none.
        intervals: (95 %, 90 %) of Student's t; None below two replicates.
        p: exact two-sided sign-flip; None below `FLOOR` replicates.
        replicates: that have both.
        adjusted: `p` after Holm; None where the contrast is not in the family.
    """

    mean: float | None
    intervals: tuple[tuple[float, float], tuple[float, float]] | None
    p: float | None
    replicates: int
    adjusted: float | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """95 %; nothing is known, from −∞ to ∞, below two replicates."""
        return self.intervals[0] if self.intervals else (-math.inf, math.inf)

    @property
    def narrow(self) -> tuple[float, float]:
        """90 %: it lies within a margin where both one-sided 5 % tests say so (TOST)."""
        return self.intervals[1] if self.intervals else (-math.inf, math.inf)


def contrast(first: Scores, second: Scores) -> Contrast:
    """First minus second, over the replicates that have both."""
    differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    count = len(differences)
    if not count:
        return Contrast(None, None, None, 0)
    mean = fmean(differences)
    intervals = None
    if count > 1:
        error = stdev(differences) / math.sqrt(count)
        wide, narrow = (t_quantile(count - 1, level) * error for level in LEVELS)
        intervals = (mean - wide, mean + wide), (mean - narrow, mean + narrow)
    return Contrast(mean, intervals, sign_flip(differences) if count >= FLOOR else None, count)


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided exact sign-flip test of mean 0 (Fisher's randomisation test for pairs).

    The share of all 2ⁿ assignments of signs whose sum is at least as far from 0 as the one seen.

    Example:
        Of eight assignments to 1, 2 and 3 two reach 6:

        >>> sign_flip([1.0, 2.0, 3.0])
        0.25
    """
    seen = abs(sum(differences))
    room = 1e-9 * max(map(abs, differences), default=0.0)
    sums = [
        abs(sum(sign * value for sign, value in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(each >= seen - room for each in sums) / len(sums)


def as_family(contrasts: Mapping[Name, Contrast]) -> dict[Name, Contrast]:
    """The same contrasts with Holm's adjusted p; those without a p stay out of the family."""
    tested = [name for name, each in contrasts.items() if each.p is not None]
    adjusted = holm([contrasts[name].p or 0.0 for name in tested])
    marks = dict(zip(tested, adjusted, strict=True))
    return {name: replace(each, adjusted=marks.get(name)) for name, each in contrasts.items()}


def best_of_others(arms: Mapping[str, Scores]) -> dict[int, float]:
    """For each replicate the score of the arm that is best on average over the *other* replicates.

    So the choice has not seen the replicate that it is judged in.

    Args:
        arms: scores of each candidate; replicates that one of them lacks are left out.
    """
    seeds = set.intersection(*(set(scores) for scores in arms.values()))
    best: dict[int, float] = {}
    for seed in sorted(seeds):
        others = seeds - {seed}
        if others:
            name = max(arms, key=lambda arm: fmean(arms[arm][other] for other in sorted(others)))
            best[seed] = arms[name][seed]
    return best
