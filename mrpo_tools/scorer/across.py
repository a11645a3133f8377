"""A model whose layers lie on several devices, by accelerate's hooks.

A hook moves the tensors among a module's arguments to where the module is, and brings weights of
layers that were left in the memory of the machine. What no argument carries it cannot see: what
indexes states, and what an attention function remembers, goes to the states' device where it is
used (`ResponseScorer`, `pieces`, `variable_length`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from mrpo_tools.scorer.placement import Block

OFFLOADED = ("cpu", "disk")
"""Whose layers are computed on the first of the other devices."""


def devices_of(model: nn.Module) -> tuple[torch.device, ...]:
    """Where a model's layers are computed, the device of its first layer first."""
    places = getattr(model, "hf_device_map", None) or {}
    if len(set(places.values())) < 2:
        return (next(model.parameters()).device,)
    computing = dict.fromkeys(place for place in places.values() if place not in OFFLOADED)
    return tuple(map(_device, computing)) or (torch.device("cpu"),)


def _device(place: int | str | torch.device) -> torch.device:
    if isinstance(place, int):
        kind = torch.accelerator.current_accelerator() or torch.device("cuda")
        return torch.device(kind.type, place)
    return torch.device(place)


def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Give a module another `forward`, below accelerate's hook where it has one: in its place, a
    head would neither get its states moved nor its weights brought."""
    hooked = "_old_forward" in vars(module)
    module.__dict__["_old_forward" if hooked else "forward"] = forward


def blocks_of(model: Any, sizes: Mapping[str, int]) -> tuple[Block, ...]:
    """What of a causal LM lies on one device, in the order in which it is computed.

    Layers are those that the model says are not split. Modules that share a parameter lie together,
    and those without any, as rotary embeddings are, lie with the first.

    Args:
        model: any, without weights too.
        sizes: bytes of its parameters and buffers, by name.
    """
    layers = set(model._no_split_modules or ())
    blocks: list[Block] = []
    owners: dict[int, int] = {}
    for name, module in _units(model, layers):
        named = dict(module.named_parameters(name)) if isinstance(module, nn.Module) else {
            name: module
        }  # fmt: skip
        shared = [owners[id(tensor)] for tensor in named.values() if id(tensor) in owners]
        own = [full for full, tensor in named.items() if id(tensor) not in owners]
        size = sum(sizes[full] for full in own)
        if isinstance(module, nn.Module):
            size += sum(sizes[full] for full, _ in module.named_buffers(name))
        place = shared[0] if shared else 0 if not named and blocks else len(blocks)
        owners |= {id(tensor): place for tensor in named.values()}
        if place == len(blocks):
            blocks.append(Block((name,), size))
        else:
            first = blocks[place]
            blocks[place] = Block((*first.names, name), first.size + size)
    return tuple(blocks)


def _units(module: nn.Module, layers: set[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The layers and all that is beside them, as large as can be: modules, and parameters and
    buffers of modules that hold layers."""
    holds = any(type(inner).__name__ in layers for inner in module.modules())
    if prefix and (type(module).__name__ in layers or not holds):
        yield prefix, module
        return
    start = f"{prefix}." if prefix else ""
    yield from module.named_parameters(prefix, recurse=False)
    yield from module.named_buffers(prefix, recurse=False)
    for name, child in module.named_children():
        yield from _units(child, layers, f"{start}{name}")
