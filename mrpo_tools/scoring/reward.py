"""A reward model: a sequence classifier of one label that scores a prompt with its response.

It reads the conversation in its own tokenizer and chat template, rendered as references render it
(`references.rendering`): BOS once, the end of turn as the template writes it, user text never a
control token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

from mrpo_tools.config import Reference, absolute_paths
from mrpo_tools.errors import UsageError
from mrpo_tools.groups import Group
from mrpo_tools.references.identity import Identity
from mrpo_tools.references.resolved import ResolvedReference, renderer_of, resolve
from mrpo_tools.scoring.protocol import SCORING_VERSION, KindOfScorer, Scoring


class Line(NamedTuple):
    """A response with its prompt as ids of a reward model's tokenizer."""

    response_id: str
    prompt_id: str
    ids: Sequence[int]
    truncated: bool
    overlong: bool


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

        return score_all(self, groups)

    def lines(self, groups: Sequence[Group]) -> Iterator[Line]:
        """Every response with its prompt as ids.

        Raises:
            UsageError: the template cannot render a group.
        """
        renderer = renderer_of(self.resolved)
        for group in groups:
            encoded = renderer.encode(group)
            for key, response in zip(group.response_ids, encoded.responses, strict=True):
                ids = [*encoded.prompt_ids, *response.ids]
                yield Line(key, group.prompt_id, ids, response.truncated, response.overlong)


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
