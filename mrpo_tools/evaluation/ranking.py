"""References judged as preference models, from cached numbers alone: the parts of `mrpo rank`."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mrpo_tools.evaluation.estimates import accuracy_columns, number
from mrpo_tools.groups import Group
from mrpo_tools.maths import metrics, references
from mrpo_tools.maths.shapes import fill, pair_differences
from mrpo_tools.maths.statistics import cohens_kappa
from mrpo_tools.methods.combination import Combination, combine
from mrpo_tools.methods.tensors import GroupTensors
from mrpo_tools.runs.record import Estimate
from mrpo_tools.words import Combine

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SHOWN_DISAGREEMENTS = 3
MOST_PARTS = 50
_NUMBER = re.compile(r"[-_/:.# ]*\d+$")


@dataclass(frozen=True)
class Candidate:
    """A virtual reference that training could use.

    Attributes:
        references: names, reference 1 first.
        combination: harmonic, geometric or arithmetic.
        epsilon_max: of the adaptive trust region; None for no clipping.
    """

    references: tuple[str, ...]
    combination: Combine
    epsilon_max: float | None

    def __str__(self) -> str:
        room = "no clipping" if self.epsilon_max is None else f"ε_max {self.epsilon_max:g}"
        return f"{self.combination} of {' + '.join(self.references)}, {room}"


@dataclass(frozen=True)
class VirtualReference(Candidate):
    """A candidate as measured.

    Attributes:
        accuracy: preference accuracy of its log-probs, by the leading figure.
        gain: over reference 1 alone; the intervals hold for all candidates together.
    """

    accuracy: Estimate
    gain: Estimate


@dataclass(frozen=True)
class Margins:
    """How one reference's margins (nats) are spread over groups; None without any."""

    mean: float | None
    std: float | None
    quantiles: dict[str, float | None]


@dataclass(frozen=True)
class Disagreement:
    """A group on which two references differ, and the accuracy of each on it."""

    group_id: str
    prompt: str
    first: float
    second: float


@dataclass(frozen=True)
class Agreement:
    """Two references, pair by pair.

    Attributes:
        first: a reference's name.
        second: another's.
        pairs: that have a better and a worse response.
        both_right: pairs that both rank right.
        first_only: that the first alone does.
        second_only: that the second alone does.
        both_wrong: that neither does.
        agreement: share of pairs on which they agree; None without pairs.
        kappa: Cohen's; None where it is not defined.
        disagreements: the groups on which they differ most.
    """

    first: str
    second: str
    pairs: int
    both_right: int
    first_only: int
    second_only: int
    both_wrong: int
    agreement: float | None
    kappa: float | None
    disagreements: list[Disagreement]


def margin_distribution(tensors: GroupTensors) -> list[Margins]:
    """For each reference: mean, standard deviation (nats) and quantiles of its groups' margins."""
    distributions = []
    for logps in tensors.logps.unbind(-1):
        margins = metrics.margins(logps, tensors.judged)
        margins = margins[~margins.isnan()]
        points = torch.tensor(QUANTILES, dtype=torch.float64)
        quantiles = margins.quantile(points).tolist() if len(margins) else [None] * len(QUANTILES)
        distributions.append(
            Margins(
                mean=number(margins.mean()),
                std=number(margins.std()) if len(margins) > 1 else None,
                quantiles=dict(zip(map(str, QUANTILES), quantiles, strict=True)),
            )
        )
    return distributions


def agreement(
    tensors: GroupTensors, rewards: Tensor, names: Sequence[str], groups: Sequence[Group]
) -> list[Agreement]:
    """For every two references: on how many pairs both, one or none of them is right, and kappa.

    Args:
        tensors: of the groups.
        rewards: [G, N, K] each reference's, by the leading figure.
        names: of the references.
        groups: G of them.
    """
    pairs = tensors.judged.pairs
    right = [pair_differences(fill(reward, tensors.mask)) > 0 for reward in rewards.unbind(-1)]
    accuracies = accuracy_columns(tensors, rewards)
    agreements = []
    for a, b in itertools.combinations(range(len(names)), 2):
        counts = [
            int((pairs & (right[a] == by_first) & (right[b] == by_second)).sum())
            for by_first, by_second in itertools.product((True, False), repeat=2)
        ]
        both, first_only, second_only, neither = counts
        agreements.append(
            Agreement(
                first=names[a],
                second=names[b],
                pairs=sum(counts),
                both_right=both,
                first_only=first_only,
                second_only=second_only,
                both_wrong=neither,
                agreement=(both + neither) / sum(counts) if sum(counts) else None,
                kappa=cohens_kappa(both, first_only, second_only, neither),
                disagreements=_disagreements(accuracies[:, a], accuracies[:, b], groups),
            )
        )
    return agreements


def _disagreements(first: Tensor, second: Tensor, groups: Sequence[Group]) -> list[Disagreement]:
    """The groups on which two references differ most."""
    gap = (first - second).nan_to_num(0.0)
    order = sorted(range(len(groups)), key=lambda g: (-abs(float(gap[g])), groups[g].group_id))
    return [
        Disagreement(
            groups[g].group_id, groups[g].prompt[-1].content, float(first[g]), float(second[g])
        )
        for g in order[:SHOWN_DISAGREEMENTS]
        if gap[g] != 0
    ]


def clipped_shares(tensors: GroupTensors, epsilons: Sequence[float]) -> list[list[float]]:
    """For each ε_max: the share of responses at which each of references 2..K is clipped."""
    shares = []
    for epsilon in epsilons:
        radius = references.trust_region_radius(tensors.logps, tensors.mask, epsilon)
        clipped = references.clip_to_trust_region(tensors.logps, radius)
        moved = (clipped != tensors.logps) & tensors.mask.unsqueeze(-1)
        count = max(int(tensors.mask.sum()), 1)
        shares.append([int(clips) / count for clips in moved[..., 1:].sum((0, 1))])
    return shares


def candidates(names: Sequence[str], epsilons: Sequence[float]) -> list[Candidate]:
    """Reference 1 with each other one and with all of them, by every combination and ε_max."""
    others: list[tuple[str, ...]] = [(name,) for name in names[1:]]
    if len(others) > 1:
        others.append(tuple(names[1:]))
    return [
        Candidate((names[0], *more), how, epsilon)
        for more in others
        for how in references.COMBINATIONS
        for epsilon in (*epsilons, None)
    ]


def virtual_logps(tensors: GroupTensors, names: Sequence[str], candidate: Candidate) -> Tensor:
    """[G, N] log-probs (nats) of a candidate, with confidence weights."""
    places = [names.index(name) for name in candidate.references]
    logps = tensors.of_references(places).logps
    how = Combination(
        candidate.combination,
        trust_region="none" if candidate.epsilon_max is None else "adaptive",
        epsilon_max=candidate.epsilon_max or 0.0,
    )
    return combine(logps, tensors.mask, how).virtual


def parts_of(groups: Sequence[Group]) -> dict[str, list[int]]:
    """Groups by the part of the data that their ids name; empty where they name none.

    A part is what stays of an id like `train-sum-012` or `sum/12` without its number and its split,
    if that leaves at least two and at most fifty different words.
    """
    parts: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        name = _NUMBER.sub("", group.source_id or "")
        if group.split and name.startswith(group.split):
            name = name[len(group.split) :].lstrip("-_/:.# ")
        parts[name].append(index)
    return dict(sorted(parts.items())) if 2 <= len(parts) <= MOST_PARTS and "" not in parts else {}
