"""What the log shows of groups, under TRL's names: rewards, accuracies, log-probs, references."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import Trainer

from mrpo_tools.maths import metrics
from mrpo_tools.maths.objectives import Applied
from mrpo_tools.maths.shapes import masked_mean
from mrpo_tools.training.groups import TrainingGroups


def figures(groups: TrainingGroups, applied: Applied, index: list[int]) -> dict[str, Tensor]:
    """Values of each figure, a number a group or a response; NaN where one cannot say.

    Args:
        groups: where the batch is from.
        applied: their objective on B of them.
        index: the places of those B.
    """
    rewards, sides, judged = applied.rewards, applied.sides, applied.batch.judged
    logps = applied.batch.policy_logps.detach()
    values = {
        "rewards/chosen": masked_mean(rewards, sides.positive)[sides.both],
        "rewards/rejected": masked_mean(rewards, sides.negative)[sides.both],
        "rewards/accuracies": metrics.accuracies(rewards, judged),
        "rewards/margins": metrics.margins(rewards, judged),
        "logps/chosen": masked_mean(logps, sides.positive)[sides.both],
        "logps/rejected": masked_mean(logps, sides.negative)[sides.both],
    }
    combined, mask = groups.combined, groups.tensors.mask
    for k, name in enumerate(groups.reference_names):
        values[f"references/{name}/weight"] = combined.weights[index, k]
    if len(groups.reference_names) > 1:
        clipped = combined.clipped[index][..., 1:].double()
        values["references/clipped_fraction"] = clipped[mask[index]]
    return values


class Averages:
    """Means of figures over micro-batches and processes."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, float] = defaultdict(float)

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Count the values that are numbers."""
        for name, figure in values.items():
            numbers = figure[~figure.isnan()]
            self._sums[name] += float(numbers.sum())
            self._counts[name] += numbers.numel()

    def take(self, trainer: Trainer) -> dict[str, float]:
        """The means of what was added since the last time; every process calls it together."""
        names = sorted(self._counts)
        if not names:
            return {}
        pairs = torch.tensor(
            [[self._sums[name], self._counts[name]] for name in names], dtype=torch.float64
        )
        self._sums.clear()
        self._counts.clear()
        if trainer.args.world_size > 1:
            gathered = trainer.accelerator.gather(pairs.unsqueeze(0).to(trainer.args.device))
            pairs = gathered.sum(0).cpu()
        return {
            name: float(total / count)
            for name, (total, count) in zip(names, pairs, strict=True)
            if count
        }
