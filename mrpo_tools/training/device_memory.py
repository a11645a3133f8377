"""Memory of one device of those that train together: what each wrapping divides and what it adds.

DDP keeps everything on every device, and a second copy of the gradients in the buckets that it
sends. FSDP2 and ZeRO-3 divide parameters, gradients and the optimizer's states by the processes and
gather a layer when it is computed, the next one meanwhile, and the embeddings, the last norm and
the head for the whole pass. ZeRO-2 keeps the parameters whole (Rajbhandari et al. 2020, §5).
DeepSpeed's own are its bucket of gradients, as large for a small policy, a float32 copy of the
part that a device moves, and what ZeRO-3 gathers: it keeps layers until they are many, and
receives them in one place and copies them to another (its stage_1_and_2.py, stage3.py and
partition_parameters.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mrpo_tools.errors import UsageError
from mrpo_tools.progress import rank_and_count
from mrpo_tools.scorer.memory import StepBytes, Weights
from mrpo_tools.words import Wrapping

BUCKET = 500_000_000
"""Gradients that DeepSpeed sends at a time, and has room for always (`reduce_bucket_size`)."""
GATHERED = 1_000_000_000
"""Parameters that DeepSpeed gathers at most (`stage3_max_live_parameters`)."""
FETCHED = 50_000_000
"""Parameters that it receives ahead at a time (`stage3_prefetch_bucket_size`)."""
FLOAT = 4


class Layout(NamedTuple):
    """Over how many processes a run is spread, and by what.

    Attributes:
        processes: one for each device.
        wrapping: of the policy in each; None where one process has all of it.
    """

    processes: int = 1
    wrapping: Wrapping | None = None

    @property
    def divides_weights(self) -> bool:
        """Whether a device has a part of the parameters only."""
        return self.wrapping in ("fsdp2", "zero3")


@dataclass(frozen=True)
class StepMemory:
    """A device's memory in a step whose micro-batch is the largest that the data can make.

    Attributes:
        weights_bytes: of the policy, or of the part that the device keeps.
        gradient_bytes: of what is trained, with what they are sent in.
        optimizer_bytes: the optimizer's states of it.
        kept_bytes: activations that wait for the backward pass.
        logits_bytes: what a tile of the head takes: logits, softmax and their gradients.
        gathered_bytes: what others keep and is here when it is needed; 0 where nothing is divided.
        working_bytes: what a tile of the head or one layer takes beside weights and `kept_bytes`.
        peak_bytes: the most there is at a time. It is less than the sum of the parts, as not all
            of them are there at once.
    """

    weights_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    kept_bytes: int
    logits_bytes: int
    gathered_bytes: int
    working_bytes: int
    peak_bytes: int


def layout_of(
    trainer: Mapping[str, Any],
    processes: int | None = None,
    wrapping: Wrapping | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Layout:
    """The layout that is asked for: by the words given here, else as `accelerate launch` and
    torchrun tell it, else by the recipe.

    Args:
        trainer: of the recipe, which may name `fsdp` or `deepspeed`.
        processes: of all machines together.
        wrapping: in each.
        environment: of this process.

    Raises:
        UsageError: a wrapping of one process.
    """
    _, started = rank_and_count(environment)
    count = processes or started
    if count > 1:
        told = wrapping or _launched(environment) or _named(trainer)
        return Layout(count, told or "ddp")
    if wrapping is not None:
        raise UsageError(
            f"{wrapping} is of several processes, and there is one", "say how many: --processes N"
        )
    return Layout()


def _launched(environment: Mapping[str, str]) -> Wrapping | None:
    """What `accelerate launch` leaves in the environment of the processes that it starts."""
    if environment.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        return "fsdp2"
    if environment.get("ACCELERATE_USE_DEEPSPEED", "").lower() != "true":
        return None
    file = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if file.lower() != "none":
        return _stage(json.loads(Path(file).read_text(encoding="utf-8")))
    return "zero3" if environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3" else "zero2"


def _named(trainer: Mapping[str, Any]) -> Wrapping | None:
    if trainer.get("fsdp"):
        return "fsdp2"
    words = trainer.get("deepspeed")
    if isinstance(words, str):
        words = json.loads(Path(words).read_text(encoding="utf-8"))
    return _stage(words) if words else None


def _stage(words: Mapping[str, Any]) -> Wrapping:
    """DeepSpeed's configuration: stage 3 divides the parameters too."""
    return "zero3" if words.get("zero_optimization", {}).get("stage") == 3 else "zero2"


