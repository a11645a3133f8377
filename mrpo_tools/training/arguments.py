"""A recipe in the Trainer's own words.

A recipe's `trainer:` holds any other key of transformers' `TrainingArguments`. What a key of the
recipe says already, or what this engine needs to be so, stays as it is, and that is told; what
would make the numbers wrong, or a resumed run another one, is refused with the reason.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import typing
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from transformers import TrainingArguments

from mrpo_tools.config import Recipe
from mrpo_tools.errors import UsageError, did_you_mean
from mrpo_tools.progress import say_once
from mrpo_tools.references.devices import only_cpu, pick_device, process_backend
from mrpo_tools.references.transformers_private import use_one_gpu

OTHER_PLACES = {
    "fp16": "dtype and autocast", "bf16": "dtype and autocast",
    "fp16_full_eval": "dtype and autocast", "bf16_full_eval": "dtype and autocast",
    "activation_checkpointing": "gradient_checkpointing",
    "gradient_checkpointing": "gradient_checkpointing", "eval_strategy": "eval_steps",
    "warmup_steps": "warmup_ratio", "data_seed": "seed", "output_dir": "--output",
    "resume_from_checkpoint": "--resume",
}  # fmt: skip
"""Of the Trainer's keys: what says it in a recipe or on the command line, under another name."""
REFUSED = {
    "neftune_noise_alpha": "noise in the embeddings makes other log-probs than the policy's",
    "label_smoothing_factor": "it smooths the labels of tokens; label_smoothing is of preferences",
    "auto_find_batch_size": "a step would be of another number of groups than the recipe says",
    "tf32": "the policy's arithmetic would not be that of its cached reference; see dtype",
    "torch_compile": "every pass has another shape, and compiled numbers are not checked",
    "use_liger_kernel": "it replaces layers after the scorer has checked the model's numbers",
    "save_only_model": "a run could not go on from its checkpoints",
    "ignore_data_skip": "a resumed run would see other groups",
    "train_sampling_strategy": "the order is drawn from the seed, and a resumed run repeats it",
    "hub_token": "a token in a recipe ends up in the run; set HF_TOKEN in the environment",
    "parallelism_config": "groups are shared out over processes, and their tokens are not",
    "accelerator_config": "micro-batches and their losses are counted here",
}  # fmt: skip
"""Keys that would break what a run promises, and how."""
LOGGERS = {
    "tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "mlflow": ("mlflow",),
    "trackio": ("trackio",), "comet_ml": ("comet_ml",), "clearml": ("clearml",),
    "swanlab": ("swanlab",), "neptune": ("neptune",), "dvclive": ("dvclive",),
}  # fmt: skip
"""Names that `report_to` takes, and the packages one of which each needs."""


def training_arguments(
    recipe: Recipe, output: Path, products: str = "float32"
) -> TrainingArguments:
    """What the Trainer is told of a recipe whose run is in `output`.

    Args:
        recipe: the words.
        output: the run's directory.
        products: their dtype; the scorer sees to it, and of float16 the loss is scaled here.

    Raises:
        UsageError: words of `trainer` that do not go together.
    """
    words = trainer_words(recipe)
    defaults = {
        "report_to": [],
        "logging_first_step": True,
        "dataloader_pin_memory": pick_device().type == "cuda",
    }
    ours = {**_of_recipe(recipe), **_of_engine(output, products)}
    try:
        arguments = TrainingArguments(**{**defaults, **words, **ours})
    except (ValueError, TypeError, ImportError) as error:
        raise UsageError(f"trainer: {error}", "mrpo recipe trainer") from None
    _ = arguments.device  # finds the devices; more than one would mean nn.DataParallel
    use_one_gpu(arguments)
    return arguments


def trainer_words(recipe: Recipe) -> dict[str, Any]:
    """The recipe's `trainer` as far as it counts, with values of the right types.

    Raises:
        UsageError: unknown keys, wrong types, what would break a promise, a logger that is not
            installed; all of them together.
    """
    taken = {*_of_recipe(recipe), *_of_engine(Path(), "float32"), *OTHER_PLACES}
    if not recipe.warmup_ratio:
        taken.remove("warmup_steps")
    problems, values = [], {}
    for key, value in recipe.trainer.items():
        if key in ("fsdp", "fsdp_config"):  # `wrapping` reads them
            continue
        if key in taken:
            place = OTHER_PLACES.get(key, key if key in Recipe.model_fields else None)
            say_once(f"trainer.{key} is left out: {place or 'this engine'} sets it")
            continue
        try:
            values[key] = _checked(key, value)
        except UsageError as error:
            problems.append((error.what, error.hint))
    if problems:
        hints = dict.fromkeys(hint for _, hint in problems if hint)
        raise UsageError("\n".join(what for what, _ in problems), "; ".join(hints) or None)
    return values


def engine_keys() -> list[str]:
    """Keys of the Trainer that are set here whatever a recipe says."""
    return sorted(_of_engine(Path(), "float32").keys() - OTHER_PLACES.keys())


def _checked(key: str, value: Any) -> Any:
    """A value of the Trainer's key in its own type."""
    if key in REFUSED:
        raise UsageError(f"trainer.{key}: {REFUSED[key]}")
    types = typing.get_type_hints(TrainingArguments)
    names = [field.name for field in dataclasses.fields(TrainingArguments)]
    if key not in names:
        raise UsageError(
            f"trainer.{key}: transformers' TrainingArguments has no such key",
            did_you_mean(key, names),
        )
    try:
        checked = TypeAdapter(types[key]).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise UsageError(f"trainer.{key}: {reason}, found {value!r:.60}") from None
    if key == "report_to":
        _check_loggers(checked)
    return checked


def _check_loggers(names: str | list[str] | None) -> None:
    """Refuse a logger that nobody installed, before hours of training."""
    for name in [names] if isinstance(names, str) else names or []:
        if name in ("none", "all"):
            continue
        if name not in LOGGERS:
            raise UsageError(
                f"trainer.report_to: no logger is named {name!r}", did_you_mean(name, LOGGERS)
            )
        if not any(importlib.util.find_spec(package) for package in LOGGERS[name]):
            raise UsageError(
                f"trainer.report_to: {name} is not installed", f"pip install {LOGGERS[name][0]}"
            )


def _of_recipe(recipe: Recipe) -> dict[str, Any]:
    """What keys of the recipe say, in the Trainer's words."""
    same = (
        "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps",
        "num_train_epochs", "max_steps", "lr_scheduler_type", "weight_decay", "max_grad_norm",
        "seed", "logging_steps", "save_steps", "eval_steps",
    )  # fmt: skip
    return {
        **{key: getattr(recipe, key) for key in same},
        **({"warmup_steps": recipe.warmup_ratio} if recipe.warmup_ratio else {}),
        "save_total_limit": None,  # checkpoints are sealed first, and removed after that
        "data_seed": recipe.seed,
        "eval_strategy": "steps" if recipe.eval_steps else "no",
        "eval_on_start": recipe.eval_steps is not None,
    }


def _of_engine(output: Path, products: str) -> dict[str, Any]:
    """What has to be so for the loss, the collator and the guards of `GroupTrainer`."""
    return {
        "output_dir": str(output),
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "fp16": products == "float16",  # scales the loss
        "use_cpu": only_cpu(),
        "ddp_backend": process_backend(),
        "ddp_find_unused_parameters": False,
    }
