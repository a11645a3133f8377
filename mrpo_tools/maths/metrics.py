"""How well rewards rank the responses of a group (docs/methods.md §5); NaN where none can say.

Shapes: [B, N] rewards of B groups of up to N responses, [B] of each result; masked rewards may be
NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mrpo_tools.maths.contrasts import one_hot_argmax
from mrpo_tools.maths.judgements import Judgements
from mrpo_tools.maths.shapes import fill, masked_mean, pair_differences, require_shape


def accuracies(rewards: Tensor, judged: Judgements) -> Tensor:
    """[B]: share of the group's pairs whose winner has the larger reward; a tie counts 0.

    With labels the pairs are Y+ × Y−, else those with s_a > s_b.
    """
    _require_rewards(rewards, judged)
    right = pair_differences(fill(rewards, judged.mask)) > 0
    share = masked_mean(right.to(torch.float64), judged.pairs, (-1, -2))
    return _or_nan(share, judged.pairs.any(-1).any(-1))


def margins(rewards: Tensor, judged: Judgements) -> Tensor:
    """[B]: mean reward over Y+ minus mean reward over Y−."""
    _require_rewards(rewards, judged)
    sides = judged.sides
    clean = fill(rewards.to(torch.float64), judged.mask)
    margin = masked_mean(clean, sides.positive) - masked_mean(clean, sides.negative)
    return _or_nan(margin, sides.both)


def top1(rewards: Tensor, judged: Judgements) -> Tensor:
    """[B]: 1 where the argmax reward (lowest index on a tie) has the largest score, else 0.

    A group whose responses are all tied cannot say.
    """
    _require_rewards(rewards, judged)
    mask, scores = judged.compared, judged.sides.scores
    picked = one_hot_argmax(fill(rewards, mask), mask)
    best = fill(scores, mask, float("-inf")).amax(-1)
    hit = fill(scores, picked).sum(-1) == best
    worse = fill(scores, mask, float("inf")) < best.unsqueeze(-1)
    return _or_nan(hit.to(torch.float64), worse.any(-1))


def kendall_tau(rewards: Tensor, judged: Judgements) -> Tensor:
    """[B]: Kendall's tau-b of rewards and scores; NaN where either is constant.

    Raises:
        ValueError: the data have no scores.
    """
    _require_rewards(rewards, judged)
    if judged.scores is None:
        raise ValueError("kendall_tau needs scores")
    mask = judged.compared
    both = mask.unsqueeze(-1) & mask.unsqueeze(-2)
    scores = judged.scores.to(torch.float64)
    by_reward = fill(pair_differences(fill(rewards.to(torch.float64), mask)).sign(), both)
    by_score = fill(pair_differences(fill(scores, mask)).sign(), both)
    agreement = (by_reward * by_score).sum((-1, -2))
    size = (by_reward.square().sum((-1, -2)) * by_score.square().sum((-1, -2))).sqrt()
    return _or_nan(agreement / torch.where(size > 0, size, 1.0), size > 0)


def _require_rewards(rewards: Tensor, judged: Judgements) -> None:
    require_shape("rewards", rewards, tuple(judged.mask.shape))


def _or_nan(values: Tensor, defined: Tensor) -> Tensor:
    return fill(values, defined, float("nan"))
