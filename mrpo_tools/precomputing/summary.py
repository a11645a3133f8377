"""What was done for one reference."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from mrpo_tools.cache import ReferenceStore


@dataclass(frozen=True)
class Summary:
    """What `ensure` did for one reference.

    Attributes:
        store: where the numbers are.
        reused: responses whose numbers were there already, or were written by others meanwhile.
        computed: responses computed now, by status.
        taken_over: of these, responses of other processes' parts.
        tokens: tokens computed now, each prompt once per row.
        padding: positions computed now that hold no token.
        seconds: wall time, loading included.
        peak_bytes: the most memory held.
        warnings: what the user should know.
    """

    store: ReferenceStore
    reused: int = 0
    computed: Counter[str] = field(default_factory=Counter)
    taken_over: int = 0
    tokens: int = 0
    padding: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    warnings: tuple[str, ...] = ()
