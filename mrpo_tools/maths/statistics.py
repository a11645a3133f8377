"""Comparing repeated measurements in plain numbers: seeds of a method, decisions of two raters.

The standard library alone, so that tables and reports need no torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev, variance

LARGE_ENOUGH = 0.5
"""Cohen's d from which MRPO's tables call a method better."""
CONFIDENCE = 0.95
"""Of intervals; a difference is marked where its corrected p is below 1 − this."""
NO_SPREAD = 1e-12
"""Differences whose deviation is a smaller share of the values are equal but for rounding."""


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; None for the deviation of a single value."""
    return fmean(values), stdev(values) if len(values) > 1 else None


def cohens_d(first: Sequence[float], second: Sequence[float]) -> float | None:
    """(m₁ − m₂) / √((s₁² + s₂²) / 2) with sample variances (docs/methods.md §5).

    Returns:
        None where a side has fewer than two values: nothing is known about its spread. Infinite
        where both sides are constant and differ, 0 where they are equal.

    Example:
        Means 4 and 2, variances 1 and 1:

        >>> cohens_d([3.0, 4.0, 5.0], [1.0, 2.0, 3.0])
        2.0
    """
    if len(first) < 2 or len(second) < 2:
        return None
    difference = fmean(first) - fmean(second)
    pooled = math.sqrt((variance(first) + variance(second)) / 2)
    if pooled > 0:
        return difference / pooled
    return math.copysign(math.inf, difference) if difference else 0.0


@dataclass(frozen=True)
class PairedDifference:
    """The mean difference of paired values, by Student's t.

    Attributes:
        mean: of first − second.
        low: of its 95 % interval; None where pairs without spread say nothing of chance.
        high: likewise.
        p: two-sided, of a difference this far from 0 by chance; None likewise, and 1 where every
            pair is equal.
        pairs: how many there are.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    pairs: int


def paired_difference(first: Sequence[float], second: Sequence[float]) -> PairedDifference | None:
    """first − second, pair by pair: mean ± t·s/√n with n − 1 degrees of freedom (Student 1908).

    Differences that are all the same have no spread to judge them by: repeats that change nothing
    are no repeats.

    Returns:
        None without a pair.

    Example:
        Differences 1, 2 and 3: mean 2, s 1, t 2√3 with two degrees of freedom:

        >>> difference = paired_difference([3.0, 5.0, 7.0], [2.0, 3.0, 4.0])
        >>> f"{difference.mean:.1f} ({difference.low:.2f} to {difference.high:.2f})"
        '2.0 (-0.48 to 4.48)'
    """
    differences = [one - other for one, other in zip(first, second, strict=True)]
    if not differences:
        return None
    mean, pairs = fmean(differences), len(differences)
    largest = max(map(abs, [*first, *second]))
    spread = stdev(differences) if pairs > 1 else 0.0
    if spread <= NO_SPREAD * largest:
        equal = pairs > 1 and abs(mean) <= NO_SPREAD * largest
        return PairedDifference(mean, None, None, 1.0 if equal else None, pairs)
    error = spread / math.sqrt(pairs)
    reach = t_quantile(pairs - 1) * error
    p = two_sided_p(mean / error, pairs - 1)
    return PairedDifference(mean, mean - reach, mean + reach, p, pairs)


def two_sided_p(t: float, freedom: int) -> float:
    """The probability that Student's t is at least so far from 0.

    The finite sums for whole degrees of freedom: Abramowitz & Stegun 26.7.3 and 26.7.4, with
    θ = arctan(t/√freedom).

    Args:
        t: any number.
        freedom: degrees of freedom, 1 or more.
    """
    angle = math.atan(abs(t) / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for step in range(1 + odd, freedom, 2):
        total += term
        term *= cosine**2 * step / (step + 1)
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return min(max(1.0 - inside, 0.0), 1.0)


@cache
def t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """The t that Student's t stays within, on both sides, with this probability; by bisection."""
    low, high = 0.0, 1.0
    while two_sided_p(high, freedom) > 1 - confidence:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        if two_sided_p(middle, freedom) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (1979): below α, the error of the whole family is too.

    The smallest of m is multiplied by m, the next by m − 1, …, each at least the one before.

    Example:
        >>> holm([0.01, 0.04, 0.02])
        [0.03, 0.04, 0.04]
    """
    adjusted = [0.0] * len(ps)
    largest = 0.0
    for done, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        largest = max(largest, min((len(ps) - done) * ps[place], 1.0))
        adjusted[place] = largest
    return adjusted


def cohens_kappa(both: int, first_only: int, second_only: int, neither: int) -> float | None:
    """Agreement of two raters' yes-or-no decisions beyond chance (Cohen 1960).

    κ = (p_o − p_e) / (1 − p_e), p_o the share of equal decisions, p_e that expected of independent
    raters with the same shares of yes.

    Args:
        both: decisions where both say yes.
        first_only: where the first alone does.
        second_only: where the second alone does.
        neither: where both say no.

    Returns:
        None where it is undefined: no decision, or both raters always say the same one thing.
    """
    total = both + first_only + second_only + neither
    if not total:
        return None
    observed = (both + neither) / total
    first, second = (both + first_only) / total, (both + second_only) / total
    expected = first * second + (1 - first) * (1 - second)
    return (observed - expected) / (1 - expected) if expected < 1 else None


def kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """The same of decisions among any names, pair by pair.

    Returns:
        None where it is undefined: no decision, or both raters always say the same one thing.

    Example:
        Two of four are alike; of independent raters (2·3 + 1·1 + 1·0) / 16 would be:

        >>> f"{kappa(['win', 'win', 'tie', 'loss'], ['win', 'win', 'win', 'tie']):.3f}"
        '0.111'
    """
    total = len(first)
    if not total:
        return None
    observed = sum(one == other for one, other in zip(first, second, strict=True)) / total
    shares, others = Counter(first), Counter(second)
    expected = sum(shares[name] * others[name] for name in shares) / total**2
    return (observed - expected) / (1 - expected) if expected < 1 else None
