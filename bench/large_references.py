"""Which way for which model and machine, and what it costs: the tables of docs/large_references.md.

    python bench/large_references.py                 # all tables, as Markdown
    python bench/large_references.py --json          # the same by name, for docs/generate.py
    python bench/large_references.py --price 4 --disk 2e9 --share 0.3

Nothing is measured here. Where a model goes is asked of `placement` itself, with the bytes of its
configuration's own tensors and of a batch on the route that a GPU takes, all on tensors without
storage. Hours are operations over `--peak` times `--share`, as in bench/plan.py.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from device_memory import cuda_route
from plan import Data, hours
from transformers import LlamaConfig, Qwen2Config, Qwen3MoeConfig

from mrpo_tools.references.loading import quiet_libraries
from mrpo_tools.scorer.blueprint import Blueprint
from mrpo_tools.scorer.memory import streamed_bytes, weights_of
from mrpo_tools.scorer.pace import MARGIN, PATIENCE
from mrpo_tools.scorer.placement import Need, Placement, placement
from mrpo_tools.scorer.room import needed
from mrpo_tools.scorer.scorer import BATCH_TOKENS, ResponseScorer

CPU = torch.device("cpu")
CONFIGURATIONS: dict[str, Callable[[], Any]] = {
    "Llama 3.1 8B": lambda: LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=False,
    ),
    "Qwen2.5 32B": lambda: Qwen2Config(
        vocab_size=152064, hidden_size=5120, intermediate_size=27648, num_hidden_layers=64,
        num_attention_heads=40, num_key_value_heads=8, tie_word_embeddings=False,
    ),
    "Llama 3.1 70B": lambda: LlamaConfig(
        vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
        num_attention_heads=64, num_key_value_heads=8, tie_word_embeddings=False,
    ),
    "Qwen3 235B-A22B": lambda: Qwen3MoeConfig(
        vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=94,
        num_attention_heads=64, num_key_value_heads=4, head_dim=128, num_experts=128,
        num_experts_per_tok=8, moe_intermediate_size=1536, tie_word_embeddings=False,
    ),
    "Llama 3.1 405B": lambda: LlamaConfig(
        vocab_size=128256, hidden_size=16384, intermediate_size=53248, num_hidden_layers=126,
        num_attention_heads=128, num_key_value_heads=8, tie_word_embeddings=False,
    ),
}  # fmt: skip
"""Shapes as the models' own `config.json` have them."""
CONTEXT = 0.75e9
"""Bytes of a card that are never free: what CUDA takes."""
MACHINES: dict[str, tuple[int, float]] = {
    "CPU, 24 GB free": (0, 24e9),
    **{f"{n} × {gib}": (n, gib * 2**30 - CONTEXT)
       for n, gib in ((1, 24), (4, 24), (1, 80), (2, 80), (8, 80), (1, 141))},
}  # fmt: skip
"""Name -> cards, and what each has free; cards in GiB as they are sold (141 are 139.8)."""
MACHINES["1 × 141"] = (1, 139.8 * 2**30 - CONTEXT)
WORKED = "Llama 3.1 70B"


@dataclass(frozen=True)
class Rates:
    """What is assumed of machines.

    Attributes:
        peak: operations a second of a card, by its vendor: 989e12 is an H100's in bfloat16.
        share: of the peak that is useful work.
        disk: bytes a second.
        price: of a card and hour, in dollars.
    """

    peak: float = 989e12
    share: float = 0.4
    disk: float = 5e9
    price: float = 2.5

    @property
    def speed(self) -> float:
        """Useful operations a second of a card."""
        return self.peak * self.share


