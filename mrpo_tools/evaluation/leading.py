"""Which accuracy leads: the one that a taste for length explains least.

A log-prob is a sum over tokens, so it falls with length: where the shorter response is mostly the
better one, every reference ranks well by its summed log-prob, and knows nothing for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from mrpo_tools.evaluation.estimates import accuracy_columns, estimates, number
from mrpo_tools.maths.resampling import bootstrap_means, percentile_interval
from mrpo_tools.maths.shapes import fill, pair_differences, require_shape
from mrpo_tools.methods.tensors import GroupTensors
from mrpo_tools.runs.record import Estimate

Figure = Literal["summed", "per_byte_at_equal_length"]
Length = Literal["longer", "shorter"]

STRATA = 5
GROUPS_A_STRATUM = 15
"""Of the rarer kind, whether longer or shorter is better: a stratum with fewer balances noise."""


@dataclass(frozen=True)
class LengthRules:
    """What length alone ranks right, in bytes of text.

    Attributes:
        longer: accuracy of always preferring the longer response; equal lengths are not right.
        shorter: of always preferring the shorter one.
        better: the length that predicts the label better than chance: the interval of the paired
            difference of the two accuracies excludes 0. None where neither does.
    """

    longer: Estimate
    shorter: Estimate
    better: Length | None


@dataclass(frozen=True)
class Shares:
    """The weight of the pairs that are ranked right, M times over.

    Attributes:
        right: [G, M] of each group's pairs, by each of M rewards.
        weight: [G] of all of the group's pairs; 0 where a group has none.
        prompts: [G] which prompt a group is of, counted from 0.
    """

    right: Tensor
    weight: Tensor
    prompts: Tensor

    @property
    def accuracies(self) -> Tensor:
        """[M]; NaN without any pair."""
        return self.right.sum(0) / self.weight.sum()

    def draws(self) -> Tensor:
        """[R, M] the accuracies of bootstrap draws of prompts; all columns share the draws."""
        columns = torch.cat([self.right, self.weight.unsqueeze(-1)], dim=-1)
        means = bootstrap_means(columns, clusters=self.prompts)
        return means[:, :-1] / means[:, -1:]

    def estimates(self) -> list[Estimate]:
        """Each accuracy and its 95 % interval over prompts."""
        ends = percentile_interval(self.draws())
        return [
            Estimate(number(value), number(low), number(high))
            for value, (low, high) in zip(self.accuracies, ends, strict=True)
        ]

    def of_groups(self, index: Tensor | list[int]) -> Shares:
        """Of some of the groups."""
        return Shares(self.right[index], self.weight[index], self.prompts[index])

    def of_rewards(self, right: Tensor) -> Shares:
        """The same groups with other columns, [G, M]."""
        return replace(self, right=right)

    @property
    def effective_prompts(self) -> int:
        """How many prompts of one weight would say as much: (Σ w)² / Σ w² (Kish)."""
        count = int(self.prompts.max()) + 1 if len(self.prompts) else 0
        weights = self.weight.new_zeros(count).index_add_(0, self.prompts, self.weight)
        squares = float(weights.square().sum())
        return round(float(weights.sum()) ** 2 / squares) if squares else 0


@dataclass(frozen=True)
class LeadingFigure:
    """The accuracy by which references are ordered and combinations judged.

    Attributes:
        name: of the figure.
        pair_weights: [G, N, N] of the pairs it counts, better response first.
        num_bytes: [G, N] of each response's text; None for a summed reward.
    """

    name: Figure
    pair_weights: Tensor
    num_bytes: Tensor | None

    def rewards(self, logps: Tensor) -> Tensor:
        """[G, N, M] log-probs (nats) -> [G, N, M], divided by length where that leads."""
        if self.num_bytes is None:
            return logps
        return logps / self.num_bytes.clamp(min=1).unsqueeze(-1)

    def shares(self, tensors: GroupTensors, logps: Tensor) -> Shares:
        """What M log-probs of the same groups, [G, N, M] nats, rank right; a tie is not right."""
        columns = [
            fill(self.pair_weights, pair_differences(fill(reward, tensors.mask)) > 0).sum((-1, -2))
            for reward in self.rewards(logps).unbind(-1)
        ]
        weight = self.pair_weights.sum((-1, -2))
        return Shares(torch.stack(columns, dim=-1), weight, tensors.prompts)


def length_rules(tensors: GroupTensors) -> LengthRules:
    """How well length alone ranks the same pairs."""
    num_bytes = tensors.num_bytes.double()
    columns = accuracy_columns(tensors, torch.stack([num_bytes, -num_bytes], dim=-1))
    longer, shorter = estimates(columns, tensors.prompts)
    difference = (columns[:, 0] - columns[:, 1]).unsqueeze(-1)
    low, high = percentile_interval(bootstrap_means(difference, clusters=tensors.prompts))[0]
    better: Length | None = "longer" if low > 0 else "shorter" if high < 0 else None
    return LengthRules(longer, shorter, better)


def leading_figure(tensors: GroupTensors, rules: LengthRules) -> LeadingFigure:
    """Summed, which is what objectives see, unless length predicts the label.

    Then the log-prob per byte, over pairs weighted so that length is even: per byte rather than per
    token, because tokens are a tokenizer's own, and a virtual reference has none.
    """
    pairs = tensors.judged.pairs
    if rules.better is None:
        return LeadingFigure("summed", _one_a_group(pairs), None)
    weights = weights_at_equal_length(pairs, tensors.num_bytes)
    return LeadingFigure("per_byte_at_equal_length", weights, tensors.num_bytes)


def weights_at_equal_length(pairs: Tensor, num_bytes: Tensor) -> Tensor:
    """Weights of pairs under which the longer response is the better one as often as the shorter.

    Pairs are cut into strata by their difference in length, and within each the pairs whose longer
    response is better get the weight of those whose shorter one is. So any rule about length alone
    is right in half of the weight. A stratum with pairs of one kind only gets none: length decides
    there, and nothing else can be told. Pairs of equal length keep their weight.

    Args:
        pairs: [G, N, N] bool, better response first.
        num_bytes: [G, N].

    Returns:
        [G, N, N] float64; each group's pairs share a weight of 1 before the balancing.
    """
    require_shape("num_bytes", num_bytes, tuple(pairs.shape[:2]))
    weights = _one_a_group(pairs)
    gaps = pair_differences(num_bytes)
    longer, shorter = pairs & (gaps > 0), pairs & (gaps < 0)
    strata = _strata(gaps.abs(), *sorted((longer, shorter), key=lambda s: float(weights[s].sum())))
    balanced = fill(weights, gaps == 0)
    for stratum in strata:
        sides = [fill(weights, stratum & side) for side in (longer, shorter)]
        masses = [float(side.sum()) for side in sides]
        if min(masses) > 0:
            for side, mass in zip(sides, masses, strict=True):
                balanced = balanced + side * (sum(masses) / (2 * mass))
    return balanced


def _strata(distances: Tensor, rarer: Tensor, other: Tensor) -> list[Tensor]:
    """[G, N, N] bool masks by distance, each with about as many pairs of the rarer kind."""
    mass = float(_one_a_group(rarer | other)[rarer].sum())
    count = min(max(int(mass) // GROUPS_A_STRATUM, 1), STRATA)
    ordered = distances[rarer].sort().values
    edges = [int(ordered[len(ordered) * place // count]) for place in range(1, count)]
    places = torch.bucketize(distances, torch.tensor(edges, dtype=distances.dtype), right=True)
    return [places == place for place in range(count)]


def _one_a_group(pairs: Tensor) -> Tensor:
    """[G, N, N] bool -> float64 weights: the pairs of a group share 1."""
    return pairs.double() / pairs.sum((-1, -2), keepdim=True).clamp(min=1)
