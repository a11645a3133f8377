"""From cached rows to the one reference log-prob per response that training sees.

Everything here happens once, in float64, before the first step: look up each reference's numbers,
leave out responses without one, weight, clip, combine. Masked entries of the result are NaN.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mrpo_tools.cache import ReferenceStore
from mrpo_tools.errors import UsageError
from mrpo_tools.groups import Group, kinds_of_judgement
from mrpo_tools.maths import metrics, references
from mrpo_tools.maths.shapes import fill, masked_mean

BINS = 40
"""Of the histograms that pictures are drawn from."""


@dataclass(frozen=True)
class GroupTensors:
    """G groups as tensors, padded to N responses.

    Attributes:
        logps: [G, N, K] float64 cached log-probs, nats; NaN where masked.
        mask: [G, N] responses that every reference has a number for.
        scores: [G, N] float64, or None where some response has no score.
        chosen: [G, N] labels, or None where some response has none.
        dropped: responses left out, by reason.
        num_tokens: [G, N, K] tokens of the response under each reference; 0 where masked.
        num_bytes: [G, N] bytes of the response's text; 0 where masked.
        token_hashes: of each response under each reference, as cached.
        prompts: [G] which of the distinct prompts a group is of, counted from 0.
    """

    logps: Tensor
    mask: Tensor
    scores: Tensor | None
    chosen: Tensor | None
    dropped: Counter[str]
    num_tokens: Tensor
    num_bytes: Tensor
    token_hashes: list[list[list[str]]]
    prompts: Tensor


@dataclass(frozen=True)
class Combination:
    """How K references become one; the names and values of METHODS §2."""

    combine: str = "harmonic"
    weights: str = "confidence"
    trust_region: str = "adaptive"
    epsilon_max: float = 0.1
    fixed_weights: Sequence[float] | None = None
    accuracies: Sequence[float] | None = None
    weights_layout: str = "paper"


@dataclass(frozen=True)
class Combined:
    """What the objective sees, and what the combination did.

    Attributes:
        logps: [G, N] float64, nats; [G, N, K] clipped but not combined for `separate`.
        weights: [G, K].
        report: mean weight per reference, share of responses clipped, distance from reference 1.
    """

    logps: Tensor
    weights: Tensor
    report: dict[str, Any] = field(default_factory=dict)


def look_up(stores: Sequence[ReferenceStore], groups: Sequence[Group]) -> GroupTensors:
    """The cached numbers of groups under K references.

    Raises:
        CacheMissing: a reference has no row for some response; names the count and the command.
    """
    known = [_rows(store) for store in stores]
    wanted = {key for group in groups for key in group.response_ids}
    for store, rows in zip(stores, known, strict=True):
        store.require(wanted, rows)
    return _tensors(groups, known)


def combine(tensors: GroupTensors, how: Combination, mask: Tensor | None = None) -> Combined:
    """Weights and radii from the unclipped numbers, then clip, then combine (MRPO Eq. 7-10).

    Args:
        tensors: from `look_up`.
        how: the combination.
        mask: [G, N] the responses the objective sees, when it leaves some out (`top_bottom`).

    Without references everything is empty: an objective that needs none asks for none.
    """
    mask = tensors.mask if mask is None else mask
    logps = tensors.logps
    if logps.shape[-1] == 0:
        return Combined(torch.full_like(mask, float("nan"), dtype=logps.dtype), logps[:, 0])
    weights = _weights(logps, mask, how)
    radius = _radius(logps, mask, how)
    clipped = logps if radius is None else references.clip_to_trust_region(logps, radius)
    if how.combine == "separate":
        combined = clipped
        shown = references.combine(clipped, weights, "geometric")
    else:
        combined = shown = references.combine(clipped, weights, how.combine)
    return Combined(combined, weights, _report(logps, clipped, shown, weights, mask))


def combination_histograms(
    tensors: GroupTensors, how: Combination, mask: Tensor
) -> dict[str, Any] | None:
    """How weights and distances are spread, as counts for a picture; None for fewer than two.

    Returns:
        `weights`: for each reference, groups by weight in equal bins of [0, 1]. `distances`: for
        each of references 2..K, responses by (r_ik − r_i1)/|r_i1| before clipping, in equal bins
        of [−1, 1], those beyond in the outer bins. `mean_radius`: of the trust region, relative;
        None without clipping. `clipped`: the share of responses clipped, for references 2..K.
    """
    logps = tensors.logps
    if logps.shape[-1] < 2:
        return None
    first = logps[..., :1]
    distances = (logps[..., 1:] - first) / first.abs().clamp(min=1e-12)
    radius = _radius(logps, mask, how)
    clipped = logps if radius is None else references.clip_to_trust_region(logps, radius)
    moved = (clipped != logps)[..., 1:] & mask.unsqueeze(-1)
    weights = _weights(logps, mask, how)
    return {
        "weights": [_counts(one, 0.0, 1.0) for one in weights.unbind(-1)],
        "distances": [_counts(one[mask], -1.0, 1.0) for one in distances.unbind(-1)],
        "mean_radius": None if radius is None else float(masked_mean(radius, mask, (0, 1))),
        "clipped": [int(one.sum()) / max(int(mask.sum()), 1) for one in moved.unbind(-1)],
    }


def _counts(values: Tensor, low: float, high: float) -> list[int]:
    found = torch.histc(values.clamp(low, high), BINS, low, high)
    return [int(one) for one in found]


def reference_accuracies(tensors: GroupTensors) -> dict[str, list[float]]:
    """Each reference's own preference accuracy: its log-prob as the reward (METHODS §5).

    Returns:
        `summed`, `per_token` and `per_byte`, each a list over the references.
    """
    return {
        name: [
            float(metrics.accuracies(one, tensors.mask, tensors.scores, tensors.chosen).nanmean())
            for one in values.unbind(-1)
        ]
        for name, values in reference_rewards(tensors).items()
    }


def reference_rewards(tensors: GroupTensors) -> dict[str, Tensor]:
    """[G, N, K] each reference's log-prob as a reward: summed, per token, per byte of text."""
    return {
        "summed": tensors.logps,
        "per_token": tensors.logps / tensors.num_tokens.clamp(min=1),
        "per_byte": tensors.logps / tensors.num_bytes.clamp(min=1).unsqueeze(-1),
    }


