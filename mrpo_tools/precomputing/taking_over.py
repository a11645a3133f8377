"""One of several processes that fill one store: what others have written, what it takes of theirs.

A process computes its own part, the longest prompts first, without what others have written by
then. After it, it takes what is missing of their parts, from the end that they reach last, a block
at a time, and lists the store before each: so nothing is missing in the end, whoever died, and who
is slow is relieved. Rows are idempotent, nothing is locked, and nobody waits: a row that two take
at the same moment is computed twice and counts once.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from mrpo_tools.cache.missing import Shard, Watch, owner_of
from mrpo_tools.cache.store_of_parts import PartStore
from mrpo_tools.groups import Group
from mrpo_tools.progress import say

if TYPE_CHECKING:
    from mrpo_tools.precomputing.encoded import EncodedPrompt, Place
    from mrpo_tools.scorer.trees import Row

BLOCK = 128
"""Prompts that are taken at once, at most."""
HIDDEN = 0.2
"""Of the rows of its part that a process has yet to compute, so many may wait to be written."""
LAST = 0.25
"""Of what is missing of a part. What its owner has computed and not yet written stands first."""
CAUTION = 4
"""Of what is meant for nobody who is known to be free, each process takes a part as if four times
as many took theirs at the same moment."""


class Others:
    """What the other processes have written, and what they have not.

    Args:
        store: that all of them write to.
        groups: the data, the same for all.
        shard: (i, n): this process's part.

    Attributes:
        own: the prompts of this process's part with the responses that have no row.
        reused: responses of this part that have one.
    """

    def __init__(self, store: PartStore, groups: Sequence[Group], shard: Shard) -> None:
        self._store, self._groups = store, groups
        self._index, self._count = shard
        self._watch = Watch(store, groups, shard)
        self.own, self.reused = self._watch.incomplete, self._watch.reused
        self._ahead = len(self._watch.left)
        self._hidden = 0
        self._taken: set[str] = set()
        self._random = random.Random(self._index)
        self._told = False

    def foreign(self, prompt_id: str) -> bool:
        """Whether a prompt is of another process's part."""
        return owner_of(prompt_id, self._count) != self._index

    def fresh(self, prompts: Sequence[EncodedPrompt]) -> list[EncodedPrompt]:
        """Those of which some response has no row yet."""
        self._watch.glance()
        left = [prompt for prompt in prompts if self._missing(prompt.group.response_ids)]
        self._ahead -= self._own_rows(prompts) - self._own_rows(left)
        return left

    def unwritten(
        self, batches: Iterable[Sequence[Row]], places: Mapping[int, Place]
    ) -> Iterator[list[Row]]:
        """Batches without the rows that others have written when their turn comes.

        Args:
            batches: planned.
            places: by the keys of their rows.
        """
        for batch in batches:
            self._watch.glance()
            left: list[Row] = []
            for row in batch:
                if self._missing(places[key].response_id for key in row.keys):
                    left.append(row)
                elif not self.foreign(places[row.keys[0]].prompt.group.prompt_id):
                    self._ahead -= len(row.keys)
            if left:
                yield left

    def should_see(self, rows: int) -> bool:
        """Whether what is computed must be written now, so that nobody takes it at the end.

        An engine may draw batches far ahead of the numbers that it gives: what counts is what it
        has given.

        Args:
            rows: of this process's part that were computed since the last question.
        """
        if not rows:
            return False
        self._ahead -= rows
        self._hidden += rows
        if self._hidden < HIDDEN * self._ahead:
            return False
        self._hidden = 0
        return True

    def blocks(self, write: Callable[[], None] = lambda: None) -> Iterator[list[Group]]:
        """Prompts of other parts that are to be computed next, until none is missing.

        An engine may ask for the next ones before it has given the numbers of these: what was taken
        is not given again.

        Args:
            write: puts on the disk what is computed, so that others see it; called before a look.
        """
        if self._count == 1:
            return
        from mrpo_tools.precomputing.encoded import text_bytes

        write()
        self._watch = Watch(self._store, self._groups)
        missing = [group for group in self._watch.incomplete if self.foreign(group.prompt_id)]
        missing.sort(key=text_bytes, reverse=True)
        if missing and not self._told:
            self._told = True
            count = sum(len(group.response_ids) for group in missing)
            say(
                f"{self._store.name}: part {self._index + 1} of {self._count} is done; computing "
                f"what others have not written, {count:,} responses now"
            )
        while block := self._next_of(missing):
            self._taken.update(group.prompt_id for group in block)
            yield block
            write()
            self._watch.look()
            missing = [group for group in missing if self._missing(group.response_ids)]

    def _next_of(self, missing: Sequence[Group]) -> list[Group]:
        """What this process takes now, of prompts of which the longest come first.

        Every prompt is meant for one of the other processes, should it be free. Of those that are
        meant for this one it takes the last of each part, and draws a few where there are none.
        """
        parts: dict[int, list[Group]] = {}
        meant: dict[int, list[Group]] = {}
        for group in missing:
            if group.prompt_id not in self._taken:
                owner = owner_of(group.prompt_id, self._count)
                parts.setdefault(owner, []).append(group)
                if self._is_meant(group.prompt_id):
                    meant.setdefault(owner, []).append(group)
        if meant:
            return _last(meant)[:BLOCK]
        late = _last(parts)
        few = max(1, sum(map(len, parts.values())) // (CAUTION * self._count))
        return self._random.sample(late, min(few, len(late), BLOCK))

    def _is_meant(self, prompt_id: str) -> bool:
        """Whether a prompt of another part is this process's to take first."""
        after = (self._index - owner_of(prompt_id, self._count) - 1) % self._count
        return int(prompt_id, 16) // self._count % (self._count - 1) == after

    def _own_rows(self, prompts: Sequence[EncodedPrompt]) -> int:
        """Responses of this process's part."""
        own = (p for p in prompts if not self.foreign(p.group.prompt_id))
        return sum(len(prompt.responses) for prompt in own)

    def _missing(self, keys: Iterable[str]) -> bool:
        return not self._watch.left.isdisjoint(keys)


def _last(parts: Mapping[int, Sequence[Group]]) -> list[Group]:
    """The last prompts of every part, one at least."""
    return [group for part in parts.values() for group in part[-math.ceil(LAST * len(part)) :]]
