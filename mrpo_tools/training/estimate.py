"""What a training run would take, found without loading any weights."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from mrpo_tools.config import Recipe
from mrpo_tools.errors import UsageError
from mrpo_tools.maths.logprobs import TILES
from mrpo_tools.precomputing.estimate import count_parameters
from mrpo_tools.progress import rank_and_count
from mrpo_tools.references.devices import free_bytes, peak_flops, pick_device
from mrpo_tools.references.model_files import read_json
from mrpo_tools.scorer.blueprint import Blueprint, blueprint_of
from mrpo_tools.scorer.memory import (
    NF4_BYTES,
    StepBytes,
    Weights,
    inputs,
    step_bytes,
    weights_of,
)
from mrpo_tools.scorer.scorer import BATCH_TOKENS, ResponseScorer, response_logps
from mrpo_tools.scorer.speed import EFFICIENCY, seconds_of
from mrpo_tools.scorer.trees import Row, plan_rows
from mrpo_tools.scorer.trees import batches as batches_of
from mrpo_tools.training.activations import ADAM_STATES, fits, recompute_activations
from mrpo_tools.training.policy import on_model
from mrpo_tools.training.prepare import Prepared

STATES = 34
"""Hidden-size vectors that a layer keeps of each token, where the policy cannot be imagined
(Korthikanti et al. 2022, §4.1)."""
ADAPTER_SHARE = 0.01
"""Of the parameters, in a usual adapter; for the same case."""
PASSES = {"lora": 2.0, "full": 3.0}
"""Forward passes that a forward and a backward pass are worth, without and with gradients of the
weights."""


@dataclass(frozen=True)
class StepMemory:
    """The memory of a step whose micro-batch is the largest that the data can make; of tensors.

    Attributes:
        weights_bytes: of the policy.
        gradient_bytes: of what is trained.
        optimizer_bytes: AdamW's states of it.
        kept_bytes: activations that wait for the backward pass.
        working_bytes: what a tile of the head or one layer takes beside all that.
        peak_bytes: the most there is. It is the sum, or less where a step has one micro-batch:
            gradients come while activations go.
    """

    weights_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    kept_bytes: int
    working_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class TrainingEstimate:
    """What training would take.

    Attributes:
        groups: that are trained on.
        steps: of the optimizer.
        step_tokens: of a step, on average, a shared prompt counted once.
        largest_tokens: of the largest micro-batch that the data can make.
        plain: memory with every activation kept.
        checkpointed: memory with `gradient_checkpointing`.
        free_bytes: of memory here, now.
        gradient_checkpointing: as the recipe says, or as `auto` chooses with `free_bytes`.
        disk_bytes: of one checkpoint, without its tokenizer.
        seconds: of the steps and of what is measured between them, measured on a few
            micro-batches; about.
        about: memory and seconds are of a rough formula, because the policy cannot be made of its
            configuration here.
    """

    groups: int
    steps: int
    step_tokens: int
    largest_tokens: int
    plain: StepMemory
    checkpointed: StepMemory
    free_bytes: int
    gradient_checkpointing: bool
    disk_bytes: int
    seconds: float
    about: bool


class _Cost(NamedTuple):
    """Of a policy: its weights, a step with and without checkpointing, the seconds of all steps."""

    weights: Weights
    plain: StepBytes
    checkpointed: StepBytes
    recomputes: bool
    seconds: float
    about: bool


def estimate_training(
    recipe: Recipe, prepared: Prepared, device: torch.device | None = None
) -> TrainingEstimate:
    """What a run of this recipe would take on this machine; loads no weights, writes nothing.

    Args:
        recipe: of the run.
        prepared: its data.
        device: where it would run; None is this process's.
    """
    device = device or pick_device()
    groups, free = prepared.training, free_bytes(device)
    config = read_json(prepared.policy.files.model / "config.json")
    width = config.get("text_config", config)["hidden_size"]
    trees = groups.trees(range(len(groups)))
    lengths = [sum(map(len, plan_rows([tree], hidden_size=width))) for tree in trees]
    order = sorted(range(len(trees)), key=lengths.__getitem__)
    largest = order[-recipe.per_device_train_batch_size :]
    cost = _cost(recipe, prepared, [trees[g] for g in largest], device)
    return TrainingEstimate(
        groups=len(groups),
        steps=_steps(recipe, len(groups)),
        step_tokens=round(sum(lengths) / _epoch_steps(recipe, len(groups))),
        largest_tokens=sum(lengths[g] for g in largest),
        plain=step_memory(recipe, cost.weights, cost.plain),
        checkpointed=step_memory(recipe, cost.weights, cost.checkpointed),
        free_bytes=free,
        gradient_checkpointing=cost.recomputes,
        disk_bytes=(1 + ADAM_STATES) * cost.weights.trained,
        seconds=cost.seconds,
        about=cost.about,
    )


def step_memory(recipe: Recipe, weights: Weights, step: StepBytes) -> StepMemory:
    """The peak of a step and its parts."""
    rest = weights.total + ADAM_STATES * weights.trained
    working = step.peak - step.kept
    peak = weights.trained + step.peak  # the last micro-batch finds the gradients of those before
    if recipe.gradient_accumulation_steps == 1:
        peak = max(step.peak, weights.trained + working)
    return StepMemory(
        weights_bytes=weights.total,
        gradient_bytes=weights.trained,
        optimizer_bytes=ADAM_STATES * weights.trained,
        kept_bytes=step.kept,
        working_bytes=working,
        peak_bytes=rest + peak,
    )


def _cost(
    recipe: Recipe, prepared: Prepared, largest: Sequence[Row], device: torch.device
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
            step._replace(peak=step.peak + widened)
            for blueprint in (plain, checkpointed)
            for step in [step_bytes(blueprint, largest, recipe.batch_tokens)]
        )
        recomputes = _recomputes(recipe, weights, kept, device)
        seconds = _seconds(recipe, prepared, checkpointed if recomputes else plain)
    except UsageError:
        raise
    except Exception:  # a family's own code may fail in any way without real weights
        return _formula(recipe, prepared, largest, device)
    return _Cost(weights, kept, recomputed, recomputes, seconds, about=False)


def _recomputes(recipe: Recipe, weights: Weights, plain: StepBytes, device: torch.device) -> bool:
    """As the recipe says, or as `auto` chooses once the weights are there."""
    if recipe.gradient_checkpointing != "auto":
        return recipe.gradient_checkpointing
    return not fits(plain.kept, weights.trained, free_bytes(device) - weights.total)


def _formula(
    recipe: Recipe, prepared: Prepared, largest: Sequence[Row], device: torch.device
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
    weights = Weights(total, trained, 0)
    plain = StepBytes(STATES * kept, STATES * kept + logits + layer)
    checkpointed = StepBytes(kept, kept + logits + layer)
    recomputes = _recomputes(recipe, weights, plain, device)
    groups = prepared.training
    tokens = float(sum(map(len, groups.trees(range(len(groups))))))
    tokens *= _steps(recipe, len(groups)) / _epoch_steps(recipe, len(groups)) / _processes()
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


def _processes() -> int:
    _, count = rank_and_count()
    return count


def _epoch_steps(recipe: Recipe, groups: int) -> int:
    """Optimizer steps of an epoch; the last one may have fewer groups."""
    micro_batches = recipe.gradient_accumulation_steps * _processes()
    return math.ceil(groups / (recipe.per_device_train_batch_size * micro_batches))


def _steps(recipe: Recipe, groups: int) -> int:
    """Optimizer steps of a run, as the Trainer counts them."""
    if recipe.max_steps > 0:
        return recipe.max_steps
    return math.ceil(recipe.num_train_epochs * _epoch_steps(recipe, groups))


def _seconds(recipe: Recipe, prepared: Prepared, blueprint: Blueprint) -> float:
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

    steps = _steps(recipe, len(groups))
    seconds = seconds_of(blueprint, epoch, step, passes=PASSES[recipe.finetuning])
    seconds *= steps / _epoch_steps(recipe, len(groups)) / _processes()
    if prepared.held_out is None or recipe.eval_steps is None:
        return seconds
    held_out = prepared.held_out.trees(range(len(prepared.held_out)))
    held_out.sort(key=len, reverse=True)
    once = seconds_of(
        blueprint,
        batches_of(held_out, recipe.batch_tokens or BATCH_TOKENS[blueprint.device.type == "cpu"]),
        lambda scorer, rows: response_logps(scorer, rows, blueprint.device),
    )
    return seconds + once * (1 + math.ceil(steps / recipe.eval_steps))
