"""The data of training: groups with their ids and cached numbers, and the batches made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from mrpo_tools.groups.facts import Ids, Places
from mrpo_tools.maths.objectives import Applied
from mrpo_tools.maths.shapes import Index
from mrpo_tools.methods.combination import Combined
from mrpo_tools.methods.method import Method
from mrpo_tools.methods.tensors import GroupTensors
from mrpo_tools.scorer.scorer import ResponseScorer
from mrpo_tools.scorer.trees import Row
from mrpo_tools.training.encoded import EncodedGroups, spread

LARGEST = 64
"""Groups of a sample that are taken because they are long."""


@dataclass(frozen=True)
class TrainingGroups(TorchDataset[int]):
    """G groups of up to N responses, ready for training under K references.

    Attributes:
        method: the objective and its hyper-parameters.
        group_ids: of each group, for seeds.
        encoded: prompt and responses as ids of the policy's tokenizer.
        lengths: [G, N] tokens of the responses that have a number, under that tokenizer.
        prompt_bytes: [G] of the prompts' texts.
        tensors: cached numbers; the mask has the responses that the objective sees.
        combined: what the objective sees of the references.
        usable: [G] bool: the groups that the objective can use.
        reference_names: reference 1 first.
    """

    method: Method
    group_ids: Ids
    encoded: EncodedGroups
    lengths: Tensor
    prompt_bytes: Places
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

    def usable_only(self) -> TrainingGroups:
        """Without the groups that the objective cannot use."""
        if bool(self.usable.all()):
            return self
        index = self.usable.nonzero().flatten()
        places = index.numpy()
        return replace(
            self,
            group_ids=self.group_ids.at(places),
            encoded=self.encoded.of_groups(places),
            lengths=self.lengths[index],
            prompt_bytes=self.prompt_bytes[places],
            tensors=self.tensors.of_groups(index),
            combined=self.combined.of_groups(index),
            usable=self.usable[index],
        )

    def sample(self, largest: int = 0) -> list[int]:
        """Places of up to `SAMPLE` groups, evenly from the first to the last, and of those that are
        probably the largest.

        Args:
            largest: how many of these.
        """
        places = spread(len(self))
        if len(places) == len(self):
            return places
        tokens = sum(len(self.encoded[g].prompt_ids) for g in places)
        rate = tokens / max(int(self.prompt_bytes[places].sum()), 1)
        sizes = (self.lengths * self.tensors.mask).sum(-1).numpy() + rate * self.prompt_bytes
        return sorted({*places, *np.argsort(sizes)[-max(largest, LARGEST) :].tolist()})

    def objective(self, index: Index, policy_logps: Tensor, seeds: Tensor | None = None) -> Applied:
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
