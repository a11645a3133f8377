"""A device's memory as a dry run foretells it, against processes that really train together.

    PYTHONPATH=.:bench torchrun --nproc-per-node 2 bench/wrapped_memory.py ddp [--adapter]

Under `ddp`, `zero2` and `zero3`, with DeepSpeed's CPU accelerator where it is asked for, a Llama of
42 million parameters makes two optimizer steps of two micro-batches on real numbers. The peak is
that of the first process, counted storage by storage; DeepSpeed's buckets have their usual size.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from device_memory import PartBytes
from memory import CPU, LlamaConfig
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from mrpo_tools.references.loading import add_lora, quiet_libraries
from mrpo_tools.scorer.blueprint import Blueprint
from mrpo_tools.scorer.memory import inputs, step_bytes, weights_of
from mrpo_tools.scorer.scorer import ResponseScorer
from mrpo_tools.scorer.trees import Row
from mrpo_tools.training.device_memory import Layout, StepMemory, device_memory
from mrpo_tools.training.optimizers import kept_by

TREES = [Row(range(128), [range(64), range(64)], [0, 1])] * 2
MICRO_BATCHES, STEPS = 2, 2
Moved = tuple[Any, Callable[[torch.Tensor, bool], None]]
"""What is called for log-probs, and what is done with a loss; whether it ends a step."""


def blueprint_of(*, adapter: bool) -> Blueprint:
    """A float32 policy, all of it trained or an adapter."""
    config = LlamaConfig(
        vocab_size=16384, hidden_size=512, intermediate_size=1376, num_hidden_layers=8,
        num_attention_heads=8, num_key_value_heads=8,
    )  # fmt: skip

    def scorer(model: Any) -> ResponseScorer:
        if adapter:
            model = add_lora(model, r=8, lora_alpha=8, target_modules="all-linear", seed=0)
        return ResponseScorer(model).train()

    return Blueprint(config, torch.float32, CPU, scorer)


def under_ddp(scorer: ResponseScorer) -> Moved:
    """As accelerate wraps a policy, and as the Trainer steps."""
    model = DistributedDataParallel(scorer)
    optimizer = torch.optim.AdamW(_trained(scorer), lr=1e-6, fused=True)

    def learn(loss: torch.Tensor, last: bool) -> None:
        loss.backward()
        if last:
            torch.nn.utils.clip_grad_norm_(_trained(scorer), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return model, learn


def under_deepspeed(scorer: ResponseScorer, stage: int) -> Moved:
    """With the configuration that accelerate makes of `recipes/accelerate/zero*.yaml`."""
    import deepspeed

    words = {
        "train_micro_batch_size_per_gpu": len(TREES), "gradient_clipping": 1.0,
        "gradient_accumulation_steps": MICRO_BATCHES, "steps_per_print": float("inf"),
        "zero_optimization": {"stage": stage}, "zero_allow_untested_optimizer": True,
    }  # fmt: skip
    optimizer = torch.optim.AdamW(_trained(scorer), lr=1e-6, fused=True)
    engine, *_ = deepspeed.initialize(model=scorer, optimizer=optimizer, config=words)

    def learn(loss: torch.Tensor, last: bool) -> None:
        engine.set_gradient_accumulation_boundary(is_boundary=last)
        engine.backward(loss)
        engine.step()

    return engine, learn


def _trained(scorer: ResponseScorer) -> list[torch.nn.Parameter]:
    return [weights for weights in scorer.parameters() if weights.requires_grad]


class RealBytes(PartBytes):
    """The same counter, of what has bytes: DeepSpeed notes shapes in tensors without storage."""

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage.device.type != "meta":
            super()._note(storage)


def happened(blueprint: Blueprint, wrapping: str) -> dict[str, int]:
    """Peaks of live bytes of this process: until it is wrapped, and in the steps."""
    with RealBytes() as live:
        scorer = blueprint.made(CPU)
        scorer.take(scorer.routes[0])
        stage = {"zero2": 2, "zero3": 3}.get(wrapping)
        model, learn = under_ddp(scorer) if stage is None else under_deepspeed(scorer, stage)
        wrapped = live.peak
        live.begin()
        for _ in range(STEPS):
            for place in range(MICRO_BATCHES):
                last = place == MICRO_BATCHES - 1
                waits = contextlib.nullcontext() if last or stage else model.no_sync()
                with waits:
                    planned = scorer.batches(TREES, None)
                    learn(model(*inputs(scorer, planned, CPU)).sum(), last)
        return {"wrapped": wrapped, "happened": live.peak}


def foretold(blueprint: Blueprint, layout: Layout) -> StepMemory:
    """As a dry run reckons it."""
    weights = weights_of(blueprint)
    states = kept_by({}, weights.shapes).bytes
    step = step_bytes(blueprint, TREES)
    return device_memory(weights, step, states, layout, accumulates=True)


def measured(layout: Layout, *, adapter: bool) -> dict[str, Any]:
    """Both figures, in bytes, and the parts of that which is foretold."""
    blueprint = blueprint_of(adapter=adapter)
    expected, truth = foretold(blueprint, layout), happened(blueprint, str(layout.wrapping))
    return {"wrapping": layout.wrapping, "adapter": adapter, **vars(expected), **truth}


def line(row: Mapping[str, Any]) -> str:
    """A row of the table, in MB."""
    names = ("weights_bytes", "gradient_bytes", "optimizer_bytes", "gathered_bytes", "kept_bytes",
             "peak_bytes", "happened")  # fmt: skip
    parts = " | ".join(f"{row[name] / 1e6:,.1f}" for name in names)
    apart = row["peak_bytes"] / row["happened"] - 1
    work = "LoRA" if row["adapter"] else "full"
    return f"| {work} | 2 × {row['wrapping']} | {parts} | {apart:+.1%} |"


HEADS = (
    "| work | processes | parameters | gradients | optimizer MB | gathered | activations | peak MB "
    "| happened MB | apart |\n" + "|---" * 10 + "|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wrapping", choices=("ddp", "zero2", "zero3"))
    parser.add_argument("--adapter", action="store_true")
    parser.add_argument("--output", type=Path, help="the figures of the first process as JSON")
    words = parser.parse_args()
    quiet_libraries()
    distributed.init_process_group("gloo")
    try:
        row = measured(Layout(distributed.get_world_size(), words.wrapping), adapter=words.adapter)
        if distributed.get_rank() == 0:
            print(HEADS, line(row), sep="\n")
            if words.output:
                words.output.write_text(json.dumps(row) + "\n")
    finally:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
