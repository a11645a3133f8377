"""From cached rows and groups to tensors: each number once, everything under one index.

G groups, padded to N responses; K references. Everything here happens once, in float64, before the
first step. Masked entries are NaN.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mrpo_tools.cache import STATUSES, ReferenceStore
from mrpo_tools.cache.numbers import HASH_BYTES, Numbers
from mrpo_tools.errors import UsageError
from mrpo_tools.groups import Group, facts_of, kinds_of_judgement
from mrpo_tools.groups.facts import Facts, numbered
from mrpo_tools.maths import metrics
from mrpo_tools.maths.judgements import Judgements
from mrpo_tools.maths.shapes import Index, blocks
from mrpo_tools.words import Truncated


@dataclass(frozen=True)
class GroupTensors:
    """G groups as tensors, padded to N responses.

    Attributes:
        logps: [G, N, K] float64 cached log-probs, nats; NaN where masked.
        judged: who is preferred; its mask has the responses that every reference has a number for.
        num_tokens: [G, N, K] tokens of the response under each reference; 0 where masked.
        num_bytes: [G, N] bytes of the response's text; 0 where masked.
        token_hashes: [G, N] ASCII: of each response under reference 1, as cached.
        prompts: [G] which of the distinct prompts a group is of, counted from 0.
        dropped: responses left out, by reason.
    """

    logps: Tensor
    judged: Judgements
    num_tokens: Tensor
    num_bytes: Tensor
    token_hashes: npt.NDArray[np.bytes_]
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

    def of_groups(self, index: Index) -> GroupTensors:
        """Some of the groups, in the order of `index`."""
        rows = index if isinstance(index, slice) else np.asarray(index)
        return replace(
            self,
            logps=self.logps[index],
            judged=self.judged.of_groups(index),
            num_tokens=self.num_tokens[index],
            num_bytes=self.num_bytes[index],
            token_hashes=self.token_hashes[rows],
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
    facts = facts_of(groups)
    shape = (len(groups), int(facts.sizes.max(initial=0)))
    at = facts.owners, facts.columns
    reasons = np.full(len(facts.owners), OK, dtype=np.int8)  # of the first without a number
    logps = np.full((*shape, len(stores)), np.nan)
    num_tokens = np.zeros((*shape, len(stores)), dtype=np.int64)
    token_hashes = np.zeros(shape, dtype=f"S{HASH_BYTES}")
    for k, store in enumerate(stores):
        numbers = store.numbers_of(facts.response_keys)
        logps[(*at, k)] = numbers.logps
        num_tokens[(*at, k)] = numbers.num_tokens
        reasons = np.where(reasons == OK, _reasons(numbers, truncated), reasons)
        if k == 0:
            token_hashes[at] = numbers.token_hashes
    mask = _padded(reasons == OK, facts)
    logps[~mask], num_tokens[~mask] = np.nan, 0
    return GroupTensors(
        logps=torch.from_numpy(logps),
        judged=judgements(groups, torch.from_numpy(mask)),
        num_tokens=torch.from_numpy(num_tokens),
        num_bytes=torch.from_numpy(np.where(mask, _padded(facts.num_bytes, facts), 0)),
        token_hashes=token_hashes,
        prompts=torch.from_numpy(numbered(facts.prompt_keys)),
        dropped=_counted(reasons[reasons != OK]),
    )


def behaviour_of(
    store: ReferenceStore | None, groups: Sequence[Group], judged: Judgements
) -> tuple[Tensor | None, Tensor]:
    """Log-probs of samples under the policy that they were drawn from.

    Args:
        store: of that policy; None where the objective asks for none.
        groups: G of them.
        judged: of the groups.

    Returns:
        [G, N] nats, NaN where there is none, or None without a store; and [G, N] bool: samples
        without one, which cannot take part.

    Raises:
        CacheMissing: some response has no row.
    """
    if store is None:
        return None, torch.zeros_like(judged.mask)
    logps = look_up([store], groups, "keep").logps[..., 0]
    samples = judged.mask if judged.unjudged is None else judged.mask & judged.unjudged
    return logps, samples & logps.isnan()


REASONS = (*STATUSES, "truncated")
"""Why a response has no number that takes part, after `ok`: it has."""
OK = REASONS.index("ok")


def _reasons(numbers: Numbers, truncated: Truncated) -> npt.NDArray[np.int8]:
    """[R] places in `REASONS`."""
    cut = (numbers.statuses == OK) & numbers.truncated & (truncated == "drop")
    return np.where(cut, REASONS.index("truncated"), numbers.statuses).astype(np.int8)


def _counted(reasons: npt.NDArray[np.int8]) -> Counter[str]:
    """How often there is each, in the order of appearance."""
    places, first, counts = np.unique(reasons, return_index=True, return_counts=True)
    return Counter({REASONS[places[n]]: int(counts[n]) for n in np.argsort(first)})


def _padded(values: npt.NDArray[Any], facts: Facts) -> npt.NDArray[Any]:
    """[R] -> [G, N], zeros beyond a group's responses."""
    shape = (len(facts.sizes), int(facts.sizes.max(initial=0)))
    padded = np.zeros(shape, dtype=values.dtype)
    padded[facts.owners, facts.columns] = values
    return padded


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
    facts = facts_of(groups)
    scores = torch.from_numpy(_padded(np.nan_to_num(facts.scores, nan=0.0), facts))
    chosen = torch.from_numpy(_padded(facts.labels == 1, facts))
    unjudged = torch.from_numpy(_padded(facts.unjudged, facts)) if facts.unjudged.any() else None
    return Judgements(
        mask, scores if has_scores else None, chosen if has_labels else None, unjudged
    )


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
    parts = []
    for place in blocks(tuple(tensors.mask.shape)):
        part = tensors.of_groups(place)
        parts.append(
            {
                kind: [metrics.accuracies(reward, part.judged) for reward in rewards.unbind(-1)]
                for kind, rewards in reference_rewards(part).items()
            }
        )
    return {
        kind: [
            float(torch.cat(columns).nanmean())
            for columns in zip(*(part[kind] for part in parts), strict=True)
        ]
        for kind in parts[0]
    }
