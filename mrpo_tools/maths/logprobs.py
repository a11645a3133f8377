"""From hidden states to log-probs, without `[tokens, vocabulary]` ever whole in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mrpo_tools.maths.shapes import require_shape

TILES = {True: 256, False: 1024}
"""Positions of a tile on a CPU, whose caches hold few, and on an accelerator."""


WITHOUT_DOUBLES = frozenset({"mps"})
"""Kinds of devices that have no float64."""


def token_logps(
    hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], tile: int | None = None
) -> Tensor:
    """Log-prob of each target token under the head's softmax.

    The head is applied to `tile` positions at a time; softmax and logarithm are taken in float32
    or better. With gradient, a tile's logits are recomputed in the backward pass.

    Args:
        hidden: [M, D] hidden states, the ones that predict the targets.
        targets: [M] token ids.
        head: [m, D] -> [m, V] logits, in any dtype, on any device.
        tile: positions at a time; None takes `TILES` of the device.

    Returns:
        [M] log-probs, nats, float32 or better, ≤ 0.
    """
    require_shape("targets", targets, (hidden.shape[0],))
    tile = tile or TILES[hidden.device.type == "cpu"]

    def of_tile(states: Tensor, ids: Tensor) -> Tensor:
        logits = head(states)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        ids = ids.to(logits.device)
        return logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)

    recompute = torch.is_grad_enabled() and hidden.requires_grad
    pieces = [
        checkpoint(of_tile, states, ids, use_reentrant=False) if recompute else of_tile(states, ids)
        for states, ids in zip(hidden.split(tile), targets.split(tile), strict=True)
    ]
    return torch.cat(pieces) if pieces else hidden.new_zeros(0, dtype=torch.float32)


def sequence_logps(logps: Tensor, owners: Tensor, sequences: int) -> Tensor:
    """Sum token log-probs into sequences, in float64.

    Args:
        logps: [M] of tokens, nats.
        owners: [M] the sequence, 0 to `sequences` − 1, that a token belongs to.
        sequences: how many there are.

    Returns:
        [sequences] float64, on the CPU where the device has no such numbers (Apple's); 0 for one
        without tokens.
    """
    require_shape("owners", owners, tuple(logps.shape))
    if logps.device.type in WITHOUT_DOUBLES:
        logps = logps.cpu()
    owners = owners.to(logps.device)
    total = torch.zeros(sequences, dtype=torch.float64, device=logps.device)
    return total.index_add(0, owners, logps.to(torch.float64))
