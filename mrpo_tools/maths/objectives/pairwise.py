"""Objectives on pairs of a winner w and a loser l of a group.

A pair's loss is an entry (w, l) of a [B, N, N] matrix; the loss of a group, [B], is the mean over
its pairs, nats unless a formula squares them. `pairing` says which pairs there are.

u = βΔ, Δ = ℓ − r, q = ℓ/L; masked entries are harmless already.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mrpo_tools.maths.contrasts import one_hot_argmax
from mrpo_tools.maths.objectives import reward
from mrpo_tools.maths.objectives.conditions import HAS_CHOSEN, HAS_PAIR
from mrpo_tools.maths.objectives.table import objective
from mrpo_tools.maths.shapes import fill, masked_mean, pair_differences
from mrpo_tools.maths.terms import Terms
from mrpo_tools.words import Pairing

CERTAIN = -1e-6
"""The largest ℓ/L at which log(1 − p) is taken; nearer to p = 1 it diverges."""


def of_winner(values: Tensor) -> Tensor:
    """[B, N] -> [B, N, N]: entry (w, l) is x_w."""
    return values.unsqueeze(-1).expand(*values.shape, values.shape[-1])


def of_loser(values: Tensor) -> Tensor:
    """[B, N] -> [B, N, N]: entry (w, l) is x_l."""
    return values.unsqueeze(-2).expand(*values.shape, values.shape[-1])


def log_complement(q: Tensor) -> Tensor:
    """log(1 − e^q), nats, with q at most `CERTAIN`."""
    return torch.log(-torch.expm1(q.clamp(max=CERTAIN)))


def smoothed_dpo(ratio: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """[B, N] Δ -> [B, N, N]: −(1−c) log σ(h) − c log σ(−h), h = β(Δ_w − Δ_l), c the smoothing."""
    margins = pair_differences(beta * ratio)
    return -(1 - label_smoothing) * logsigmoid(margins) - label_smoothing * logsigmoid(-margins)


@objective(usable=HAS_PAIR, reward=reward.implicit)
def dpo(
    t: Terms,
    *,
    beta: float = 0.1,
    pairing: Pairing = "best_worst",
    label_smoothing: float = 0.0,
) -> Tensor:
    """−log σ(u_w − u_l); label smoothing c: −(1−c) log σ(h) − c log σ(−h)

    h = u_w − u_l; c is the share of labels taken to be wrong.

    Source: MRPO Eq. 5, MPO Eq. 2
    """
    return t.mean_over_pairs(smoothed_dpo(t.ratio, beta, label_smoothing), pairing)


@objective(usable=HAS_PAIR, reward=reward.against_reference_1, references="several")
def multi_dpo(
    t: Terms,
    *,
    beta: float = 0.1,
    pairing: Pairing = "best_worst",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Σ_k α_k · dpo against r̂_k

    The references stay K: [B, N, K] log-probs, clipped already, with weights [B, K].

    Source: MRPO Eq. 11
    """
    total = torch.zeros_like(t.logp[:, 0])
    for k, ratio in enumerate(t.ratios):
        losses = smoothed_dpo(ratio, beta, label_smoothing)
        total = total + t.weights[:, k] * t.mean_over_pairs(losses, pairing)
    return total


@objective(usable=HAS_PAIR, reward=reward.implicit)
def ipo(
    t: Terms,
    *,
    beta: float = 0.1,
    pairing: Pairing = "best_worst",
    length_normalized: bool = False,
) -> Tensor:
    """(Δ_w − Δ_l − 1/(2β))²; length_normalized: each Δ divided by L

    Source: Azar et al. 2023
    """
    ratio = t.ratio / t.length if length_normalized else t.ratio
    return t.mean_over_pairs((pair_differences(ratio) - 1 / (2 * beta)).square(), pairing)


@objective(usable=HAS_PAIR, reward=reward.log_prob, references="none")
def slic(
    t: Terms,
    *,
    pairing: Pairing = "best_worst",
    delta: float = 1.0,
    sft_weight: float = 0.1,
) -> Tensor:
    """max(0, δ₀ − ℓ_w + ℓ_l) − λ ℓ_w

    `delta` is δ₀, nats; `sft_weight` is λ.

    Source: SLiC-HF (Zhao et al. 2023)
    """
    hinge = (delta - pair_differences(t.logp)).clamp(min=0)
    return t.mean_over_pairs(hinge - sft_weight * of_winner(t.logp), pairing)


