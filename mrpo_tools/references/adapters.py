"""A LoRA adapter's settings, as far as they are those of an ordinary LoRA adapter."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mrpo_tools.errors import UsageError, shorten
from mrpo_tools.references.model_files import adapter_weights, read_json, tensor_shapes

SIMPLE_PATTERN = re.compile(r"[\w.\\^$|()-]{1,500}")
"""Names of layers, and patterns of them that match in linear time."""
NOTES = frozenset(
    {"base_model_name_or_path", "revision", "inference_mode", "peft_version", "peft_type",
     "task_type", "auto_mapping", "runtime_config", "megatron_core"}
)  # fmt: skip
"""Settings on which no number depends."""
INITIAL = (True, False, "gaussian")
"""Ways to begin that leave the base model's weights alone."""


def lora_settings(adapter: Path) -> dict[str, Any]:
    """The arguments of peft's `LoraConfig` for an adapter's directory.

    Targets that are given by a pattern are named by the adapter's weights instead.

    Raises:
        UsageError: it is another kind of adapter, or its settings are not those of its weights.
    """
    path = adapter / "adapter_config.json"
    given = read_json(path)
    if given.get("peft_type") != "LORA":
        kind = shorten(str(given.get("peft_type")))
        raise UsageError(f"{path}: peft_type is {kind}; only LORA adapters are read", None)
    defaults = _defaults()
    settings = {
        key: value
        for key, value in given.items()
        if key not in NOTES and value not in (None, {}, []) and value != defaults.get(key)
    }
    for key, value in settings.items():
        if key not in ORDINARY or not ORDINARY[key](value):
            raise UsageError(
                f"{path}: {shorten(key, 60)} is {shorten(str(value))}, which is not read",
                "save it as an ordinary LoRA adapter, or merge it into its model",
            )
    settings.pop("init_lora_weights", None)
    shapes = tensor_shapes(adapter_weights(adapter))
    _check_rank(path, settings, shapes)
    targets = settings.get("target_modules")
    if isinstance(targets, str) and targets != "all-linear":
        settings["target_modules"] = _named_by(shapes)
    return {**settings, "task_type": "CAUSAL_LM"}


def _defaults() -> dict[str, Any]:
    """What a setting is that says nothing, in the release at hand."""
    from peft import LoraConfig

    return {
        field.name: field.default
        for field in dataclasses.fields(LoraConfig)
        if field.default is not dataclasses.MISSING
    }


def _check_rank(
    path: Path, settings: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Nothing larger is made than the weights that it will hold."""
    held = [
        shape[0] for name, shape in shapes.items() if "lora_" in name and "_A" in name and shape
    ]
    asked = [settings.get("r", 8), *settings.get("rank_pattern", {}).values()]
    if not held or max(asked) > max(held):
        raise UsageError(
            f"{path}: the rank is {max(asked):,}, that of its weights {max(held, default=0):,}",
            "download it again",
        )


def _named_by(shapes: Iterable[str]) -> list[str]:
    """The layers that the names of an adapter's tensors name."""
    names = (name.split(".lora_")[0] for name in shapes if ".lora_" in name)
    return sorted({name.removeprefix("base_model.model.") for name in names})


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e6  # type: ignore[operator]


def _is_rank(value: object) -> bool:
    return type(value) is int and 0 < value < 2**31


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(name, str) and SIMPLE_PATTERN.fullmatch(name) for name in value
    )


def _is_indices(value: object) -> bool:
    return isinstance(value, list) and all(type(index) is int for index in value)


def _by_name(holds: Callable[[object], bool]) -> Callable[[object], bool]:
    def check(value: object) -> bool:
        return isinstance(value, dict) and _is_names([*value]) and all(map(holds, value.values()))

    return check


ORDINARY: dict[str, Callable[[Any], bool]] = {
    "r": _is_rank,
    "rank_pattern": _by_name(_is_rank),
    "lora_alpha": _is_number,
    "alpha_pattern": _by_name(_is_number),
    "lora_dropout": _is_number,
    "use_rslora": _is_flag,
    "use_dora": _is_flag,
    "lora_bias": _is_flag,
    "fan_in_fan_out": _is_flag,
    "bias": ("none", "all", "lora_only").__contains__,
    "init_lora_weights": INITIAL.__contains__,
    "target_modules": lambda value: isinstance(value, str) or _is_names(value),
    "exclude_modules": _is_names,
    "target_parameters": _is_names,
    "modules_to_save": _is_names,
    "layers_to_transform": lambda value: type(value) is int or _is_indices(value),
    "layers_pattern": lambda value: _is_names([value] if isinstance(value, str) else value),
    "trainable_token_indices": lambda value: _is_indices(value) or _by_name(_is_indices)(value),
}
"""Settings of an ordinary LoRA adapter: name -> whether a value can be meant."""
