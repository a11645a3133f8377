"""From cached rows and groups to tensors: each number once, everything under one index.

G groups, padded to N responses; K references. Everything here happens once, in float64, before the
first step. Masked entries are NaN.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from mrpo_tools.cache import ReferenceStore
from mrpo_tools.errors import UsageError
from mrpo_tools.groups import Group, kinds_of_judgement
from mrpo_tools.maths import metrics
from mrpo_tools.maths.judgements import Judgements
from mrpo_tools.words import Truncated


@dataclass(frozen=True)
class GroupTensors:
    """G groups as tensors, padded to N responses.

    Attributes:
        logps: [G, N, K] float64 cached log-probs, nats; NaN where masked.
        judged: who is preferred; its mask has the responses that every reference has a number for.
        num_tokens: [G, N, K] tokens of the response under each reference; 0 where masked.
        num_bytes: [G, N] bytes of the response's text; 0 where masked.
        token_hashes: [G, N] texts: of each response under reference 1, as cached.
        prompts: [G] which of the distinct prompts a group is of, counted from 0.
        dropped: responses left out, by reason.
    """

    logps: Tensor
    judged: Judgements
    num_tokens: Tensor
    num_bytes: Tensor
    token_hashes: np.ndarray[tuple[int, int], np.dtype[np.object_]]
    prompts: Tensor
    dropped: Counter[str]

    def __len__(self) -> int:
        return len(self.logps)

    @property
    def mask(self) -> Tensor:
        """[G, N] the responses that take part."""
        return self.judged.mask

    def within(self, mask: Tensor) -> GroupTensors:
        """The same with the responses of `mask`, [G, N], only."""
        return replace(self, judged=self.judged.within(mask))

    def of_groups(self, index: list[int]) -> GroupTensors:
        """Some of the groups, in the order of `index`."""
        return replace(
            self,
            logps=self.logps[index],
            judged=self.judged.of_groups(index),
            num_tokens=self.num_tokens[index],
            num_bytes=self.num_bytes[index],
            token_hashes=self.token_hashes[index],
            prompts=self.prompts[index],
        )

    def of_references(self, places: Sequence[int]) -> GroupTensors:
        """Some of the references, in the order of `places`."""
        columns = list(places)
        return replace(
            self, logps=self.logps[..., columns], num_tokens=self.num_tokens[..., columns]
        )


def look_up(
    stores: Sequence[ReferenceStore], groups: Sequence[Group], truncated: Truncated = "drop"
) -> GroupTensors:
    """The cached numbers of groups under K references.

    Args:
        stores: of the references, reference 1 first.
        groups: G of them.
        truncated: whether responses take part of which a reference read the beginning alone.

    Raises:
        CacheMissing: a reference has no row for some response; names the count and the command.
        UsageError: some groups have only scores and some only labels.
    """
    sizes = [len(group.responses) for group in groups]
    shape = (len(groups), max(sizes, default=0))
    rows = np.repeat(np.arange(len(groups)), sizes)
    columns = np.concatenate([np.arange(size) for size in sizes]) if sizes else rows
    response_ids = pa.array((key for group in groups for key in group.response_ids), pa.string())
    tables = [store.rows_of(response_ids) for store in stores]
    reasons = np.full(len(rows), "", dtype=object)  # of the first reference without a number
    for table in reversed(tables):
        statuses = _statuses(table, truncated)
        reasons = np.where(statuses == "ok", reasons, statuses)
    present = reasons == ""
    at = rows[present], columns[present]
    mask = np.zeros(shape, dtype=bool)
    mask[at] = True
    logps = np.full((*shape, len(stores)), np.nan)
    num_tokens = np.zeros((*shape, len(stores)), dtype=np.int64)
    token_hashes = np.full(shape, "", dtype=object)
    for k, table in enumerate(tables):
        logps[(*at, k)] = table["logp"].to_numpy()[present]
        num_tokens[(*at, k)] = table["num_tokens"].to_numpy()[present]
    if tables:
        token_hashes[rows, columns] = tables[0]["token_hash"].to_numpy()
    contents = (response.message.written for group in groups for response in group.responses)
    num_bytes = np.zeros(shape, dtype=np.int64)
    num_bytes[at] = np.array([len(content.encode()) for content in contents], np.int64)[present]
    return GroupTensors(
        logps=torch.from_numpy(logps),
        judged=judgements(groups, torch.from_numpy(mask)),
        num_tokens=torch.from_numpy(num_tokens),
        num_bytes=torch.from_numpy(num_bytes),
        token_hashes=token_hashes,
        prompts=_places_of_prompts(groups),
        dropped=Counter(reasons[~present].tolist()),
    )


def _statuses(
    table: pa.Table, truncated: Truncated
) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
    """Why each row has no number that takes part; `ok` where it has."""
    statuses = table["status"].to_numpy()
    cut = (statuses == "ok") & table["truncated"].to_numpy()
    return np.where(cut, "truncated", statuses) if truncated == "drop" else statuses


def judgements(groups: Sequence[Group], mask: Tensor) -> Judgements:
    """Scores and labels of groups, each kind only where every response has one.

    Args:
        groups: G of them.
        mask: [G, N] the responses that take part.

    Raises:
        UsageError: some groups have only scores and some only labels.
    """
    has_scores, has_labels = kinds_of_judgement(groups)
    if not has_scores and not has_labels:
        raise UsageError(
            "some groups have only scores and some only labels; a run needs one kind for all",
            "train on the two kinds separately",
        )
    scores = torch.zeros(mask.shape, dtype=torch.float64)
    chosen = torch.zeros(mask.shape, dtype=torch.bool)
    for g, group in enumerate(groups):
        for n, response in enumerate(group.responses):
            scores[g, n] = 0.0 if response.score is None else response.score
            chosen[g, n] = bool(response.chosen)
    return Judgements(mask, scores if has_scores else None, chosen if has_labels else None)


def reference_rewards(tensors: GroupTensors) -> dict[str, Tensor]:
    """[G, N, K] each reference's log-prob as a reward: summed, per token, per byte of text."""
    return {
        "summed": tensors.logps,
        "per_token": tensors.logps / tensors.num_tokens.clamp(min=1),
        "per_byte": tensors.logps / tensors.num_bytes.clamp(min=1).unsqueeze(-1),
    }


def reference_accuracies(tensors: GroupTensors) -> dict[str, list[float]]:
    """Each reference's own preference accuracy: its log-prob as the reward (docs/methods.md §5).

    Returns:
        `summed`, `per_token` and `per_byte`, each a list over the references.
    """
    return {
        kind: [
            float(metrics.accuracies(reward, tensors.judged).nanmean())
            for reward in rewards.unbind(-1)
        ]
        for kind, rewards in reference_rewards(tensors).items()
    }


def _places_of_prompts(groups: Sequence[Group]) -> Tensor:
    """[G] the prompt of each group, counted from 0 in the order of appearance."""
    places: dict[str, int] = {}
    return torch.tensor(
        [places.setdefault(group.prompt_id, len(places)) for group in groups], dtype=torch.long
    )