@dataclass(frozen=True)
class Model:
    """A configuration, and what it takes.

    Args:
        name: of `CONFIGURATIONS`.
        dtype: of its weights.
        quantized: its layers' matrices are in NF4.
    """

    name: str
    dtype: torch.dtype = torch.bfloat16
    quantized: bool = False

    @property
    def config(self) -> Any:
        return CONFIGURATIONS[self.name]()

    @property
    def plan(self) -> Blueprint:
        """As phase 1 makes it."""
        return Blueprint(
            self.config,
            self.dtype,
            CPU,
            lambda model: ResponseScorer(model.requires_grad_(requires_grad=False)),
        )

    @functools.cached_property
    def on_a_cpu(self) -> Need:
        """What it takes there."""
        return needed(self.plan, quantized=self.quantized)

    @functools.cached_property
    def on_a_card(self) -> Need:
        """What it takes on a GPU, by its route and batches."""
        usual = BATCH_TOKENS[True]
        BATCH_TOKENS[True] = BATCH_TOKENS[False]
        try:
            with cuda_route():
                return needed(self.plan, quantized=self.quantized)
        finally:
            BATCH_TOKENS[True] = usual

    @functools.cached_property
    def layer_bytes(self) -> int:
        """B: of all layers."""
        weights = weights_of(self.plan)
        return weights.total - weights.root.total

    @property
    def streamed_bytes(self) -> int:
        """The ends, some layers and the smallest batch: the least for a layer at a time."""
        return streamed_bytes(weights_of(self.plan)) + self.on_a_card.working[-1][1]

    @property
    def met(self) -> int:
        """Parameters of the layers' matrices that a token meets; of experts, those it goes to."""
        config = self.config
        hidden, heads = config.hidden_size, config.num_attention_heads
        size = getattr(config, "head_dim", None) or hidden // heads
        attention = 2 * hidden * size * (heads + config.num_key_value_heads)
        experts = getattr(config, "num_experts_per_tok", None)
        inner = config.intermediate_size if experts is None else config.moe_intermediate_size
        router = 0 if experts is None else hidden * config.num_experts
        return config.num_hidden_layers * (
            attention + 3 * hidden * inner * (experts or 1) + router
        )  # fmt: skip

    def operations(self, data: Data, *, rows: bool = False) -> float:
        """Of the whole data set, forward.

        Args:
            data: its averages.
            rows: as vLLM computes them: the prompt again for each response, and logits of all.
        """
        config = self.config
        width = config.num_attention_heads * (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        prompt, response, count = data.prompt, data.response, data.responses
        tokens, targets = data.group, count * response
        pairs = prompt**2 / 2 + count * (response * prompt + response**2 / 2)
        if rows:
            tokens = targets = data.rows
            pairs = count * (prompt + response) ** 2 / 2
        head = 2 * config.hidden_size * config.vocab_size * targets
        attention = 4 * width * config.num_hidden_layers * pairs
        return data.prompts * (2 * self.met * tokens + head + attention)


def went(model: Model, machine: str) -> Placement:
    """Where it goes there by itself."""
    cards, free = MACHINES[machine]
    if cards:
        return placement(model.on_a_card, [int(free)] * cards)
    need = model.on_a_cpu
    return Placement("one" if need.weights <= free else "too large")


def words(model: Model, machine: str) -> str:
    """The same: `one`, `2 GPUs`, `layers`, or `–`."""
    placed, (cards, free) = went(model, machine), MACHINES[machine]
    if placed.kind == "across":
        return f"{placed.cards} GPUs"
    if placed.kind == "one":
        return "one" if cards else "fits"
    return "layers" if model.streamed_bytes <= free else "–"


def cell(name: str, machine: str) -> str:
    """In the dtype of the machine, and in NF4 where that is another way."""
    dtype = torch.bfloat16 if MACHINES[machine][0] else torch.float32
    plain, small = (words(_model(name, dtype, quantized=q), machine) for q in (False, True))
    return plain if small in (plain, "layers", "–") else f"{plain}; NF4: {small}"


@functools.cache
def _model(name: str, dtype: torch.dtype, *, quantized: bool) -> Model:
    return Model(name, dtype, quantized)


def places() -> Iterator[Sequence[str]]:
    """The way of each model on each machine."""
    yield ("", "bfloat16 GB", "NF4 GB", *MACHINES, "vLLM elsewhere")
    for name in CONFIGURATIONS:
        sizes = [
            _model(name, torch.bfloat16, quantized=quantized).on_a_card.weights / 1e9
            for quantized in (False, True)
        ]
        cells = [cell(name, machine) for machine in MACHINES]
        yield (name, *(f"{size:.1f}" for size in sizes), *cells, "server")


def streams(data: Data, rates: Rates) -> Iterator[Sequence[str]]:
    """A layer at a time on one card."""
    yield ("", "parameters met", "tokens/s", "B GB", "B/v", "T*", "states GB", "passes", "hours")
    for name in CONFIGURATIONS:
        model = _model(name, torch.bfloat16, quantized=False)
        operations = model.operations(data)
        tokens = data.prompts * data.group
        each = operations / tokens / rates.speed  # c
        reading = model.layer_bytes / rates.disk
        even = reading / each
        sweep = min(MARGIN * even, max(even, PATIENCE / each))
        states = sweep * model.config.hidden_size * 2
        yield (
            name, f"{model.met / 1e9:.1f} G", f"{1 / each:,.0f}", f"{model.layer_bytes / 1e9:.0f}",
            f"{reading:.0f} s", f"{even:,.0f}", f"{states / 1e9:.1f}", f"{tokens / sweep:,.0f}",
            hours(tokens * max(each, reading / sweep) / 3600),
        )  # fmt: skip


def ways(data: Data, rates: Rates) -> Iterator[Sequence[str]]:
    """The worked example: ways of `WORKED` on cards of 80 GB."""
    model = _model(WORKED, torch.bfloat16, quantized=False)
    alone = model.operations(data) / rates.speed / 3600
    served = model.operations(data, rows=True) / rates.speed / 3600
    fewest = went(model, "8 × 80").cards
    sets = 8 // fewest
    unique, rows = (data.prompts * each / 1e6 for each in (data.group, data.rows))
    yield ("way", "GPUs", "tokens M", "time", "GPU hours", f"at ${rates.price:g}")
    for name, cards, tokens, time in (
        (f"across {fewest}", fewest, unique, alone),
        (f"across {fewest}, {sets} sets side by side (`--shard 1/{sets}` …)", 8, unique,
         alone / sets),
        ("across all 8 (`device_map: auto`)", 8, unique, alone),
        ("vLLM on 8, tensor-parallel", 8, rows, served / 8),
        ("a layer at a time", 1, unique, alone),
        ("a layer at a time, 8 processes (`--stream-layers`)", 8, unique, alone / 8),
        ("NF4 on one", 1, unique, alone),
        ("NF4, 8 processes", 8, unique, alone / 8),
    ):  # fmt: skip
        spent = cards * time
        yield (
            name, str(cards), f"{tokens:.1f}", hours(time), f"{spent:.1f}",
            f"${spent * rates.price:.0f}",
        )  # fmt: skip


def facts(data: Data, rates: Rates) -> Iterator[Sequence[str]]:
    """The arithmetic of the worked example, a line each."""
    model = _model(WORKED, torch.bfloat16, quantized=False)
    tokens, operations = data.prompts * data.group, model.operations(data)
    each = operations / tokens / rates.speed
    reading = model.layer_bytes / rates.disk
    yield "what", "arithmetic"
    yield (
        "tokens, each prompt once",
        f"{data.prompts:,} × ({data.prompt} + {data.responses} × {data.response}) = "
        f"{tokens / 1e6:.1f} M",
    )
    yield (
        "tokens, the prompt beside every response",
        f"{data.prompts:,} × {data.responses} × ({data.prompt} + {data.response}) = "
        f"{data.prompts * data.rows / 1e6:.1f} M",
    )
    yield (
        "operations of a token",
        f"2 × {model.met / 1e9:.2f} G and head and attention: "
        + (f"{operations / tokens / 1e9:.1f} G"),
    )
    yield (
        "seconds of a token, c",
        f"{operations / tokens / 1e9:.1f} G / ({rates.peak / 1e12:.0f} T × {rates.share:g}) = "
        f"{1e6 * each:.0f} µs, {1 / each:,.0f} tokens/s",
    )
    yield "one pass", f"{tokens / 1e6:.1f} M × c = {hours(tokens * each / 3600)}"
    yield (
        "reading all layers, B / v",
        f"{model.layer_bytes / 1e9:.0f} GB / {rates.disk / 1e9:g} GB/s = {reading:.0f} s",
    )
    yield "break-even, T* = B / (v · c)", f"{reading / each:,.0f} tokens"
    yield (
        "cache",
        f"{data.prompts * data.responses:,} rows × 45 B = "
        + (f"{data.prompts * data.responses * 45 / 1e6:.0f} MB"),
    )


def tables(data: Data, rates: Rates) -> dict[str, str]:
    """Every table by its name, as Markdown."""
    quiet_libraries()
    made = {
        "places": places(), "ways": ways(data, rates), "facts": facts(data, rates),
        "streams": streams(data, rates),
    }  # fmt: skip
    return {name: _markdown(list(rows)) for name, rows in made.items()}


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    usual = Rates()
    for name in ("peak", "share", "disk", "price"):
        parser.add_argument(f"--{name}", type=float, default=getattr(usual, name))
    for name, kind in (("prompts", int), ("responses", int), ("prompt", float),
                       ("response", float)):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, default=getattr(Data(), name))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    data = Data(given.prompts, given.responses, given.prompt, given.response)
    made = tables(data, Rates(given.peak, given.share, given.disk, given.price))
    print(json.dumps(made) if given.json else "\n\n".join(made.values()))


if __name__ == "__main__":
    main()
