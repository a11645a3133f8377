"""Objectives on responses that were sampled from a policy b (docs/methods.md §4b).

b is the policy that a round began with; its log-probs are cached like a reference's, so nothing of
it is live here. At ℓ = b the gradients below are unbiased estimates of those that the docstrings
name, over samples of b at temperature 1; each keeps the sum of a group's advantages at 0.

ρ = e^{ℓ − b}, the exponent in ±20. A group's loss, [B], is in points of score or in nats.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mrpo_tools.maths.contrasts import deviations_of
from mrpo_tools.maths.objectives import reward
from mrpo_tools.maths.objectives.conditions import HAS_PAIR
from mrpo_tools.maths.objectives.pairwise import smoothed_dpo
from mrpo_tools.maths.objectives.sets import clipped_gains
from mrpo_tools.maths.objectives.table import Condition, objective
from mrpo_tools.maths.shapes import fill, masked_mean
from mrpo_tools.maths.terms import Terms
from mrpo_tools.words import Advantage, Pairing


def penalised_scores(t: Terms, beta: float) -> Tensor:
    """[B, N] R = s − β(b − r), the score less what the distance from the references costs."""
    scores = t.sides.scores - beta * (t.behaviour - t.reference).to(torch.float64)
    return fill(scores, t.samples)


def leave_one_out(deviations: Tensor, mask: Tensor) -> Tensor:
    """[B, N] deviations from the mean of a group's *other* entries, of those from its mean."""
    count = mask.sum(-1, keepdim=True).to(deviations.dtype)
    return deviations * (count / (count - 1).clamp(min=1))


def _rewards_differ(t: Terms, *, beta: float) -> Tensor:
    return (deviations_of(penalised_scores(t, beta), t.samples) != 0).any(-1)


def _has_pair_and_samples(t: Terms, *, pairing: Pairing) -> Tensor:
    return HAS_PAIR.holds(t, pairing=pairing) & (t.samples.sum(-1) >= 2)


REWARDS_DIFFER = Condition("all rewards tied, or one sample", _rewards_differ)
HAS_PAIR_AND_SAMPLES = Condition(
    "no pair, or fewer than two samples beside it", _has_pair_and_samples
)


@objective(usable=REWARDS_DIFFER, reward=reward.implicit, scores=True, samples=True)
def rlhf(
    t: Terms,
    *,
    beta: float = 0.1,
    clip: float = 0.2,
    advantage: Advantage = "normalized",
) -> Tensor:
    """−(1/N) Σ_i min(ρ_i A_i, clip(ρ_i, 1±ε) A_i), ρ_i = e^{ℓ_i − b_i}, R_i = s_i − β(b_i − r_i),
    A_i = (R_i − mean R)/std R; advantage centred: without std; leave_one_out: R_i − mean of the
    others

    With several references r is their geometric combination, so b − r = Σ_k α_k (b − r_k), whose
    mean over samples is Σ_k α_k KL(b‖π_k). At ℓ = b the mean gradient with `leave_one_out` is that
    of −Eq. 6, with `centred` (N−1)/N of it; `normalized`, GRPO's, is biased. The paper uses PPO
    with a critic: advantages within the group are our reading. `clip` is ε; ratios are of whole
    responses.

    Source: MRPO Eq. 6
    """
    rewards = penalised_scores(t, beta)
    advantages = deviations_of(rewards, t.samples)
    if advantage == "normalized":
        spread = masked_mean(advantages.square(), t.samples).sqrt().unsqueeze(-1)
        advantages = advantages / torch.where(spread > 0, spread, 1.0)
    elif advantage == "leave_one_out":
        advantages = leave_one_out(advantages, t.samples)
    gains = clipped_gains(t.importance, advantages.to(t.logp.dtype), clip)
    return -masked_mean(gains, t.samples)


@objective(
    usable=HAS_PAIR_AND_SAMPLES,
    reward=reward.against_reference_1,
    references="several",
    samples=True,
)
def kd(
    t: Terms,
    *,
    beta: float = 0.1,
    pairing: Pairing = "best_worst",
    label_smoothing: float = 0.0,
) -> Tensor:
    """dpo against r_1 on the labelled pair + β (1/N) Σ_i ρ_i (c_i − mean of the others' c) over the
    N samples beside it, c_i = Σ_{k≥2} α_k (b_i − r_ik), ρ_i = e^{ℓ_i − b_i}

    At ℓ = b the mean gradient of the second term is that of β Σ_{k≥2} α_k KL(π‖π_k), without a
    trust region. The value of the term means nothing: it is 0 at ℓ = b.

    Source: MRPO §4, Baselines
    """
    pair = t.mean_over_pairs(smoothed_dpo(t.ratios[0], beta, label_smoothing), pairing)
    distance = torch.zeros_like(t.logp)
    for weight, reference in list(zip(t.weights.unbind(-1), t.references, strict=True))[1:]:
        distance = distance + weight.unsqueeze(-1) * (t.behaviour - reference)
    deviations = deviations_of(fill(distance.detach(), t.samples), t.samples)
    costs = t.importance * leave_one_out(deviations, t.samples)
    return pair + beta * masked_mean(costs, t.samples)
