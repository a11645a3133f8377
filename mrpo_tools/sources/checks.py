"""What makes a prompt and its responses a group, and what is worth counting about groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mrpo_tools.groups import Group, Response, content_id, merge_duplicates
from mrpo_tools.sources.adapters.fields import Field
from mrpo_tools.sources.seen import Seen


def checked_responses(
    row: Field, responses: Sequence[Response], counts: Counter[str], at_least: int = 2
) -> tuple[Response, ...]:
    """Distinct responses, at least so many; notes on the row what keeps them from being that."""
    total = len(responses)
    field = Field(None, "responses", row.where, row.problems)
    for key, given in (
        ("score", sum(response.score is not None for response in responses)),
        ("chosen", sum(response.chosen is not None for response in responses)),
    ):
        if 0 < given < total:
            field.bad(f"{given} of {total} have a {key!r}, expected all of them or none")
    try:
        distinct, merged = merge_duplicates(responses)
    except ValueError as error:
        field.bad(f"{error}, expected different texts")
        return ()
    if len(distinct) < at_least:
        field.bad(_too_few(total, at_least))
    elif not row.problems:
        counts["merged_responses"] += merged
    return distinct


def _too_few(total: int, at_least: int) -> str:
    if total >= at_least:
        return f"all {total} are the same text, expected at least {at_least} different ones"
    return f"found {total or 'none'}, expected at least {at_least}"


def says_nothing(group: Group) -> bool:
    """Neither scores nor labels prefer one response to another."""
    return not group.has_scores and len({one.chosen for one in group.responses}) < 2


def is_tied(group: Group) -> bool:
    """All responses have the same score."""
    return group.has_scores and len({response.score for response in group.responses}) == 1


def contradicts_itself(group: Group) -> bool:
    """A chosen response has a lower score than a rejected one."""
    if not (group.has_scores and group.has_labels):
        return False
    scores: dict[bool, list[float]] = {True: [], False: []}
    for response in group.responses:
        scores[bool(response.chosen)].append(response.score or 0.0)
    return bool(scores[True] and scores[False]) and min(scores[True]) < max(scores[False])


class Noticing:
    """Counts what is unusual about the groups of a source, one group after the other."""

    def __init__(self, counts: Counter[str]) -> None:
        self.counts = counts
        self._judgements = Seen()
        self._splits = Seen()
        self._names: list[str | None] = []
        self._moved: set[int] = set()

    def settle_split(self, group: Group) -> Group:
        """The group in the split where its prompt was first seen, so no prompt is in two."""
        prompt = _key(group.prompt_id)
        if group.split not in self._names:
            self._names.append(group.split)
        first = self._names[self._splits.setdefault(prompt, self._names.index(group.split))]
        if first == group.split:
            return group
        self.counts["prompts_in_two_splits"] += prompt not in self._moved
        self._moved.add(prompt)
        return group.with_split(first)

    def notice(self, group: Group) -> None:
        self.counts["tied_groups"] += is_tied(group)
        self.counts["unjudged_groups"] += says_nothing(group)
        self.counts["chosen_scored_below_rejected"] += contradicts_itself(group)
        texts = _key(content_id(sorted(group.response_ids)))
        judged = _key(group.group_id)
        known = len(self._judgements)
        first = self._judgements.setdefault(texts, judged)
        if len(self._judgements) == known:
            self.counts["duplicate_groups" if first == judged else "contradicting_groups"] += 1


def _key(hexadecimal: str) -> int:
    """Half of an id, enough to tell millions apart, in little memory."""
    return int(hexadecimal[:16], 16)
