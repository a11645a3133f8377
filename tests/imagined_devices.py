"""Devices of a machine that has none: real numbers on the CPU under the name of a device.

`FAR` is the kind of an accelerator that torch lets Python stand for. An operation on tensors of two
of its devices, or of one and of the CPU, raises as it does with CUDA; a number of no dimensions may
come from the CPU. torch keeps an accelerator for the rest of the process, so whoever imports this
has a process of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)


class Backend(_DummyBackendModule):
    """What torch asks of a kind of accelerator."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend("far", Backend())
NEAR, FAR = torch.device("cpu"), (torch.device("far:0"), torch.device("far:1"))
MOVES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
"""What may look at two devices."""
COUNTS = torch.ops.aten.histc.default
"""Of whole numbers on accelerators alone; on the CPU they are made real ones for it."""
ATTENTION = torch.ops.aten._fused_sdp_choice.default
PRODUCTS = 0
"""Of the kernels of `scaled_dot_product_attention`: the one that is made of other operations."""


class Placed(Tensor):
    """A tensor on an imagined device.

    Args:
        numbers: on the CPU.
        device: of `FAR`.
    """

    numbers: Tensor

    @staticmethod
    def __new__(
        cls, numbers: Tensor, device: torch.device | None = None, *, requires_grad: bool = False
    ) -> Any:
        if isinstance(numbers, Placed):  # as accelerate makes a parameter of its own kind
            return nn.Parameter(numbers, requires_grad=requires_grad)
        made = torch.Tensor._make_wrapper_subclass(
            cls, numbers.shape, strides=numbers.stride(), dtype=numbers.dtype, device=device,
            storage_offset=numbers.storage_offset(),
        )  # fmt: skip
        made.numbers = numbers
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.data_ptr):  # storages tell tied weights
            return func(args[0].numbers)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class _Lists(TorchFunctionMode):
    """`torch.tensor` of a list passes no dispatcher."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is not torch.tensor:
            return func(*args, **kwargs)
        device = kwargs.pop("device", None)
        made = func(*args, **kwargs)
        return made if device is None else made.to(device)


@contextlib.contextmanager
def devices() -> Iterator[None]:
    """Tensors are made on imagined devices where one is asked for."""
    with _Operations(), _Lists():
        yield


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation gives, on the device of its tensors or on the one that it names.

    Raises:
        RuntimeError: its tensors are on several.
    """
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    devices = {leaf.device for leaf in tensors if leaf.dim() or leaf.device != NEAR}
    if len(devices) > 1 and func not in MOVES:
        raise RuntimeError(f"{func}: tensors on {', '.join(sorted(map(str, devices)))}")
    device = tensors[0].device if tensors and func in MOVES else next(iter(devices), NEAR)
    if kwargs.get("device") is not None:
        device = torch.device(kwargs["device"])
        kwargs = {**kwargs, "device": NEAR}
    if func is ATTENTION and device != NEAR:
        return PRODUCTS
    owners = {id(leaf.numbers): leaf for leaf in tensors if isinstance(leaf, Placed)}

    def bare(leaf: Any) -> Any:
        leaf = leaf.numbers if isinstance(leaf, Placed) else leaf
        return leaf.float() if func is COUNTS and isinstance(leaf, Tensor) else leaf

    def placed(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or device == NEAR:
            return leaf
        return owners.get(id(leaf)) if id(leaf) in owners else Placed(leaf, device)

    return tree_map(placed, func(*tree_map(bare, args), **tree_map(bare, kwargs)))


def put(model: nn.Module, places: dict[str, torch.device]) -> None:
    """Move every parameter and buffer to the device of the longest name that it begins with; tied
    ones stay one."""
    moved: dict[int, tuple[Tensor, Tensor]] = {}
    for prefix, module in list(model.named_modules()):
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is None:
                    continue
                if id(tensor) not in moved:
                    full = f"{prefix}.{name}".removeprefix(".")
                    own = [each for each in places if full == each or full.startswith(f"{each}.")]
                    there = Placed(tensor.detach().clone(), places[max(own, key=len)])
                    if isinstance(tensor, nn.Parameter):
                        there = nn.Parameter(there, requires_grad=False)
                    moved[id(tensor)] = (tensor, there)
                held[name] = moved[id(tensor)][1]