def device_memory(
    weights: Weights, step: StepBytes, optimizer: int, layout: Layout, *, accumulates: bool
) -> StepMemory:
    """The peak of a step on a device, and its parts.

    Args:
        weights: of the policy.
        step: of its largest micro-batch, on one device that has all of the weights.
        optimizer: bytes of the optimizer's states of all that is trained.
        layout: what is divided.
        accumulates: a step has several micro-batches, whose last finds the gradients of those
            before it.
    """
    if layout.processes > 1:
        return _of_several(weights, step, optimizer, layout)
    working = step.peak - step.kept
    peak = weights.trained + step.peak
    if not accumulates:  # gradients come while activations go
        peak = max(step.peak, weights.trained + working)
    return StepMemory(
        weights_bytes=weights.total,
        gradient_bytes=weights.trained,
        optimizer_bytes=optimizer,
        kept_bytes=step.kept,
        logits_bytes=step.head,
        gathered_bytes=0,
        working_bytes=working,
        peak_bytes=weights.total + optimizer + peak,
    )


def _of_several(weights: Weights, step: StepBytes, optimizer: int, layout: Layout) -> StepMemory:
    count, deepspeed = layout.processes, layout.wrapping in ("zero2", "zero3")
    whole = weights.total // count if layout.divides_weights else weights.total
    gradients = 2 * weights.trained
    if layout.wrapping != "ddp":
        gradients = weights.trained // count
    if deepspeed:
        gradients += FLOAT * BUCKET
        optimizer += FLOAT * sum(each.numel() for each in weights.shapes)  # a copy that is moved
    optimizer //= 1 if layout.wrapping == "ddp" else count
    gathered, most = 0, step.peak
    if layout.wrapping == "fsdp2":
        gathered, most = _fsdp2(weights, step)
    elif layout.wrapping == "zero3":
        gathered, most = _zero3(weights, step)
    elif layout.wrapping == "zero2":
        most = _zero2(weights, step, weights.trained // count)
    loaded = weights.total if layout.wrapping == "zero3" else 0  # DeepSpeed divides what is there
    return StepMemory(
        weights_bytes=whole,
        gradient_bytes=gradients,
        optimizer_bytes=optimizer,
        kept_bytes=step.kept,
        logits_bytes=step.head,
        gathered_bytes=gathered,
        working_bytes=step.peak - step.kept,
        peak_bytes=max(loaded, whole + gradients + optimizer + most),
    )


def _fsdp2(weights: Weights, step: StepBytes) -> tuple[int, int]:
    """Bytes that are gathered at most, and the peak above the parts that a device keeps.

    It is at the beginning, where the root and the first layer are received and copied to their
    places; at the head, with a layer fetched ahead; in a layer's backward pass, with the next one,
    what it gives and sends of gradients and the head's; or at the end, where the root's are sent.
    """
    root, layer = weights.root, weights.layer
    at_begin = 2 * root.total + 2 * layer.total
    at_head = root.total + layer.total + step.kept + step.head
    in_layer = (
        root.total + 2 * layer.total + 2 * layer.trained + root.trained - weights.embedding
        + step.kept + step.layer
    )  # fmt: skip
    at_end = root.trained + max(root.total, root.trained)
    return root.total + 2 * layer.total, max(at_begin, at_head, in_layer, at_end)


def _zero2(weights: Weights, step: StepBytes, part: int) -> int:
    """The peak above what a device keeps and the bucket, which is there from a pass's first
    gradient on, when the head is done. It is before that; at that gradient, or in a layer; or at
    the end, where a bucket's gradients for a device stand beside those of the passes before.
    """
    first = weights.tensor if weights.root.trained else 0
    in_layer = step.kept + max(step.layer, first)
    return max(step.peak - FLOAT * BUCKET, in_layer, part + min(part, FLOAT * BUCKET))


def _zero3(weights: Weights, step: StepBytes) -> tuple[int, int]:
    """The same of ZeRO-3: the peak is where the backward pass fetches its first layers or the head,
    in a pass, or where a bucket is put together to be sent, at the end if it holds all gradients.
    """
    gathered = min(weights.total, weights.root.total + weights.width * GATHERED)
    fetched = min(weights.total, max(weights.tensor, weights.width * FETCHED))
    sent = min(weights.trained, FLOAT * BUCKET)
    at_send = sent + (step.kept if sent < weights.trained else 0)
    return gathered, gathered + max(fetched + step.kept, step.peak, at_send)
