"""A logistic line through shares: what remains of a win rate once a difference is taken out.

The standard library alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

STEPS = 100
FARTHEST = 25.0
"""Logits beyond which a line is none: some difference decides every outcome."""
NORMAL = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""


@dataclass(frozen=True)
class LogisticLine:
    """log(p / (1 − p)) = intercept + slope · x / scale.

    Attributes:
        intercept: logit at x = 0.
        slope: logits for one standard deviation of x.
        intercept_error: standard error, robust to repeated clusters.
        slope_error: likewise.
        scale: the standard deviation of x.
    """

    intercept: float
    slope: float
    intercept_error: float
    slope_error: float
    scale: float

    @property
    def at_zero(self) -> tuple[float, float, float]:
        """p at x = 0 with its 95 % interval, on the scale of logits."""
        room = NORMAL * self.intercept_error
        low, high = self.intercept - room, self.intercept + room
        return sigmoid(self.intercept), sigmoid(low), sigmoid(high)


def sigmoid(logit: float) -> float:
    """1 / (1 + e^−logit), without overflow."""
    if logit < 0:
        return math.exp(logit) / (1.0 + math.exp(logit))
    return 1.0 / (1.0 + math.exp(-logit))


def logistic_line(
    outcomes: Sequence[float], xs: Sequence[float], clusters: Sequence[object] | None = None
) -> LogisticLine | None:
    """The line that makes outcomes in [0, 1] likeliest, a share counting as so much of each.

    Newton's method; standard errors are the sandwich of scores summed over clusters (Liang & Zeger
    1986), times C/(C − 1), so a tie that is no coin needs no variance of one.

    Args:
        outcomes: n, 0.5 for a tie.
        xs: n differences.
        clusters: n, what outcomes share; None for one each.

    Returns:
        None where no finite line is likeliest: xs are all the same, or some value of x parts the
        wins from the losses; or with fewer than three clusters.
    """
    names = list(range(len(xs))) if clusters is None else list(clusters)
    scale = pstdev(xs) if len(xs) > 1 else 0.0
    if scale <= 0 or len(set(names)) < 3:
        return None
    scaled = [x / scale for x in xs]
    line = _fit(outcomes, scaled)
    if line is None:
        return None
    intercept, slope = line
    ps = [sigmoid(intercept + slope * x) for x in scaled]
    bread = _inverse(*_information(ps, scaled))
    sums: dict[object, tuple[float, float]] = {}
    for name, y, p, x in zip(names, outcomes, ps, scaled, strict=True):
        one, other = sums.get(name, (0.0, 0.0))
        sums[name] = (one + y - p, other + (y - p) * x)
    factor = len(sums) / (len(sums) - 1)
    errors = [
        math.sqrt(factor * sum((row[0] * u + row[1] * v) ** 2 for u, v in sums.values()))
        for row in ((bread[0], bread[1]), (bread[1], bread[2]))
    ]
    return LogisticLine(intercept, slope, errors[0], errors[1], scale)


def _fit(outcomes: Sequence[float], xs: Sequence[float]) -> tuple[float, float] | None:
    mean = fmean(outcomes)
    if not 0 < mean < 1:
        return None
    intercept, slope = math.log(mean / (1 - mean)), 0.0
    for _ in range(STEPS):
        ps = [sigmoid(intercept + slope * x) for x in xs]
        rest = [y - p for y, p in zip(outcomes, ps, strict=True)]
        gradient = sum(rest), sum(r * x for r, x in zip(rest, xs, strict=True))
        a, b, c = _information(ps, xs)
        if a * c - b * b <= 1e-12 * len(xs) ** 2:
            return None
        a, b, c = _inverse(a, b, c)
        steps = a * gradient[0] + b * gradient[1], b * gradient[0] + c * gradient[1]
        room = max(1.0, *map(abs, steps))  # no step longer than 1: far off, Newton's overshoots
        intercept, slope = intercept + steps[0] / room, slope + steps[1] / room
        if max(abs(intercept), abs(slope)) > FARTHEST:
            return None
        if max(map(abs, steps)) < 1e-10:
            return intercept, slope
    return None


def _information(ps: Sequence[float], xs: Sequence[float]) -> tuple[float, float, float]:
    """The symmetric 2 × 2 matrix of Fisher's information, row by row."""
    weights = [p * (1 - p) for p in ps]
    return (
        sum(weights),
        sum(w * x for w, x in zip(weights, xs, strict=True)),
        sum(w * x * x for w, x in zip(weights, xs, strict=True)),
    )


def _inverse(a: float, b: float, c: float) -> tuple[float, float, float]:
    determinant = a * c - b * b
    return c / determinant, -b / determinant, a / determinant
