"""What was seen before, for millions of groups in little memory."""

from __future__ import annotations

from array import array

_FIRST_SLOTS = 1024
_FULLEST = 0.6


class Seen:
    """A map from 64-bit keys to 64-bit numbers, in two flat arrays with linear probing.

    It takes 27 to 54 bytes an entry, where a dict of integers takes about 140. Keys must be spread
    evenly, as halves of hashes are.
    """

    def __init__(self) -> None:
        self._slots(_FIRST_SLOTS)
        self._used = 0

    def __len__(self) -> int:
        return self._used

    def setdefault(self, key: int, value: int) -> int:
        """The number that belongs to the key: the one it was first given."""
        key = key or 1  # 0 marks an empty slot
        slot = self._find(key)
        if self._keys[slot]:
            return self._values[slot]
        self._keys[slot], self._values[slot] = key, value
        self._used += 1
        if self._used > _FULLEST * len(self._keys):
            self._grow()
        return value

    def _find(self, key: int) -> int:
        """The slot of a key, or the empty one where it belongs."""
        keys, last = self._keys, len(self._keys) - 1
        slot = key & last
        while keys[slot] and keys[slot] != key:
            slot = (slot + 1) & last
        return slot

    def _slots(self, count: int) -> None:
        self._keys = array("Q", bytes(8 * count))
        self._values = array("Q", bytes(8 * count))

    def _grow(self) -> None:
        old = zip(self._keys, self._values, strict=True)
        self._slots(2 * len(self._keys))
        for key, value in old:
            if key:
                slot = self._find(key)
                self._keys[slot], self._values[slot] = key, value
