"""Groups as ids of the policy's tokenizer: each made when it is first asked for, kept as numbers.

Where the policy reads text as reference 1 did, the cached rows say of every response how long it
is, whether it fits, and the hash of its tokens. So a batch makes its own ids, and what it makes is
compared with that hash.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mrpo_tools.cache import ReferenceStore
from mrpo_tools.errors import CacheStale
from mrpo_tools.groups import Group
from mrpo_tools.groups.facts import Places
from mrpo_tools.progress import bar
from mrpo_tools.references.rendering import EncodedGroup, EncodedResponse, Renderer, token_hash
from mrpo_tools.references.resolved import ResolvedReference, renderer_of

ROOM = 2**26
"""Ids that are kept of groups that can be made again: 256 MB."""
SAMPLE = 1024
"""Groups whose ids are compared with their hashes before anything is written."""
TEXT_FIELDS = ("rendering_version", "tokenizer", "chat_template", "pinned_date", "bos_token",
               "eos_token", "system", "added_tokens")  # fmt: skip
"""Fields of an identity that decide how text becomes ids."""
CUT_FIELDS = ("max_length", "max_prompt_length", "overlong")
"""Fields that decide which of them are taken."""
LENGTH, TRUNCATED, OVERLONG = 2, 1, 2


class _Flat:
    """Ids of many groups in one array, and where each group's begin."""

    def __init__(self, groups: int) -> None:
        self.ids, self._runs = array("i"), array("i")
        self._begin: npt.NDArray[np.int64] = np.full((groups, 2), -1, dtype=np.int64)

    def keep(self, place: int, group: EncodedGroup) -> None:
        """Add a group."""
        self._begin[place] = len(self.ids), len(self._runs)
        self._runs.extend([len(group.responses), len(group.prompt_ids)])
        self.ids.extend(group.prompt_ids)
        for response in group.responses:
            flags = TRUNCATED * response.truncated + OVERLONG * response.overlong
            self._runs.append(len(response.ids) << LENGTH | flags)
            self.ids.extend(response.ids)

    def find(self, place: int) -> EncodedGroup | None:
        """A group as it was added; None where it was not."""
        start, run = self._begin[place].tolist()
        if start < 0:
            return None
        count, length = self._runs[run : run + 2]
        prompt = self.ids[start : start + length]
        start, responses = start + length, []
        for packed in self._runs[run + 2 : run + 2 + count]:
            ids = self.ids[start : start + (packed >> LENGTH)]
            flags = {"truncated": bool(packed & TRUNCATED), "overlong": bool(packed & OVERLONG)}
            responses.append(EncodedResponse(ids, token_hash(prompt, ids), **flags))
            start += len(ids)
        return EncodedGroup(prompt, responses)


class Expected(NamedTuple):
    """What the tokens of groups must be.

    Attributes:
        store: of reference 1, which got them.
        hashes: [G, N] ASCII: of each response's.
        mask: [G, N] the responses that are compared.
    """

    store: ReferenceStore
    hashes: npt.NDArray[np.bytes_]
    mask: npt.NDArray[np.bool_]

    def differing(self, place: int, group: EncodedGroup) -> int:
        """How many responses of a group have other tokens."""
        return sum(
            response.token_hash.encode() != self.hashes[place, n]
            for n, response in enumerate(group.responses)
            if self.mask[place, n]
        )


class _Maker:
    """Makes the ids of groups, and keeps so many.

    Args:
        policy: whose ids.
        groups: G of them.
        expected: what they must be; None where nobody knows.
        room: ids that are kept; None for all.
    """

    def __init__(
        self,
        policy: ResolvedReference,
        groups: Sequence[Group],
        expected: Expected | None,
        room: int | None,
    ) -> None:
        self.policy, self.groups, self.expected, self.room = policy, groups, expected, room
        self.flat = _Flat(len(groups))
        self._renderer: tuple[int, Renderer] | None = None

    def get(self, place: int) -> EncodedGroup:
        """A group's ids.

        Raises:
            CacheStale: they are not those that reference 1 got.
        """
        kept = self.flat.find(place)
        if kept is not None:
            return kept
        group = self.make(place)
        if self.expected and (differing := self.expected.differing(place, group)):
            raise stale(self.policy, self.expected.store, differing)
        if self.room is None or len(self.flat.ids) < self.room:
            self.flat.keep(place, group)
        return group

    def make(self, place: int) -> EncodedGroup:
        """A group's ids, unchecked; a process that was forked makes a renderer of its own."""
        if self._renderer is None or self._renderer[0] != os.getpid():
            self._renderer = os.getpid(), renderer_of(self.policy)
        return self._renderer[1].encode(self.groups[place])


