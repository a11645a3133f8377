"""Is the loss flat before the first step?

Far out on a sigmoid nothing pulls: the gradient is tiny, in float32 a denormal number, and training
goes nowhere slowly. It happens where the references are far from reference 1, from which the policy
starts, and nothing clips them.
"""

from __future__ import annotations

import torch

from mrpo_tools.maths.shapes import blocks
from mrpo_tools.progress import say_once
from mrpo_tools.training.groups import TrainingGroups

FLAT = 1e-3
"""Of β: a gradient below that moves nothing. At a margin of 0 it is β/2."""
MANY = 0.25
"""Of the groups: more of them flat is worth a word."""


def flat_share(groups: TrainingGroups) -> float:
    """The share of groups whose loss is flat where the policy is reference 1.

    Args:
        groups: with reference 1's log-probs, which are those of the policy before the first step.
    """
    beta = float(groups.method.hyper.get("beta") or 1.0)
    flat = 0
    for place in blocks(tuple(groups.tensors.mask.shape)):
        tensors = groups.tensors.of_groups(place)
        start = tensors.logps[..., 0].masked_fill(~tensors.mask, 0.0)
        policy = start.double().requires_grad_()
        seeds = torch.zeros(len(policy), dtype=torch.int64)
        losses = groups.objective(place, policy, seeds).losses
        [gradient] = torch.autograd.grad(losses.sum(), policy)
        flat += int((gradient.abs().amax(-1) < FLAT * beta).sum())
    return flat / len(groups)


def tell_saturated(groups: TrainingGroups) -> None:
    """Warn where many groups' loss is flat before the first step."""
    if not groups.tensors.logps.shape[-1]:
        return
    share = flat_share(groups)
    if share > MANY:
        say_once(
            f"warning: the loss of {share:.0%} of the groups is flat before the first step (its "
            "gradient is below a thousandth of beta): the references are too far from reference 1. "
            "Lower beta or epsilon_max, or leave the farthest reference out (mrpo rank)"
        )
