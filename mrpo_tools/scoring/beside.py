"""What a held-out scorer says of responses that other scores order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from mrpo_tools.cache import ScoreStore
from mrpo_tools.groups import Group
from mrpo_tools.pairing import pairs_of
from mrpo_tools.runs.record import HeldOutScore


def beside(groups: Sequence[Group], store: ScoreStore) -> HeldOutScore:
    """How far a held-out scorer agrees with the scores, or labels, that count.

    A pair that the held-out scorer ties, or of which it gave a response no number, takes no part.

    Args:
        groups: with what counts.
        store: of the held-out scorer.

    Raises:
        CacheMissing: some response has no row there.
    """
    keys = [key for group in groups for key in group.response_ids]
    scores = dict(zip(keys, store.scores_of(keys).score, strict=True))
    pairs = [pair for group in groups for pair in _pairs(group, scores)]
    told = [(a, b) for a, b in pairs if a is not None and b is not None]
    apart = [a > b for a, b in told if a != b]
    return HeldOutScore(
        scorer=str(store),
        better=fmean(a for a, _ in told) if told else None,
        worse=fmean(b for _, b in told) if told else None,
        agreement=fmean(apart) if apart else None,
        pairs=len(apart),
    )


def _pairs(
    group: Group, scores: Mapping[str, float | None]
) -> list[tuple[float | None, float | None]]:
    """The held-out scores of the better and of the worse response of every pair."""
    own = {
        id(response): scores[key]
        for response, key in zip(group.responses, group.response_ids, strict=True)
    }
    return [(own[id(better)], own[id(worse)]) for better, worse in pairs_of(group, "all")]
