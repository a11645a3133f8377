"""From verdicts to tables: win rates and how sure they are, lengths, strengths, two judges."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from mrpo_tools.cache import VerdictRow
from mrpo_tools.evaluation.contestants import Entered
from mrpo_tools.evaluation.estimates import estimates, number
from mrpo_tools.evaluation.ranking import parts_of
from mrpo_tools.groups import Group, lot_of
from mrpo_tools.judging.outcomes import (
    IDENTICAL,
    Agreement,
    Decided,
    decided,
    self_agreement,
    shown_first,
)
from mrpo_tools.judging.questions import Question, both_orders, question
from mrpo_tools.maths.bradley_terry import bradley_terry
from mrpo_tools.maths.logistic import LogisticLine, logistic_line
from mrpo_tools.maths.resampling import RESAMPLES, percentile_interval
from mrpo_tools.maths.statistics import kappa
from mrpo_tools.runs.record import Estimate

WORDS = {1.0: "win", 0.5: "tie", 0.0: "loss"}
FEW = 20
"""Prompts below which no line in the lengths is drawn."""


@dataclass(frozen=True)
class Bout:
    """Two contestants on P prompts.

    Attributes:
        first: place of the contestant whose wins are counted.
        second: of the other.
        prompts: P groups.
        orders: P questions in both orders.
        longer: P characters by which the first's answer is longer.
        again: questions that are asked once more, with their repeats.
    """

    first: int
    second: int
    prompts: Sequence[Group]
    orders: Sequence[Sequence[Question]]
    longer: Sequence[int]
    again: Sequence[tuple[Question, Question]]

    @property
    def questions(self) -> list[Question]:
        """Everything that is asked: of equal answers nothing is."""
        asked = [each for orders in self.orders for each in orders]
        every = [*asked, *(repeat for _, repeat in self.again)]
        return [each for each in every if each.first_id != each.second_id]


def bouts_of(entry: Entered, repeats: int) -> list[Bout]:
    """Every two contestants against each other.

    Args:
        entry: the contestants' answers.
        repeats: questions of each two that are asked once more; prompts are drawn by their ids.
    """
    return [
        _bout(entry, first, second, repeats)
        for first, second in itertools.combinations(range(len(entry.names)), 2)
    ]


def _bout(entry: Entered, first: int, second: int, repeats: int) -> Bout:
    sides = list(zip(entry.prompts, entry.answers[first], entry.answers[second], strict=True))
    apart = [side for side in sides if side[1].message != side[2].message]
    drawn = sorted(apart, key=lambda side: lot_of(side[0].prompt_id, "again"))[:repeats]
    shown = [(p, a, b) if place % 2 else (p, b, a) for place, (p, a, b) in enumerate(drawn)]
    return Bout(
        first,
        second,
        entry.prompts,
        [both_orders(prompt, one, other) for prompt, one, other in sides],
        [len(one.message.written) - len(other.message.written) for _, one, other in sides],
        [(question(*each), question(*each, 1)) for each in shown],
    )


@dataclass(frozen=True)
class PartOfBout:
    """A win rate on some of the prompts."""

    part: str
    prompts: int
    win_rate: Estimate


@dataclass(frozen=True)
class BoutResult:
    """How one contestant did against another, by one judge.

    Attributes:
        first: whose wins these are.
        second: the other.
        win_rate: share of prompts won, ties half, over prompts with a result.
        wins: prompts won in both orders.
        ties: neither won in both; equal answers too.
        losses: prompts lost in both orders.
        flips: ties where the two orders contradict each other.
        identical: ties where both answers say the same, and nobody was asked.
        without: prompts without a result, by the status of the missing verdict.
        first_shown: share of decided verdicts for the answer that stood first; 0.5 is unbiased.
        agreement: of the judge with itself.
        lengths: the line in the lengths; None where there is none.
        controlled: win rate at equal lengths; likewise.
        longer: mean characters by which the first's answers are longer.
        parts: by split of the data, where it has several, and by part, where rows' names tell.
    """

    first: str
    second: str
    win_rate: Estimate
    wins: int
    ties: int
    losses: int
    flips: int
    identical: int
    without: Mapping[str, int]
    first_shown: float | None
    agreement: Agreement
    lengths: LogisticLine | None
    controlled: Estimate
    longer: float | None
    parts: Sequence[PartOfBout]

    @property
    def prompts(self) -> int:
        """With a result."""
        return self.wins + self.ties + self.losses

    @property
    def flip_share(self) -> float | None:
        """Of the prompts that were asked about and have a result."""
        asked = self.prompts - self.identical
        return self.flips / asked if asked else None


def decisions(bout: Bout, rows: Mapping[str, VerdictRow]) -> list[Decided]:
    """What each prompt's verdicts come to."""
    return [decided(orders, rows) for orders in bout.orders]


