"""Who is compared with whom: deviations, chosen sets and pairs of a group (docs/methods.md §3).

Scores are compared in float64. A deviation within 1e-9·max(1, max|s|) counts as 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mrpo_tools.maths.shapes import fill, masked_mean, pair_differences
from mrpo_tools.words import Chosen, Pairing, choices

TOLERANCE = 1e-9
"""Of a deviation that counts as 0, relative to the largest score but at least to 1."""


@dataclass(frozen=True)
class Sides:
    """A batch of groups with its sides chosen.

    Attributes:
        mask: [B, N] responses that take part (`top_bottom` leaves some out).
        scores: [B, N] float64, 0 where masked; 1 and 0 for chosen and rejected without scores.
        deviations: [B, N] float64, δ_i = s_i − mean, exactly 0 within the tolerance.
        positive: [B, N] the chosen set Y+.
        negative: [B, N] the rejected set Y−.
        labels: [B, N] bool the data's own labels; None where the data have none.
        compared: [B, N] those of `mask` that are judged: all but samples beside a labelled pair.
    """

    mask: Tensor
    scores: Tensor
    deviations: Tensor
    positive: Tensor
    negative: Tensor
    labels: Tensor | None
    compared: Tensor

    @property
    def both(self) -> Tensor:
        """[B] bool: the groups with a chosen and a rejected response."""
        return self.positive.any(-1) & self.negative.any(-1)


def choose_sides(
    mask: Tensor,
    scores: Tensor | None,
    labels: Tensor | None,
    unjudged: Tensor | None = None,
    *,
    chosen: Chosen = "auto",
    top_bottom: int = 2,
) -> Sides:
    """Split each group into a chosen and a rejected set.

    Args:
        mask: [B, N] responses that take part.
        scores: [B, N], or None: then a labelled response counts as 1 and the rest as 0.
        labels: [B, N] the data's own labels, or None.
        unjudged: [B, N] samples beside a labelled pair: they take part and have no side; or None.
        chosen: `auto`: the labels if there are any, else `mean`. `mean`: Y+ = {δ_i > 0}
            (MPO Eq. 11-12). `top1`: Y+ is the best response (with labels, the best of the chosen).
            `top_bottom`: the m best against the m worst, m at most ⌊N/2⌋; the rest is masked.
        top_bottom: m.

    A group whose scores are all equal has no chosen set unless labels give one.

    Raises:
        ValueError: no such rule, or neither scores nor labels.
    """
    if chosen not in choices(Chosen):
        raise ValueError(f"chosen must be one of {', '.join(choices(Chosen))}, got {chosen!r}")
    if scores is None:
        if labels is None:
            raise ValueError("a batch needs scores or chosen")
        scores = labels
    compared = mask if unjudged is None else mask & ~unjudged
    clean = fill(scores.to(torch.float64), compared)
    if chosen == "top_bottom":
        best, worst = _ends(clean, compared, top_bottom)
        mask = mask & ~compared | best | worst
        compared = best | worst
        clean = fill(clean, compared)
    labels = labels & compared if labels is not None else None
    deviations = deviations_of(clean, compared)
    if chosen == "top_bottom":
        positive = best & (deviations != 0).any(-1, keepdim=True)
    else:
        positive = _positive(
            chosen=chosen, scores=clean, deviations=deviations, labels=labels, mask=compared
        )
    return Sides(
        mask=mask,
        scores=clean,
        deviations=deviations,
        positive=positive,
        negative=compared & ~positive,
        labels=labels,
        compared=compared,
    )


def pairs(sides: Sides, pairing: Pairing, seeds: Tensor | None = None) -> Tensor:
    """[B, N, N] bool: entry (w, l) is True where response w is compared with response l.

    With labels a pair is one of Y+ × Y− whatever its scores say: w is the best of the chosen and l
    ranges over the rejected, those of equal or larger score among them. Without labels l ranges
    over all responses scored lower than w, so none is tied with it. The lowest index wins a tie.

    Args:
        sides: from `choose_sides`.
        pairing: `best_worst` one pair; `best_vs_rest` DPO×(N−1); `all` every ordered pair;
            `best_random` the best against one drawn by the group's own seed (MPPO Pair-Single).
        seeds: [B] int64, needed by `best_random` only; a group's draw depends on nothing else.

    Raises:
        ValueError: no such pairing, or `best_random` without seeds.
    """
    if pairing not in choices(Pairing):
        raise ValueError(f"pairing must be one of {', '.join(choices(Pairing))}, got {pairing!r}")
    every = every_pair(sides)
    if pairing == "all":
        return every
    winner = one_hot_argmax(sides.scores, sides.compared if sides.labels is None else sides.labels)
    against = every & winner.unsqueeze(-1)
    if pairing == "best_vs_rest":
        return against
    losers = against.any(1)
    if pairing == "best_worst":
        loser = one_hot_argmax(-sides.scores, losers)
    else:
        if seeds is None:
            raise ValueError("pairing best_random needs a seed for each group: Batch(seeds=…)")
        loser = _drawn(losers, seeds)
    return against & loser.unsqueeze(1)


def every_pair(sides: Sides) -> Tensor:
    """[B, N, N] bool: chosen against rejected by the labels; without any, all with s_a > s_b."""
    if sides.labels is not None:
        return sides.labels.unsqueeze(-1) & (sides.compared & ~sides.labels).unsqueeze(-2)
    both = sides.compared.unsqueeze(-1) & sides.compared.unsqueeze(-2)
    return both & (pair_differences(sides.scores) > 0)


def one_hot_argmax(values: Tensor, mask: Tensor) -> Tensor:
    """[B, N] bool: the largest entry within `mask`, the first on a tie; none in an empty row."""
    best = fill(values, mask, float("-inf")).max(-1, keepdim=True).values
    ties = mask & (values == best)
    return ties & (ties.cumsum(-1) == 1)


def score_deviation(sides: Sides) -> Tensor:
    """[B]: the population standard deviation of each group's scores."""
    return masked_mean(sides.deviations.square(), sides.compared).sqrt()


def deviations_of(scores: Tensor, mask: Tensor) -> Tensor:
    """[B, N] each score less its group's mean, exactly 0 within the tolerance."""
    mean = masked_mean(scores, mask).unsqueeze(-1)
    scale = fill(scores.abs(), mask).amax(-1, keepdim=True).clamp(min=1)
    deviations = fill(scores - mean, mask)
    return torch.where(deviations.abs() <= TOLERANCE * scale, 0.0, deviations)


def _positive(
    chosen: Chosen, scores: Tensor, deviations: Tensor, labels: Tensor | None, mask: Tensor
) -> Tensor:
    if chosen == "top1":
        differ = (deviations != 0).any(-1, keepdim=True)
        candidates = mask & differ if labels is None else labels
        return one_hot_argmax(scores, candidates)
    if chosen == "auto" and labels is not None:
        return labels
    return mask & (deviations > 0)


def _ends(scores: Tensor, mask: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The m best and the m worst responses of each group, m at most half of it."""
    order = fill(scores, mask, float("-inf")).argsort(dim=-1, descending=True, stable=True)
    rank = order.argsort(-1)
    count = mask.sum(-1, keepdim=True)
    taken = (count // 2).clamp(max=most)
    return mask & (rank < taken), mask & (rank >= count - taken)


def _drawn(candidates: Tensor, seeds: Tensor) -> Tensor:
    """One candidate of each group, by the group's seed alone."""
    count = candidates.sum(-1)
    place = seeds.remainder(count.clamp(min=1)).unsqueeze(-1) + 1
    return candidates & (candidates.cumsum(-1) == place)
