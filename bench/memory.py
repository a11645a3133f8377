"""Memory predicted from a few layers against that of the whole model, and the counter checked.

    python bench/memory.py table [SHAPE ...]    # models of 7 to 70 billion parameters
    python bench/memory.py counter              # a model of 33 million, with storage

`table` prints, for each configuration, the peak that a dry run reckons and the peak of live bytes
when the whole model runs: all its layers, forward, backward, AdamW, two optimizer steps of two
micro-batches. Tensors have shapes and no storage, so neither weights nor a GPU are needed. What is
run is the CUDA route: variable-length attention in one call, its tiles and batches.

`counter` runs a training step with real tensors and compares the counter of live bytes with
torch's own memory tracker and with the growth of the process's resident memory.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import torch
from torch.nn.attention.varlen import varlen_attn
from transformers import (
    AttentionInterface,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from mrpo_tools.maths.logprobs import TILES
from mrpo_tools.references.devices import peak_memory_bytes, reset_peak_memory
from mrpo_tools.references.loading import add_lora, quiet_libraries
from mrpo_tools.scorer.attention import TREE, tree_attention
from mrpo_tools.scorer.blueprint import Blueprint
from mrpo_tools.scorer.memory import (
    LiveBytes,
    imagined,
    inputs,
    step_bytes,
    weights_of,
    working_bytes,
)
from mrpo_tools.scorer.scorer import BATCH_TOKENS, ResponseScorer
from mrpo_tools.scorer.trees import Row
from mrpo_tools.scorer.variable_length import VariableLength
from mrpo_tools.training.activations import recompute_activations
from mrpo_tools.training.device_memory import Layout, device_memory
from mrpo_tools.training.optimizers import kept_by

CPU = torch.device("cpu")
SHAPES: dict[str, Callable[[], Any]] = {
    "Llama-3-8B": lambda: LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8,
    ),
    "Mistral-7B": lambda: MistralConfig(
        vocab_size=32768, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, sliding_window=None,
    ),
    "Qwen2-7B": lambda: Qwen2Config(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
        num_attention_heads=28, num_key_value_heads=4,
    ),
    "Gemma-2-9B": lambda: Gemma2Config(
        vocab_size=256000, hidden_size=3584, intermediate_size=14336, num_hidden_layers=42,
        num_attention_heads=16, num_key_value_heads=8, head_dim=256,
    ),
    "Llama-3-70B": lambda: LlamaConfig(
        vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
        num_attention_heads=64, num_key_value_heads=8,
    ),
}  # fmt: skip
SCORED = [Row(range(512), [range(256), range(256)], [0, 1])] * 8
TRAINED = SCORED[:2]
"""2,048 tokens; a step of two micro-batches of them."""
WORK = {
    "log-probs": {},
    "LoRA": {"adapter": True},
    "LoRA, checkpointing": {"adapter": True, "recomputed": True},
    "LoRA, inputs widened": {"adapter": True, "widened": True},
    "full": {"full": True},
    "full, checkpointing": {"full": True, "recomputed": True},
}


def blueprint_of(
    config: Any,
    *,
    adapter: bool = False,
    recomputed: bool = False,
    widened: bool = False,
    full: bool = False,
) -> Blueprint:
    """A model with bfloat16 products, as it computes log-probs or as it is trained.

    Args:
        config: its shape.
        adapter: with a LoRA adapter of rank 8 on all linear layers.
        recomputed: with activation checkpointing.
        widened: as the adapter's library has it by itself: float32 inputs, no autocast.
        full: float32 weights that are trained.
    """

    def scorer(model: Any) -> ResponseScorer:
        if adapter:
            model = add_lora(model, r=8, lora_alpha=8, target_modules="all-linear", seed=0)
        made = ResponseScorer(model, dtype=torch.bfloat16)
        if adapter or full:
            made.train()
        if recomputed:
            recompute_activations(made)
        if widened:
            made._autocast = False
            for module in made.modules():
                if hasattr(module, "cast_input_dtype_enabled"):
                    module.cast_input_dtype_enabled = True
        return made

    return Blueprint(config, torch.float32 if full else torch.bfloat16, CPU, scorer)


def predicted(blueprint: Blueprint, *, trained: bool) -> tuple[int, float]:
    """The peak as a dry run reckons it, and the bytes kept for each token."""
    weights = weights_of(blueprint)
    if not trained:
        return weights.total + working_bytes(blueprint, SCORED), 0.0
    step = step_bytes(blueprint, TRAINED, BATCH_TOKENS[False])
    tokens = sum(map(len, TRAINED))
    optimizer = kept_by({}, weights.shapes).bytes
    memory = device_memory(weights, step, optimizer, Layout(), accumulates=True)
    return memory.peak_bytes, step.kept / tokens


def happened(blueprint: Blueprint, *, trained: bool) -> int:
    """The peak of live bytes of the whole model, from its first parameter on."""
    with imagined(blueprint) as (scorer, live):
        if trained:
            steps(scorer, TRAINED, BATCH_TOKENS[False])
        else:
            with torch.no_grad():
                scorer(*inputs(scorer, [SCORED], CPU))
        return live.peak


def steps(
    scorer: ResponseScorer, trees: Sequence[Row], max_tokens: int | None, times: int = 2
) -> None:
    """So many steps of so many micro-batches, with the finite guard's look at the gradients and
    clipping, and AdamW as the Trainer has it."""
    weights = [weight for weight in scorer.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-6, fused=True)
    for _ in range(times):
        for _ in range(times):
            planned = scorer.batches(trees, max_tokens)
            scorer(*inputs(scorer, planned, CPU)).sum().backward()
        finite = [weight.grad.isfinite().all() for weight in weights]
        torch.stack(finite).all()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()


def table(names: Sequence[str]) -> None:
    """A line for each shape and kind of work."""
    kernel = VariableLength(varlen_attn, device_type="cpu")
    AttentionInterface.register(TREE, functools.partial(tree_attention, kernel=kernel))
    TILES[True] = TILES[False]
    print("| model | work | predicted GB | happened GB | apart | kept MiB a token | seconds |")
    print("|---|---|---|---|---|---|---|")
    for name in names:
        for work, words in WORK.items():
            if (name.endswith("70B") and "full" in words) or (
                not name.startswith("Llama") and "widened" in words
            ):
                continue
            blueprint = blueprint_of(SHAPES[name](), **words)
            started = time.perf_counter()
            peak, kept = predicted(blueprint, trained=bool(words))
            seconds = time.perf_counter() - started
            truth = happened(blueprint, trained=bool(words))
            kept_words = f"{kept / 2**20:.2f}" if kept else ""
            print(
                f"| {name} | {work} | {peak / 1e9:.1f} | {truth / 1e9:.1f} "
                f"| {abs(peak / truth - 1):.1%} | {kept_words} | {seconds:.1f} |",
                flush=True,
            )


def counter() -> None:
    """The counter on real tensors, against torch's own and against the resident set."""
    from torch.distributed._tools.mem_tracker import MemTracker

    config = LlamaConfig(
        vocab_size=8192, hidden_size=512, intermediate_size=1376, num_hidden_layers=8,
        num_attention_heads=8, num_key_value_heads=8,
    )  # fmt: skip
    blueprint = Blueprint(config, torch.float32, CPU, lambda model: ResponseScorer(model).train())
    peaks: dict[str, float] = {}
    before = psutil.Process().memory_info().rss
    reset_peak_memory(CPU)
    trained_for_real(blueprint)  # first, while the process holds no freed memory
    peaks["growth of the resident set"] = peak_memory_bytes(CPU) - before
    with LiveBytes() as live:
        trained_for_real(blueprint)
        peaks["the counter, tensors with storage"] = live.peak
    with imagined(blueprint) as (scorer, live):
        steps(scorer, TRAINED, None, times=1)
        peaks["the counter, tensors without"] = live.peak
    tracker = MemTracker()
    with tracker:
        trained_for_real(blueprint)
    peaks["torch's memory tracker"] = tracker.get_tracker_snapshot("peak")[CPU]["Total"]
    print("| what | MB |\n|---|---|")
    for name, peak in peaks.items():
        print(f"| {name} | {peak / 1e6:.0f} |")


def trained_for_real(blueprint: Blueprint) -> None:
    """A step on real numbers."""
    scorer = blueprint.made(CPU)
    scorer.take(scorer.routes[0])
    steps(scorer, TRAINED, None, times=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("table", "counter"))
    parser.add_argument("shapes", nargs="*", default=list(SHAPES))
    words = parser.parse_args()
    quiet_libraries()
    if words.what == "table":
        table(words.shapes)
    else:
        counter()


if __name__ == "__main__":
    main()