class EncodedGroups(Sequence[EncodedGroup]):
    """G groups as ids, each made when it is first asked for, and kept while there is room.

    Args:
        maker: of more groups, perhaps.
        places: of these among them.
    """

    def __init__(self, maker: _Maker, places: Places) -> None:
        self._maker, self._places = maker, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return self._maker.get(int(self._places[index]))

    def of_groups(self, index: Places) -> EncodedGroups:
        """Some of the groups, in the order of `index`."""
        return EncodedGroups(self._maker, self._places[index])


def encode_all(policy: ResolvedReference, groups: Sequence[Group]) -> EncodedGroups:
    """Groups whose ids are all made now."""
    maker = _Maker(policy, groups, expected=None, room=None)
    encoded = EncodedGroups(maker, np.arange(len(groups)))
    _touch(encoded, range(len(groups)))
    return encoded


def encode_late(
    policy: ResolvedReference, groups: Sequence[Group], expected: Expected, room: int = ROOM
) -> EncodedGroups:
    """Groups whose ids are made when they are asked for; `SAMPLE` of them now.

    Args:
        policy: whose ids.
        groups: G of them.
        expected: what they must be.
        room: ids that are kept; a group beyond them is made each time.

    Raises:
        CacheStale: some of the sample are not those that reference 1 got.
    """
    maker = _Maker(policy, groups, expected, room)
    encoded = EncodedGroups(maker, np.arange(len(groups)))
    try:
        _touch(encoded, spread(len(groups)))
    except CacheStale:
        differing = sum(
            expected.differing(place, maker.make(place)) for place in range(len(groups))
        )
        raise stale(policy, expected.store, differing) from None
    return encoded


def spread(count: int, most: int = SAMPLE) -> list[int]:
    """At most so many places, evenly from the first to the last."""
    places: list[int] = np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()
    return places


def _touch(encoded: EncodedGroups, places: Sequence[int]) -> None:
    with bar("tokenising for the policy", len(places), "groups") as advance:
        for place in places:
            _ = encoded[place]
            advance()


def same_text(policy: ResolvedReference, store: ReferenceStore) -> bool:
    """Whether text becomes the same ids for the policy as for a reference."""
    mine, theirs = policy.identity.fields, store.identity.fields
    return all(mine[name] == theirs[name] for name in TEXT_FIELDS)


def same_cut(policy: ResolvedReference, store: ReferenceStore) -> bool:
    """Whether both take the same of the ids."""
    mine, theirs = policy.identity.fields, store.identity.fields
    return all(mine.get(name) == theirs.get(name) for name in CUT_FIELDS)


def stale(policy: ResolvedReference, store: ReferenceStore, differing: int) -> CacheStale:
    """The refusal of cached numbers of other tokens."""
    if same_cut(policy, store):
        return CacheStale(
            f"the tokens of {differing:,} responses differ from those that reference "
            f"{store.name!r} got, though its files are the same: the tokenizer library has changed",
            f"compute them again in a new cache: mrpo precompute --ref {store.name} --cache DIR",
        )
    mine, theirs = policy.identity.fields, store.identity.fields
    words = [name for name in CUT_FIELDS if mine.get(name) != theirs.get(name)]
    here, there = (
        ", ".join(f"{name} {fields.get(name)}" for name in words) for fields in (mine, theirs)
    )
    return CacheStale(
        f"{differing:,} responses are cut elsewhere for the policy ({here}) than for reference "
        f"{store.name!r} ({there}): their log-probs cannot be compared",
        f"train with {there}, or precompute the reference with {here}",
    )
