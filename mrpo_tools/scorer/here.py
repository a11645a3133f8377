"""`ScorerEngine`: what engines share whose arithmetic is a `ResponseScorer`'s, on this machine."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mrpo_tools.scorer.scorer import ResponseScorer
from mrpo_tools.scorer.trees import Row


class ScorerEngine:
    """The part of an `Engine` that its scorer answers.

    Attributes:
        scorer: of the model.
        device: where ids go to.
        batch_tokens: of a batch, where it is not what suits the device.
    """

    scorer: ResponseScorer
    device: torch.device
    batch_tokens: int | None = None

    @property
    def attention(self) -> str:
        """The attention function of the route that is taken."""
        return self.scorer.attention

    @property
    def packed(self) -> bool:
        """Whether batches hold no padding."""
        return self.scorer.route.packed

    @property
    def shares(self) -> bool:
        """Whether a prompt is computed once for several responses."""
        return self.scorer.route.share

    @property
    def dtype(self) -> torch.dtype:
        """Of products."""
        return self.scorer.dtype

    def useful_flops(self, tokens: int, targets: int) -> int:
        """See `ResponseScorer.useful_flops`."""
        return self.scorer.useful_flops(tokens, targets)

    def batches(self, trees: Sequence[Row], max_tokens: int | None) -> list[list[Row]]:
        """Trees in the rows and batches of the route. See `ResponseScorer.batches`."""
        return self.scorer.batches(trees, max_tokens or self.batch_tokens)
