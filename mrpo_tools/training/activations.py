"""Activations of a training step: whether they fit into memory, and how to do without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mrpo_tools.scorer.scorer import ResponseScorer, to_device
from mrpo_tools.scorer.trees import Row
from mrpo_tools.training.optimizers import kept_by

SHARE_OF_FREE_MEMORY = 0.7
"""What activations may take; the rest is for the head's tiles and what a layer needs meanwhile."""


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
    scorer: ResponseScorer,
    rows: Sequence[Row],
    micro_batch: int,
    free: float,
    trainer: Mapping[str, Any],
) -> bool:
    """Whether the largest micro-batch's activations fit without being recomputed, measured on a
    small pass rather than guessed.

    Args:
        scorer: with the parameters to train requiring gradients.
        rows: the trees of training, each group one.
        micro_batch: groups of a micro-batch.
        free: bytes of memory that nothing uses where the model is.
        trainer: of the recipe, which may name the optimizer.
    """
    ordered = sorted(rows, key=len)
    rate = bytes_per_token(scorer, ordered[len(ordered) // 2])
    largest = sum(map(len, ordered[-micro_batch:]))
    trained = [weights for weights in scorer.parameters() if weights.requires_grad]
    return fits(rate * largest, trained, free, trainer)


def fits(kept: float, trained: Sequence[Tensor], free: float, trainer: Mapping[str, Any]) -> bool:
    """Whether activations fit beside the gradients and the optimizer's states.

    Args:
        kept: bytes of activations that wait for the backward pass.
        trained: the parameters that are trained, or tensors of their shapes without storage.
        free: bytes of memory beside the weights.
        trainer: of the recipe, which may name the optimizer.
    """
    gradients = sum(weights.nbytes for weights in trained)
    beside = gradients + kept_by(trainer, trained).bytes
    return kept <= SHARE_OF_FREE_MEMORY * (free - beside)


def recompute_activations(scorer: ResponseScorer) -> None:
    """Keep each layer's input only, and compute the layer again in the backward pass."""
    scorer.model.gradient_checkpointing_enable({"use_reentrant": False})
    scorer.model.enable_input_require_grads()
