"""Keys of a recipe as options: meaning, choices and default of each are those of `Recipe`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args

import click

from mrpo_tools import words
from mrpo_tools.cli.completion import losses, scorers
from mrpo_tools.cli.help import Command, Names

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

KEYS: Mapping[str, tuple[str, ...]] = {
    "What is optimised": (
        "loss", "combine", "weights", "trust_region", "epsilon_max", "chosen", "pairing", "beta",
        "held_out_score",
    ),
    "Policy": ("policy", "finetuning", "quantization", "dtype", "lora_r", "lora_alpha"),
    "Optimisation": (
        "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size",
        "gradient_accumulation_steps", "lr_scheduler_type", "warmup_ratio", "seed",
    ),
    "Length": ("max_length", "batch_tokens"),
    "Measured and saved on the way": ("eval_steps", "logging_steps", "save_steps"),
}  # fmt: skip
"""The keys that are options, by the section of the help in which they stand."""
METAVARS = {"loss": "NAME", "policy": "MODEL", "held_out_score": "NAME"}
COMPLETIONS = {"loss": losses, "held_out_score": scorers}
NUMBERS: Mapping[Any, click.ParamType[Any, Any]] = {int: click.INT, float: click.FLOAT}


class RecipeCommand(Command):
    """A command that takes keys of a recipe; they are read from `Recipe` when first asked for, as
    pydantic takes a while to import."""

    @cached_property
    def _recipe_options(self) -> list[click.Parameter]:
        from mrpo_tools.config import Recipe

        keys = (key for section in KEYS.values() for key in section)
        return [_option(key, Recipe.model_fields[key]) for key in keys]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Its own, and the recipe's."""
        return [*self._recipe_options, *super().get_params(ctx)]


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's keys among the options of a command, those that were given."""
    keys = (key for section in KEYS.values() for key in section)
    return {key: options[key] for key in keys if options[key] is not None}


def _option(key: str, field: FieldInfo) -> click.Option:
    default = field.get_default(call_default_factory=True, validated_data={})
    shown = f"{default:g}".replace("e-0", "e-") if isinstance(default, float) else default
    beside = "" if default is None else f"  [default: {shown}]"
    return click.Option(
        [f"--{key.replace('_', '-')}"],
        type=_kind(field.annotation),
        metavar=METAVARS.get(key),
        help=f"{field.description}{beside}",
        shell_complete=COMPLETIONS.get(key),
    )


def _kind(annotation: Any) -> click.ParamType[Any, Any]:
    """The type of an option: a choice where the key has names, else text or a number."""
    kinds = [part for part in get_args(annotation) or (annotation,) if part is not NoneType]
    for of in (annotation, *kinds):
        if words.phrases(of):
            return Names(of)
    return NUMBERS.get(kinds[0], click.STRING)
