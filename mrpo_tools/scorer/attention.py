"""Attention over a packed forest, registered with transformers under the name `tree`.

Every piece of the line is one attention problem: a prompt attends to itself, a response to its
prompt and itself, both causally. No mask of the whole line is made and nothing is padded.

On CUDA with 16-bit numbers all pieces are one call of variable-length attention, with more keys
than queries for a response; elsewhere they are one call of `scaled_dot_product_attention` each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from mrpo_tools.scorer.trees import Forest, Piece

TREE = "tree"
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
    forest: Forest | None = None,
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
        softcap: bound of the products, c·tanh(s / c).
        forest: where the trees lie.

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
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and softcap is None:
        states = _variable_length(
            query, key, value, forest=forest, scaling=scaling, window=sliding_window
        )
    else:
        states = _piece_by_piece(
            query,
            key,
            value,
            forest=forest,
            scaling=scaling,
            window=sliding_window,
            softcap=softcap,
        )
    return states, None


AttentionInterface.register(TREE, tree_attention)


def _piece_by_piece(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    forest: Forest,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    attend = scaled_dot_product_attention if softcap is None else _softcapped(softcap)
    outputs = []
    for whole in forest.pieces:
        piece = _seen(whole, window)
        mask = _mask(forest, piece, window, query)
        outputs.append(
            attend(
                query[:, :, piece.start : piece.end],
                _keys(key, piece),
                _keys(value, piece),
                attn_mask=mask,
                is_causal=mask is None and piece.end - piece.start > 1,
                scale=scaling,
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _seen(piece: Piece, window: int | None) -> Piece:
    """The piece without the part of its prefix that is beyond every token's window."""
    if window is None:
        return piece
    return piece._replace(prefix=max(piece.prefix, piece.prefix_end - window + 1))


def _keys(states: Tensor, piece: Piece) -> Tensor:
    own = states[:, :, piece.start : piece.end]
    if piece.prefix >= piece.prefix_end:
        return own
    return torch.cat((states[:, :, piece.prefix : piece.prefix_end], own), dim=2)


def _mask(forest: Forest, piece: Piece, window: int | None, like: Tensor) -> Tensor | None:
    """[L, P + L] to be added to the products; None where causal order is all there is.

    The keys are the prefix's last P positions and the piece's own L, one after the other.
    """
    length, before = piece.end - piece.start, max(piece.prefix_end - piece.prefix, 0)
    if window is not None and window >= before + length:
        window = None
    if window is None and (before == 0 or length == 1):
        return None
    name = (length, before, window, like.dtype, like.device)
    if name not in forest.memory:
        distance = torch.arange(before, before + length).unsqueeze(1) - torch.arange(
            before + length
        )
        seen = (distance >= 0) & (distance < (window or before + length))
        mask = torch.zeros(seen.shape, dtype=like.dtype).masked_fill(~seen, float("-inf"))
        forest.memory[name] = mask.to(like.device)
    remembered: Tensor = forest.memory[name]
    return remembered


def _softcapped(cap: float) -> Any:
    """`scaled_dot_product_attention` with bounded products (Gemma 2)."""

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        attn_mask: Tensor | None,
        is_causal: bool,
        scale: float | None,
    ) -> Tensor:
        products = query @ key.transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)
        products = cap * torch.tanh(products / cap)
        if is_causal:
            later = torch.ones(products.shape[-2:], dtype=torch.bool, device=query.device).triu(1)
            products = products.masked_fill(later, float("-inf"))
        if attn_mask is not None:
            products = products + attn_mask
        return products.softmax(-1, dtype=torch.float32).to(value.dtype) @ value

    return attend


def _variable_length(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    forest: Forest,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    places, query_ends, key_ends, longest = _variable_lengths(forest, window, query.device)
    lines = [states[0].transpose(0, 1) for states in (query, key, value)]
    output: Any = varlen_attn(
        lines[0],
        lines[1][places],
        lines[2][places],
        query_ends,
        key_ends,
        *longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return torch.as_tensor(output).unsqueeze(0)


def _variable_lengths(
    forest: Forest, window: int | None, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
    """Which positions are keys, piece after piece; where each piece's queries and keys end.

    The last key of a piece stands at its last query, so causal order counts from the end.

    Returns:
        [ΣK] indices; [P + 1] and [P + 1] int32 borders; the longest piece in queries and keys.
    """
    name = ("variable lengths", window, device)
    if name not in forest.memory:
        pieces = [_seen(piece, window) for piece in forest.pieces]
        places = [
            torch.cat((torch.arange(piece.prefix, max(piece.prefix, piece.prefix_end)),
                       torch.arange(piece.start, piece.end)))
            for piece in pieces
        ]  # fmt: skip
        lengths = [piece.end - piece.start for piece in pieces], [len(keys) for keys in places]
        borders = [
            torch.tensor([0, *counts]).cumsum(0).to(device, torch.int32) for counts in lengths
        ]
        longest = (max(lengths[0]), max(lengths[1]))
        forest.memory[name] = (torch.cat(places).to(device), *borders, longest)
    remembered: tuple[Tensor, Tensor, Tensor, tuple[int, int]] = forest.memory[name]
    return remembered
