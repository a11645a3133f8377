"""How well rewards rank the responses of a group (METHODS §5). NaN where a group cannot say."""

from __future__ import annotations

import torch
from torch import Tensor

from mrpo_tools.maths.contrasts import Sides, choose_sides, one_hot_argmax, preference_pairs
from mrpo_tools.maths.shapes import fill, masked_mean, pair_differences, require_shape


def accuracies(
    rewards: Tensor, mask: Tensor, scores: Tensor | None, chosen: Tensor | None
) -> Tensor:
    """[B]: share of the group's pairs whose winner has the larger reward; a tie counts 0.

    Args:
        rewards: [B, N]; masked entries may be NaN.
        mask: [B, N].
        scores: [B, N] or None.
        chosen: [B, N] labels or None. With labels the pairs are Y+ × Y−, else those with s_a > s_b.
    """
    _require_shapes(rewards, mask, scores, chosen)
    pairs = preference_pairs(mask, scores, chosen)
    right = pair_differences(fill(rewards, mask)) > 0
    share = masked_mean(right.to(torch.float64), pairs, (-1, -2))
    return _or_nan(share, pairs.any(-1).any(-1))


def margins(rewards: Tensor, mask: Tensor, scores: Tensor | None, chosen: Tensor | None) -> Tensor:
    """[B]: mean reward over Y+ minus mean reward over Y−."""
    sides = _sides(rewards, mask, scores, chosen)
    clean = fill(rewards.to(torch.float64), mask)
    margin = masked_mean(clean, sides.positive) - masked_mean(clean, sides.negative)
    return _or_nan(margin, _both(sides))


def top1(rewards: Tensor, mask: Tensor, scores: Tensor | None, chosen: Tensor | None) -> Tensor:
    """[B]: 1 where the argmax reward (lowest index on a tie) has the largest score, else 0.

    A group whose responses are all tied cannot say.
    """
    sides = _sides(rewards, mask, scores, chosen)
    picked = one_hot_argmax(fill(rewards, mask), mask)
    best = fill(sides.scores, mask, float("-inf")).amax(-1)
    hit = fill(sides.scores, picked).sum(-1) == best
    worse = fill(sides.scores, mask, float("inf")) < best.unsqueeze(-1)
    return _or_nan(hit.to(torch.float64), worse.any(-1))


def kendall_tau(rewards: Tensor, mask: Tensor, scores: Tensor) -> Tensor:
    """[B]: Kendall's tau-b of rewards and scores; NaN where either is constant."""
    _sides(rewards, mask, scores, None)
    both = mask.unsqueeze(-1) & mask.unsqueeze(-2)
    by_reward = fill(pair_differences(fill(rewards.to(torch.float64), mask)).sign(), both)
    by_score = fill(pair_differences(fill(scores.to(torch.float64), mask)).sign(), both)
    agreement = (by_reward * by_score).sum((-1, -2))
    size = (by_reward.square().sum((-1, -2)) * by_score.square().sum((-1, -2))).sqrt()
    return _or_nan(agreement / torch.where(size > 0, size, 1.0), size > 0)


def _sides(rewards: Tensor, mask: Tensor, scores: Tensor | None, chosen: Tensor | None) -> Sides:
    """The groups' sides, once every shape is [B, N]."""
    _require_shapes(rewards, mask, scores, chosen)
    return choose_sides(scores, chosen, mask)


def _require_shapes(
    rewards: Tensor, mask: Tensor, scores: Tensor | None, chosen: Tensor | None
) -> None:
    shape = tuple(rewards.shape)
    for name, tensor in (("mask", mask), ("scores", scores), ("chosen", chosen)):
        if tensor is not None:
            require_shape(name, tensor, shape)


def _both(sides: Sides) -> Tensor:
    return sides.positive.any(-1) & sides.negative.any(-1)


def _or_nan(values: Tensor, known: Tensor) -> Tensor:
    return fill(values, known, float("nan"))
