"""What a training run would take, found without loading any weights."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch

from mrpo_tools.config import Recipe
from mrpo_tools.errors import UsageError
from mrpo_tools.maths.logprobs import TILES
from mrpo_tools.references.devices import free_bytes, peak_flops, pick_device
from mrpo_tools.references.model_files import count_parameters, read_json
from mrpo_tools.references.resolved import ResolvedReference
from mrpo_tools.scorer.blueprint import Blueprint, blueprint_of
from mrpo_tools.scorer.memory import (
    NF4_BYTES,
    StepBytes,
    Unit,
    Weights,
    inputs,
    step_bytes,
    weights_of,
)
from mrpo_tools.scorer.scorer import BATCH_TOKENS, ResponseScorer, response_logps
from mrpo_tools.scorer.speed import EFFICIENCY, seconds_of
from mrpo_tools.scorer.trees import Row, plan_rows
from mrpo_tools.scorer.trees import batches as batches_of
from mrpo_tools.training.activations import fits, recompute_activations
from mrpo_tools.training.device_memory import Layout, StepMemory, device_memory, layout_of
from mrpo_tools.training.optimizers import DEFAULT, Kept, kept_by
from mrpo_tools.training.policy import on_model
from mrpo_tools.training.prepare import Prepared
from mrpo_tools.training.resume import groups_a_step

STATES = 34
"""Hidden-size vectors that a layer keeps of each token, where the policy cannot be imagined
(Korthikanti et al. 2022, §4.1)."""
ADAPTER_SHARE = 0.01
"""Of the parameters, in a usual adapter; for the same case."""
ROUGH = "a rough formula, as no model can be made of the policy's configuration"
UNKNOWN_OPTIMIZER = "AdamW's states, as those of trainer.optim are not known"
PASSES = {"lora": 2.0, "full": 3.0}
"""Forward passes that a forward and a backward pass are worth, without and with gradients of the
weights."""


@dataclass(frozen=True)
class TrainingEstimate:
    """What training would take.

    Attributes:
        layout: over how many processes, and how.
        optimizer: by the Trainer's name.
        groups: that are trained on.
        steps: of the optimizer.
        step_tokens: of a step, on average, a shared prompt counted once.
        largest_tokens: of the largest micro-batch that the data can make.
        plain: memory with every activation kept.
        checkpointed: memory with `gradient_checkpointing`.
        free_bytes: of memory here, now.
        gradient_checkpointing: as the recipe says, or as `auto` chooses with `free_bytes`.
        paged: the optimizer's states may leave a full device for the machine's memory.
        disk_bytes: of one checkpoint, without its tokenizer.
        seconds: of the steps and of what is measured between them, measured on a few
            micro-batches; about.
        about: some of it is rough.
        rough: what, and why.
    """

    layout: Layout
    optimizer: str
    groups: int
    steps: int
    step_tokens: int
    largest_tokens: int
    plain: StepMemory
    checkpointed: StepMemory
    free_bytes: int
    gradient_checkpointing: bool
    paged: bool
    disk_bytes: int
    seconds: float
    about: bool
    rough: tuple[str, ...]


class _Cost(NamedTuple):
    """Of a policy: its weights, a step with and without checkpointing, the seconds of all steps."""

    weights: Weights
    plain: StepBytes
    checkpointed: StepBytes
    recomputes: bool
    seconds: float
    about: bool


def estimate_training(
    recipe: Recipe,
    prepared: Prepared,
    device: torch.device | None = None,
    layout: Layout | None = None,
) -> TrainingEstimate:
    """What a run of this recipe would take on this machine; loads no weights, writes nothing.

    Args:
        recipe: of the run.
        prepared: its data.
        device: where it would run; None is this process's.
        layout: over how many processes, and how; None as this one was started.

    Raises:
        UsageError: a layout that the policy cannot have.
    """
    device = device or pick_device()
    layout = layout or layout_of(recipe.trainer)
    _refuse_parts(prepared.policy, layout)
    groups, free = prepared.training, free_bytes(device)
    config = read_json(prepared.policy.files.model / "config.json")
    width = config.get("text_config", config)["hidden_size"]
    trees = groups.trees(range(len(groups)))
    lengths = [sum(map(len, plan_rows([tree], hidden_size=width))) for tree in trees]
    order = sorted(range(len(trees)), key=lengths.__getitem__)
    largest = order[-recipe.per_device_train_batch_size :]
    cost = _cost(recipe, prepared, [trees[g] for g in largest], device, layout)
    optimizer = kept_by(recipe.trainer, cost.weights.shapes)
    on_device = partial(
        device_memory, cost.weights, optimizer=optimizer.bytes, layout=layout,
        accumulates=recipe.gradient_accumulation_steps > 1,
    )  # fmt: skip
    return TrainingEstimate(
        layout=layout,
        optimizer=str(recipe.trainer.get("optim", DEFAULT)),
        groups=len(groups),
        steps=_steps(recipe, len(groups), layout),
        step_tokens=round(sum(lengths) / _epoch_steps(recipe, len(groups), layout)),
        largest_tokens=sum(lengths[g] for g in largest),
        plain=on_device(cost.plain),
        checkpointed=on_device(cost.checkpointed),
        free_bytes=free,
        gradient_checkpointing=cost.recomputes,
        paged=optimizer.paged,
        disk_bytes=cost.weights.trained + optimizer.bytes,
        seconds=cost.seconds,
        about=cost.about or not optimizer.known,
        rough=_rough(cost, optimizer),
    )


def _rough(cost: _Cost, optimizer: Kept) -> tuple[str, ...]:
    """What is not of the real model, or not of the real optimizer."""
    reasons = {ROUGH: cost.about, UNKNOWN_OPTIMIZER: not optimizer.known}
    return tuple(reason for reason, holds in reasons.items() if holds)


def _refuse_parts(policy: ResolvedReference, layout: Layout) -> None:
    if layout.divides_weights and policy.reference.quantization is not None:
        raise UsageError(
            f"{policy.reference.quantization} weights cannot be divided by {layout.wrapping}: they "
            "are blocks of bytes with scales of their own",
            "--wrapping ddp, or --set quantization=null",
        )


def _cost(
    recipe: Recipe,
    prepared: Prepared,
    largest: Sequence[Row],
    device: torch.device,
    layout: Layout,
) -> _Cost:
    """By the policy made of its configuration; by a formula where it cannot be made."""
    try:
        quantized = prepared.policy.reference.quantization is not None
        plain, checkpointed = (
            _blueprint(recipe, prepared, device, recomputed=recomputed)
            for recomputed in (False, True)
        )
        weights = weights_of(plain, quantized=quantized)
        widened = weights.largest if quantized else 0  # one matrix at a time
        kept, recomputed = (
            step._replace(peak=step.peak + widened, layer=step.layer + widened)
            for blueprint in (plain, checkpointed)
            for step in [step_bytes(blueprint, largest, recipe.batch_tokens)]
        )
        recomputes = _recomputes(recipe, weights, kept, device, layout)
        seconds = _seconds(recipe, prepared, checkpointed if recomputes else plain, layout)
    except UsageError:
        raise
    except Exception:  # a family's own code may fail in any way without real weights
        return _formula(recipe, prepared, largest, device, layout)
    return _Cost(weights, kept, recomputed, recomputes, seconds, about=False)


def _recomputes(
    recipe: Recipe, weights: Weights, plain: StepBytes, device: torch.device, layout: Layout
) -> bool:
    """As the recipe says, or as `auto` chooses once the weights are there."""
    if recipe.gradient_checkpointing != "auto":
        return recipe.gradient_checkpointing
    if layout.wrapping == "fsdp2":
        return True
    free = free_bytes(device) - weights.total  # a policy is whole until DeepSpeed divides it
    return not fits(plain.kept, weights.shapes, free, recipe.trainer)


def _formula(
    recipe: Recipe,
    prepared: Prepared,
    largest: Sequence[Row],
    device: torch.device,
    layout: Layout,
) -> _Cost:
    """Roughly, from the headers of the weights and three numbers of the configuration."""
    policy = prepared.policy
    config = read_json(policy.files.model / "config.json")
    config = config.get("text_config", config)
    dtype = getattr(torch, policy.dtype)
    parameters = count_parameters(policy.files.model)
    total = int(parameters * (NF4_BYTES if policy.reference.quantization else dtype.itemsize))
    trained = total if recipe.finetuning == "full" else int(ADAPTER_SHARE * parameters * 4)
    state = sum(map(len, largest)) * config["hidden_size"] * dtype.itemsize
    logits = TILES[device.type == "cpu"] * config["vocab_size"] * 3 * 4
    kept = config["num_hidden_layers"] * state
    layer = STATES * state
    shapes = (torch.empty(trained // 4, device="meta"),)
    each = Unit(total // config["num_hidden_layers"], trained // config["num_hidden_layers"])
    weights = Weights(total, trained, 0, each, shapes=shapes)
    plain = StepBytes(STATES * kept, STATES * kept + logits + layer, logits, layer)
    checkpointed = StepBytes(kept, kept + logits + layer, logits, layer)
    recomputes = _recomputes(recipe, weights, plain, device, layout)
    groups = prepared.training
    tokens = float(sum(map(len, groups.trees(range(len(groups))))))
    tokens *= _share(recipe, len(groups), layout)
    seconds = 2 * parameters * tokens * PASSES[recipe.finetuning]
    seconds /= EFFICIENCY * peak_flops(device, dtype)
    return _Cost(weights, plain, checkpointed, recomputes, seconds, about=True)


def _blueprint(
    recipe: Recipe, prepared: Prepared, device: torch.device, *, recomputed: bool
) -> Blueprint:
    """The policy as it would be trained."""
    policy = prepared.policy

    def scorer(model: Any) -> ResponseScorer:
        made = on_model(model, policy, recipe).train()
        if recomputed:
            recompute_activations(made)
        return made

    return blueprint_of(
        files=policy.files,
        reference=policy.reference,
        dtype=policy.dtype,
        device=device,
        scorer=scorer,
    )


def _epoch_steps(recipe: Recipe, groups: int, layout: Layout) -> int:
    """Optimizer steps of an epoch; the last one may have fewer groups."""
    return math.ceil(groups / (groups_a_step(recipe) * layout.processes))


def _steps(recipe: Recipe, groups: int, layout: Layout) -> int:
    """Optimizer steps of a run, as the Trainer counts them."""
    if recipe.max_steps > 0:
        return recipe.max_steps
    return math.ceil(recipe.num_train_epochs * _epoch_steps(recipe, groups, layout))


def _share(recipe: Recipe, groups: int, layout: Layout) -> float:
    """What one process computes of a run, in epochs of one process."""
    steps = _steps(recipe, groups, layout) / _epoch_steps(recipe, groups, layout)
    return steps / layout.processes


def _seconds(recipe: Recipe, prepared: Prepared, blueprint: Blueprint, layout: Layout) -> float:
    """Of all steps, and of the evaluations before, between and after them."""
    groups, size = prepared.training, recipe.per_device_train_batch_size
    order = random.Random(recipe.seed).sample(range(len(groups)), len(groups))
    epoch = [groups.trees(order[start : start + size]) for start in range(0, len(order), size)]
    epoch.sort(key=lambda trees: sum(map(len, trees)), reverse=True)

    def step(scorer: ResponseScorer, trees: Sequence[Row]) -> None:
        planned = scorer.batches(trees, recipe.batch_tokens)
        scorer(*inputs(scorer, planned, blueprint.device)).sum().backward()
        if blueprint.device.type != "cpu":
            torch.accelerator.synchronize(blueprint.device)

    seconds = seconds_of(blueprint, epoch, step, passes=PASSES[recipe.finetuning])
    seconds *= _share(recipe, len(groups), layout)
    if prepared.held_out is None or recipe.eval_steps is None:
        return seconds
    held_out = prepared.held_out.trees(range(len(prepared.held_out)))
    held_out.sort(key=len, reverse=True)
    once = seconds_of(
        blueprint,
        batches_of(held_out, recipe.batch_tokens or BATCH_TOKENS[blueprint.device.type == "cpu"]),
        lambda scorer, rows: response_logps(scorer, rows, blueprint.device),
    )
    steps = _steps(recipe, len(groups), layout)
    return seconds + once * (1 + math.ceil(steps / recipe.eval_steps)) / layout.processes
