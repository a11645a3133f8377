"""A reference's model, loaded whole: the `Engine` of models that fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from mrpo_tools.references.loading import load_model
from mrpo_tools.references.resolved import ResolvedReference
from mrpo_tools.scorer.engine import Computed, Tell, in_silence
from mrpo_tools.scorer.scorer import ResponseScorer, response_logps
from mrpo_tools.scorer.self_check import Checked, plain_logps, self_check
from mrpo_tools.scorer.trees import Row


class LoadedReference:
    """A reference's model on its device, ready to compute log-probs.

    Args:
        scorer: of the model.
        device: where it is.
    """

    def __init__(self, scorer: ResponseScorer, device: torch.device) -> None:
        self.scorer, self.device = scorer, device

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
        """Of its products."""
        return self.scorer.dtype

    def useful_flops(self, tokens: int, targets: int) -> int:
        """See `ResponseScorer.useful_flops`."""
        return self.scorer.useful_flops(tokens, targets)

    def self_check(self, rows: Sequence[Row]) -> Checked:
        """Take the fastest exact route. See `self_check`."""
        return self_check(self.scorer, rows, self.device)

    def batches(self, trees: Sequence[Row], max_tokens: int | None) -> list[list[Row]]:
        """Trees in the rows and batches of the route. See `ResponseScorer.batches`."""
        return self.scorer.batches(trees, max_tokens)

    def computed(
        self, batches: Iterable[Sequence[Row]], _tell: Tell = in_silence
    ) -> Iterator[Computed]:
        """Every batch with its log-probs, one after the other."""
        for batch in batches:
            yield batch, self.logps(batch)

    def logps(self, rows: Sequence[Row]) -> list[float]:
        """Log-probs of one batch, in nats, in the order of the rows and their responses."""
        return response_logps(self.scorer, rows, self.device)

    def plain_logps(self, rows: Sequence[Row]) -> list[list[float]]:
        """The same of each row, by the shortest way there is."""
        return plain_logps(self.scorer, rows, self.device)


def load_reference(
    resolved: ResolvedReference, products: str, device: torch.device
) -> LoadedReference:
    """The model of a reference's files, with products that need not be the reference's own.

    Raises:
        ResourceError: it does not fit into memory.
        UsageError: the files cannot be loaded.
    """
    reference = resolved.reference
    weights = resolved.dtype if products == resolved.products else products
    model = load_model(resolved.files, reference, weights, device)
    scorer = ResponseScorer(model, reference.attention, getattr(torch, products))
    return LoadedReference(scorer, device)
