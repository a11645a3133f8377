"""Whole tensors of parts, and parts of whole ones: files are the same whatever the processes.

A run's files hold whole weights and an optimizer's whole states, as one process would write them;
plain transformers and peft load them, and so does a run of other processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from mrpo_tools.errors import UsageError
from mrpo_tools.progress import is_first_process
from mrpo_tools.references.saved import opened_tensors, saved_tensors


def own_part(tensor: Tensor) -> Tensor:
    """What this process has of a tensor that may be shared out."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(value: Any) -> Any:
    """A value, or a nest of dictionaries and lists of them, with whole tensors on the CPU.

    Every process calls it together. Only in the first is the result of use; the others' tensors
    that were shared out become empty ones.
    """
    if isinstance(value, Mapping):
        return {key: gathered(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(gathered(each) for each in value)
    if not isinstance(value, DTensor):
        return value
    shared: Any = value.detach()  # torch types it as any tensor
    whole = shared.full_tensor()
    return whole.cpu() if is_first_process() else whole.new_empty(0)


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that a checkpoint of a module needs, whole in the first process: those that are
    trained where only some are, and all of them otherwise. Every process calls it together."""
    trained = {id(weights) for weights in model.parameters() if weights.requires_grad}
    adapts = len(trained) < sum(1 for _ in model.parameters())
    whole: dict[int, Tensor] = {}  # a tied weight is one tensor under two names
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if adapts and id(tensor) not in trained:
            continue
        if id(tensor) not in whole:
            whole[id(tensor)] = gathered(tensor.detach())
        state[name] = whole[id(tensor)]
    return state


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load what was saved into a model that may be shared out.

    Args:
        model: inside the scorer, with or without an adapter.
        folder: with safetensors files, as `save_pretrained` writes them.

    Raises:
        UsageError: a tensor of the model's is not there.
    """
    places = saved_tensors(model)
    with opened_tensors(folder) as saved:
        if missing := sorted(places.keys() - saved.keys()):
            raise UsageError(
                f"{folder} lacks {len(missing)} of the policy's tensors, the first {missing[0]}"
            )
        for name, weights in places.items():
            copy_into(weights, saved[name]())


@torch.no_grad()
def copy_into(weights: Tensor, whole: Tensor) -> None:
    """Fill a tensor with a whole one's values: this process's part, where it is shared out."""
    own_part(weights).copy_(own_part(_shared_as(whole, weights)))


def load_optimizer(optimizer: Any, state: Mapping[str, Any]) -> None:
    """Load an optimizer's whole states into one of parameters that are shared out.

    Args:
        optimizer: of torch, with or without accelerate's wrapper.
        state: of the same parameters in the same order, as `gathered` made it.
    """
    weights = [each for group in optimizer.param_groups for each in group["params"]]
    shared = {
        place: {key: _shared_as(value, weights[place]) for key, value in states.items()}
        for place, states in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": shared})


def _shared_as(value: Any, like: Tensor) -> Any:
    """A state with the shape of its parameter, shared out as that is; others as they are."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    own = own_part(like)
    return distribute_tensor(
        value.to(own.device), like.device_mesh, like.placements, src_data_rank=None
    )


def save_states(folder: Path, optimizer: Any, scheduler: Any) -> None:
    """Write an optimizer's and a schedule's states, whole; every process calls it together."""
    state = gathered(optimizer.state_dict())
    if is_first_process():
        torch.save(state, folder / OPTIMIZER_NAME)
        torch.save(scheduler.state_dict(), folder / SCHEDULER_NAME)


def load_states(folder: Path, optimizer: Any, scheduler: Any) -> None:
    """Load what `save_states` or the Trainer wrote; nothing but tensors and plain values."""
    saved = [
        torch.load(folder / name, map_location="cpu", weights_only=True, mmap=True)
        for name in (OPTIMIZER_NAME, SCHEDULER_NAME)
    ]
    load_optimizer(optimizer, saved[0])
    scheduler.load_state_dict(saved[1])
