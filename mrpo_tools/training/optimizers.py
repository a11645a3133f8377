"""What an optimizer keeps of the parameters that it moves, by the Trainer's own names.

Sizes are those of the libraries: torch's optimizers keep states in the parameter's dtype, those of
bitsandbytes in 32 bits or in blocks of 8 (Dettmers et al. 2022), Adafactor a row and a column of a
matrix (Shazeer and Stern 2018).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

FLOAT = 4
DEFAULT = "adamw_torch"
"""What is reckoned with where a recipe names none, or one that is not in the tables."""
STATES: Mapping[str, int] = {
    "adamw_torch": 2, "adamw_torch_fused": 2, "adamw_torch_xla": 2, "adamw_torch_npu_fused": 2,
    "sgd": 0, "adagrad": 1, "rmsprop": 1,
}  # fmt: skip
"""Numbers for each one that is trained, in its dtype."""
BITSANDBYTES: Mapping[str, int] = {
    "adamw": 2, "lion": 1, "rmsprop_bnb": 1, "ademamix": 3,
}  # fmt: skip
"""The same of the families of bitsandbytes, in 32 bits or in 8."""
BLOCK, QUANTILES = 256, 256
"""Numbers that share a scale, and levels of a state's table."""
LEAST = 4096
"""Numbers from which a tensor's states have 8 bits."""


class Kept(NamedTuple):
    """An optimizer's states.

    Attributes:
        bytes: of all of them.
        paged: they may leave a full device for the machine's memory.
        known: False where the optimizer is in no table here, and AdamW's states are counted.
    """

    bytes: int
    paged: bool
    known: bool


def kept_by(trainer: Mapping[str, Any], trained: Sequence[torch.Tensor]) -> Kept:
    """The states of a recipe's optimizer once every parameter has been moved.

    Args:
        trainer: of the recipe, with `optim` and `optim_args` where they are given.
        trained: the parameters, or tensors of their shapes without storage.
    """
    name = str(trainer.get("optim", DEFAULT))
    family, bits, paged = _parsed(name)
    if name in STATES:
        states = STATES[name] + _asked(name, trainer.get("optim_args"))
        return Kept(sum(states * weights.nbytes for weights in trained), paged=False, known=True)
    if name == "adafactor":
        return Kept(sum(map(_factored, trained)), paged=False, known=True)
    if family in BITSANDBYTES:
        states = BITSANDBYTES[family]
        size = sum(_blocks(states, weights.numel(), bits) for weights in trained)
        return Kept(size, paged, known=True)
    others = STATES[DEFAULT] * sum(weights.nbytes for weights in trained)
    return Kept(others, paged=False, known=False)


def _parsed(name: str) -> tuple[str, int, bool]:
    """`paged_adamw_8bit` -> `adamw`, 8, paged."""
    family = name.removeprefix("paged_")
    bits = 8 if family.endswith("_8bit") else 32
    family = family.removesuffix("_8bit").removesuffix("_32bit")
    return family.replace("adamw_bnb", "adamw"), bits, name.startswith("paged_")


def _asked(name: str, arguments: object) -> int:
    """States that `optim_args` adds: a momentum, and RMSprop's mean."""
    words = str(arguments or "").replace(" ", "").lower().split(",")
    values = dict(word.split("=", 1) for word in words if "=" in word)
    momentum = float(values.get("momentum", 0)) > 0 and name in ("sgd", "rmsprop")
    centered = name == "rmsprop" and values.get("centered") in ("true", "1", "yes")
    return momentum + centered


def _factored(weights: torch.Tensor) -> int:
    """Adafactor's: of a matrix the means of its rows and columns, of a vector each number."""
    if weights.dim() < 2:
        return FLOAT * weights.numel()
    *outer, rows, columns = weights.shape
    return FLOAT * math.prod(outer) * (rows + columns)


def _blocks(states: int, count: int, bits: int) -> int:
    if bits == 32 or count < LEAST:
        return FLOAT * states * count
    scales = FLOAT * math.ceil(count / BLOCK)
    return states * (count + scales) + min(states, 2) * FLOAT * QUANTILES
