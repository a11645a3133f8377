"""Attention over a packed forest piece by piece: on every device, by every rule of a layer.

A piece is one attention problem: its queries are consecutive tokens, its keys are its prefix and
itself, and the last query stands at the last key. Queries are taken in blocks, and a block meets
the keys that its tokens see. So nothing that grows with the square of a row's length is kept:
neither masks nor, where no fused kernel has the rule, products.

Shapes: H heads of queries, G of keys (G divides H), T tokens of the line, L queries and K keys of a
block, E numbers of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from mrpo_tools.scorer.trees import Forest, Piece

BLOCK = 512
"""Queries of a block at most: of 128 to 1,024 the fastest on a CPU, with a window of 1,024."""
PRODUCTS = {True: 2**22, False: 2**24}
"""Products of a block at most, where no fused kernel has the rule: 16 MiB in float32 on a CPU,
whose caches hold few, and 64 MiB on an accelerator."""


class Rule(NamedTuple):
    """How a layer attends.

    Attributes:
        scaling: of the products of queries and keys.
        window: how many positions back a token sees, itself counted; None is all of them.
        softcap: bound c of the products, c·tanh(s / c) (Gemma 2).
        sinks: [H] a product of every query that takes its share of the weights and has no value
            (gpt-oss).
    """

    scaling: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def fused(self) -> bool:
        """Whether `scaled_dot_product_attention` has it."""
        return self.softcap is None and self.sinks is None


def piece_by_piece(query: Tensor, key: Tensor, value: Tensor, forest: Forest, rule: Rule) -> Tensor:
    """Attention of every piece of a line.

    Args:
        query: [1, H, T, E].
        key, value: [1, G, T, E].
        forest: where the trees lie.
        rule: of the layer.

    Returns:
        [1, T, H, E].
    """
    attend = _recomputed
    if rule.fused:
        attend = _fused
        key, value = (_for_each_head(states, query.shape[1]) for states in (key, value))
    lengths = [piece.end - piece.start for piece in forest.pieces]
    parts = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    outputs = []
    for whole, (queries, own_keys, own_values) in zip(forest.pieces, parts, strict=True):
        piece = within_window(whole, rule.window)
        keys, values = _after_prefix(key, own_keys, piece), _after_prefix(value, own_values, piece)
        mask = _mask(queries, keys, forest, rule)
        for rows, columns in _blocks(queries, keys, mask, rule):
            block = queries[:, :, rows], keys[:, :, columns], values[:, :, columns]
            corner = slice(rows.start - rows.stop, None), slice(columns.start - columns.stop, None)
            outputs.append(attend(*block, None if mask is None else mask[corner], rule))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()  # some families view it


def within_window(piece: Piece, window: int | None) -> Piece:
    """The piece without the part of its prefix that is beyond every token's window."""
    if window is None:
        return piece
    return piece._replace(prefix=max(piece.prefix, piece.prefix_end - window + 1))


def _for_each_head(states: Tensor, heads: int) -> Tensor:
    """[1, G, T, E] -> [1, H, T, E]: a fused kernel for few heads of keys is not on every device."""
    _, groups, length, size = states.shape
    if groups == heads:
        return states
    shared = states.unsqueeze(2).expand(1, groups, heads // groups, length, size)
    return shared.reshape(1, heads, length, size)


def _after_prefix(states: Tensor, own: Tensor, piece: Piece) -> Tensor:
    if piece.prefix >= piece.prefix_end:
        return own
    return torch.cat((states[:, :, piece.prefix : piece.prefix_end], own), dim=2)


def _mask(queries: Tensor, keys: Tensor, forest: Forest, rule: Rule) -> Tensor | None:
    """[`BLOCK`, at least K] to be added to a piece's products: −inf where a query sees no key.

    The last query stands at the last key, so the mask of every block is the lower right corner of
    one mask, which the forest remembers. None where causal order is all there is, and a fused
    kernel has it.
    """
    length, columns = queries.shape[2], keys.shape[2]
    window = rule.window or columns
    if rule.fused and (length == 1 or (length == columns and columns <= window)):
        return None
    name = ("mask", rule.window, queries.dtype, queries.device)
    mask: Tensor | None = forest.memory.get(name)
    widest = max(BLOCK, min(columns, window + BLOCK))
    if mask is None or mask.shape[1] < widest:
        # One more than a power of two: a kernel that wants aligned rows sees that these are not.
        width = (1 << (widest - 1).bit_length()) + 1
        places = torch.arange(width, device=queries.device)
        distance = places[-BLOCK:].unsqueeze(1) - places
        unseen = (distance < 0) | (distance >= (rule.window or width))
        mask = torch.zeros_like(distance, dtype=queries.dtype).masked_fill_(unseen, -torch.inf)
        forest.memory[name] = mask
    return mask


def _blocks(
    queries: Tensor, keys: Tensor, mask: Tensor | None, rule: Rule
) -> Iterator[tuple[slice, slice]]:
    """Consecutive queries of a piece, with the keys that they see."""
    heads, length = queries.shape[1:3]
    columns = keys.shape[2]
    window = rule.window or columns
    size = length if mask is None else BLOCK
    if not rule.fused:
        most = PRODUCTS[queries.device.type == "cpu"]
        size = max(1, min(BLOCK, most // (heads * min(columns, window + BLOCK))))
    for start in range(0, length, size):
        end = min(start + size, length)
        first = columns - length + start - window + 1
        yield slice(start, end), slice(max(0, first), columns - length + end)


def _fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rule: Rule) -> Tensor:
    """[1, H, L, E], [1, H, K, E], [1, H, K, E] -> [1, H, L, E] by torch's own kernels."""
    causal = mask is None and query.shape[2] > 1
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=rule.scaling
    )


def _recomputed(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rule: Rule
) -> Tensor:
    """`_product_by_product`, made again in the backward pass in place of being kept."""
    output: Any = checkpoint(
        _product_by_product, query, key, value, mask, rule,
        use_reentrant=False, preserve_rng_state=False,
    )  # fmt: skip
    return torch.as_tensor(output)


def _product_by_product(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, rule: Rule
) -> Tensor:
    """[1, H, L, E], [1, G, K, E], [1, G, K, E] -> [1, H, L, E], softmax in float32 or better.

    A sink s shrinks the weights of a query by Σexp(p) / (Σexp(p) + exp(s)), p its products; that is
    sigmoid(logsumexp(p) − s).
    """
    groups, columns, size = key.shape[1:]
    heads, rows = query.shape[1:3]
    flat = query.reshape(groups, -1, size)  # the heads that share keys, one after the other
    products = (flat @ key[0].transpose(1, 2)).view(heads, rows, columns)
    products = products.to(torch.promote_types(products.dtype, torch.float32)) * rule.scaling
    if rule.softcap is not None:
        products = rule.softcap * torch.tanh(products / rule.softcap)
    products = products + mask
    weights = products.softmax(-1).to(value.dtype).view(groups, -1, columns)
    output = (weights @ value[0]).view(heads, rows, -1)
    if rule.sinks is not None:
        rest = products.logsumexp(-1, keepdim=True) - rule.sinks.view(-1, 1, 1)
        output = output * rest.sigmoid()
    return output.to(value.dtype).unsqueeze(0)
