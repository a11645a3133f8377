"""A device's memory as a dry run foretells it, against the real step on tensors without storage.

    python bench/device_memory.py [--layers N] [--cases 1 2 ...]

For each case the whole Llama 3 8B is made of tensors that have a shape and no storage, wrapped as
it would be (`fully_shard` over a process group that sends nothing), and computes two optimizer
steps, the second one of two micro-batches: forward, backward, optimizer. The peak is what was
alive, counted storage by storage; nothing of the foretold figure goes into it. NF4 layers are
stand-ins with the bytes of bitsandbytes' and its way through a layer: its kernels want real
numbers. `ddp` and DeepSpeed are not run.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from memory import CPU, SHAPES, TRAINED, blueprint_of
from torch import Tensor, distributed, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.attention.varlen import varlen_attn
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AttentionInterface
from transformers.optimization import Adafactor

from mrpo_tools.maths.logprobs import TILES
from mrpo_tools.references.loading import quiet_libraries
from mrpo_tools.scorer.attention import TREE, tree_attention
from mrpo_tools.scorer.blueprint import Blueprint
from mrpo_tools.scorer.memory import LiveBytes, inputs, step_bytes, weights_of
from mrpo_tools.scorer.scorer import BATCH_TOKENS, ResponseScorer
from mrpo_tools.scorer.variable_length import VariableLength
from mrpo_tools.training.device_memory import Layout, StepMemory, device_memory
from mrpo_tools.training.optimizers import kept_by

OPTIMIZERS: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "adamw_torch": lambda weights: torch.optim.AdamW(weights, foreach=False),
    "sgd": lambda weights: torch.optim.SGD(weights, lr=1e-6, foreach=False),
    "adafactor": lambda weights: Adafactor(
        weights, lr=1e-6, scale_parameter=False, relative_step=False
    ),
}
CASES: tuple[tuple[str, dict[str, bool], str, Layout], ...] = (
    ("LoRA", {"adapter": True}, "adamw_torch", Layout()),
    ("LoRA, checkpointing", {"adapter": True, "recomputed": True}, "adamw_torch", Layout()),
    ("QLoRA", {"adapter": True, "packed": True}, "adamw_torch", Layout()),
    ("QLoRA, checkpointing", {"adapter": True, "recomputed": True, "packed": True}, "adamw_torch",
     Layout()),
    ("full, checkpointing", {"full": True, "recomputed": True}, "adamw_torch", Layout()),
    ("full, checkpointing", {"full": True, "recomputed": True}, "adafactor", Layout()),
    ("full, checkpointing", {"full": True, "recomputed": True}, "sgd", Layout()),
    ("LoRA", {"adapter": True}, "adamw_torch", Layout(8, "fsdp2")),
    ("LoRA, checkpointing", {"adapter": True, "recomputed": True}, "adamw_torch",
     Layout(8, "fsdp2")),
    ("full", {"full": True}, "adamw_torch", Layout(8, "fsdp2")),
    ("full, checkpointing", {"full": True, "recomputed": True}, "adamw_torch", Layout(8, "fsdp2")),
    ("full, checkpointing", {"full": True, "recomputed": True}, "adamw_torch", Layout(2, "fsdp2")),
    ("full, checkpointing", {"full": True, "recomputed": True}, "sgd", Layout(64, "fsdp2")),
)  # fmt: skip
"""Work, the words of `memory.blueprint_of`, optimizer, layout."""


class PartBytes(LiveBytes):
    """The same counter where tensors are parts of larger ones, and FSDP empties storages and fills
    them again."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[int, int] = {}
        self._resize: Any = torch.UntypedStorage.resize_

    def __enter__(self) -> Any:
        torch.UntypedStorage.resize_ = lambda storage, size: self._resized(storage, size)  # type: ignore[method-assign]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """A distributed tensor does it with its parts, which are counted."""
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._storages:
            return

        def gone(_: Any) -> None:
            self.live -= self._sizes.pop(key)
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, gone)
        self._sizes[key] = 0
        self._grow(key, storage.nbytes())

    def _grow(self, key: int, size: int) -> None:
        self.live += size - self._sizes[key]
        self._sizes[key] = size
        self.peak = max(self.peak, self.live)

    def _resized(self, storage: torch.UntypedStorage, size: int) -> Any:
        done = self._resize(storage, size)
        if storage._cdata in self._storages:
            self._grow(storage._cdata, size)
        return done


