"""What each objective computes, from a batch's terms: scores of pairs, contrasts, usable groups.

Every function takes `Terms`. Scores of a pair give a [B, N, N] matrix whose entry (w, l) compares
winner w with loser l; contrasts give one number for each group, [B].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mrpo_tools.maths import contrasts
from mrpo_tools.maths.shapes import fill, masked_logsumexp, masked_mean, pair_differences
from mrpo_tools.maths.terms import Terms

RATIO_LIMIT = 20.0
"""nats per token at which GRPO's ratio exponent is clamped."""
CERTAIN = -1e-6
"""The largest ℓ/L at which log(1 − p) is taken; nearer to p = 1 it diverges."""


def _winner(values: Tensor) -> Tensor:
    return values.unsqueeze(-1).expand(*values.shape, values.shape[-1])


def _loser(values: Tensor) -> Tensor:
    return values.unsqueeze(-2).expand(*values.shape, values.shape[-1])


def dpo(t: Terms) -> Tensor:
    margin, smoothing = pair_differences(t.u), t["label_smoothing"]
    return -(1 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin)


def ipo(t: Terms) -> Tensor:
    ratio = t.ratio / t.length if t.hyper["length_normalized"] else t.ratio
    return (pair_differences(ratio) - 1 / (2 * t["beta"])).square()


def slic(t: Terms) -> Tensor:
    hinge = (t["delta"] - pair_differences(t.logp)).clamp(min=0)
    return hinge - t["sft_weight"] * _winner(t.logp)


def cpo(t: Terms) -> Tensor:
    margin = t["beta"] * pair_differences(t.logp)
    return -logsigmoid(margin) - t["sft_weight"] * _winner(t.logp)


def kto_pair(t: Terms) -> Tensor:
    ratio, beta = t.ratio.detach(), t["beta"]
    every = (0, 1, 2)
    z_w = beta * masked_mean(_winner(ratio), t.pairs, every).clamp(min=0)
    z_l = beta * masked_mean(_loser(ratio), t.pairs, every).clamp(min=0)
    return (1 - (_winner(t.u) - z_l).sigmoid()) + (1 - (z_w - _loser(t.u)).sigmoid())


def orpo(t: Terms) -> Tensor:
    odds = t.q - torch.log(-torch.expm1(t.q.clamp(max=CERTAIN)))
    return -_winner(t.q) - t["sft_weight"] * logsigmoid(pair_differences(odds))


def r_dpo(t: Terms) -> Tensor:
    longer = t["length_penalty"] * pair_differences(t.length)
    return -logsigmoid(pair_differences(t.u) + longer)


def simpo(t: Terms) -> Tensor:
    return -logsigmoid(pair_differences(t.v) - t["gamma"])


def sppo(t: Terms) -> Tensor:
    half = 1 / (2 * t["beta"])
    return (_winner(t.ratio) - half).square() + (_loser(t.ratio) + half).square()


def likelier(t: Terms) -> Tensor:
    return -logsigmoid(pair_differences(t.p))


def over_pairs(score: Callable[[Terms], Tensor]) -> Callable[[Terms], Tensor]:
    """The mean of a pair's loss over the group's pairs."""
    return lambda t: masked_mean(score(t), t.pairs, (-1, -2))


def multi_dpo(t: Terms) -> Tensor:
    """Σ_k α_k · dpo against reference k (MRPO Eq. 11)."""
    references, weights = t.batch.reference_logps, t.batch.weights
    if references is None or references.dim() != 3 or weights is None:
        raise ValueError("multi_dpo needs reference_logps [B, N, K] and weights [B, K]")
    total = torch.zeros_like(t.logp[:, 0])
    for k, reference in enumerate(references.unbind(-1)):
        alone = Terms(t.name, replace(t.batch, reference_logps=reference, weights=None), t.hyper)
        total = total + weights[:, k] * masked_mean(dpo(alone), t.pairs, (-1, -2))
    return total


def rrhf(t: Terms) -> Tensor:
    hinge = masked_mean((-pair_differences(t.q)).clamp(min=0), t.pairs, (-1, -2))
    candidates = t.mask if t.batch.chosen is None else t.mask & t.batch.chosen
    best = contrasts.one_hot_argmax(t.sides.scores, candidates)
    return hinge - t["sft_weight"] * fill(t.logp, best).sum(-1)


def _sets(t: Terms, logits: Tensor) -> Tensor:
    """−log of the share of Y+ in the sum of exponentials over all (MPO Eq. 4-5)."""
    numerator = masked_logsumexp(logits, t.sides.positive)
    return masked_logsumexp(logits, t.mask) - numerator


def _bonus(t: Terms, power: int) -> Tensor:
    """β·(a·abs(δ))^p, with the sign of δ where `signed`."""
    deviation = t.sides.deviations.to(t.logp.dtype)
    size = (t["deviation_scale"] * deviation.abs()) ** power
    return t["beta"] * (size * deviation.sign() if t.hyper["signed"] else size)


def mpo(t: Terms) -> Tensor:
    return _sets(t, t.u)


def w_mpo(t: Terms) -> Tensor:
    return _sets(t, t.u + _bonus(t, 1))


