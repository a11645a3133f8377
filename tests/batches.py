"""Groups of the oracle as tensors, and every objective with the hyper-parameters to try."""

import math

import numpy as np
import oracle
import torch
from oracle import Group
from torch.nn.utils.rnn import pad_sequence

from mrpo_tools.maths import objectives

TOGETHER = [
    ("dpo", {"pairing": "all", "chosen": "top_bottom", "top_bottom": 2}),
    ("mpo", {"beta": 0.5, "chosen": "top_bottom", "top_bottom": 1}),
    ("w_mpo", {"beta": 0.3, "deviation_scale": 2.0, "chosen": "top_bottom"}),
    ("swepo", {"beta": 0.3, "deviation_scale": 1.5, "power": 2, "signed": True}),
    ("swepo", {"beta": 0.3, "weight": "power", "power": 0}),
    ("swepo", {"beta": 0.3, "weight": "power", "power": 2}),
]
"""Hyper-parameters that act on each other."""
FIXED_PAIRS = [name for name in objectives.NAMES if name.startswith("mppo_pair_m")]
"""The oracle has these with their own pairing only: the paper defines no other."""


def defaults(name: str) -> dict:
    """The objective's own hyper-parameters, with pairs that need no draw."""
    drawn = objectives.TABLE[name].defaults.get("pairing") == "best_random"
    return {"pairing": "best_worst"} if drawn else {}


EVERY = [(name, defaults(name)) for name in objectives.NAMES]
"""Every objective once."""
VARIED = [
    (name, {**hyper, key: value})
    for name, hyper in EVERY
    for key in sorted({*objectives.TABLE[name].defaults, "chosen"})
    if not (key == "pairing" and name in FIXED_PAIRS)
    for value in oracle.HYPER[key]
]
CASES = [*EVERY, *VARIED, *TOGETHER]
"""Every objective of the table with its defaults, and each of its hyper-parameters varied."""
RANDOM_PAIR = [("mppo_pair_single", {}), ("dpo", {"pairing": "best_random", "beta": 0.5})]
SEVERAL = {"multi_dpo", "kd"}
"""Objectives that see each reference."""
KINDS = ("scores", "ties", "labels", "labels_and_scores", "labels_and_ties")
SHAPE_ERROR = r"shape|\[B"


def describe(case) -> str:
    """A readable test id."""
    if isinstance(case, dict):
        return ",".join(f"{key}={value}" for key, value in case.items()) or "defaults"
    if isinstance(case, Group):
        return f"scores={case.scores},chosen={case.chosen}"
    return str(case)


def sample(name: str, kind="scores", sizes=range(2, 9), seed: int = 0, count: int = 3):
    """Ragged random groups with the references this objective takes: one, or `count`."""
    rng = np.random.default_rng(seed)
    references = count if name in SEVERAL else 0
    groups = [oracle.random_group(rng, size, kind, references) for size in sizes]
    if name == "kd":
        drawn = [oracle.random_group(rng, 3, kind, references) for _ in groups]
        groups = [group.beside(samples) for group, samples in zip(groups, drawn, strict=True)]
    return groups


def group_with(rewards, **columns) -> Group:
    """A group of one-token responses whose log-ratios are `rewards`, against reference −20."""
    size = len(rewards)
    policy = [-20.0 + reward for reward in rewards]
    flat = [-20.0] * size
    lengths = columns.pop("lengths", [1] * size)
    return Group(policy, flat, lengths, behaviour=flat, **columns)


def padded(rows, fill, dtype=torch.float64, width: int = 1) -> torch.Tensor:
    """Lists of up to N numbers, or of rows of K, as [B, N] or [B, N, K]; N at least `width`."""
    tensors = [torch.tensor(row, dtype=dtype) for row in rows]
    widest = torch.zeros(width, *tensors[0].shape[1:], dtype=dtype)
    return pad_sequence([*tensors, widest], batch_first=True, padding_value=fill)[:-1]


def mask_of(rows, width: int = 1) -> torch.Tensor:
    """[B, N] bool: True where `padded` has a number of its own."""
    return padded([[True] * len(row) for row in rows], False, torch.bool, width)


def tensors_of(groups, width: int = 1, fill: float = math.nan, dtype=torch.float64) -> dict:
    """The arguments of `objectives.Batch`; scores stay float64, as data files hold them.

    Masked entries hold what must not matter: `fill` in the numbers, True in the labels.
    """

    def column(name: str, fill=fill, dtype=dtype) -> torch.Tensor | None:
        rows = [getattr(group, name) for group in groups]
        return None if rows[0] is None else padded(rows, fill, dtype, width)

    weights = [group.weights for group in groups]
    return {
        "policy_logps": column("policy"),
        "reference_logps": column("reference"),
        "lengths": column("lengths"),
        "scores": column("scores", dtype=torch.float64),
        "chosen": column("chosen", fill=True, dtype=torch.bool),
        "mask": mask_of([group.policy for group in groups], width),
        "weights": None if weights[0] is None else torch.tensor(weights, dtype=dtype),
        "behaviour_logps": column("behaviour"),
        "unjudged": column("unjudged", fill=True, dtype=torch.bool),
        "seeds": torch.tensor([group.seed for group in groups], dtype=torch.int64),
    }


def compute(name: str, groups, hyper=None, **layout) -> torch.Tensor:
    """The implementation's loss per group."""
    batch = objectives.Batch(**tensors_of(groups, **layout))
    return objectives.compute(name, batch, **(hyper or {}))


def loss_and_gradient(name: str, tensors: dict, hyper=None) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss per group, and the gradient of its sum by the policy's log-probs."""
    policy = tensors["policy_logps"].clone().requires_grad_()
    batch = objectives.Batch(**{**tensors, "policy_logps": policy})
    loss = objectives.compute(name, batch, **(hyper or {}))
    (gradient,) = torch.autograd.grad(loss.sum(), policy)
    return loss.detach(), gradient


def assert_close(actual: torch.Tensor, expected, tolerance: float = 1e-9) -> None:
    """Equal to `tolerance`, absolute or relative, NaN equal to NaN."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(
        actual.detach().double(), expected, rtol=tolerance, atol=tolerance, equal_nan=True
    )


def assert_rows_close(actual: torch.Tensor, expected) -> None:
    """The real responses of every group, to 1e-9; `expected` is one list per group."""
    for row, values in zip(actual, expected, strict=True):
        assert_close(row[: len(values)], values)