def _radius(logps: Tensor, mask: Tensor, how: Combination) -> Tensor | None:
    """[G, N] relative radii; None where nothing is clipped."""
    if how.trust_region == "none":
        return None
    if how.trust_region == "adaptive":
        return references.trust_region_radius(logps, mask, how.epsilon_max)
    return fill(torch.full_like(logps[..., 0], how.epsilon_max), mask)


def _weights(logps: Tensor, mask: Tensor, how: Combination) -> Tensor:
    if how.weights == "fixed":
        given = how.fixed_weights or []
        if len(given) != logps.shape[-1]:
            raise UsageError(
                f"fixed_weights has {len(given)} numbers for {logps.shape[-1]} references",
                "give one for each reference, reference 1 first",
            )
        try:
            weights = references.fixed_weights(logps, torch.tensor(given, dtype=logps.dtype))
        except ValueError as error:
            raise UsageError(f"fixed_weights: {error}") from None
    elif how.weights == "uniform":
        weights = references.uniform_weights(logps)
    elif how.weights == "accuracy":
        weights = references.accuracy_weights(
            logps, torch.tensor(how.accuracies, dtype=logps.dtype)
        )
    else:
        weights = references.confidence_weights(logps, mask)
    if how.weights_layout == "swapped":
        if logps.shape[-1] != 2:
            raise UsageError(
                f"weights_layout swapped is defined for two references, not {logps.shape[-1]}",
                "use weights_layout: paper",
            )
        weights = weights.flip(-1)
    return weights


def _report(
    logps: Tensor, clipped: Tensor, combined: Tensor, weights: Tensor, mask: Tensor
) -> dict[str, Any]:
    others = mask.unsqueeze(-1).expand_as(logps[..., 1:])
    moved = (logps[..., 1:] != clipped[..., 1:]) & others
    distance = fill((combined - logps[..., 0]).abs(), mask)
    return {
        "mean_weights": weights.mean(0).tolist(),
        "clipped_fraction": int(moved.sum()) / max(int(others.sum()), 1),
        "mean_distance_from_reference_1_nats": float(masked_mean(distance, mask, (0, 1))),
        "max_distance_from_reference_1_nats": float(distance.max()) if distance.numel() else 0.0,
    }


def _rows(store: ReferenceStore) -> dict[str, tuple[Any, ...]]:
    columns = store.table().select(
        ["response_id", "logp", "num_tokens", "num_bytes", "status", "token_hash"]
    )
    values = [column.to_pylist() for column in columns.itercolumns()]
    return {row[0]: row[1:] for row in zip(*values, strict=True)}


def _tensors(groups: Sequence[Group], known: list[dict[str, tuple[Any, ...]]]) -> GroupTensors:
    shape = (len(groups), max((len(group.responses) for group in groups), default=0))
    logps = torch.full((*shape, len(known)), float("nan"), dtype=torch.float64)
    num_tokens = torch.zeros(*shape, len(known), dtype=torch.long)
    num_bytes = torch.zeros(shape, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.bool)
    dropped: Counter[str] = Counter()
    hashes = []
    for g, group in enumerate(groups):
        found = [[rows[key] for rows in known] for key in group.response_ids]
        hashes.append([[row[4] for row in rows] for rows in found])
        for n, rows in enumerate(found):
            bad = [row[3] for row in rows if row[3] != "ok"]
            if bad:
                dropped[bad[0]] += 1
                continue
            mask[g, n] = True
            logps[g, n] = torch.tensor([row[0] for row in rows], dtype=torch.float64)
            num_tokens[g, n] = torch.tensor([row[1] for row in rows])
            num_bytes[g, n] = len(group.responses[n].content.encode())
    scores, chosen = judgements(groups, shape[1])
    places: dict[str, int] = {}
    prompts = torch.tensor(
        [places.setdefault(group.prompt_id, len(places)) for group in groups], dtype=torch.long
    )
    return GroupTensors(
        logps, mask, scores, chosen, dropped, num_tokens, num_bytes, hashes, prompts
    )


def judgements(groups: Sequence[Group], width: int) -> tuple[Tensor | None, Tensor | None]:
    """[G, N] scores and [G, N] labels of groups; None where not every response has one."""
    scores = torch.zeros(len(groups), width, dtype=torch.float64)
    chosen = torch.zeros(len(groups), width, dtype=torch.bool)
    for g, group in enumerate(groups):
        for n, response in enumerate(group.responses):
            scores[g, n] = 0.0 if response.score is None else response.score
            chosen[g, n] = bool(response.chosen)
    has_scores, has_labels = kinds_of_judgement(groups)
    if not has_scores and not has_labels:
        raise UsageError(
            "some groups have only scores and some only labels; a run needs one kind for all",
            "train on the two kinds separately",
        )
    return scores if has_scores else None, chosen if has_labels else None
