"""What is asked of many groups at once, as arrays: sizes, splits, ids and judgements.

Shapes: G groups with R responses in all, those of a group side by side. An id of 32 hexadecimal
digits is a *key* here: its two halves as numbers, [2] uint64, in the order of the ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from mrpo_tools.groups import Group, Response

Keys = npt.NDArray[np.uint64]
"""[…, 2]: ids."""
Places = npt.NDArray[np.int64]
"""Of groups or rows, counted from 0."""


class Facts:
    """Facts of groups, each worked out when it is first asked for.

    Args:
        groups: G of them; nothing of them is made that no fact needs.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = groups

    @cached_property
    def sizes(self) -> Places:
        """[G] responses of each group."""
        return self._of_groups(lambda group: len(group.responses), np.int64)

    @cached_property
    def splits(self) -> npt.NDArray[np.object_]:
        """[G] the split's name, or None."""
        names = np.empty(len(self._groups), dtype=object)
        names[:] = [group.split for group in self._groups]
        return names

    @cached_property
    def group_keys(self) -> Keys:
        """[G, 2]."""
        return keys_of(group.group_id for group in self._groups)

    @cached_property
    def prompt_keys(self) -> Keys:
        """[G, 2]."""
        return keys_of(group.prompt_id for group in self._groups)

    @cached_property
    def response_keys(self) -> Keys:
        """[R, 2]."""
        return keys_of(key for group in self._groups for key in group.response_ids)

    @cached_property
    def scores(self) -> npt.NDArray[np.float64]:
        """[R] NaN where a response has none."""
        return self._of_responses(
            lambda response: np.nan if response.score is None else response.score, np.float64
        )

    @cached_property
    def labels(self) -> npt.NDArray[np.int8]:
        """[R] 1 chosen, 0 rejected, −1 without a label."""
        return self._of_responses(
            lambda response: -1 if response.chosen is None else response.chosen, np.int8
        )

    @cached_property
    def num_bytes(self) -> Places:
        """[R] bytes of each response's text."""
        return self._of_responses(lambda response: len(response.message.written.encode()), np.int64)

    @cached_property
    def prompt_bytes(self) -> Places:
        """[G] bytes of each prompt's text and tools."""
        return self._of_groups(prompt_bytes, np.int64)

    @cached_property
    def owners(self) -> Places:
        """[R] the group of each response."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    @cached_property
    def columns(self) -> Places:
        """[R] the place of each response in its group."""
        first = np.cumsum(self.sizes) - self.sizes
        return np.arange(len(self.owners)) - first[self.owners]

    @property
    def has_scores(self) -> npt.NDArray[np.bool_]:
        """[G] whether every response has a score."""
        return ~self.any_of(np.isnan(self.scores))

    @property
    def has_labels(self) -> npt.NDArray[np.bool_]:
        """[G] whether its responses are labelled, but for samples beside a labelled pair."""
        return self.any_of(self.labels >= 0)

    @property
    def unjudged(self) -> npt.NDArray[np.bool_]:
        """[R] samples beside a labelled pair."""
        return (self.labels < 0) & self.has_labels[self.owners]

    def any_of(self, responses: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """[R] -> [G] whether it holds of any response of a group."""
        return np.bincount(self.owners[responses], minlength=len(self.sizes)) > 0

    def _of_groups(self, fact: Callable[[Group], Any], dtype: Any) -> npt.NDArray[Any]:
        return np.fromiter(map(fact, self._groups), dtype, len(self._groups))

    def _of_responses(self, fact: Callable[[Response], Any], dtype: Any) -> npt.NDArray[Any]:
        responses = (response for group in self._groups for response in group.responses)
        return np.fromiter(map(fact, responses), dtype)


def prompt_bytes(group: Group) -> int:
    """Bytes of a prompt's text and tools."""
    texts = [group.tools or "", *(turn.written for turn in group.prompt)]
    return sum(len(text.encode()) for text in texts)


def keys_of(ids: Iterable[str]) -> Keys:
    """[I, 2] of ids."""
    return keys_of_bytes(bytes.fromhex("".join(ids)))


def keys_of_bytes(content: bytes | memoryview | npt.NDArray[np.uint8]) -> Keys:
    """[I, 2] of ids that are bytes, sixteen each."""
    return np.frombuffer(content, dtype=">u8").reshape(-1, 2).astype(np.uint64)


class Ids(Sequence[str]):
    """The ids of [I, 2] keys, as texts when they are asked for."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Ids(self._keys[index])
        return self._keys[index].astype(">u8").tobytes().hex()

    def at(self, places: Places) -> Ids:
        """Those at some places."""
        return Ids(self._keys[places])


def hash_keys(keys: Keys) -> str:
    """SHA-256 of ids, a line each."""
    digits = np.frombuffer(keys.astype(">u8").tobytes().hex().encode(), dtype=np.uint8)
    lines = np.full((len(keys), 33), ord("\n"), dtype=np.uint8)
    lines[:, :32] = digits.reshape(-1, 32)
    return hashlib.sha256(lines.reshape(-1)[:-1].data).hexdigest()


def order_of(keys: Keys) -> Places:
    """[I] places of [I, 2] keys in their order; of equal ones the first comes first."""
    order = np.argsort(keys[:, 0], kind="stable")
    sorted_keys = keys[order]
    tied = sorted_keys[1:, 0] == sorted_keys[:-1, 0]
    if np.any(tied & (sorted_keys[1:, 1] != sorted_keys[:-1, 1])):  # one half is not enough
        return np.lexsort((keys[:, 1], keys[:, 0]))
    return order


def first_places(keys: Keys) -> tuple[Places, Places]:
    """The distinct keys, in their order, by the place [D] of the first of each; and which of these
    each of the [I] keys is."""
    order = order_of(keys)
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (keys[order[1:]] != keys[order[:-1]]).any(-1)
    which = np.empty(len(order), dtype=np.int64)
    which[order] = np.cumsum(is_first) - 1
    return order[is_first], which


def count_distinct(keys: Keys) -> int:
    """How many different keys there are."""
    return len(first_places(keys)[0])


def numbered(keys: Keys) -> Places:
    """[I, 2] -> [I]: equal keys have equal numbers, from 0 in the order of appearance."""
    first, which = first_places(keys)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[which]


def find(wanted: Keys, present: Keys) -> Places:
    """[W, 2], [P, 2] -> [W]: where each wanted key stands first among those present; −1 where it
    does not."""
    firsts, _ = first_places(present)
    distinct = present[firsts]
    if not len(distinct):
        return np.full(len(wanted), -1, dtype=np.int64)
    if np.any(distinct[1:, 0] == distinct[:-1, 0]):  # half an id in common: once in 10^19 pairs
        at = {(high, low): place for place, (high, low) in enumerate(distinct.tolist())}
        places = np.array([at.get((h, w), -1) for h, w in wanted.tolist()], dtype=np.int64)
        return np.where(places < 0, -1, firsts[places])
    order = np.argsort(wanted[:, 0])  # a search in order stays in the processor's cache
    place = np.searchsorted(distinct[:, 0], wanted[order, 0])
    place = np.minimum(place, len(distinct) - 1)
    equal = (distinct[place] == wanted[order]).all(-1)
    found = np.empty(len(wanted), dtype=np.int64)
    found[order] = np.where(equal, firsts[place], -1)
    return found
