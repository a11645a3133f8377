"""Whether a step's activations fit into memory, measured on a small pass rather than guessed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mrpo_tools.scorer.scorer import ResponseScorer, to_device
from mrpo_tools.scorer.trees import Row

SHARE_OF_FREE_MEMORY = 0.7
"""What activations may take; the rest is for gradients, optimizer states and the head's tiles."""


def bytes_per_token(scorer: ResponseScorer, row: Row) -> float:
    """Bytes that autograd keeps for each token of a pass over a row, parameters not counted."""
    saved: dict[int, int] = {}
    owned = {parameter.untyped_storage().data_ptr() for parameter in scorer.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    device = next(scorer.parameters()).device
    renamed = Row(row.prompt, row.responses, range(len(row.responses)))
    tokens = [to_device(scorer.collate(rows), device) for rows in scorer.batches([renamed])]
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logps = scorer(tokens, len(row.responses))
    del logps
    return sum(saved.values()) / len(row)


def activations_fit(
    scorer: ResponseScorer, rows: Sequence[Row], micro_batch: int, free: float
) -> bool:
    """Whether the largest micro-batch's activations fit without being recomputed, beside the
    gradients and Adam's two states of what is trained.

    Args:
        scorer: with the parameters to train requiring gradients.
        rows: the trees of training, each group one.
        micro_batch: groups of a micro-batch.
        free: bytes of memory that nothing uses where the model is.
    """
    ordered = sorted(rows, key=len)
    rate = bytes_per_token(scorer, ordered[len(ordered) // 2])
    largest = sum(map(len, ordered[-micro_batch:]))
    states = 3 * sum(weights.nbytes for weights in scorer.parameters() if weights.requires_grad)
    return rate * largest <= SHARE_OF_FREE_MEMORY * (free - states)
