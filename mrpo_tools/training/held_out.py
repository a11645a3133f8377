"""What must stay apart: groups that are trained on, that choose weights, and that are reported."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mrpo_tools.cache import ReferenceStore
from mrpo_tools.config import Recipe
from mrpo_tools.errors import UsageError
from mrpo_tools.groups import Group, facts_of, kinds_of_judgement, taken
from mrpo_tools.groups.facts import find, first_places
from mrpo_tools.methods.tensors import look_up, reference_accuracies
from mrpo_tools.pairing import count_doubted_labels

HOLD_OUT = (
    "hold a tenth of the training prompts out: --validation-size 0.1 (or name another split, "
    "--set weights_split=NAME; or use --weights confidence)"
)
"""How to get a split that is neither trained on nor reported."""


def validation_accuracies(
    recipe: Recipe, stores: Sequence[ReferenceStore], groups: Sequence[Group]
) -> list[float]:
    """Each reference's own preference accuracy on the recipe's validation split.

    Raises:
        UsageError: the split is trained on or reported, or no group of it has a pair.
        CacheMissing: a reference has no numbers for it.
    """
    split = recipe.weights_split
    measured = {"test", *([] if recipe.eval_steps is None else [recipe.eval_split])}
    uses = {"all": "holds every group", recipe.split: "is trained on"}
    uses |= dict.fromkeys(measured, "is reported, and its labels would choose the weights")
    if recipe.split == "all":
        uses[split] = "is trained on, as split: all is"
    if split in uses:
        raise UsageError(
            f"weights accuracy cannot be taken from split {split!r}: it {uses[split]}", HOLD_OUT
        )
    splits_of_groups = facts_of(groups).splits
    validation = taken(groups, np.flatnonzero(splits_of_groups == split))
    accuracies = [float("nan")]
    if len(validation):
        accuracies = reference_accuracies(look_up(stores, validation, recipe.truncated))["summed"]
    if any(map(math.isnan, accuracies)):
        splits = ", ".join(sorted(set(map(str, splits_of_groups))))
        what = "has a pair" if len(validation) else f"is there (there are: {splits})"
        raise UsageError(
            f"weights accuracy is measured on split {split!r}, of which no group {what}", HOLD_OUT
        )
    return accuracies


def about_data(groups: Sequence[Group], trained: Sequence[Group]) -> dict[str, object]:
    """What the report says of the groups of the training split, usable or not.

    Args:
        groups: all of the data.
        trained: those of the training split.
    """
    facts, every = facts_of(trained), facts_of(groups)
    doubts = count_doubted_labels(facts)
    has_scores, has_labels = kinds_of_judgement(trained)
    if has_labels and not has_scores:
        doubts["unused_scores"] = int(facts.has_scores.sum())
    elsewhere = ~np.isin(every.splits.astype(str), list(set(map(str, facts.splits))))
    distinct = facts.prompt_keys[first_places(facts.prompt_keys)[0]]
    return {
        "doubted_labels": {doubt: count for doubt, count in doubts.items() if count},
        "prompts_in_two_splits": int((find(distinct, every.prompt_keys[elsewhere]) >= 0).sum()),
    }
