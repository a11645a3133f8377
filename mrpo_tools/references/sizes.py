"""Whether a configuration promises the model whose weights are there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from mrpo_tools.errors import UsageError
from mrpo_tools.references.model_files import tensor_shapes, text_config, weight_files

LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
MOST = 4096
"""Of any other kind of part, where there are not more tensors than that."""
SLACK = 2
"""So many times the parameters that are there may be promised; tied ones are stored once."""


def check_counts(model: Path) -> int:
    """The parameters of a directory's weights, once its configuration asks for no more layers,
    heads or experts than they can be.

    Raises:
        UsageError: it does, or a file of weights is damaged.
    """
    shapes = tensor_shapes(weight_files(model))
    for key, value in text_config(model).items():
        most = len(shapes) if key in LAYERS else max(MOST, len(shapes))
        counts = key in LAYERS or key.startswith("num_") or key.endswith("_experts")
        if counts and isinstance(value, int | float) and value > most:
            raise UsageError(
                f"{model / 'config.json'}: {key} is {value:,}, but the weights are "
                f"{len(shapes):,} tensors",
                "download it again",
            )
    return sum(math.prod(shape) for shape in shapes.values())


def check_promised(model: Path, config: Any, held: int, auto: Any) -> None:
    """Refuse a configuration of a far larger model than its weights are; builds it without any.

    Args:
        model: its directory.
        config: of it.
        held: parameters of its weights.
        auto: the class of transformers that makes such a model.

    Raises:
        UsageError: it is one.
    """
    with torch.device("meta"):
        empty = auto.from_config(config)
    promised = sum(parameter.numel() for parameter in empty.parameters())
    if promised > SLACK * held:
        raise UsageError(
            f"{model / 'config.json'} promises {promised:,} parameters, and the weights are "
            f"{held:,}",
            "download it again",
        )


def refuse_missing(model: Path, missing: Iterable[str]) -> None:
    """Refuse weights without tensors that the model needs: they would be random numbers.

    Raises:
        UsageError: some are missing.
    """
    names = sorted(missing)
    if names:
        raise UsageError(
            f"the weights of {model} lack {len(names):,} tensors of the model that config.json "
            f"promises, {names[0]} first",
            "download it again",
        )


def missing_keys(info: Mapping[str, Any]) -> list[str]:
    """Names of tensors that no file gave, in what `from_pretrained` tells of a load."""
    return [str(key) for key in info.get("missing_keys", ())]
