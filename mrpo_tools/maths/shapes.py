"""Shape checks and masked reductions, the alphabet of this folder.

`[B]` against `[B, 1]` silently broadcasts to `[B, B]`; so every public function checks first.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

Index = list[int] | Tensor | slice
"""Which groups, by their places."""
CELLS = 2**20
"""Of [B, N, N] that are made at a time: 8 MB in float64, for each reference."""


def blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """[G, N] in slices of so many groups that their pairs take little memory; at least one slice.

    A group's numbers do not depend on the slice it is in.
    """
    groups, width = shape
    step = max(1, CELLS // max(1, width * width))
    for start in range(0, max(groups, 1), step):
        yield slice(start, start + step)


def require_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a tensor of another shape; nothing here broadcasts silently.

    Raises:
        ValueError: naming the tensor, its shape and the one needed.
    """
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")


def fill(tensor: Tensor, mask: Tensor, value: float = 0.0) -> Tensor:
    """`tensor` with `value` where `mask` is False: NaN there reaches no value and no gradient."""
    return torch.where(mask, tensor, torch.full_like(tensor, value))


def masked_mean(tensor: Tensor, mask: Tensor, dims: tuple[int, ...] = (-1,)) -> Tensor:
    """Mean over the True entries of `mask`; 0 where there is none."""
    count = mask.sum(dims).clamp(min=1)
    return fill(tensor, mask).sum(dims) / count


def masked_logsumexp(tensor: Tensor, mask: Tensor) -> Tensor:
    """[B, N], [B, N] -> [B]: log of the sum of exponentials over the True entries.

    A row without any gives 0 and no gradient, so that groups skipped elsewhere stay finite here.
    """
    empty = ~mask.any(-1, keepdim=True)
    terms = fill(tensor, mask, float("-inf"))
    return torch.where(empty, torch.zeros_like(terms), terms).logsumexp(-1) * ~empty.squeeze(-1)


def pair_differences(tensor: Tensor) -> Tensor:
    """[B, N] -> [B, N, N]: entry (w, l) is x_w − x_l."""
    return tensor.unsqueeze(-1) - tensor.unsqueeze(-2)
