"""How many tokens share one reading of the weights.

While one layer computes, the next one is read, so a sweep of T tokens takes the longer of the two:

    seconds(T) = max(B / v, T · c)     B bytes of all layers, v bytes a second of the disk,
                                       c seconds to compute a token
    break-even: T* = B / (v · c)

Below T* the disk is waited for; far above it nothing is gained, and a kill loses more. Both v and c
are those of the sweeps so far; the self-check makes the first ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from mrpo_tools.scorer.trees import Row

MARGIN = 2.0
"""Times the break-even that a sweep has: the two speeds vary."""
LEAST = 2048
"""Tokens of a sweep, where there are so many."""
PATIENCE = 300.0
"""Seconds that a sweep may take for the margin's sake."""


class Pace:
    """The size of sweeps.

    Args:
        size: B, bytes.
        tokens: of every sweep; None takes `MARGIN` times the break-even.
    """

    def __init__(self, size: int, tokens: int | None = None) -> None:
        self.size, self.asked = size, tokens
        self._bytes, self._reading = 0, 0.0
        self._tokens, self._computing = 0, 0.0

    def has_read(self, size: int, seconds: float) -> None:
        """So many bytes were read in so many seconds."""
        self._bytes += size
        self._reading += seconds

    def has_computed(self, tokens: int, seconds: float) -> None:
        """So many tokens went through all layers in so many seconds; the last sweep counts."""
        self._tokens, self._computing = tokens, seconds

    @property
    def read_seconds(self) -> float:
        """B / v: seconds of reading all layers."""
        return self.size * self._reading / max(self._bytes, 1)

    @property
    def token_seconds(self) -> float:
        """c."""
        return self._computing / max(self._tokens, 1)

    @property
    def break_even(self) -> float:
        """T*; 0 before anything is measured."""
        return self.read_seconds / self.token_seconds if self.token_seconds else 0.0

    @property
    def tokens(self) -> int:
        """Of the next sweep."""
        if self.asked is not None:
            return self.asked
        patient = PATIENCE / self.token_seconds if self.token_seconds else 0.0
        wanted = min(MARGIN * self.break_even, max(self.break_even, patient))
        return max(LEAST, round(wanted))

    def sweeps(self, batches: Iterable[Sequence[Row]]) -> Iterator[list[Sequence[Row]]]:
        """Batches in sweeps: each has `tokens`, as they are when it begins, or a batch more."""
        sweep: list[Sequence[Row]] = []
        held, limit = 0, self.tokens
        for batch in batches:
            sweep.append(batch)
            held += sum(map(len, batch))
            if held >= limit:
                yield sweep
                sweep, held, limit = [], 0, self.tokens
        if sweep:
            yield sweep
