"""Which responses have no row in a store yet, and which get one while others write."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from mrpo_tools.cache.store_of_parts import PartStore
from mrpo_tools.groups import Group, Response
from mrpo_tools.messages import Message

Shard = tuple[int, int]
"""(i, n): the prompts whose id is i modulo n, for several processes."""


def missing_from(
    store: PartStore, groups: Iterable[Group], shard: Shard = (0, 1)
) -> tuple[list[Group], int]:
    """Each prompt with its responses that have no row, and how many responses have one.

    Prompts that repeat are one group.
    """
    prompts = _by_prompt(groups, shard)
    wanted = {key for prompt in prompts for key in prompt.response_ids}
    absent = wanted - store.keys()
    parts = (_only(prompt, absent) for prompt in prompts)
    return [part for part in parts if part is not None], len(wanted) - len(absent)


def owner_of(prompt_id: str, count: int) -> int:
    """Which of so many shards a prompt belongs to, from 0; all its groups belong to the same."""
    return int(prompt_id, 16) % count


class Watch:
    """Responses without a row, while several write: which of them get one.

    Args:
        store: that others write to as well.
        groups: what should have rows.
        shard: see `missing_from`.
        clock: seconds since any moment.

    Attributes:
        incomplete: see `missing_from`, of the beginning.
        reused: the same.
        left: ids of responses that had no row at the last look.
    """

    SHARE = 50
    """`glance` looks so seldom that looking is a 50th of the time at most."""

    def __init__(
        self,
        store: PartStore,
        groups: Iterable[Group],
        shard: Shard = (0, 1),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._clock = store, clock
        self._seen = {path.name for path in store.part_paths()}  # first: what comes later is read
        self.incomplete, self.reused = missing_from(store, groups, shard)
        self.left = {key for group in self.incomplete for key in group.response_ids}
        self._next = clock()

    def look(self) -> None:
        """Read the parts that have appeared since the last look.

        Raises:
            CacheDamaged: one is not what its name says.
        """
        started = self._clock()
        names, keys = self._store.keys_since(self._seen)
        self._seen |= names
        self.left -= keys
        now = self._clock()
        self._next = now + self.SHARE * (now - started)

    def glance(self) -> None:
        """Look, unless that was done just now."""
        if self._clock() >= self._next:
            self.look()


def _by_prompt(groups: Iterable[Group], shard: Shard) -> list[Group]:
    """One group for each prompt of this shard, with every response of that prompt."""
    merged: dict[str, dict[Message, Response]] = {}
    first: dict[str, Group] = {}
    index, count = shard
    for group in groups:
        if owner_of(group.prompt_id, count) == index:
            first.setdefault(group.prompt_id, group)
            said = merged.setdefault(group.prompt_id, {})
            for response in group.responses:
                said.setdefault(response.message, response)
    return [replace(first[key], responses=tuple(merged[key].values())) for key in merged]


def _only(group: Group, response_ids: set[str]) -> Group | None:
    """The group with these responses only; None when none is left."""
    responses = tuple(
        response
        for response, key in zip(group.responses, group.response_ids, strict=True)
        if key in response_ids
    )
    if len(responses) == len(group.responses):
        return group
    return replace(group, responses=responses) if responses else None
