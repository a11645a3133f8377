"""Objectives on sets of scored responses: chosen against rejected, target distributions, rankings.

Each gives the loss of a group, [B] nats, from [B, N] terms; masked entries are harmless already.
u = βΔ, Δ = ℓ − r, δ the deviation of a score from the group's mean.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mrpo_tools.maths.contrasts import score_deviation
from mrpo_tools.maths.objectives import reward
from mrpo_tools.maths.objectives.conditions import (
    HAS_SETS,
    HAS_SPREAD,
    HAS_TWO,
    HAS_WEIGHTED_SETS,
    power_weight,
)
from mrpo_tools.maths.objectives.table import objective
from mrpo_tools.maths.shapes import fill, masked_logsumexp, masked_mean, pair_differences
from mrpo_tools.maths.terms import RATIO_LIMIT, Terms


def share_of_chosen(t: Terms, logits: Tensor) -> Tensor:
    """[B, N] -> [B]: −log of the share of Y+ in the sum of e^logits over all (MPO Eq. 4-5)."""
    return masked_logsumexp(logits, t.mask) - masked_logsumexp(logits, t.sides.positive)


def ranking(t: Terms, values: Tensor) -> Tensor:
    """[B, N] -> [B]: Σ_i [logsumexp over {j: s_j ≤ s_i} of x_j − x_i]; ties share their set."""
    below = (pair_differences(t.sides.scores) >= 0) & t.mask.unsqueeze(-2)
    others = values.unsqueeze(-2).expand_as(below)
    return fill(masked_logsumexp(others, below) - values, t.mask).sum(-1)


def clipped_gains(rho: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """[B, N] min(ρA, clip(ρ, 1±ε)A), the surrogate of PPO."""
    return torch.minimum(rho * advantages, rho.clamp(1 - clip, 1 + clip) * advantages)


def _bonus(t: Terms, *, beta: float, deviation_scale: float, power: int, signed: bool) -> Tensor:
    """[B, N] β·(a·abs(δ))^p, with the sign of δ where `signed`."""
    size = (deviation_scale * t.deviation.abs()) ** power
    return beta * (size * t.deviation.sign() if signed else size)


@objective(usable=HAS_SETS, reward=reward.implicit)
def mpo(t: Terms, *, beta: float = 0.01) -> Tensor:
    """−log( Σ_{Y+} e^{u_i} / Σ_all e^{u_i} )

    Source: MPO Eq. 4-5
    """
    return share_of_chosen(t, beta * t.ratio)


@objective(usable=HAS_SETS, reward=reward.implicit)
def w_mpo(
    t: Terms, *, beta: float = 0.01, deviation_scale: float = 0.1, signed: bool = False
) -> Tensor:
    """mpo on u_i + β·a·|δ_i|; signed: u_i + β·a·δ_i

    `deviation_scale` is a: Eq. 7's α_w is β·a, and 1/a is the printed code's `alpha`. At the
    defaults the bonus is β·a = 0.001 a point of score, and the loss that of `mpo` within 0.5 %.

    Source: MPO Eq. 6-8, App. C Eq. 13-15
    """
    bonus = _bonus(t, beta=beta, deviation_scale=deviation_scale, power=1, signed=signed)
    return share_of_chosen(t, beta * t.ratio + bonus)


@objective(usable=HAS_WEIGHTED_SETS, reward=reward.implicit)
def swepo(
    t: Terms,
    *,
    beta: float = 0.01,
    deviation_scale: float = 0.1,
    signed: bool = False,
    power: int = 1,
    weight: Literal["none", "power"] = "none",
) -> Tensor:
    """mpo on u_i + β·(a·|δ_i|)^p, p = 0 adds nothing; signed: times sign(δ_i);
    weight power: |δ_i|^p multiplies e^{u_i} instead

    `deviation_scale` is a, `power` is p, and 0⁰ = 1.

    Source: SWEPO Eq. 5-10, 15-16, 24, App. E
    """
    u = beta * t.ratio
    if weight == "power":
        weights = power_weight(t, power)
        weighted = t.mask & (weights > 0)
        logits = u + torch.where(weighted, weights, 1.0).log()
        chosen = masked_logsumexp(logits, weighted & t.sides.positive)
        return masked_logsumexp(logits, weighted) - chosen
    if power == 0:
        return share_of_chosen(t, u)
    bonus = _bonus(t, beta=beta, deviation_scale=deviation_scale, power=power, signed=signed)
    return share_of_chosen(t, u + bonus)


@objective(usable=HAS_SETS, reward=reward.implicit, chosen="top1")
def mpo_1vsk(t: Terms, *, beta: float = 0.01) -> Tensor:
    """mpo with chosen = top1

    Source: MPO Table 1, SWEPO-1-vs-k
    """
    return share_of_chosen(t, beta * t.ratio)


@objective(usable=HAS_SETS, reward=reward.length_normalized, references="none")
def mpo_reference_free(t: Terms, *, beta: float = 2.0, gamma: float = 1.0) -> Tensor:
    """−log( Σ_{Y+} e^{v_i−γ} / (Σ_{Y+} e^{v_i−γ} + Σ_{Y−} e^{v_i}) )

    v = βℓ/L. With two responses it is SimPO. The paper shows a figure of it and no formula: this is
    our reading.

    Source: MPO Fig. 8
    """
    v = beta * t.q
    return share_of_chosen(t, v - gamma * t.sides.positive.to(v.dtype))


@objective(usable=HAS_TWO, reward=reward.implicit, scores=True)
def infonca(t: Terms, *, beta: float = 0.01, tau: float = 1.0) -> Tensor:
    """−Σ_i softmax(s/τ)_i · log softmax(u)_i

    Source: MPO Eq. 3
    """
    u = beta * t.ratio
    log_share = u - masked_logsumexp(u, t.mask).unsqueeze(-1)
    return -(t.target(tau) * fill(log_share, t.mask)).sum(-1)


@objective(usable=HAS_TWO, reward=reward.implicit, scores=True)
def nca(t: Terms, *, beta: float = 0.01, tau: float = 1.0) -> Tensor:
    """−Σ_i [ softmax(s/τ)_i log σ(u_i) + (1/N) log σ(−u_i) ]

    Source: SWEPO App. D; Chen et al. 2024
    """
    u = beta * t.ratio
    share = 1.0 / t.mask.sum(-1, keepdim=True).clamp(min=1).to(t.logp.dtype)
    gains = t.target(tau) * logsigmoid(u) + share * logsigmoid(-u)
    return -fill(gains, t.mask).sum(-1)


@objective(usable=HAS_TWO, reward=reward.implicit, scores=True)
def plackett_luce(t: Terms, *, beta: float = 0.1) -> Tensor:
    """Σ_i [ logsumexp over {j: s_j ≤ s_i} of u_j − u_i ]

    Ties share their set, so the order of responses never matters.

    Source: MPO §3.2
    """
    return ranking(t, beta * t.ratio)


@objective(usable=HAS_SPREAD, reward=reward.implicit, scores=True)
def grpo_offline(
    t: Terms, *, beta: float = 0.1, clip: float = 0.2, kl_weight: float = 0.04
) -> Tensor:
    """−(1/N) Σ_i [ min(ρ_i A_i, clip(ρ_i, 1±ε) A_i) − β_kl (e^{−z_i} + z_i − 1) ],
    z_i = Δ_i/L_i in ±20, ρ_i = e^{z_i}, A_i = δ_i/std(s)

    `clip` is ε, `kl_weight` is β_kl; std is that of the population. β scales the reward alone. The
    paper's appendix describes it in words: ratios of whole sequences are our reading.

    Source: MPO App. H
    """
    del beta  # scales the reward alone
    z = (t.ratio / t.length).clamp(-RATIO_LIMIT, RATIO_LIMIT)
    rho = z.exp()
    deviation = score_deviation(t.sides).unsqueeze(-1)
    advantages = t.sides.deviations / torch.where(deviation > 0, deviation, 1.0)
    gains = clipped_gains(rho, advantages, clip)
    return -masked_mean(gains - kl_weight * ((-z).exp() + z - 1), t.mask)
