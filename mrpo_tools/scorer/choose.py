"""Which engine computes a reference's log-probs: the one place that knows every kind."""

from __future__ import annotations

import torch

from mrpo_tools.progress import say
from mrpo_tools.references.resolved import ResolvedReference
from mrpo_tools.scorer.engine import Engine
from mrpo_tools.scorer.loaded import load_reference
from mrpo_tools.scorer.placement import Placement, why_too_large
from mrpo_tools.scorer.room import place
from mrpo_tools.scorer.served import load_served
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
        ServerError: it has a server, which is not as it was asked, or does not answer.
        UsageError: the files cannot be loaded.
    """
    placed = placed or place(resolved, products, device)
    if placed.kind == "server":
        return load_served(resolved)
    if placed.kind == "layers":
        if placed.weights:
            say(f"{why_too_large(resolved.name, placed)}: it is computed a layer at a time")
        sweep = resolved.reference.sweep_tokens
        return StreamedReference(resolved, products, device, sweep, placed.batch_tokens)
    return load_reference(resolved, products, device, placed)
