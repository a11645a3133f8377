"""Which prompts a round asks, and which groups it trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mrpo_tools.errors import UsageError
from mrpo_tools.groups import Group, Response, lot_of
from mrpo_tools.pairing import pairs_of

LOTS = 2**64


def asked_in(groups: Sequence[Group], number: int, count: int | None, seed: int) -> list[Group]:
    """The groups whose prompts round `number`, from 1, samples answers to.

    Prompts are drawn by their ids and the seed. Every prompt is asked once before any is asked
    again; a round never asks one twice.

    Args:
        groups: one for each prompt.
        number: of the round.
        count: prompts of a round; None takes all.
        seed: another one draws others.
    """
    if count is None or count >= len(groups):
        return list(groups)
    drawn = sorted(groups, key=lambda group: lot_of(group.prompt_id, f"{seed}:round"))
    first = (number - 1) * count % len(drawn)
    places = {(first + place) % len(drawn) for place in range(count)}
    taken = {drawn[place].prompt_id for place in places}
    return [group for group in groups if group.prompt_id in taken]


def kept_of(earlier: Sequence[Group], share: float, number: int, seed: int) -> list[Group]:
    """The groups of earlier rounds that round `number` trains on too: by lot, the share of them."""
    return [
        group for group in earlier if lot_of(group.group_id, f"{seed}:keep:{number}") < share * LOTS
    ]


def beside_pairs(data: Sequence[Group], samples: Sequence[Group]) -> list[Group]:
    """The data's labelled pairs with the samples to the same prompts beside them, for `kd`.

    A group without labels gives the pair of its best and its worst response. A sample that says
    what a response of the pair says stands there alone. Prompts without a pair are left out.

    Raises:
        UsageError: none is left.
    """
    drawn: dict[str, list[Response]] = {}
    for group in samples:
        drawn.setdefault(group.prompt_id, []).extend(group.responses)
    groups = []
    for group in data:
        pair = next(pairs_of(group, "best_worst"), None)
        if pair is None or group.prompt_id not in drawn:
            continue
        sides = [replace(each, chosen=each is pair[0], score=None) for each in pair]
        said = {each.message for each in sides}
        own = [
            replace(each, score=None, chosen=None)
            for each in drawn[group.prompt_id]
            if each.message not in said
        ]
        groups.append(replace(group, responses=(*sides, *own)))
    if not groups:
        raise UsageError(
            "the data has no labelled pair to stand beside the samples",
            "mrpo data show counts labels and scores",
        )
    return groups
