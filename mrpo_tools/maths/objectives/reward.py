"""What the reward of a response is (docs/methods.md §5): [B, N] of a batch's terms.

In nats, or nats per token where a length divides. Deviation terms are no part of it.
"""

from __future__ import annotations

from torch import Tensor

from mrpo_tools.maths.terms import Terms


def implicit(t: Terms, *, beta: float) -> Tensor:
    """u = βΔ, the implicit reward (MRPO Eq. 4)."""
    return beta * t.ratio


def against_reference_1(t: Terms, *, beta: float) -> Tensor:
    """βΔ against the first of several references."""
    return beta * t.ratios[0]


def length_normalized(t: Terms, *, beta: float) -> Tensor:
    """v = βℓ/L."""
    return beta * t.q


def scaled_log_prob(t: Terms, *, beta: float) -> Tensor:
    """βℓ."""
    return beta * t.logp


def log_prob(t: Terms) -> Tensor:
    """ℓ."""
    return t.logp


def log_prob_per_token(t: Terms) -> Tensor:
    """q = ℓ/L."""
    return t.q


def token_probability(t: Terms) -> Tensor:
    """p = exp(ℓ/L)."""
    return t.p
