"""The answers themselves: for two runs the prompts on which they differ most, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from mrpo_tools.report.facts import Table
from mrpo_tools.report.outcomes import cut, outcomes_of
from mrpo_tools.runs.answers import TRAINED, Judged, Prompted, answers_file, read_answers
from mrpo_tools.runs.methods import MethodRuns
from mrpo_tools.runs.read import Result

PAIRS, PROMPTS = 3, 6
"""Pairs of methods of a page, and prompts of each."""
Differing = tuple[Prompted, Judged, Judged]
"""A prompt with the greedy answers of two policies to it."""


def differing_tables(methods: Sequence[MethodRuns], split: str) -> list[Table]:
    """The method with the largest mean marks against the next ones; of two runs, these two.

    Of a method its first run with answers counts. Prompts stand in the order of how far apart their
    marks are; those that both answer alike are left out.
    """
    answered = [
        (outcomes[0].mean, method, run, read_answers(answers_file(run.path, split)))
        for method in methods
        for run in method.runs[:1]
        if (outcomes := outcomes_of(run)) and outcomes[0].mean is not None
    ]
    ordered = sorted(answered, key=lambda each: -(each[0] or 0.0))
    tables = []
    for place, (_, method, run, rows) in enumerate(ordered[1 : PAIRS + 1], 1):
        _, best, best_run, best_rows = ordered[0]
        found = differing(best_rows, rows)
        if found:
            names = _names(best, best_run, method, run)
            tables.append(_table(f"differing-{place}", names, found))
    return tables


def differing(first: Sequence[Prompted], second: Sequence[Prompted]) -> list[Differing]:
    """Prompts that two policies answer differently, the farthest apart in marks first.

    Args:
        first: the answers of one policy.
        second: those of the other, to the same prompts in any order.
    """
    others = {row.group.prompt_id: _greedy(row) for row in second}
    pairs = [
        (row, mine, theirs)
        for row in first
        if (mine := _greedy(row)) is not None
        and (theirs := others.get(row.group.prompt_id)) is not None
        and mine.content != theirs.content
    ]
    return sorted(pairs, key=lambda pair: -abs(pair[1].score - pair[2].score))[:PROMPTS]


def _greedy(row: Prompted) -> Judged | None:
    """The trained policy's greedy answer to a prompt."""
    return next(
        (each for each in row.answers if each.decoding == "greedy" and each.model == TRAINED), None
    )


def _names(one: MethodRuns, run: Result, other: MethodRuns, other_run: Result) -> tuple[str, str]:
    """What two runs are called: by their methods, or their directories where these are alike."""
    if one.label != other.label:
        return one.label, other.label
    return run.path.name, other_run.path.name


def _table(key: str, names: tuple[str, str], found: Sequence[Differing]) -> Table:
    return Table(
        key,
        f"Where {names[0]} and {names[1]} differ most",
        f"Greedy answers of both, the prompts whose marks are farthest apart first, at most "
        f"{PROMPTS}; of equal ones the first of the split. They are no sample: they show how the "
        "two differ, not which is better.",
        ["prompt", names[0], "marks", names[1], "marks"],
        [
            [cut(row.group.prompt[-1].content), cut(mine.content), f"{mine.score:g}",
             cut(theirs.content), f"{theirs.score:g}"]
            for row, mine, theirs in found
        ],
    )  # fmt: skip
