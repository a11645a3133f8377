"""Whose scores a run is trained by: the data's own, or a scorer's of the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mrpo_tools.cache import Cache, ScoreStore
from mrpo_tools.config import Recipe
from mrpo_tools.groups import Group, in_split
from mrpo_tools.runs.record import DataReport, HeldOutScore
from mrpo_tools.scoring.apply import with_scores
from mrpo_tools.scoring.beside import beside


@dataclass(frozen=True)
class ScoredGroups:
    """The data with the scores that count.

    Attributes:
        groups: all of the data; groups of splits that the run does not use are as they were.
        store: of the scorer; None where the data's own scores and labels count.
        left_out: responses of the training split without a score, by reason.
        held_out: what the held-out scorer says of the training split; None without one.
    """

    groups: Sequence[Group]
    store: ScoreStore | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    held_out: HeldOutScore | None = None

    def about(self, report: DataReport) -> dict[str, object]:
        """What a run's report says of scores; nothing where the data's own count."""
        said: dict[str, object] = {}
        if self.left_out:
            said["dropped_responses"] = {**report.dropped_responses, **self.left_out}
        if self.held_out is not None:
            said["held_out_score"] = self.held_out
        return said


def scored_groups(recipe: Recipe, groups: Sequence[Group], cache: Cache) -> ScoredGroups:
    """The data as a recipe's `score` and `held_out_score` have it.

    Raises:
        CacheMissing: a scorer has no scores, or not of every response of a split in use.
        CacheStale: several identities of its name.
        UsageError: no group is in the training split.
    """
    store = None if recipe.score is None else cache.find_scores(recipe.score)
    left_out: dict[str, int] = {}
    if store is not None:
        _, left_out = with_scores(in_split(groups, recipe.split), store)
        groups = _replaced(groups, _used(recipe), store)
    held_out = None
    if recipe.held_out_score is not None:
        other = cache.find_scores(recipe.held_out_score)
        held_out = beside(in_split(groups, recipe.split), other)
    return ScoredGroups(groups, store, left_out, held_out)


def _used(recipe: Recipe) -> set[str]:
    """The splits whose scores a run looks at."""
    used = {recipe.split}
    if recipe.eval_steps is not None:
        used.add(recipe.eval_split)
    if recipe.weights == "accuracy":
        used.add(recipe.weights_split)
    return used


def _replaced(groups: Sequence[Group], used: set[str], store: ScoreStore) -> list[Group]:
    """Groups of some splits with a scorer's scores, then the others as they are."""
    wanted = [group for group in groups if "all" in used or group.split in used]
    rest = [group for group in groups if not ("all" in used or group.split in used)]
    return [*with_scores(wanted, store)[0], *rest]
