"""The verdicts of both orders -> who won a prompt; flips; agreement of a judge with itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mrpo_tools.cache import VerdictRow
from mrpo_tools.judging.questions import Question

IDENTICAL = "identical"
"""Why nobody was asked: both answers say the same."""
UNASKED = "not asked"
"""The budget did not reach a question."""


@dataclass(frozen=True)
class Decided:
    """What the verdicts on two answers to a prompt come to.

    Attributes:
        result: 1 where the first contestant won, 0 where it lost, 0.5 for a tie; None without
            two usable verdicts.
        flipped: the verdicts contradict each other: whoever stood there first, or second, won.
        why: status of the verdict that is missing, or `identical`; `ok` otherwise.
    """

    result: float | None
    flipped: bool = False
    why: str = "ok"


def decided(orders: Sequence[Question], rows: Mapping[str, VerdictRow]) -> Decided:
    """Who won by two verdicts, one for each order.

    A win takes both: a flip, and one verdict for a side beside one for neither, are ties.

    Args:
        orders: `both_orders` of the first contestant's answer and the second's.
        rows: by verdict id.
    """
    if orders[0].first_id == orders[0].second_id:
        return Decided(0.5, why=IDENTICAL)
    verdicts = [rows.get(each.verdict_id) for each in orders]
    for verdict in verdicts:
        if verdict is None or verdict.preference is None:
            return Decided(None, why=UNASKED if verdict is None else verdict.status)
    first, second = (sign(verdict.preference) for verdict in verdicts if verdict is not None)
    for_first = (first, -second)
    if for_first[0] == for_first[1]:
        return Decided((1 + for_first[0]) / 2)
    return Decided(0.5, flipped=for_first[0] * for_first[1] < 0)


def sign(preference: float | None) -> int:
    """1 for the one shown first, −1 for the other, 0 for neither."""
    return 0 if not preference else 1 if preference > 0 else -1


@dataclass(frozen=True)
class Agreement:
    """Of a judge with itself: questions that were asked once more, and how many times it said the
    same."""

    asked: int
    same: int

    @property
    def share(self) -> float | None:
        """None where nothing was asked twice."""
        return self.same / self.asked if self.asked else None


def self_agreement(
    again: Iterable[tuple[Question, Question]], rows: Mapping[str, VerdictRow]
) -> Agreement:
    """How often the same question got the same answer.

    Args:
        again: questions, each with its repeat; those without two usable answers do not count.
        rows: by verdict id.
    """
    same = []
    for question, repeat in again:
        first, second = rows.get(question.verdict_id), rows.get(repeat.verdict_id)
        if first and second and first.preference is not None and second.preference is not None:
            same.append(sign(first.preference) == sign(second.preference))
    return Agreement(len(same), sum(same))


def shown_first(rows: Iterable[VerdictRow]) -> float | None:
    """Share of decided verdicts for the answer shown first; in both orders, 0.5 is unbiased."""
    counts = Counter(sign(row.preference) for row in rows if row.preference is not None)
    decided_ones = counts[1] + counts[-1]
    return counts[1] / decided_ones if decided_ones else None
