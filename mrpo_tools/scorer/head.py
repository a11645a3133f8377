"""Logits in float32 from 16-bit weights.

One unit in the last place of a bfloat16 logit between 16 and 32 is 0.125: a head that writes its
logits in 16 bits loses more than everything before it. The products are of 16-bit numbers and
their sums are float32 inside every kernel; here they stay so.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mrpo_tools.scorer.across import replace_forward

SIXTEEN_BITS = (torch.bfloat16, torch.float16)
BLOCK = 8192
"""Rows of the head that are widened at a time where no kernel does it."""


def widen_logits(model: Any) -> None:
    """Make a causal LM's output layer give float32 logits, in the model's own `forward` too.

    A head that is not a plain linear layer (a quantised one, say) stays as it is.
    """
    head = model.get_output_embeddings()
    linear = getattr(head, "base_layer", head)
    if type(linear) is nn.Linear:
        replace_forward(linear, partial(wide_linear, linear))


def wide_linear(layer: nn.Linear, states: Tensor) -> Tensor:
    """`layer(states)` with products in 16 bits and their sums in float32.

    Args:
        layer: V × D, with or without bias.
        states: [..., D].

    Returns:
        [..., V], float32; of a wider layer in its own dtype.
    """
    kind, dtype = states.device.type, layer.weight.dtype
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    if dtype not in SIXTEEN_BITS:
        return nn.functional.linear(states, layer.weight, layer.bias)
    lines = states.flatten(0, -2).to(dtype)
    product: Any = _WideProduct
    logits: Tensor = product.apply(lines, layer.weight.to(dtype))
    logits = logits.unflatten(0, states.shape[:-1])
    return logits if layer.bias is None else logits + layer.bias.float()


class _WideProduct(torch.autograd.Function):
    """[M, D], [V, D] of 16 bits -> [M, V] float32; the gradients have 16 bits."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(states, weight)
        with torch.autocast(states.device.type, enabled=False):
            if states.is_cuda:
                return torch.mm(states, weight.t(), out_dtype=torch.float32)
            wide = states.float()
            return torch.cat([wide @ rows.float().t() for rows in weight.split(BLOCK)], dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        states, weight = ctx.saved_tensors
        of_states = of_weight = None
        gradient = gradients[0]
        with torch.autocast(states.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                of_states = _product(gradient, weight).to(states.dtype)
            if ctx.needs_input_grad[1]:
                of_weight = _product(gradient.t(), states).to(weight.dtype)
        return of_states, of_weight


def _product(gradient: Tensor, other: Tensor) -> Tensor:
    """[A, B] float32 · [B, C] of 16 bits: in 16 bits where those are fast."""
    if gradient.is_cuda:
        return gradient.to(other.dtype) @ other
    product = gradient.new_zeros(len(gradient), other.shape[1])
    for part, rows in zip(gradient.split(BLOCK, dim=1), other.split(BLOCK), strict=True):
        product += part @ rows.float()
    return product
