"""A reward model: a sequence classifier of one label that scores a prompt with its response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from mrpo_tools.config import Reference, absolute_paths
from mrpo_tools.errors import UsageError
from mrpo_tools.groups import Group
from mrpo_tools.references.identity import Identity
from mrpo_tools.references.resolved import ResolvedReference, resolve
from mrpo_tools.scoring.protocol import SCORING_VERSION, KindOfScorer, Scoring


@dataclass(frozen=True)
class RewardModel:
    """A reward model whose files are found; its weights are loaded when it begins.

    Attributes:
        resolved: its name, words, files and identity.
    """

    resolved: ResolvedReference
    kind: ClassVar[KindOfScorer] = "reward"
    full_marks: ClassVar[float | None] = None

    @property
    def name(self) -> str:
        """As the project calls it."""
        return self.resolved.name

    @property
    def store_name(self) -> str:
        """The same."""
        return self.resolved.name

    @cached_property
    def stored_identity(self) -> Identity:
        """The fields of any model, and that it gives scores."""
        fields = {"scorer": "reward", "scoring_version": SCORING_VERSION}
        return Identity({**self.resolved.identity.fields, **fields})

    @property
    def identity(self) -> str:
        """Hash of these."""
        return self.stored_identity.hash

    @property
    def words(self) -> Mapping[str, Any]:
        """As a project's `scorers:` has them, paths made absolute."""
        return absolute_paths(self.resolved.reference).model_dump(mode="json")

    def begin(self, groups: Sequence[Group]) -> Scoring:
        """Load the model, check its batches against single rows, and score."""
        from mrpo_tools.scoring.pooling import score_all

        return score_all(self.resolved, self.words, groups)


def reward_model(name: str, reference: Reference) -> RewardModel:
    """A reward model by its words; its files are found and hashed.

    Raises:
        UsageError: there are none, or its words are of log-probs alone.
    """
    if reference.adapter is not None or reference.autocast is not None:
        raise UsageError(
            f"scorer {name!r}: a reward model has no adapter and no autocast here",
            "merge the adapter into its model first",
        )
    return RewardModel(resolve(name, reference))
