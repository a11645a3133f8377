"""What makes a prompt and its responses a group, and what is worth counting about groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mrpo_tools.groups import Group, Response, content_id, merge_duplicates
from mrpo_tools.pairing import doubted_labels
from mrpo_tools.sources.adapters.fields import Field

COUNTS = {
    "rows": "rows that could be parsed",
    "groups": "groups that were kept",
    "empty_lines": "lines without anything, skipped",
    "truncated_responses": "sampled responses that the token limit cut, left out",
    "empty_responses": "sampled responses that say nothing, left out",
    "duplicate_responses": "sampled responses that repeat another one of their prompt, left out",
    "merged_responses": "responses that repeat another one of their group, merged into it",
    "tied_groups": "groups whose responses all have the same score, kept",
    "unjudged_groups": "groups without scores and without labels that differ, kept",
    "chosen_scored_below_rejected": "groups whose scores contradict their labels, kept: labels win",
    "chosen_tied_with_rejected": "groups with a chosen and a rejected response of one score, kept: "
    "labels win",
    "one_sided_scores": "groups with a score on one side of a labelled pair, which is not used",
    "duplicate_groups": "groups that were there before, kept",
    "contradicting_groups": "groups that were there before with other scores or labels, kept",
    "first_preferred": "groups whose first response is the better one by a column's verdict",
    "second_preferred": "groups whose second response is the better one by a column's verdict",
    "one_sided_verdicts": "groups that a column's verdict all decides for the same side, kept",
    "begun_responses": "groups whose prompt ends with the beginning of every response",
    "prompts_in_two_splits": "prompts of several splits, all in the one where they were first seen",
    "similar_prompts": "prompts that are an earlier one but for white space or case, kept",
    "similar_prompts_in_two_splits": "prompts that are one of another split but for white space or "
    "case, kept: what is held out may have been trained on",
    "lacking_in_train": "groups fewer in train than in the paper's split, as prompts repeat",
    "prompts_with_one_response": "prompts left out, as nothing can be compared",
    "rows_of_other_splits": "rows left out, as they repeat the data in another form",
    "skipped_rows": "rows with problems that were left out on request",
}
"""What is counted of a data set, and what it is called."""


def checked_responses(
    row: Field, responses: Sequence[Response], at_least: int = 2
) -> tuple[tuple[Response, ...], int]:
    """Distinct responses, at least so many, and how many were merged into others.

    What keeps them from being that is noted on the row.
    """
    total = len(responses)
    field = Field(None, "responses", row.where, row.problems)
    labelled = [response.chosen is not None for response in responses]
    beside = sum(is_sampled(each) and each.chosen is None for each in responses)
    for key, number, expected in (
        ("score", sum(response.score is not None for response in responses), total),
        ("chosen", sum(labelled), total - beside),  # samples beside a labelled pair have none
    ):
        if 0 < number < expected:
            field.bad(f"{number} of {total} have a {key!r}, expected all of them or none")
    try:
        distinct, merged = merge_duplicates(responses)
    except ValueError as error:
        field.bad(f"{error}, expected different texts")
        return (), 0
    if len(distinct) < at_least:
        field.bad(_too_few(total, at_least))
    return distinct, merged


def _too_few(total: int, at_least: int) -> str:
    if total >= at_least:
        return f"all {total} are the same text, expected at least {at_least} different ones"
    return f"found {total or 'none'}, expected at least {at_least}"


def is_sampled(response: Response) -> bool:
    """Whether a model was asked for it, so that it may be the only one of its prompt."""
    return response.finish_reason is not None


def says_nothing(group: Group) -> bool:
    """Neither scores nor labels prefer one response to another."""
    return not group.has_scores and len({response.chosen for response in group.responses}) < 2


def is_tied(group: Group) -> bool:
    """All responses have the same score."""
    return group.has_scores and len({response.score for response in group.responses}) == 1


FEW_VERDICTS = 6
ENOUGH_VERDICTS = 20
"""So many verdicts for one and the same side are worth a warning, and cannot be chance: 2^-19."""


def preferred_side(counts: Counter[str]) -> tuple[str, int]:
    """The side that every verdict names, and how many there are; no side where they differ."""
    sides = {side: counts[f"{side}_preferred"] for side in ("first", "second")}
    total = sum(sides.values())
    return next((side for side in sides if total and sides[side] == total), ""), total


class Noticing:
    """Counts what is unusual about the groups of a source, one group after the other.

    It remembers a few numbers of every group, about 300 bytes (docs/data.md, Measured).
    """

    def __init__(self, counts: Counter[str], *, by_verdict: bool = False) -> None:
        self.counts = counts
        self._by_verdict = by_verdict
        self._judgements: dict[int, int] = {}
        self._splits: dict[int, str | None] = {}
        self._spellings: dict[int, int] = {}
        self._moved: set[int] = set()

    def settle_split(self, group: Group) -> Group:
        """The group in the split where its prompt was first seen, so no prompt is in two."""
        prompt = _key(group.prompt_id)
        if prompt not in self._splits:
            self._splits[prompt] = group.split
            self._notice_spelling(prompt, group)
        first = self._splits[prompt]
        if first == group.split:
            return group
        self.counts["prompts_in_two_splits"] += prompt not in self._moved
        self._moved.add(prompt)
        return group.with_split(first)

    def _notice_spelling(self, prompt: int, group: Group) -> None:
        """Count a new prompt that is an earlier one but for white space and case."""
        turns = [[turn.role, "".join(turn.content.split()).casefold()] for turn in group.prompt]
        first = self._spellings.setdefault(_key(content_id(turns)), prompt)
        if first != prompt:
            self.counts["similar_prompts"] += 1
            self.counts["similar_prompts_in_two_splits"] += self._splits[first] != group.split

    def notice(self, group: Group) -> None:
        """Count what a group is, and whether it was there before."""
        self.counts["tied_groups"] += is_tied(group)
        self.counts["unjudged_groups"] += says_nothing(group)
        self.counts.update(doubted_labels(group))
        self.counts["begun_responses"] += group.prompt[-1].role == "assistant"
        if self._by_verdict and group.has_labels:
            side = "first" if group.responses[0].chosen else "second"
            self.counts[f"{side}_preferred"] += 1
        texts = _key(content_id(sorted(group.response_ids)))
        judged = _key(group.group_id)
        first = self._judgements.get(texts)
        if first is None:
            self._judgements[texts] = judged
        else:
            self.counts["duplicate_groups" if first == judged else "contradicting_groups"] += 1


def _key(hexadecimal: str) -> int:
    """Half of an id, enough to tell millions apart, in little memory."""
    return int(hexadecimal[:16], 16)
