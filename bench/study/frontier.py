"""An arm's frontier: its score at a given KL, between points that were measured."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple


class Point(NamedTuple):
    """What one policy does: KL to the base in nats an answer, and the rule's mean score of 10."""

    kl: float
    score: float


def score_at(points: Sequence[Point], kl: float) -> float | None:
    """The score at a KL: linear in √KL between the two neighbours of an arm's points.

    A policy's gain begins like √KL: to first order a step in the direction of the reward costs its
    square. So a line in √KL bends less between points than one in KL.

    Args:
        points: two or more, in any order; an estimate of KL below 0 counts as 0.
        kl: nats.

    Returns:
        None beyond the range of the points: nothing is extrapolated.

    Example:
        Half the way from √1 to √9 lies at √4:

        >>> score_at([Point(1.0, 5.0), Point(9.0, 6.0)], 4.0)
        5.5
    """
    ordered = sorted(Point(math.sqrt(max(point.kl, 0.0)), point.score) for point in points)
    root = math.sqrt(kl)
    for low, high in itertools.pairwise(ordered):
        if low.kl <= root <= high.kl:
            if low.kl == high.kl:
                return (low.score + high.score) / 2
            share = (root - low.kl) / (high.kl - low.kl)
            return low.score + share * (high.score - low.score)
    return None
