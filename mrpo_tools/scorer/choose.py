"""Which engine computes a reference's log-probs: the one place that knows every kind."""

from __future__ import annotations

import torch

from mrpo_tools.references.resolved import ResolvedReference
from mrpo_tools.scorer.engine import Engine
from mrpo_tools.scorer.loaded import load_reference
from mrpo_tools.scorer.served import load_served


def load_engine(resolved: ResolvedReference, products: str, device: torch.device) -> Engine:
    """What computes a reference's log-probs.

    Args:
        resolved: the reference.
        products: their dtype; it need not be the reference's own.
        device: of this process.

    Raises:
        ResourceError: it does not fit into memory.
        ServerError: it has a server, which is not as it was asked, or does not answer.
        UsageError: the files cannot be loaded.
    """
    if resolved.reference.server is not None:
        return load_served(resolved)
    return load_reference(resolved, products, device)
