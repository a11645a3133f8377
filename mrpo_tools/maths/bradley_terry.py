"""Strengths of contestants from who won against whom (Bradley & Terry 1952)."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 200
FARTHEST = 15.0
"""Strengths beyond which there are none: somebody never lost, or never won."""


def bradley_terry(wins: Tensor) -> Tensor:
    """[…, C, C] wins of the row's contestant over the column's -> […, C] strengths, mean 0.

    P(i beats j) = σ(θ_i − θ_j); a tie counts as half a win of each. The likelihood is concave, so
    Newton's method with bounded steps finds its only maximum.

    Args:
        wins: not negative; the diagonal does not count.

    Returns:
        float64; NaN where no finite strengths are likeliest.
    """
    wins = wins.to(torch.float64)
    count = wins.shape[-1]
    wins = wins * (1 - torch.eye(count, dtype=wins.dtype))
    games = wins + wins.mT
    strengths = wins.new_zeros(wins.shape[:-1])
    gauge = torch.full((count, count), 1.0 / count, dtype=wins.dtype)
    for _ in range(STEPS):
        expected = games * torch.sigmoid(strengths.unsqueeze(-1) - strengths.unsqueeze(-2))
        gradient = (wins - expected).sum(-1)
        weights = expected * (1 - expected / games.clamp(min=1e-300))
        curvature = torch.diag_embed(weights.sum(-1)) - weights + gauge
        step = torch.linalg.solve(curvature + 1e-12 * torch.eye(count), gradient)
        longest = step.abs().amax(-1, keepdim=True)
        strengths = (strengths + step / longest.clamp(min=1.0)).clamp(-FARTHEST, FARTHEST)
        if bool((longest < 1e-10).all()):
            break
    strengths = strengths - strengths.mean(-1, keepdim=True)
    found = (strengths.abs() < FARTHEST / 2).all(-1, keepdim=True)
    return strengths.masked_fill(~found, float("nan"))
