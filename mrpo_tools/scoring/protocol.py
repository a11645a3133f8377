"""What a scorer is: whoever gives a number to an answer, rule, reward model or judge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from mrpo_tools.cache import ScoreRow, WriterRecord
from mrpo_tools.errors import UsageError
from mrpo_tools.groups import Group
from mrpo_tools.references.identity import Identity

SCORING_VERSION = 1
"""Raised whenever the same scorer would give the same answer another score."""

KindOfScorer: TypeAlias = Literal["rule", "reward", "judge"]


@dataclass(frozen=True)
class Scoring:
    """A scorer at work.

    Attributes:
        rows: the scores of all responses it was given, in batches and in any order.
        record: of the writer of these rows.
        warnings: what the user should know.
    """

    rows: Iterable[Sequence[ScoreRow]]
    record: WriterRecord = field(default_factory=WriterRecord)
    warnings: tuple[str, ...] = ()


class Scorer(Protocol):
    """Whoever gives a number to an answer; larger is better."""

    @property
    def name(self) -> str:
        """As tables show it."""

    @property
    def store_name(self) -> str:
        """As the cache and `--score` call it."""

    @property
    def kind(self) -> KindOfScorer:
        """Of scorer."""

    @property
    def identity(self) -> str:
        """Hash of all that a score depends on beside the answer."""

    @property
    def stored_identity(self) -> Identity:
        """The same as the cache keeps it, field by field."""

    @property
    def words(self) -> Mapping[str, Any]:
        """As a project's `scorers:` has them."""

    @property
    def full_marks(self) -> float | None:
        """The largest score; None where there is none."""

    def begin(self, groups: Sequence[Group]) -> Scoring:
        """Score every response of these groups.

        Raises:
            ResourceError: out of memory.
            UsageError: the scorer cannot be loaded.
        """


class Said(NamedTuple):
    """What a scorer said of a response."""

    score: float | None
    status: str
    reason: str | None


def marks_of(scorer: Scorer, groups: Sequence[Group]) -> list[list[float]]:
    """The score of every response, group by group; nothing is stored.

    Raises:
        UsageError: some response gets none.
    """
    rows = [row for batch in scorer.begin(groups).rows for row in batch]
    said = {row.response_id: Said(row.score, row.status, row.reason) for row in rows}
    return numbers_of(scorer, groups, said)


def numbers_of(
    scorer: Scorer, groups: Sequence[Group], said: Mapping[str, Said]
) -> list[list[float]]:
    """The number of every response, group by group.

    Args:
        scorer: whose.
        groups: the responses.
        said: by response id.

    Raises:
        UsageError: one without a number; names how many and why the first has none.
    """
    without = [each for each in said.values() if each.score is None]
    if without:
        first = without[0]
        raise UsageError(
            first.reason
            or f"{len(without):,} of {len(said):,} answers get no score by {scorer.name}: "
            f"{first.status}",
            "set `overlong: truncate` or a larger max_length for this scorer"
            if first.status == "overlong"
            else None,
        )
    return [[said[key].score or 0.0 for key in group.response_ids] for group in groups]
