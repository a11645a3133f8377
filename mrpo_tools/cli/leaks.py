"""What a run may be measured on, and what it has seen of that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mrpo_tools.config import Dataset
    from mrpo_tools.groups import Group
    from mrpo_tools.runs.record import EvaluationRecord
    from mrpo_tools.runs.run import Run


def refuse_others(run: Run, refs: str | None, truncated: str | None) -> None:
    """A run is compared with its own references, over the responses that its recipe takes."""
    from mrpo_tools.errors import UsageError

    if refs is not None:
        raise UsageError(
            f"{run.path} is a run: it is compared with its own references", "leave --refs out"
        )
    if truncated not in (None, run.recipe.truncated):
        raise UsageError(
            f"{run.path} is a run: its recipe says truncated: {run.recipe.truncated}, and weights "
            "and radii go by that",
            "leave --truncated out",
        )


def own_groups(run: Run, read: Dataset) -> Sequence[Group] | None:
    """The run's own data where other data are measured; None where they are gone."""
    from mrpo_tools.errors import MrpoError
    from mrpo_tools.sources import load_dataset

    if run.record.dataset in (None, read):
        return None
    try:
        return load_dataset(run.record.dataset).groups
    except MrpoError:
        return None


def warn_of_leaks(run: Run, record: EvaluationRecord) -> None:
    """Say what training, or the choice of weights, has seen of what is measured."""
    from mrpo_tools.progress import say

    recipe = run.recipe
    if record.prompts_trained_on is None:
        say("note: the run's own data cannot be read: whether it was trained on these prompts is "
            "not known")  # fmt: skip
    elif record.prompts_trained_on:
        say(
            f"warning: {record.prompts_trained_on:,} prompts of split {record.split} are among "
            f"those that {run.path} was trained on"
        )
    if recipe.weights == "accuracy" and record.split in ("all", recipe.weights_split):
        say(f"warning: the labels of split {recipe.weights_split} chose the references' weights")
