"""Means over groups and how far they would move with other prompts of the same kind."""

from __future__ import annotations

import torch
from torch import Tensor

from mrpo_tools.maths import metrics
from mrpo_tools.maths.resampling import bootstrap_means, percentile_interval
from mrpo_tools.methods.tensors import GroupTensors, reference_rewards
from mrpo_tools.runs.record import Estimate


def estimates(values: Tensor, prompts: Tensor) -> list[Estimate]:
    """[G, M], [G] -> for each column its mean over groups and the 95 % interval over prompts."""
    ends = percentile_interval(bootstrap_means(values, clusters=prompts))
    return [
        Estimate(number(mean), number(low), number(high))
        for mean, (low, high) in zip(values.nanmean(0), ends, strict=True)
    ]


def accuracy_columns(tensors: GroupTensors, rewards: Tensor) -> Tensor:
    """[G, N, M] rewards -> [G, M] preference accuracies of each group, NaN without a pair."""
    accuracies = [metrics.accuracies(reward, tensors.judged) for reward in rewards.unbind(-1)]
    return torch.stack(accuracies, dim=-1)


def references_alone(tensors: GroupTensors) -> dict[str, list[Estimate]]:
    """For each kind of reward, each reference's own preference accuracy."""
    if tensors.logps.shape[-1] == 0:
        return {kind: [] for kind in reference_rewards(tensors)}
    return {
        kind: estimates(accuracy_columns(tensors, rewards), tensors.prompts)
        for kind, rewards in reference_rewards(tensors).items()
    }


def number(value: Tensor | float) -> float | None:
    """A float, or None where there is none."""
    value = float(value)
    return value if value == value else None