class PackedLinear(nn.Module):
    """The bytes of a frozen NF4 layer, and what it makes on its way: half a byte a weight, a byte
    of scale for 64 of them, and one matrix of the products' dtype at a time."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.shape, self.dtype = layer.weight.shape, layer.weight.dtype
        self.in_features, self.out_features = layer.in_features, layer.out_features
        count, device = layer.weight.numel(), layer.weight.device
        self.register_buffer("packed", torch.empty(count // 2, dtype=torch.uint8, device=device))
        self.register_buffer("scales", torch.empty(count // 64, dtype=torch.uint8, device=device))
        self.register_buffer("levels", torch.empty(count // 16384, device=device))

    def forward(self, states: Tensor) -> Tensor:
        product: Any = _Widened
        return product.apply(states, self.packed, self.shape, self.dtype)


class _Widened(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, packed: Tensor, shape: Any, dtype: Any) -> Tensor:
        ctx.packed, ctx.shape, ctx.dtype = packed, shape, dtype
        return states.to(dtype) @ packed.new_empty(shape, dtype=dtype).t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        matrix = ctx.packed.new_empty(ctx.shape, dtype=ctx.dtype)
        return gradient.to(ctx.dtype) @ matrix, None, None, None


def packed(scorer: ResponseScorer) -> None:
    """Put stand-ins in the place of the frozen matrices under adapters."""
    for module in list(scorer.modules()):
        if isinstance(getattr(module, "base_layer", None), nn.Linear):
            module.base_layer = PackedLinear(module.base_layer)


def foretold(
    blueprint: Blueprint, optimizer: str, layout: Layout, *, quantized: bool
) -> StepMemory:
    """As a dry run reckons it."""
    weights = weights_of(blueprint, quantized=quantized)
    step = step_bytes(blueprint, TRAINED, BATCH_TOKENS[False])
    widened = weights.largest if quantized else 0
    step = step._replace(peak=step.peak + widened, layer=step.layer + widened)
    states = kept_by({"optim": optimizer}, weights.shapes).bytes
    return device_memory(weights, step, states, layout, accumulates=True)


def happened(
    blueprint: Blueprint, optimizer: str, layout: Layout, *, quantized: bool = False
) -> int:
    """The peak of live bytes on one device, from its first parameter on."""
    scorer = blueprint.made(torch.device("meta"))
    if quantized:
        packed(scorer)
    with _group(layout.processes), contextlib.ExitStack() as stack:
        if layout.wrapping == "fsdp2":
            mesh = init_device_mesh("cpu", (layout.processes,))
            for layer in scorer.causal_lm.get_decoder().layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(scorer, mesh=mesh)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        live = stack.enter_context(PartBytes())
        scorer = scorer.to_empty(device=CPU)
        scorer.causal_lm.tie_weights()
        scorer.take(scorer.routes[0])
        moved = OPTIMIZERS[optimizer]([w for w in scorer.parameters() if w.requires_grad])
        for micro_batches in (1, 2):  # the last one finds gradients and states
            for _ in range(micro_batches):
                planned = scorer.batches(TRAINED, BATCH_TOKENS[False])
                scorer(*inputs(scorer, planned, CPU)).sum().backward()
            moved.step()
            moved.zero_grad()
        return live.peak


@contextlib.contextmanager
def _group(processes: int) -> Iterator[None]:
    """A process group of which the others do not exist; it sends nothing."""
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    try:
        yield
    finally:
        distributed.destroy_process_group()


@contextlib.contextmanager
def cuda_route() -> Iterator[None]:
    """What a GPU would take: one call of variable-length attention, and its tiles."""
    kernel = VariableLength(varlen_attn, device_type="cpu")
    before, tile = AttentionInterface()[TREE], TILES[True]
    AttentionInterface.register(TREE, functools.partial(tree_attention, kernel=kernel))
    TILES[True] = TILES[False]
    try:
        yield
    finally:
        AttentionInterface.register(TREE, before)
        TILES[True] = tile


def measured(case: int, layers: int | None = None) -> dict[str, Any]:
    """Both figures of a case, in GB."""
    work, words, optimizer, layout = CASES[case]
    config = SHAPES["Llama-3-8B"]()
    config.num_hidden_layers = layers or config.num_hidden_layers
    quantized = words.get("packed", False)
    blueprint = blueprint_of(config, **{k: on for k, on in words.items() if k != "packed"})
    expected = foretold(blueprint, optimizer, layout, quantized=quantized)
    truth = happened(blueprint, optimizer, layout, quantized=quantized)
    parts = {name: round(size / 1e9, 2) for name, size in vars(expected).items()}
    return {
        "work": work, "optimizer": optimizer, "processes": layout.processes,
        "wrapping": layout.wrapping, "layers": config.num_hidden_layers, **parts,
        "happened": round(truth / 1e9, 2), "apart": round(expected.peak_bytes / truth - 1, 4),
    }  # fmt: skip


def line(row: Mapping[str, Any]) -> str:
    """A row of the table."""
    spread = f"{row['processes']} × {row['wrapping']}" if row["wrapping"] else "one"
    names = ("weights_bytes", "gradient_bytes", "optimizer_bytes", "gathered_bytes", "kept_bytes",
             "logits_bytes", "peak_bytes", "happened")  # fmt: skip
    parts = " | ".join(f"{row[name]:.1f}" for name in names)
    return f"| {row['work']} | {row['optimizer']} | {spread} | {parts} | {row['apart']:+.1%} |"


HEADS = (
    "| work | optimizer | devices | parameters | gradients | optimizer GB | gathered | activations "
    "| logits | peak GB | happened GB | apart |\n" + "|---" * 12 + "|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, help="of the 32, to be quick")
    parser.add_argument("--cases", type=int, nargs="*", default=range(1, len(CASES) + 1))
    parser.add_argument("--output", type=Path, help="the rows as JSON")
    words = parser.parse_args()
    quiet_libraries()
    rows = []
    print(HEADS)
    with cuda_route():
        for case in words.cases:
            started = time.perf_counter()
            rows.append(measured(case - 1, words.layers))
            print(line(rows[-1]), f"{time.perf_counter() - started:.0f} s", flush=True)
            if words.output:
                words.output.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
