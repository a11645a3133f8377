"""`Engine`: what phase 1 asks of whatever computes a reference's log-probs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import torch

from mrpo_tools.references.resolved import ResolvedReference
from mrpo_tools.scorer.self_check import Checked
from mrpo_tools.scorer.trees import Row

Tell = Callable[[str], None]
"""Is told how far a long step is."""
Computed = tuple[Sequence[Row], list[float]]
"""A batch and its log-probs, in nats, in the order of its rows and their responses."""


class Engine(Protocol):
    """A reference that is ready to compute log-probs of ids."""

    @property
    def device(self) -> torch.device:
        """Where ids go to."""

    @property
    def where(self) -> str:
        """What computes, in words: devices, as the parts record them."""

    @property
    def dtype(self) -> torch.dtype:
        """Of products."""

    @property
    def attention(self) -> str:
        """The attention function of the route that is taken."""

    @property
    def packed(self) -> bool:
        """Whether batches hold no padding."""

    @property
    def shares(self) -> bool:
        """Whether a prompt is computed once for several responses."""

    def useful_flops(self, tokens: int, targets: int) -> int:
        """See `ResponseScorer.useful_flops`."""

    def self_check(self, rows: Sequence[Row]) -> Checked:
        """Take the fastest exact route for rows like these, and measure its noise."""

    def outlook(self, tokens: int) -> str | None:
        """What to expect of a run over so many tokens, in words, where it is worth one."""

    def batches(self, trees: Sequence[Row], max_tokens: int | None) -> list[list[Row]]:
        """Trees in the rows and batches of the route, longest first."""

    def computed(self, batches: Iterable[Sequence[Row]], tell: Tell) -> Iterator[Computed]:
        """Every batch with its log-probs, in any order.

        Args:
            batches: drawn as they are needed.
            tell: is told how far a long step is.
        """

    def plain_logps(self, rows: Sequence[Row]) -> list[list[float]]:
        """Log-probs of each row's responses, in nats, by the shortest way there is."""


def in_silence(_note: str) -> None:
    """A `Tell` that nobody listens to."""


LoadReference = Callable[[ResolvedReference, str, torch.device], Engine]
"""(reference, dtype of products, device) -> what computes in that arithmetic on that device."""
