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

MOST_CUTS = 12
GROUPS_A_STRATUM = 10
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

    def sides(self) -> list[LeadingFigure]:
        """Over the pairs whose longer response is better, and those whose shorter is.

        None where length does not matter. What a taste for length gains on one side it loses on
        the other; knowledge gains on both.
        """
        if self.num_bytes is None:
            return []
        gaps = pair_differences(self.num_bytes)
        return [
            replace(self, pair_weights=fill(self.pair_weights, at)) for at in (gaps > 0, gaps < 0)
        ]

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

    Pairs are cut into strata by the ratio of their lengths, and these by the difference; within
    each the pairs whose longer response is better get the weight of those whose shorter one is. So
    any rule about length alone is right in half of the weight. A stratum with pairs of one kind
    only gets none: length decides there, and nothing else can be told. Pairs of equal length keep
    their weight. Strata grow finer with the data, up to `MOST_CUTS` each way.

    Args:
        pairs: [G, N, N] bool, better response first.
        num_bytes: [G, N].

    Returns:
        [G, N, N] float64; each group's pairs share a weight of 1 before the balancing.
    """
    require_shape("num_bytes", num_bytes, tuple(pairs.shape[:2]))
    weights = _one_a_group(pairs)
    lengths = num_bytes.double().unsqueeze(-1).expand(pairs.shape)
    better, worse = lengths[pairs], lengths.transpose(1, 2)[pairs]
    given = weights[pairs]
    # 0 where the shorter response is better, 1 for equal lengths, 2 where the longer is.
    sides = torch.sign(better - worse).long() + 1
    masses = torch.bincount(sides, given, minlength=3)
    strata = _strata(better, worse, sides == (0 if masses[0] < masses[2] else 2), masses)
    cells = strata * 3 + sides
    inside = torch.bincount(cells, given, minlength=3 * (int(strata.max()) + 1)).view(-1, 3)
    both = (inside[:, 0] > 0) & (inside[:, 2] > 0)
    factors = (inside[:, :1] + inside[:, 2:]) / (2 * inside)
    factors = torch.where(both.unsqueeze(-1), factors, 0.0)
    factors[:, 1] = 1.0
    balanced: Tensor = weights.masked_scatter(pairs, given * factors.view(-1)[cells])
    return balanced


def _strata(better: Tensor, worse: Tensor, rarer: Tensor, masses: Tensor) -> Tensor:
    """[P] the stratum of each pair, each with about as many pairs of the rarer kind."""
    finest = round((float(masses[::2].min()) / GROUPS_A_STRATUM) ** 0.5)
    cuts = min(max(finest, 1), MOST_CUTS)
    ratio = (better.clamp(min=1) / worse.clamp(min=1)).log().abs()
    coarse = _cut(ratio, rarer, cuts)
    fine = torch.zeros_like(coarse)
    for place in range(cuts):
        inside = coarse == place
        fine[inside] = _cut((better - worse).abs()[inside], rarer[inside], cuts)
    strata: Tensor = coarse * cuts + fine
    return strata


def _cut(measure: Tensor, rarer: Tensor, cuts: int) -> Tensor:
    """[P] places 0 to `cuts` − 1, between the quantiles of the rarer kind's measure."""
    ordered = measure[rarer].sort().values
    if not len(ordered):
        return torch.zeros_like(measure, dtype=torch.long)
    edges = ordered[[len(ordered) * place // cuts for place in range(1, cuts)]]
    return torch.bucketize(measure, edges, right=True)


def _one_a_group(pairs: Tensor) -> Tensor:
    """[G, N, N] bool -> float64 weights: the pairs of a group share 1."""
    return pairs.double() / pairs.sum((-1, -2), keepdim=True).clamp(min=1)
