"""Whether a step's activations fit into memory, measured on a small pass rather than guessed."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mrpo_tools.scorer.scorer import ResponseScorer, to_device
from mrpo_tools.scorer.trees import Row

SHARE_OF_FREE_MEMORY = 0.7
"""What activations may take; the rest is for gradients, optimizer states and the head's tiles."""


def bytes_per_token(scorer: ResponseScorer, row: Row, device: torch.device) -> float:
    """Bytes that autograd keeps for each token of a pass over a row, parameters not counted."""
    kept: dict[int, int] = {}
    owned = {parameter.untyped_storage().data_ptr() for parameter in scorer.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    renamed = Row(row.prompt, row.responses, range(len(row.responses)))
    tokens = [to_device(scorer.collate(rows), device) for rows in scorer.batches([renamed])]
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logps = scorer(tokens, len(row.responses))
    del logps
    return sum(kept.values()) / len(row)


def activations_fit(
    scorer: ResponseScorer, rows: Sequence[Row], micro_batch: int, device: torch.device
) -> bool:
    """Whether the largest micro-batch's activations fit without being recomputed, beside the
    gradients and Adam's two states of what is trained.

    Args:
        scorer: with the parameters to train requiring gradients.
        rows: the trees of training, each group one.
        micro_batch: groups of a micro-batch.
        device: where the model is.
    """
    ordered = sorted(rows, key=len)
    rate = bytes_per_token(scorer, ordered[len(ordered) // 2], device)
    largest = sum(map(len, ordered[-micro_batch:]))
    states = 3 * sum(one.nbytes for one in scorer.parameters() if one.requires_grad)
    return rate * largest <= SHARE_OF_FREE_MEMORY * (free_bytes(device) - states)


def free_bytes(device: torch.device) -> float:
    """Memory not in use: of the accelerator, or of this machine; infinite where nobody says."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(free + unused)
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    return float("inf")
