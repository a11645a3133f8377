"""The data of training: groups with their ids and cached numbers, and the batches made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from mrpo_tools.maths import objectives
from mrpo_tools.methods.tensors import Combination, combine
from mrpo_tools.references.rendering import EncodedGroup
from mrpo_tools.scorer.scorer import ResponseScorer
from mrpo_tools.scorer.trees import Row
from mrpo_tools.training.prepare import Prepared


@dataclass(frozen=True)
class TrainingGroups(TorchDataset[int]):  # type: ignore[misc]
    """G groups ready for training: ids under the policy's tokenizer, and cached numbers.

    Attributes:
        group_ids: of each group, for seeds.
        encoded: prompt and responses as ids.
        reference_logps: [G, N], [G, N, K] for `multi_dpo`, or None.
        weights: [G, K].
        scores, chosen: [G, N] or None.
        mask: [G, N] responses that take part.
        objective: name of the table's row that these groups are for.
        hyper: its hyper-parameters.
        reference_names: reference 1 first.
        clipped: [G, N, K − 1] which cached numbers the trust region moved; None without references.
    """

    group_ids: Sequence[str]
    encoded: Sequence[EncodedGroup]
    reference_logps: Tensor | None
    weights: Tensor
    scores: Tensor | None
    chosen: Tensor | None
    mask: Tensor
    objective: str
    hyper: Mapping[str, Any]
    reference_names: Sequence[str]
    clipped: Tensor | None

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> int:
        return index

    def objective_batch(
        self, policy_logps: Tensor, index: Tensor, **extra: Any
    ) -> objectives.Batch:
        """The tensors of some groups as an objective takes them, on the policy's device."""
        device = policy_logps.device

        def rows(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[index.cpu()].to(device)

        several = self.reference_logps is not None and self.reference_logps.dim() == 3
        mask = self.mask[index.cpu()].to(device)
        return objectives.Batch(
            policy_logps=policy_logps,
            reference_logps=rows(self.reference_logps),
            lengths=self.lengths_of(index).to(device),
            scores=rows(self.scores),
            chosen=rows(self.chosen),
            mask=mask,
            weights=rows(self.weights) if several else None,
            **extra,
        )

    def lengths_of(self, index: Tensor) -> Tensor:
        """[B, N] response tokens under the policy's tokenizer; 0 beyond a group's responses."""
        groups = [self.encoded[int(i)] for i in index]
        lengths = torch.zeros(len(groups), self.mask.shape[1], dtype=torch.long)
        for row, group in enumerate(groups):
            for n, response in enumerate(group.responses):
                lengths[row, n] = len(response.ids)
        return lengths


def training_groups(prepared: Prepared) -> TrainingGroups:
    """The groups as the trainer takes them."""
    return TrainingGroups(
        [group.group_id for group in prepared.groups],
        prepared.encoded,
        prepared.combined.logps if prepared.method.row.reference else None,
        prepared.combined.weights,
        prepared.tensors.scores,
        prepared.tensors.chosen,
        prepared.tensors.mask,
        prepared.method.objective,
        prepared.method.hyper,
        [store.name for store in prepared.stores],
        _clipped(prepared),
    )


def _clipped(prepared: Prepared) -> Tensor | None:
    if not prepared.stores:
        return None
    how: Combination = replace(prepared.method.combination, combine="separate", weights="uniform")
    moved = combine(prepared.tensors, how).logps
    return moved[..., 1:] != prepared.tensors.logps[..., 1:]


def group_rows(groups: TrainingGroups, index: Sequence[int]) -> list[Row]:
    """Each group as a tree; response n of the batch's group b has the key b·N + n."""
    width = groups.mask.shape[1]
    rows = []
    for b, g in enumerate(index):
        encoded = groups.encoded[g]
        taking_part = [n for n in range(len(encoded.responses)) if groups.mask[g, n]]
        ids = [encoded.responses[n].ids for n in taking_part]
        rows.append(Row(encoded.prompt_ids, ids, [b * width + n for n in taking_part]))
    return [row for row in rows if row.keys]


class GroupCollator:
    """Indices of groups -> token batches, and which groups are usable."""

    def __init__(
        self,
        groups: TrainingGroups,
        usable: Tensor,
        scorer: ResponseScorer,
        batch_tokens: int | None = None,
    ) -> None:
        self.groups, self.usable, self.scorer = groups, usable, scorer
        self.batch_tokens = batch_tokens

    def __call__(self, index: list[int]) -> dict[str, Any]:
        packed = self.scorer.batches(group_rows(self.groups, index), self.batch_tokens)
        places = torch.tensor(index)
        return {
            "tokens": {
                "batches": [dict(self.scorer.collate(rows)) for rows in packed],
                "sequences": len(index) * self.groups.mask.shape[1],
            },
            "index": places,
            "usable": self.usable[places],
        }


def group_seeds(group_ids: Sequence[str], seed: int, epoch: int) -> Tensor:
    """[B] int64, one for each group and epoch, whatever the batch."""
    return torch.tensor(
        [
            int.from_bytes(hashlib.sha256(f"{seed}:{epoch}:{key}".encode()).digest()[:7], "big")
            for key in group_ids
        ],
        dtype=torch.int64,
    )