def _power_weight(t: Terms) -> Tensor:
    """w_i = abs(δ_i)^p with 0⁰ = 1 (SWEPO Eq. 15-16)."""
    return t.sides.deviations.abs().pow(t["power"])


def swepo(t: Terms) -> Tensor:
    power = t.hyper["power"]
    if t.hyper["weight"] == "power":
        weight = _power_weight(t)
        taken = t.mask & (weight > 0)
        logits = t.u + torch.where(taken, weight, 1.0).log()
        return masked_logsumexp(logits, taken) - masked_logsumexp(logits, taken & t.sides.positive)
    return _sets(t, t.u + _bonus(t, power) if power else t.u)


def mpo_reference_free(t: Terms) -> Tensor:
    return _sets(t, t.v - t["gamma"] * t.sides.positive.to(t.v.dtype))


def infonca(t: Terms) -> Tensor:
    log_share = t.u - masked_logsumexp(t.u, t.mask).unsqueeze(-1)
    return -(t.target * fill(log_share, t.mask)).sum(-1)


def nca(t: Terms) -> Tensor:
    share = 1.0 / t.mask.sum(-1, keepdim=True).clamp(min=1).to(t.logp.dtype)
    each = t.target * logsigmoid(t.u) + share * logsigmoid(-t.u)
    return -fill(each, t.mask).sum(-1)


def ranking(t: Terms, values: Tensor) -> Tensor:
    """Plackett-Luce: Σ_i [logsumexp over {j: s_j ≤ s_i} of x_j − x_i]; ties share their set."""
    below = (pair_differences(t.sides.scores) >= 0) & t.mask.unsqueeze(-2)
    others = values.unsqueeze(-2).expand_as(below)
    return fill(masked_logsumexp(others, below) - values, t.mask).sum(-1)


def grpo(t: Terms) -> Tensor:
    z = (t.ratio / t.length).clamp(-RATIO_LIMIT, RATIO_LIMIT)
    rho, clip = z.exp(), t["clip"]
    deviation = contrasts.score_deviation(t.sides).unsqueeze(-1)
    advantage = t.sides.deviations / torch.where(deviation > 0, deviation, 1.0)
    gain = torch.minimum(rho * advantage, rho.clamp(1 - clip, 1 + clip) * advantage)
    return -masked_mean(gain - t["kl_weight"] * ((-z).exp() + z - 1), t.mask)


def sft(t: Terms) -> Tensor:
    return masked_mean(-t.q, t.sides.positive)


def _unit_scores(t: Terms) -> Tensor:
    """Scores divided by `score_scale`, refused outside [0, 1]."""
    scores = fill(t.sides.scores / t["score_scale"], t.mask)
    if bool(((scores < 0) | (scores > 1)).any()):
        raise ValueError(
            f"{t.name} needs scores in [0, 1] after division by score_scale "
            f"{t.hyper['score_scale']}, found {scores.min():g} to {scores.max():g}"
        )
    return scores.to(t.logp.dtype)


def point_ce(t: Terms) -> Tensor:
    score = _unit_scores(t)
    unlikely = torch.log(-torch.expm1(t.q.clamp(max=CERTAIN)))
    return masked_mean(-(score * t.q + (1 - score) * unlikely), t.mask)


def point_mse(t: Terms) -> Tensor:
    return masked_mean((_unit_scores(t) - t.p).square(), t.mask)


def sum_of_logs(pairs: Callable[[Terms], Tensor]) -> Callable[[Terms], Tensor]:
    return lambda t: fill(likelier(t), pairs(t)).sum((-1, -2))


def log_of_sum(pairs: Callable[[Terms], Tensor]) -> Callable[[Terms], Tensor]:
    return lambda t: -logsigmoid(fill(pair_differences(t.p), pairs(t)).sum((-1, -2)))


def own_pairs(t: Terms) -> Tensor:
    return t.pairs


def has_pair(t: Terms) -> Tensor:
    return t.pairs.any(-1).any(-1)


def has_sets(t: Terms) -> Tensor:
    return t.sides.positive.any(-1) & t.sides.negative.any(-1)


def has_weighted_sets(t: Terms) -> Tensor:
    if t.hyper["weight"] != "power":
        return has_sets(t)
    weighted = _power_weight(t) > 0
    return (t.sides.positive & weighted).any(-1) & (t.sides.negative & weighted).any(-1)


def has_two(t: Terms) -> Tensor:
    return t.mask.sum(-1) >= 2


def has_spread(t: Terms) -> Tensor:
    return contrasts.score_deviation(t.sides) > 0


def has_chosen(t: Terms) -> Tensor:
    return t.sides.positive.any(-1)


def has_any(t: Terms) -> Tensor:
    return t.mask.any(-1)


REASONS: Mapping[Callable[[Terms], Tensor], str] = MappingProxyType(
    {
        has_pair: "no pair: all scores tied or one response",
        has_sets: "no chosen or no rejected response: all scores tied or one response",
        has_weighted_sets: "no chosen or no rejected response with a positive weight",
        has_two: "fewer than two responses",
        has_spread: "all scores tied",
        has_chosen: "no chosen response",
        has_any: "no response",
    }
)
"""Why a group is skipped, in words."""