def bout_result(bout: Bout, names: Sequence[str], rows: Mapping[str, VerdictRow]) -> BoutResult:
    """The table of one bout.

    Args:
        bout: what was asked.
        names: of the contestants.
        rows: verdicts by id.
    """
    every = decisions(bout, rows)
    there = [
        (group, each.result, longer)
        for group, each, longer in zip(bout.prompts, every, bout.longer, strict=True)
        if each.result is not None
    ]
    keys = [group.prompt_id for group, _, _ in there]
    results, longer = [result for _, result, _ in there], [size for _, _, size in there]
    line = logistic_line(results, longer, keys) if len(there) >= FEW else None
    counts = Counter(results)
    asked = (rows[each.verdict_id] for orders in bout.orders for each in orders
             if each.verdict_id in rows)  # fmt: skip
    return BoutResult(
        first=names[bout.first],
        second=names[bout.second],
        win_rate=win_rate(results),
        wins=counts[1.0],
        ties=counts[0.5],
        losses=counts[0.0],
        flips=sum(each.flipped for each in every),
        identical=sum(each.why == IDENTICAL for each in every),
        without=Counter(each.why for each in every if each.result is None),
        first_shown=shown_first(asked),
        agreement=self_agreement(bout.again, rows),
        lengths=line,
        controlled=Estimate(*line.at_zero) if line else Estimate(None, None, None),
        longer=sum(longer) / len(longer) if longer else None,
        parts=_parts([group for group, _, _ in there], results),
    )


def win_rate(results: Sequence[float]) -> Estimate:
    """Mean of results, one a prompt, with its 95 % interval over prompts."""
    if not results:
        return Estimate(None, None, None)
    values = torch.tensor(results, dtype=torch.float64)[:, None]
    return estimates(values, torch.arange(len(values)))[0]


def _parts(groups: Sequence[Group], results: Sequence[float]) -> list[PartOfBout]:
    """By split, where there are several, and by the parts that rows' names tell apart."""
    splits: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        splits.setdefault(group.split or "no split", []).append(place)
    named = {**(dict(sorted(splits.items())) if len(splits) > 1 else {}), **parts_of(groups)}
    return [
        PartOfBout(name, len(places), win_rate([results[place] for place in places]))
        for name, places in named.items()
    ]


@dataclass(frozen=True)
class Strength:
    """A contestant's place among three or more.

    Attributes:
        name: of the contestant.
        strength: Bradley-Terry, nats, mean 0 over contestants; None where it is not finite.
        win_rate: over all its bouts, ties half.
    """

    name: str
    strength: Estimate
    win_rate: float | None


def strengths(
    bouts: Sequence[Bout], names: Sequence[str], rows: Mapping[str, VerdictRow], seed: int = 0
) -> list[Strength]:
    """The Bradley-Terry table, the strongest first; intervals by bootstrap over prompts.

    Args:
        bouts: of every two, on the same prompts.
        names: of the C contestants.
        rows: verdicts by id.
        seed: of the draws.
    """
    count, prompts = len(names), len(bouts[0].prompts)
    won = torch.zeros(prompts, count, count, dtype=torch.float64)
    for bout in bouts:
        for place, each in enumerate(decisions(bout, rows)):
            if each.result is not None:
                won[place, bout.first, bout.second] = each.result
                won[place, bout.second, bout.first] = 1.0 - each.result
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(prompts, (RESAMPLES, prompts), generator=generator)
    counts = torch.zeros(RESAMPLES, prompts, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones(RESAMPLES, prompts, dtype=torch.float64))
    resampled = (counts @ won.flatten(1)).view(RESAMPLES, count, count)
    ends = percentile_interval(bradley_terry(resampled))
    totals = won.sum(0)
    values = bradley_terry(totals)
    shares = totals.sum(1) / (totals + totals.T).sum(1)
    table = [
        Strength(name, Estimate(number(value), number(low), number(high)), number(share))
        for name, value, (low, high), share in zip(names, values, ends, shares, strict=True)
    ]
    return sorted(table, key=lambda each: -(each.win_rate or 0.0))


def judges_agree(
    bouts: Sequence[Bout], one: Mapping[str, VerdictRow], other: Mapping[str, VerdictRow]
) -> tuple[float | None, float | None, int]:
    """Cohen's κ of two judges over wins, ties and losses; their plain agreement; of how many."""
    pairs = [
        (WORDS[a.result], WORDS[b.result])
        for bout in bouts
        for a, b in zip(decisions(bout, one), decisions(bout, other), strict=True)
        if a.result is not None and b.result is not None and a.why != IDENTICAL
    ]
    same = sum(a == b for a, b in pairs) / len(pairs) if pairs else None
    return kappa([a for a, _ in pairs], [b for _, b in pairs]), same, len(pairs)
