"""Which groups an objective can use, and why it cannot use the others (docs/methods.md §3)."""

from __future__ import annotations

from torch import Tensor

from mrpo_tools.maths.contrasts import score_deviation
from mrpo_tools.maths.objectives.table import Condition
from mrpo_tools.maths.terms import Terms
from mrpo_tools.words import Pairing


def power_weight(t: Terms, power: int) -> Tensor:
    """[B, N] w_i = abs(δ_i)^p with 0⁰ = 1 (SWEPO Eq. 15-16)."""
    return t.sides.deviations.abs().pow(float(power))


def _has_pair(t: Terms, *, pairing: Pairing) -> Tensor:
    return t.pairs(pairing).any(-1).any(-1)


def _has_sets(t: Terms) -> Tensor:
    return t.sides.both


def _has_weighted_sets(t: Terms, *, weight: str, power: int) -> Tensor:
    if weight != "power":
        return _has_sets(t)
    weighted = power_weight(t, power) > 0
    return (t.sides.positive & weighted).any(-1) & (t.sides.negative & weighted).any(-1)


HAS_PAIR = Condition("no pair: all scores tied or one response", _has_pair)
HAS_SETS = Condition(
    "no chosen or no rejected response: all scores tied or one response", _has_sets
)
HAS_WEIGHTED_SETS = Condition(
    "no chosen or no rejected response with a positive weight", _has_weighted_sets
)
HAS_TWO = Condition("fewer than two responses", lambda t: t.mask.sum(-1) >= 2)
HAS_SPREAD = Condition("all scores tied", lambda t: score_deviation(t.sides) > 0)
HAS_CHOSEN = Condition("no chosen response", lambda t: t.sides.positive.any(-1))
HAS_ANY = Condition("no response", lambda t: t.mask.any(-1))
