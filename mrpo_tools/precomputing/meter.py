"""What the bar of phase 1 says: tokens, padding, speed, useful share of the peak, memory."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence

from mrpo_tools.references.devices import peak_flops, peak_memory_bytes, pick_device
from mrpo_tools.scorer.engine import Engine
from mrpo_tools.scorer.trees import Row


class Meter:
    """Counts batches as they are computed.

    Args:
        model: that computes them.
        peak: operations a second that the device can make; None measures them where somebody
            looks at the bar (a terminal), and leaves the note empty elsewhere.

    Attributes:
        tokens: computed, each prompt once per row.
        padding: positions computed that hold no token.
        targets: tokens of responses.
        note: the sentence for the bar.
    """

    def __init__(self, model: Engine, peak: float | None = None) -> None:
        if peak is None and sys.stderr.isatty():
            works_here = model.useful_flops(1, 1) > 0
            peak = peak_flops(model.device, model.dtype) if works_here else math.inf
        self.model, self.peak, self.started = model, peak, time.monotonic()
        self.tokens = self.padding = self.targets = 0
        self.note = ""

    def add(self, batch: Sequence[Row]) -> None:
        """Count a batch, and renew the note."""
        tokens = sum(map(len, batch))
        self.tokens += tokens
        self.padding += 0 if self.model.packed else len(batch) * max(map(len, batch)) - tokens
        self.targets += sum(len(ids) for row in batch for ids in row.responses)
        if self.peak is not None:
            self.note = self._note(self.peak, time.monotonic() - self.started)

    def _note(self, peak: float, seconds: float) -> str:
        if not (flops := self.model.useful_flops(self.tokens, self.targets)):  # not made here
            return f"{self.tokens:,} tokens, {self.tokens / seconds:,.0f} tokens/s"
        share = flops / seconds / peak
        padding = self.padding / (self.tokens + self.padding)
        memory = peak_memory_bytes(pick_device()) / 1e9  # of all its GPUs
        return (
            f"{self.tokens:,} tokens, {padding:.0%} padding, {self.tokens / seconds:,.0f} "
            f"tokens/s, {share:.0%} of peak, {memory:.1f} GB"
        )
