"""Comparing repeated measurements in plain numbers: seeds of a method, decisions of two raters.

The standard library alone, so that tables and reports need no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev, variance

LARGE_ENOUGH = 0.5
"""Cohen's d from which MRPO's tables call a method better."""


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
