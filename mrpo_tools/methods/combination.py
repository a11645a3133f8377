"""From the log-probs of K references to what the objective sees, and what that did.

The names and formulas are those of docs/methods.md §2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mrpo_tools.errors import UsageError
from mrpo_tools.maths import references
from mrpo_tools.maths.shapes import Index, blocks, fill, masked_mean
from mrpo_tools.runs.record import CombinationReport, Histograms
from mrpo_tools.words import Combine, TrustRegion, Weights, WeightsLayout

BINS = 40
"""Of the histograms that pictures are drawn from."""


@dataclass(frozen=True)
class Combination:
    """How K references become one; the names and values of docs/methods.md §2."""

    combine: Combine = "harmonic"
    weights: Weights = "confidence"
    trust_region: TrustRegion = "adaptive"
    epsilon_max: float = 0.1
    fixed_weights: Sequence[float] | None = None
    accuracies: Sequence[float] | None = None
    weights_layout: WeightsLayout = "paper"


@dataclass(frozen=True)
class Combined:
    """K references combined for G groups of up to N responses.

    Attributes:
        references: [G, N, K] float64 log-probs before clipping, nats.
        mask: [G, N] the responses that the objective sees.
        radius: [G, N] of the trust region, relative; None where nothing is clipped.
        clipped: [G, N, K] bool: the numbers that the trust region moved, False where masked.
        weights: [G, K].
        virtual: [G, N] the one reference that weights and clipped numbers make, nats.
        logps: what the objective sees: `virtual`, or [G, N, K] clipped numbers for `separate`.
        behaviour: [G, N] log-probs under the policy that samples were drawn from, nats; None where
            the objective asks for none.
    """

    references: Tensor
    mask: Tensor
    radius: Tensor | None
    clipped: Tensor
    weights: Tensor
    virtual: Tensor
    logps: Tensor
    behaviour: Tensor | None = None

    def of_groups(self, index: Index) -> Combined:
        """Some of the groups, in the order of `index`."""
        return replace(
            self,
            references=self.references[index],
            mask=self.mask[index],
            radius=None if self.radius is None else self.radius[index],
            clipped=self.clipped[index],
            weights=self.weights[index],
            virtual=self.virtual[index],
            logps=self.logps[index],
            behaviour=None if self.behaviour is None else self.behaviour[index],
        )

    def report(self) -> CombinationReport | None:
        """What the combination did; None without references."""
        if self.references.shape[-1] == 0:
            return None
        others = int(self.mask.sum()) * (self.references.shape[-1] - 1)
        distance = fill((self.virtual - self.references[..., 0]).abs(), self.mask)
        return CombinationReport(
            mean_weights=self.weights.mean(0).tolist(),
            clipped_fraction=int(self.clipped[..., 1:].sum()) / max(others, 1),
            mean_distance_from_reference_1_nats=float(masked_mean(distance, self.mask, (0, 1))),
            max_distance_from_reference_1_nats=float(distance.max()) if distance.numel() else 0.0,
        )

    def histograms(self) -> Histograms | None:
        """How weights and distances are spread; None for fewer than two references."""
        if self.references.shape[-1] < 2:
            return None
        first, mask = self.references[..., :1], self.mask
        distances = (self.references[..., 1:] - first) / first.abs().clamp(min=1e-12)
        counts = self.clipped[..., 1:].sum((0, 1))
        radius = self.radius
        return Histograms(
            weights=[_counts(weights, 0.0, 1.0) for weights in self.weights.unbind(-1)],
            distances=[_counts(distance[mask], -1.0, 1.0) for distance in distances.unbind(-1)],
            mean_radius=None if radius is None else float(masked_mean(radius, mask, (0, 1))),
            clipped=[int(count) / max(int(mask.sum()), 1) for count in counts],
        )


def combine(logps: Tensor, mask: Tensor, how: Combination) -> Combined:
    """Weights and radii from the unclipped numbers, then clip, then combine (MRPO Eq. 7-10).

    Args:
        logps: [G, N, K] log-probs, nats; masked entries may be NaN.
        mask: [G, N] the responses that the objective sees: `top_bottom` leaves some out.
        how: the combination.

    Without references everything is empty: an objective that needs none asks for none.

    Raises:
        UsageError: weights that do not fit the references.
    """
    if logps.shape[-1] == 0:
        nothing = torch.full_like(mask, float("nan"), dtype=logps.dtype)
        return Combined(
            references=logps,
            mask=mask,
            radius=None,
            clipped=logps.bool(),
            weights=logps[:, 0],
            virtual=nothing,
            logps=nothing,
        )
    parts = [_combine(logps[place], mask[place], how) for place in blocks(tuple(mask.shape))]
    virtual = torch.cat([part.virtual for part in parts])
    radii = [part.radius for part in parts if part.radius is not None]
    return Combined(
        references=logps,
        mask=mask,
        radius=torch.cat(radii) if radii else None,
        clipped=torch.cat([part.clipped for part in parts]),
        weights=torch.cat([part.weights for part in parts]),
        virtual=virtual,
        logps=torch.cat([p.logps for p in parts]) if how.combine == "separate" else virtual,
    )


def _combine(logps: Tensor, mask: Tensor, how: Combination) -> Combined:
    """The references of some groups."""
    weights = _weights(logps, mask, how)
    radius = _radius(logps, mask, how)
    moved = logps if radius is None else references.clip_to_trust_region(logps, radius)
    separate = how.combine == "separate"
    virtual = references.combine(moved, weights, "geometric" if separate else how.combine)
    return Combined(
        references=logps,
        mask=mask,
        radius=radius,
        clipped=(moved != logps) & mask.unsqueeze(-1),
        weights=weights,
        virtual=virtual,
        logps=moved if separate else virtual,
    )


def _radius(logps: Tensor, mask: Tensor, how: Combination) -> Tensor | None:
    """[G, N] relative radii; None where nothing is clipped."""
    if how.trust_region == "none":
        return None
    if how.trust_region == "adaptive":
        return references.trust_region_radius(logps, mask, how.epsilon_max)
    return fill(torch.full_like(logps[..., 0], how.epsilon_max), mask)


def _weights(logps: Tensor, mask: Tensor, how: Combination) -> Tensor:
    """[G, K] by the named rule, in the layout that is asked for."""
    rules: dict[Weights, Callable[[], Tensor]] = {
        "confidence": lambda: references.confidence_weights(logps, mask),
        "uniform": lambda: references.uniform_weights(logps),
        "fixed": lambda: _fixed_weights(logps, how.fixed_weights or []),
        "accuracy": lambda: references.accuracy_weights(
            logps, torch.tensor(how.accuracies, dtype=logps.dtype)
        ),
    }
    weights = rules[how.weights]()
    if how.weights_layout == "paper":
        return weights
    if logps.shape[-1] != 2:
        raise UsageError(
            f"weights_layout swapped is defined for two references, not {logps.shape[-1]}",
            "use weights_layout: paper",
        )
    return weights.flip(-1)


def _fixed_weights(logps: Tensor, numbers: Sequence[float]) -> Tensor:
    if len(numbers) != logps.shape[-1]:
        raise UsageError(
            f"fixed_weights has {len(numbers)} numbers for {logps.shape[-1]} references",
            "give one for each reference, reference 1 first",
        )
    try:
        return references.fixed_weights(logps, torch.tensor(numbers, dtype=logps.dtype))
    except ValueError as error:
        raise UsageError(f"fixed_weights: {error}") from None


def _counts(values: Tensor, low: float, high: float) -> list[int]:
    """How many of the values lie in each of `BINS` equal bins."""
    return [int(count) for count in torch.histc(values.clamp(low, high), BINS, low, high)]
