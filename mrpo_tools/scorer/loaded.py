"""A reference's model, loaded whole: the `Engine` of models that fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from mrpo_tools.errors import UsageError
from mrpo_tools.progress import say
from mrpo_tools.references.loading import load_model
from mrpo_tools.references.resolved import ResolvedReference
from mrpo_tools.scorer.engine import Computed, Tell, in_silence
from mrpo_tools.scorer.here import ScorerEngine
from mrpo_tools.scorer.placement import Placement, too_large
from mrpo_tools.scorer.room import place
from mrpo_tools.scorer.scorer import ResponseScorer, response_logps
from mrpo_tools.scorer.self_check import Checked, plain_logps, self_check
from mrpo_tools.scorer.trees import Row

UNLOADED = {"layers": "read a layer at a time here", "server": "behind a server"}
"""Kinds of placement that load no model, in words."""


class LoadedReference(ScorerEngine):
    """A reference's model on its device, ready to compute log-probs.

    Args:
        scorer: of the model.
        device: where it is, or the first of its layers.
        batch_tokens: of a batch, where it is not what suits the device.
    """

    def __init__(
        self, scorer: ResponseScorer, device: torch.device, batch_tokens: int | None = None
    ) -> None:
        self.scorer, self.device, self.batch_tokens = scorer, device, batch_tokens

    @property
    def where(self) -> str:
        """The devices that compute, in words."""
        return ", ".join(map(str, self.scorer.devices))

    def self_check(self, rows: Sequence[Row]) -> Checked:
        """Take the fastest exact route. See `self_check`."""
        return self_check(self.scorer, rows, self.device)

    def outlook(self, tokens: int) -> str | None:  # noqa: ARG002
        """Nothing: the bar says it soon."""
        return None

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
    resolved: ResolvedReference,
    products: str,
    device: torch.device,
    placed: Placement | None = None,
) -> LoadedReference:
    """The model of a reference's files, with products that need not be the reference's own.

    Args:
        resolved: the reference.
        products: their dtype.
        device: of this process.
        placed: where it goes; None asks `place`.

    Raises:
        ResourceError: it does not fit into memory.
        UsageError: the files cannot be loaded, or it is never loaded whole.
    """
    reference = resolved.reference
    placed = placed or place(resolved, products, device)
    if placed.kind == "too large":
        raise too_large(resolved.name, placed)
    if placed.kind in UNLOADED:
        raise UsageError(
            f"{resolved.name!r} is {UNLOADED[placed.kind]}, which gives log-probs of responses "
            "alone, and this asks for the whole model",
            "take a machine that holds it, or quantization: nf4: docs/large_references.md",
        )
    if placed.device_map is not None:
        _refuse_unmovable(resolved, placed)
        say(f"{resolved.name}: {placed.told}")
    weights = resolved.dtype if products == resolved.products else products
    model = load_model(resolved.files, reference, weights, device, device_map=placed.device_map)
    scorer = ResponseScorer(model, reference.attention, getattr(torch, products))
    where = device if placed.device_map is None else scorer.devices[0]
    return LoadedReference(scorer, where, placed.batch_tokens)


def _refuse_unmovable(resolved: ResolvedReference, placed: Placement) -> None:
    """Refuse layers in the memory of the machine where a library would not move them."""
    if all(share.device != "cpu" for share in placed.shares):
        return
    if resolved.reference.quantization is not None:
        raise UsageError(
            f"reference {resolved.name!r} does not fit its GPUs in 4 bits, and layers in 4 bits "
            "cannot wait in the memory of the machine",
            "leave `cpu` out of max_memory and give more GPUs, or --stream-layers",
        )
    if resolved.files.adapter is not None:
        raise UsageError(
            f"reference {resolved.name!r} does not fit its GPUs, and layers with an adapter cannot "
            "wait in the memory of the machine",
            f"merge them first: mrpo merge {resolved.files.adapter} --output DIR",
        )
