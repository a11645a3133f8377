"""Attention over a packed forest in one call of torch's variable-length kernel.

Pieces are its segments. A response has more keys than queries; the kernel counts causal order from
the end, where a piece's last query stands at its last key.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mrpo_tools.scorer.head import SIXTEEN_BITS
from mrpo_tools.scorer.pieces import Rule, within_window
from mrpo_tools.scorer.trees import Forest

LARGEST_HEAD = 256
OLDEST = (8, 0)
"""The compute capability that flash attention needs."""


class VariableLength:
    """`varlen_attn` of `torch.nn.attention.varlen`, whatever release of torch it is of.

    torch 2.10 takes causal order alone, 2.11 a scale and a window, and since 2.12 it is told that
    there are fewer heads of keys than of queries; the kernel below takes those in all of them.

    Args:
        kernel: the function.
        device_type: where it runs.
        dtypes: of its numbers.
    """

    def __init__(
        self,
        kernel: Callable[..., Any],
        device_type: str = "cuda",
        dtypes: tuple[torch.dtype, ...] = SIXTEEN_BITS,
    ) -> None:
        self.kernel = kernel
        self.device_type = device_type
        self.dtypes = dtypes
        self.keywords = frozenset(inspect.signature(kernel).parameters)

    def refusal(self, rule: Rule, head_size: int, value_size: int) -> str | None:
        """Why a layer cannot be computed here, in words; None if it can."""
        if rule.softcap is not None:
            return "the variable-length kernel has no soft-capped products"
        if rule.sinks is not None:
            return "the variable-length kernel has no attention sinks"
        if rule.window is not None and "window_size" not in self.keywords:
            return "the variable-length kernel has sliding windows since torch 2.11 only"
        if head_size != value_size or head_size % 8 or head_size > LARGEST_HEAD:
            return "the variable-length kernel has no heads of this size"
        return None

    def takes(self, query: Tensor, value: Tensor, rule: Rule) -> bool:
        """Whether these states can be computed here, by this rule."""
        return (
            query.device.type == self.device_type
            and query.dtype in self.dtypes
            and self.refusal(rule, query.shape[-1], value.shape[-1]) is None
            and unfit(query.device) is None
        )

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, forest: Forest, rule: Rule
    ) -> Tensor:
        """[1, H, T, E], [1, G, T, E], [1, G, T, E] -> [1, T, H, E]; G divides H."""
        places, query_ends, key_ends, longest = segments(forest, rule.window, query.device)
        queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
        if places is not None:
            keys, values = (states.index_select(0, places) for states in (keys, values))
        own_scaling = query.shape[-1] ** -0.5
        if "scale" not in self.keywords and rule.scaling != own_scaling:
            queries = queries * (rule.scaling / own_scaling)
        given = {
            "is_causal": True,
            "window_size": (-1 if rule.window is None else rule.window - 1, 0),
            "scale": rule.scaling,
            "enable_gqa": query.shape[1] != key.shape[1],
        }
        known = {name: argument for name, argument in given.items() if name in self.keywords}
        output: Any = self.kernel(queries, keys, values, query_ends, key_ends, *longest, **known)
        return torch.as_tensor(output).unsqueeze(0)


def segments(
    forest: Forest, window: int | None, device: torch.device
) -> tuple[Tensor | None, Tensor, Tensor, tuple[int, int]]:
    """Which positions are keys, piece after piece; where each piece's queries and keys end.

    Returns:
        [ΣK] positions, None where they are the line itself; [P + 1] and [P + 1] int32 borders; the
        longest piece in queries and in keys.
    """
    name = ("segments", window, device)
    if name not in forest.memory:
        pieces = [within_window(piece, window) for piece in forest.pieces]
        prefixes = [range(piece.prefix, piece.prefix_end) for piece in pieces]
        queries = [piece.end - piece.start for piece in pieces]
        keys = [len(prefix) + own for prefix, own in zip(prefixes, queries, strict=True)]
        places = None
        if any(prefixes):
            ranges = [
                torch.arange(part.start, part.stop)
                for prefix, piece in zip(prefixes, pieces, strict=True)
                for part in (prefix, range(piece.start, piece.end))
                if part
            ]
            places = torch.cat(ranges).to(device)
        borders = [
            torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
            for lengths in (queries, keys)
        ]
        forest.memory[name] = (places, *borders, (max(queries), max(keys)))
    remembered: tuple[Tensor | None, Tensor, Tensor, tuple[int, int]] = forest.memory[name]
    return remembered


@functools.cache
def unfit(device: torch.device) -> str | None:
    """Why the kernel does not run on a device, in words; None if it does."""
    if device.type != "cuda":
        return None
    if not torch.backends.cuda.is_flash_attention_available():
        return "this build of torch has no flash attention"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        return f"the GPU is of compute capability {capability[0]}.{capability[1]}, below 8.0"
    return None


def _installed() -> VariableLength | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return VariableLength(varlen_attn)


INSTALLED = _installed()
"""The kernel of this torch; None before torch 2.10."""
