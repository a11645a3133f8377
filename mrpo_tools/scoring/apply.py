"""Groups with the scores of a scorer in place of the data's own scores and labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from mrpo_tools.cache import ScoreStore
from mrpo_tools.groups import Group


def with_scores(groups: Sequence[Group], store: ScoreStore) -> tuple[list[Group], dict[str, int]]:
    """Groups whose scores are a scorer's; their own scores and labels are gone.

    A response that the scorer gave no number is left out, and so is a group without any left.

    Args:
        groups: all of whose responses have a row in the store.
        store: of the scorer.

    Returns:
        The groups, and how many responses were left out, by reason.

    Raises:
        CacheMissing: some response has no row; names the count and the command.
    """
    keys = [key for group in groups for key in group.response_ids]
    scores, statuses, _ = store.scores_of(keys)
    left_out = Counter(f"no score: {status}" for status in statuses if status != "ok")
    scored, place = [], 0
    for group in groups:
        own = scores[place : place + len(group.responses)]
        place += len(group.responses)
        responses = tuple(
            replace(response, score=score, chosen=None)
            for response, score in zip(group.responses, own, strict=True)
            if score is not None
        )
        if responses:
            scored.append(replace(group, responses=responses))
    return scored, dict(left_out)
