"""The data of training: groups with their ids and cached numbers, and the batches made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from mrpo_tools.maths.objectives import Applied
from mrpo_tools.methods.combination import Combined
from mrpo_tools.methods.method import Method
from mrpo_tools.methods.tensors import GroupTensors
from mrpo_tools.references.rendering import EncodedGroup
from mrpo_tools.scorer.scorer import ResponseScorer
from mrpo_tools.scorer.trees import Row


@dataclass(frozen=True)
class TrainingGroups(TorchDataset[int]):
    """G groups of up to N responses, ready for training under K references.

    Attributes:
        method: the objective and its hyper-parameters.
        group_ids: of each group, for seeds.
        encoded: prompt and responses as ids of the policy's tokenizer.
        tensors: cached numbers; the mask has the responses that the objective sees.
        combined: what the objective sees of the references.
        usable: [G] bool: the groups that the objective can use.
        reference_names: reference 1 first.
    """

    method: Method
    group_ids: Sequence[str]
    encoded: Sequence[EncodedGroup]
    tensors: GroupTensors
    combined: Combined
    usable: Tensor
    reference_names: Sequence[str]

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> int:
        return index

    @property
    def width(self) -> int:
        """N."""
        return self.tensors.mask.shape[1]

    @cached_property
    def lengths(self) -> Tensor:
        """[G, N] response tokens under the policy's tokenizer; 0 beyond a group's responses."""
        lengths = torch.zeros(self.tensors.mask.shape, dtype=torch.long)
        for g, group in enumerate(self.encoded):
            for n, response in enumerate(group.responses):
                lengths[g, n] = len(response.ids)
        return lengths

    def usable_only(self) -> TrainingGroups:
        """Without the groups that the objective cannot use."""
        index = self.usable.nonzero().flatten().tolist()
        return replace(
            self,
            group_ids=[self.group_ids[g] for g in index],
            encoded=[self.encoded[g] for g in index],
            tensors=self.tensors.of_groups(index),
            combined=self.combined.of_groups(index),
            usable=self.usable[index],
        )

    def objective(
        self, index: list[int], policy_logps: Tensor, seeds: Tensor | None = None
    ) -> Applied:
        """The objective on some groups: losses, rewards and sides, on the policy's device.

        Args:
            index: B places.
            policy_logps: [B, N] nats, with or without gradient.
            seeds: [B] int64, for pairing `best_random`.
        """
        return self.method.on(
            self.tensors.judged.of_groups(index),
            self.combined.of_groups(index),
            policy_logps=policy_logps,
            lengths=self.lengths[index],
            seeds=seeds,
        )

    def trees(self, index: Sequence[int]) -> list[Row]:
        """Each group as a tree; response n of the b-th of them has the key b·N + n."""
        trees = []
        for b, g in enumerate(index):
            group = self.encoded[g]
            places = [n for n in range(len(group.responses)) if self.tensors.mask[g, n]]
            ids = [group.responses[n].ids for n in places]
            trees.append(Row(group.prompt_ids, ids, [b * self.width + n for n in places]))
        return [tree for tree in trees if tree.keys]


class GroupCollator:
    """Indices of groups -> token batches, and which groups are usable."""

    def __init__(
        self, groups: TrainingGroups, scorer: ResponseScorer, batch_tokens: int | None = None
    ) -> None:
        self.groups, self.scorer, self.batch_tokens = groups, scorer, batch_tokens

    def __call__(self, index: list[int]) -> dict[str, Any]:
        """What `GroupTrainer.compute_loss` takes of the groups at these places."""
        packed = self.scorer.batches(self.groups.trees(index), self.batch_tokens)
        return {
            "tokens": {
                "batches": [self.scorer.collate(rows) for rows in packed],
                "sequences": len(index) * self.groups.width,
            },
            "index": torch.tensor(index),
            "usable": self.groups.usable[index],
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
