"""How many tokens share one reading of the weights.

While one layer computes, the next one is read, so a sweep of T tokens takes the longer of the two:

    seconds(T) = max(B / v, T · c)     B bytes of all layers, v bytes a second of the disk,
                                       c seconds to compute a token
    break-even: T* = B / (v · c)

Below T* the disk is waited for; far above it nothing is gained, and a kill loses more. Both v and c
are those of the sweeps so far; the self-check makes the first ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from mrpo_tools.scorer.trees import Row

MARGIN = 2.0
"""Times the break-even that a sweep has: the two speeds vary."""
LEAST = 2048
"""Tokens of a sweep, where there are so many."""
PATIENCE = 300.0
"""Seconds that a sweep may take for the margin's sake."""

CHECKS = 3
"""Readings of the weights by the self-check: for the plain way, in 16 bits its padded batch, and
the first route."""


@dataclass(frozen=True)
class Plan:
    """What a run takes.

    Attributes:
        sweep_tokens: of a sweep.
        sweeps: in all.
        passes: over the weights: sweeps, and those of the self-check.
        bytes_read: by all of them.
        seconds: of the run.
    """

    sweep_tokens: int
    sweeps: int
    passes: int
    bytes_read: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.passes:,} passes over the weights ({_size(self.bytes_read)} read) for "
            f"sweeps of {self.sweep_tokens:,} tokens, {_duration(self.seconds)}"
        )


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

    def plan(self, tokens: int, sweeps: int | None = None) -> Plan:
        """What a run over so many tokens takes at these speeds.

        Args:
            tokens: in all.
            sweeps: that they make; None divides them.
        """
        sweep = min(self.tokens, max(tokens, 1))
        if sweeps is None:
            sweeps = math.ceil(tokens / sweep)
        passes = sweeps + CHECKS
        computing = max(self.read_seconds, tokens / max(sweeps, 1) * self.token_seconds)
        seconds = CHECKS * self.read_seconds + sweeps * computing
        return Plan(sweep, sweeps, passes, passes * self.size, seconds)

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


def _size(size: int) -> str:
    """`120.0 MB`, `5,400.0 GB`."""
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:,.1f} GB"


def _duration(seconds: float) -> str:
    """`40 seconds`, `12 minutes`, `3.5 hours`."""
    if seconds < 120:
        return f"{max(2, math.ceil(seconds))} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
