"""Attention over a packed forest, registered with transformers under two names.

Every piece of the line is one attention problem: a prompt attends to itself, a response to its
prompt and itself, both causally. No mask of the whole line is made and nothing is padded.

`tree` computes all pieces of a layer in one call of variable-length attention where that can be: on
CUDA, in 16 bits, by a rule that the kernel has. Otherwise, and always under `tree_pieces`, it goes
piece by piece.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from mrpo_tools.scorer.head import SIXTEEN_BITS
from mrpo_tools.scorer.pieces import Rule, piece_by_piece
from mrpo_tools.scorer.trees import Forest
from mrpo_tools.scorer.variable_length import (
    INSTALLED,
    LARGEST_HEAD,
    VariableLength,
    unfit,
)

TREE = "tree"
TREE_PIECES = "tree_pieces"
"""Not a name with `sdpa` in it: transformers refuses those to families without that kernel."""
UNTOLD = -1
"""The window of a layer that does not say it: some families have it in their masks alone."""


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = UNTOLD,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    forest: Forest | None = None,
    kernel: VariableLength | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The interface of transformers' attention functions.

    Args:
        module: the layer; its configuration tells whether a window may be meant.
        query: [1, H, T, E].
        key, value: [1, G, T, E], G dividing H.
        attention_mask: not used.
        scaling: of the products; None is E^-1/2.
        sliding_window: how many positions back a token sees, itself counted.
        softcap: bound of the products.
        s_aux: [H] the sinks.
        forest: where the trees lie.
        kernel: used where it takes a layer's states; None goes piece by piece.

    Returns:
        [1, T, H, E], and None for the weights.
    """
    del attention_mask  # the forest says what it would
    if forest is None:
        raise ValueError("attention `tree` needs the forest of a packed batch")
    if sliding_window == UNTOLD:
        if getattr(getattr(module, "config", None), "sliding_window", None) is not None:
            raise ValueError("this family does not tell its attention function the window")
        sliding_window = None
    rule = Rule(
        query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap, s_aux
    )
    query, key, value = _autocast(query, key, value)
    if kernel is not None and kernel.takes(query, value, rule):
        return kernel(query, key, value, forest, rule), None
    return piece_by_piece(query, key, value, forest, rule), None


def _autocast(*states: Tensor) -> tuple[Tensor, ...]:
    """The states as autocast has its matrix products: rotary embeddings leave it in float32."""
    device = states[0].device.type
    if not torch.is_autocast_enabled(device):
        return states
    dtype = torch.get_autocast_dtype(device)
    return tuple(numbers.to(dtype) for numbers in states)


AttentionInterface.register(TREE, functools.partial(tree_attention, kernel=INSTALLED))
AttentionInterface.register(TREE_PIECES, tree_attention)


def uses_variable_length(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `tree` computes plain layers (no window, no soft-cap, no sinks) in one call."""
    halves = device.type == "cuda" and dtype in SIXTEEN_BITS
    return halves and missing_variable_length(device, dtype) is None


def missing_variable_length(
    device: torch.device,
    dtype: torch.dtype,
    model: torch.nn.Module | None = None,
    kernel: VariableLength | None = INSTALLED,
) -> str | None:
    """Why `tree` goes piece by piece where one call is expected: on CUDA in 16 bits.

    Args:
        device, dtype: of the products.
        model: of transformers, for what its layers ask of the kernel; None asks nothing.
        kernel: of this torch.

    Returns:
        The reason in words, without a full stop; None if there is none, or no call is expected.
    """
    if device.type != "cuda" or dtype not in SIXTEEN_BITS:
        return None
    if kernel is None:
        return f"torch {torch.__version__} has no variable-length attention, torch 2.10 has"
    return (kernel.refusal(*_asked(model)) if model else None) or unfit(device)


def _asked(model: Any) -> tuple[Rule, int, int]:
    """What a model's layers ask of a kernel: the rule; the size of heads where it is said."""
    config = model.config.get_text_config()
    sinks = [weights for name, weights in model.named_parameters() if name.endswith(".sinks")]
    rule = Rule(
        scaling=1.0,
        window=getattr(config, "sliding_window", None),
        softcap=getattr(config, "attn_logit_softcapping", None),
        sinks=sinks[0] if sinks else None,
    )
    size = getattr(config, "head_dim", None) or LARGEST_HEAD
    return rule, size, size
