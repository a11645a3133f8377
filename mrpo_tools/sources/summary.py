"""What a data set holds, in numbers: filled group by group, so a large one needs little memory."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from mrpo_tools.groups import Group

FEW_SCORES = 12
BINS = 10
SAMPLE_GROUPS = 1000


@dataclass
class Summary:
    """Counts over the groups of a data set.

    Attributes:
        sizes: how many groups have N responses, by N.
        splits: how many groups are in each split.
        scores: of all responses that have one, in the order of the data.
        labelled: groups whose responses are labelled chosen or rejected.
        tied_pairs: pairs of responses of a group with the same score.
        pairs: pairs of responses of a group that both have a score.
        characters: of every response.
        first: the first groups, to be shown.
        sample: some groups, drawn evenly, for what is too slow to do with all.
    """

    shown: int = 3
    sizes: Counter[int] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    scores: array[float] = field(default_factory=lambda: array("d"))
    labelled: int = 0
    tied_pairs: int = 0
    pairs: int = 0
    characters: array[int] = field(default_factory=lambda: array("l"))
    first: list[Group] = field(default_factory=list)
    sample: list[Group] = field(default_factory=list)
    _random: random.Random = field(default_factory=lambda: random.Random(0))

    def add(self, group: Group) -> None:
        """Count one more group."""
        if len(self.first) < self.shown:
            self.first.append(group)
        self._draw(group)
        count = len(group.responses)
        self.sizes[count] += 1
        self.splits[str(group.split)] += 1
        self.labelled += group.has_labels
        self.characters.extend(len(response.message.written) for response in group.responses)
        if group.has_scores:
            scores = [r.score for r in group.responses if r.score is not None]
            self.scores.extend(scores)
            self.pairs += count * (count - 1) // 2
            self.tied_pairs += sum(n * (n - 1) // 2 for n in Counter(scores).values())

    def _draw(self, group: Group) -> None:
        """Reservoir sampling: every group is in the sample with the same probability."""
        if len(self.sample) < SAMPLE_GROUPS:
            self.sample.append(group)
        else:
            place = self._random.randrange(self.sizes.total() + 1)
            if place < SAMPLE_GROUPS:
                self.sample[place] = group

    def histogram(self) -> list[tuple[str, int]]:
        """(score or range of scores, how many responses), the lowest first."""
        distinct = Counter(self.scores)
        if len(distinct) <= FEW_SCORES:
            return [(f"{score:g}", distinct[score]) for score in sorted(distinct)]
        low, high = min(distinct), max(distinct)
        edges = [low + (high - low) * step / BINS for step in range(BINS + 1)]
        filled = [0] * BINS
        for score, count in distinct.items():
            filled[min(int((score - low) / (high - low) * BINS), BINS - 1)] += count
        ranges = [f"{left:.4g} to {right:.4g}" for left, right in pairwise(edges)]
        return list(zip(ranges, filled, strict=True))


def quantiles(numbers: Sequence[int]) -> dict[str, int]:
    """The median, the 95th percentile (each the nearest number there is) and the largest."""
    ordered = sorted(numbers)
    last = len(ordered) - 1
    return {
        "median": ordered[round(last * 0.5)],
        "p95": ordered[round(last * 0.95)],
        "max": ordered[-1],
    }