@objective(usable=HAS_PAIR, reward=reward.log_prob_per_token, references="none")
def rrhf(t: Terms, *, pairing: Pairing = "all", sft_weight: float = 1.0) -> Tensor:
    """mean over pairs of max(0, ℓ_l/L_l − ℓ_w/L_w), − λ ℓ_best once

    `sft_weight` is λ; the authors' code sums over pairs instead.

    Source: RRHF (Yuan et al. 2023)
    """
    hinge = t.mean_over_pairs((-pair_differences(t.q)).clamp(min=0), pairing)
    best = one_hot_argmax(t.sides.scores, t.mask if t.sides.labels is None else t.sides.labels)
    return hinge - sft_weight * fill(t.logp, best).sum(-1)


@objective(usable=HAS_PAIR, reward=reward.scaled_log_prob, references="none")
def cpo(
    t: Terms,
    *,
    beta: float = 0.1,
    pairing: Pairing = "best_worst",
    sft_weight: float = 1.0,
) -> Tensor:
    """−log σ(β(ℓ_w − ℓ_l)) − λ ℓ_w

    `sft_weight` is λ.

    Source: CPO (Xu et al. 2024)
    """
    margins = beta * pair_differences(t.logp)
    return t.mean_over_pairs(-logsigmoid(margins) - sft_weight * of_winner(t.logp), pairing)


@objective(usable=HAS_PAIR, reward=reward.implicit, batchwise=True)
def kto_pair(t: Terms, *, beta: float = 0.1, pairing: Pairing = "best_worst") -> Tensor:
    """(1 − σ(u_w − z_l)) + (1 − σ(z_w − u_l)), z = β·max(0, mean Δ over the batch), detached

    z_w and z_l are means over all winners and all losers of the batch.

    Source: KTO (Ethayarajh et al. 2024), paired estimate
    """
    ratio, pairs = t.ratio.detach(), t.pairs(pairing)
    z_w = beta * masked_mean(of_winner(ratio), pairs, (0, 1, 2)).clamp(min=0)
    z_l = beta * masked_mean(of_loser(ratio), pairs, (0, 1, 2)).clamp(min=0)
    u = beta * t.ratio
    losses = (1 - (of_winner(u) - z_l).sigmoid()) + (1 - (z_w - of_loser(u)).sigmoid())
    return t.mean_over_pairs(losses, pairing)


@objective(usable=HAS_PAIR, reward=reward.log_prob_per_token, references="none")
def orpo(t: Terms, *, pairing: Pairing = "best_worst", sft_weight: float = 0.1) -> Tensor:
    """−ℓ_w/L_w − λ log σ(odds_w − odds_l), odds = q − log(1 − e^q), q = ℓ/L

    `sft_weight` is λ; q is at most −1e-6 in log(1 − e^q).

    Source: ORPO (Hong et al. 2024)
    """
    odds = t.q - log_complement(t.q)
    losses = -of_winner(t.q) - sft_weight * logsigmoid(pair_differences(odds))
    return t.mean_over_pairs(losses, pairing)


@objective(usable=HAS_PAIR, reward=reward.implicit)
def r_dpo(
    t: Terms,
    *,
    beta: float = 0.1,
    pairing: Pairing = "best_worst",
    length_penalty: float = 0.01,
) -> Tensor:
    """−log σ(u_w − u_l + α(L_w − L_l))

    `length_penalty` is α, nats per token.

    Source: R-DPO (Park et al. 2024)
    """
    longer = length_penalty * pair_differences(t.length)
    return t.mean_over_pairs(-logsigmoid(pair_differences(beta * t.ratio) + longer), pairing)


@objective(usable=HAS_PAIR, reward=reward.length_normalized, references="none")
def simpo(
    t: Terms, *, beta: float = 2.0, pairing: Pairing = "best_worst", gamma: float = 1.0
) -> Tensor:
    """−log σ(β ℓ_w/L_w − β ℓ_l/L_l − γ)

    Source: SimPO (Meng et al. 2024)
    """
    return t.mean_over_pairs(-logsigmoid(pair_differences(beta * t.q) - gamma), pairing)


@objective(usable=HAS_PAIR, reward=reward.implicit)
def sppo(t: Terms, *, beta: float = 0.1, pairing: Pairing = "best_worst") -> Tensor:
    """(Δ_w − 1/(2β))² + (Δ_l + 1/(2β))²

    Source: SPPO (Wu et al. 2024), hard labels
    """
    half = 1 / (2 * beta)
    losses = (of_winner(t.ratio) - half).square() + (of_loser(t.ratio) + half).square()
    return t.mean_over_pairs(losses, pairing)


@objective(usable=HAS_CHOSEN, reward=reward.log_prob_per_token, references="none")
def sft(t: Terms) -> Tensor:
    """−ℓ_w/L_w, mean over Y+

    No contrast: the stage before all others.

    Source: supervised fine-tuning
    """
    return masked_mean(-t.q, t.sides.positive)
