"""What must stay apart: groups that are trained on, that choose weights, and that are reported."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from mrpo_tools.cache import ReferenceStore
from mrpo_tools.config import Recipe
from mrpo_tools.errors import UsageError
from mrpo_tools.groups import Group, kinds_of_judgement
from mrpo_tools.methods.tensors import look_up, reference_accuracies
from mrpo_tools.pairing import doubted_labels

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
    validation = [group for group in groups if group.split == split]
    accuracies = [float("nan")]
    if validation:
        accuracies = reference_accuracies(look_up(stores, validation, recipe.truncated))["summed"]
    if any(map(math.isnan, accuracies)):
        splits = ", ".join(sorted({str(group.split) for group in groups}))
        what = "has a pair" if validation else f"is there (there are: {splits})"
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
    doubts = Counter(doubt for group in trained for doubt in doubted_labels(group))
    has_scores, has_labels = kinds_of_judgement(trained)
    if has_labels and not has_scores:
        doubts["unused_scores"] = sum(group.has_scores for group in trained)
    splits = {group.split for group in trained}
    elsewhere = {group.prompt_id for group in groups if group.split not in splits}
    return {
        "doubted_labels": {doubt: count for doubt, count in doubts.items() if count},
        "prompts_in_two_splits": len({group.prompt_id for group in trained} & elsewhere),
    }
