"""What advice on references is made from: accuracies, gaps and gains, and how sure each is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mrpo_tools.evaluation.estimates import number
from mrpo_tools.evaluation.leading import Figure, LeadingFigure, LengthRules, Shares
from mrpo_tools.evaluation.ranking import Candidate, VirtualReference, candidates, virtual_logps
from mrpo_tools.maths import references
from mrpo_tools.maths.resampling import percentile_interval, simultaneous_intervals
from mrpo_tools.methods.tensors import GroupTensors
from mrpo_tools.runs.record import Estimate

Confidence = Literal["low", "medium", "high"]
LEVELS: tuple[tuple[Confidence, float], ...] = (("high", 0.99), ("medium", 0.975))
"""Of the intervals behind a statement: one that is not true is made once in 100, or in 40."""
WORTH_HAVING = 0.01
"""Accuracy: a combination that cannot gain this much is not worth its references."""


@dataclass(frozen=True)
class Evidence:
    """What advice is made from; accuracies are by the leading figure.

    Attributes:
        labels: references, the largest accuracy first.
        figure: the leading one.
        rules: what length alone ranks right.
        prompts: effective number: how many of one weight would say as much.
        alone: each reference's accuracy.
        mean_weights: each reference's confidence weight, over groups.
        behind: how far each other reference is behind the first.
        above_chance: that the first is, all references taken together.
        ahead: that the first is ahead of every other.
        tried: the virtual references, in the order of `candidates`.
        best: the one with the largest gain, the first of equal ones.
        crossed: the gain of a combination that is chosen on one half of the prompts and measured on
            the other, both ways; None for a single reference.
        helps: that the best of those tried gains, both among all and crossed, and where length is
            taken out, whether the longer or the shorter response is better.
        one_sided: whether the best gains only where the longer response is better, or only where
            the shorter is, as a taste for length does; False where length does not matter.
        useless: that none of those tried gains as much as `WORTH_HAVING`.
    """

    labels: Sequence[str]
    figure: Figure
    rules: LengthRules
    prompts: int
    alone: Sequence[Estimate]
    mean_weights: Sequence[float]
    behind: Sequence[Estimate]
    above_chance: Confidence
    ahead: Confidence
    tried: Sequence[VirtualReference]
    best: VirtualReference | None
    crossed: Estimate | None
    helps: Confidence
    one_sided: bool
    useless: Confidence


@dataclass(frozen=True)
class _Differences:
    """Paired differences of accuracies: estimates [M] and bootstrap draws [R, M]."""

    centre: Tensor
    draws: Tensor

    def alone(self, level: float = 0.95) -> Tensor:
        """[M, 2] intervals that hold each for itself."""
        return percentile_interval(self.draws, level)

    def together(self, level: float = 0.95) -> Tensor:
        """[M, 2] intervals that hold all together."""
        return simultaneous_intervals(self.draws, self.centre, level)

    def estimates(self, ends: Tensor) -> list[Estimate]:
        """With their intervals."""
        return [
            Estimate(number(value), number(low), number(high))
            for value, (low, high) in zip(self.centre, ends, strict=True)
        ]


def gather(
    tensors: GroupTensors,
    labels: Sequence[str],
    epsilons: Sequence[float],
    figure: LeadingFigure,
    rules: LengthRules,
) -> Evidence:
    """Measure references, the most accurate first, and every virtual reference around the first."""
    count = len(labels)
    tried = candidates(labels, epsilons)
    rewards = [virtual_logps(tensors, labels, candidate) for candidate in tried]
    shares = figure.shares(tensors, torch.stack([*tensors.logps.unbind(-1), *rewards], dim=-1))
    draws, centre = shares.draws(), shares.accuracies
    accuracy = shares.estimates()
    above = _Differences(centre[:count] - 0.5, draws[:, :count] - 0.5)
    behind = _Differences(centre[:1] - centre[1:count], draws[:, :1] - draws[:, 1:count])
    gains = _Differences(centre[count:] - centre[0], draws[:, count:] - draws[:, :1])
    intervals = gains.estimates(gains.together())
    measured = _measured(tried, accuracy[count:], intervals)
    best = max(measured, key=lambda virtual: virtual.gain.value or 0.0, default=None)
    crossed = crossed_gain(shares, count) if best else None
    one_sided = best is not None and _one_sided(figure, tensors, rewards[measured.index(best)])
    return Evidence(
        labels=labels,
        figure=figure.name,
        rules=rules,
        prompts=shares.effective_prompts,
        alone=accuracy[:count],
        mean_weights=references.confidence_weights(tensors.logps, tensors.mask).mean(0).tolist(),
        behind=behind.estimates(behind.alone()),
        above_chance=_how_sure(lambda level: above.together(level)[0, 0] > 0),
        ahead=_how_sure(lambda level: (behind.alone(level)[:, 0] > 0).all()),
        tried=measured,
        best=best,
        crossed=crossed.estimates()[0] if crossed else None,
        helps="low" if one_sided or not crossed else _helps(gains, draws[:, count:], crossed),
        one_sided=one_sided,
        useless=_how_sure(lambda level: (gains.together(level)[:, 1] < WORTH_HAVING).all()),
    )


def _measured(
    tried: Sequence[Candidate], accuracies: Sequence[Estimate], gains: Sequence[Estimate]
) -> list[VirtualReference]:
    return [
        VirtualReference(one.references, one.combination, one.epsilon_max, accuracy, gain)
        for one, accuracy, gain in zip(tried, accuracies, gains, strict=True)
    ]


def _helps(gains: _Differences, draws: Tensor, crossed: Shares) -> Confidence:
    """That the best candidate beats the first reference, and chance: among all, and crossed."""
    best = max(range(len(gains.centre)), key=lambda place: float(gains.centre[place]))
    elsewhere = crossed.draws()
    return _how_sure(
        lambda level: (
            gains.together(level)[best, 0] > 0
            and percentile_interval(elsewhere, level)[0, 0] > 0
            and percentile_interval(draws, level)[best, 0] > 0.5
        )
    )


def _one_sided(figure: LeadingFigure, tensors: GroupTensors, virtual: Tensor) -> bool:
    """That a candidate, [G, N] nats, does not gain on some side of the length."""
    logps = torch.stack([tensors.logps[..., 0], virtual], dim=-1)
    accuracies = [side.shares(tensors, logps).accuracies for side in figure.sides()]
    return any(not bool(with_others > alone) for alone, with_others in accuracies)


def crossed_gain(shares: Shares, count: int) -> Shares:
    """The gain of the candidate that the other half of the prompts would choose, [G, 1].

    Measured where it was not chosen, so the number is what a choice among so many is worth on
    prompts it has not seen.

    Args:
        shares: columns of the references, the first of them first, and of the candidates.
        count: of the references.
    """
    gains = shares.right[:, count:] - shares.right[:, :1]
    prompts = int(shares.prompts.max()) + 1
    order = torch.randperm(prompts, generator=torch.Generator().manual_seed(0))
    half = (order < prompts // 2)[shares.prompts]
    gain = torch.zeros_like(shares.weight)
    for chosen_on, measured_on in ((half, ~half), (~half, half)):
        best = int(gains[chosen_on].sum(0).argmax())
        gain[measured_on] = gains[measured_on, best]
    return shares.of_rewards(gain.unsqueeze(-1))


def _how_sure(holds: Callable[[float], Tensor | bool]) -> Confidence:
    """The highest confidence at whose level a statement holds."""
    return next((name for name, level in LEVELS if bool(holds(level))), "low")
