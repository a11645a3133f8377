"""A run that goes on with other processes, or another engine, than it began with.

The loss is a mean over the groups of a step, whatever the processes: a run goes on with any number
of them, as long as a step is of as many groups. Other steps would be another run's.
"""

from __future__ import annotations

import json
import pickle
import pkgutil
from pathlib import Path

import torch
from transformers import TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, TRAINER_STATE_NAME

from mrpo_tools.errors import UsageError
from mrpo_tools.runs.run import resume_command
from mrpo_tools.training.callbacks import StepSize

DEEPSPEED_CLASSES = (
    "deepspeed.runtime.zero.config:ZeroStageEnum",
    "deepspeed.runtime.fp16.loss_scaler:LossScaler",
    "deepspeed.utils.tensor_fragment:fragment_address",
)
"""What DeepSpeed's own checkpoints hold beside tensors and plain values: records, no functions."""


def groups_a_step(args: TrainingArguments) -> int:
    """Of all processes and micro-batches, where nothing is left over at an epoch's end."""
    return int(
        args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    )


def check_goes_on(checkpoint: Path, args: TrainingArguments, *, deepspeed: bool) -> None:
    """Refuse a checkpoint from which this would be another run, before anything is loaded.

    Args:
        checkpoint: a whole one.
        args: of the run that would go on.
        deepspeed: whether DeepSpeed trains it; it alone reads and writes its checkpoints.

    Raises:
        UsageError: a step was of other groups, or the checkpoint is another engine's.
    """
    run = checkpoint.parent
    state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    kept = state.get("stateful_callbacks", {}).get(StepSize.__name__)
    before, now = kept and kept["attributes"]["groups"], groups_a_step(args)
    if kept and before != now:
        alone = args.per_device_train_batch_size * args.world_size
        fitting = before % alone == 0
        raise UsageError(
            f"a step of {run} is of {before} groups; with {args.world_size} processes, "
            f"per_device_train_batch_size {args.per_device_train_batch_size} and "
            f"gradient_accumulation_steps {args.gradient_accumulation_steps} it would be of {now}, "
            "and the run another one",
            f"{resume_command(run)} --set gradient_accumulation_steps={before // alone}"
            if fitting
            else "a number of processes that divides it, with a per_device_train_batch_size that "
            "fits",
        )
    if (checkpoint / OPTIMIZER_NAME).exists() == deepspeed:
        theirs, ours = ("another", "DeepSpeed") if deepspeed else ("DeepSpeed", "another")
        raise UsageError(
            f"{checkpoint} was written by {theirs} engine, and {ours} engine cannot read its "
            "optimizer's states",
            "go on with the file of recipes/accelerate that the run began with",
        )
    if deepspeed:
        _check_deepspeed(checkpoint, args.world_size)


def _check_deepspeed(checkpoint: Path, processes: int) -> None:
    """Refuse states of another number of processes, and those that are more than states: DeepSpeed
    would run what a pickle says."""
    before = len(list(checkpoint.glob("rng_state_*.pth")))
    if before != processes:
        raise UsageError(
            f"DeepSpeed's states in {checkpoint} are of {before} processes, here are {processes}",
            f"go on with {before} processes",
        )
    classes = [pkgutil.resolve_name(name) for name in DEEPSPEED_CLASSES]
    for path in sorted(checkpoint.rglob("*.pt")):
        try:
            with torch.serialization.safe_globals(classes):
                torch.load(path, map_location="meta", weights_only=True)
        except pickle.UnpicklingError:
            raise UsageError(
                f"{checkpoint} cannot be loaded: more than tensors and plain values is in "
                f"{path.name}",
                f"mrpo did not write it so; remove {checkpoint} to go on from the one before",
            ) from None
