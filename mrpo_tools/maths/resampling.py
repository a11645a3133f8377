"""Bootstrap: how far a mean over groups would move with other prompts of the same kind.

Prompts are drawn with replacement, each with all of its groups: not pairs, which share responses
with the other pairs of their group, and not groups, which may share a prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mrpo_tools.maths.shapes import fill

RESAMPLES = 2000
DRAWN_AT_ONCE = 4_000_000


def bootstrap_means(
    values: Tensor,
    resamples: int = RESAMPLES,
    seed: int = 0,
    clusters: Tensor | None = None,
    *,
    drawn_at_once: int = DRAWN_AT_ONCE,
) -> Tensor:
    """[G, M] -> [R, M] float64: each column's mean over the groups of R draws of clusters.

    Every column sees the same draws, so the difference of two columns of the result is the
    bootstrap of a paired difference.

    Args:
        values: a value per group and metric; NaN where a group has none, and it is left out.
        resamples: R.
        seed: of the draws; equal seeds give equal results.
        clusters: [G] which prompt a group is of, counted from 0; None means one each.
        drawn_at_once: indices held in memory.

    Returns:
        NaN where a draw holds no group with a value.
    """
    if values.dim() != 2:
        raise ValueError(f"values must have shape [G, M], got {list(values.shape)}")
    values = values.to(torch.float64)
    groups = len(values)
    if not groups:
        return values.new_full((resamples, values.shape[1]), float("nan"))
    known = ~values.isnan()
    clean = torch.cat([fill(values, known), known.to(torch.float64)], dim=1)
    if clusters is not None:
        groups = int(clusters.max()) + 1
        clean = clean.new_zeros(groups, clean.shape[1]).index_add_(0, clusters, clean)
    generator = torch.Generator().manual_seed(seed)
    chunk = max(1, drawn_at_once // groups)
    means = []
    for start in range(0, resamples, chunk):
        size = (min(chunk, resamples - start), groups)
        drawn = torch.randint(groups, size, generator=generator)
        counts = torch.zeros(size, dtype=torch.float64)
        counts.scatter_add_(1, drawn, torch.ones(size, dtype=torch.float64))
        sums, found = (counts @ clean).chunk(2, dim=1)
        means.append(sums / found)
    return torch.cat(means)


def percentile_interval(means: Tensor, level: float = 0.95) -> Tensor:
    """[R, M] bootstrap means -> [M, 2]: the percentile interval of each column."""
    if not means.numel():
        return means.new_zeros(means.shape[1], 2)
    tail = (1 - level) / 2
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    return torch.nanquantile(means, ends, dim=0).T


def simultaneous_intervals(means: Tensor, centre: Tensor, level: float = 0.95) -> Tensor:
    """[R, M] bootstrap means, [M] -> [M, 2]: intervals that all hold together.

    Each is the column's estimate ± c bootstrap standard errors, c being the quantile of the largest
    standardised deviation in a draw (max-|t|): it rests on R·(1 − level) draws for any M.

    Args:
        means: from `bootstrap_means`, or differences of its columns; columns share their draws.
        centre: each column's estimate.
        level: of all of them together.
    """
    if not means.numel():
        return means.new_zeros(means.shape[1], 2)
    deviations = (means - centre).nan_to_num(0.0)
    errors = deviations.std(0)
    spread = errors > 1e-12 * centre.abs().nan_to_num(0.0).clamp(min=1.0)
    scale = torch.where(spread, errors, float("inf"))
    room = (deviations.abs() / scale).amax(1).quantile(level) * fill(errors, spread)
    return torch.stack([centre - room, centre + room], dim=-1)
