"""Which engine computes a reference's log-probs: the one place that knows every kind."""

from __future__ import annotations

import torch

from mrpo_tools.references.resolved import ResolvedReference
from mrpo_tools.scorer.engine import Engine
from mrpo_tools.scorer.loaded import load_reference
from mrpo_tools.scorer.placement import Placement
from mrpo_tools.scorer.room import place
from mrpo_tools.scorer.streamed import StreamedReference


def load_engine(
    resolved: ResolvedReference,
    products: str,
    device: torch.device,
    placed: Placement | None = None,
) -> Engine:
    """What computes a reference's log-probs.

    Args:
        resolved: the reference.
        products: their dtype; it need not be the reference's own.
        device: of this process.
        placed: where a model goes; None asks `place`.

    Raises:
        ResourceError: it does not fit into memory.
        UsageError: the files cannot be loaded.
    """
    placed = placed or place(resolved, products, device)
    if is_streamed(resolved, placed):
        return StreamedReference(resolved, products, device, resolved.reference.sweep_tokens)
    return load_reference(resolved, products, device, placed)


def is_streamed(resolved: ResolvedReference, placed: Placement) -> bool:
    """Whether a reference is computed a layer at a time: as its words say, or where nothing here
    holds it."""
    asked = resolved.reference.stream_layers
    return placed.kind == "too large" if asked is None else asked
