"""References whose knowledge is known, to judge advice by: what `mrpo rank` should find, or not.

A response has a quality and a length; its score is its quality, plus its length where length is
liked. A reference's log-prob per byte is a constant, its opinion of the quality with noise, and
its taste for length. What is true of it is measured on many fresh groups in which nobody likes a
length: a knower knows there too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

import torch
from made_up import made_up_cache
from torch import Tensor

from mrpo_tools.cache import Cache
from mrpo_tools.evaluation.rank import Ranking
from mrpo_tools.evaluation.ranking import Candidate
from mrpo_tools.groups import Group, Response, user_prompt
from mrpo_tools.methods.combination import Combination, combine

Verdict = Literal["right", "cannot tell", "wrong"]
"""Of advice: what it says is true; it says nothing where there is something; it is false."""

RESPONSES = 3
WORTH_HAVING = 0.01
"""Accuracy: with a smaller gain, that no combination is advised is right."""


@dataclass(frozen=True)
class Speaker:
    """One reference.

    Attributes:
        skill: of its opinion, quality times this with noise of 1.
        loud: nats of one unit of opinion in a response of 100 bytes.
        taste: for length, in the same unit: above 0 prefers the longer.
        knows: the half of the groups in which it has its skill; elsewhere all is noise.
        loud_elsewhere: the same as `loud` where it does not know; None: as loud.
    """

    skill: float = 0.0
    loud: float = 4.0
    taste: float = 0.0
    knows: Literal["all", "even", "odd"] = "all"
    loud_elsewhere: float | None = None


@dataclass(frozen=True)
class Scenario:
    """References of known knowledge.

    Attributes:
        speakers: by name.
        best: the one that knows most; None where none knows, or several know as much.
        liking: how much a length is: above 0 the longer response is better.
    """

    speakers: dict[str, Speaker]
    best: str | None = None
    liking: float = 0.0


@dataclass(frozen=True)
class Drawn:
    """Groups of `RESPONSES`: scores and lengths [G, N], log-probs [G, N, K] in nats."""

    scores: Tensor
    num_bytes: Tensor
    logps: Tensor


def _halves(loud: float, elsewhere: float | None) -> dict[str, Speaker]:
    half = {
        side: Speaker(1.5, loud, knows=side, loud_elsewhere=elsewhere) for side in ("even", "odd")
    }
    return {**half, "chance": Speaker(loud=0.5)}


_WEAK = {"weak": Speaker(0.3), "weaker": Speaker(0.2)}
_TASTES = {"wordy": Speaker(taste=1.5), "terse": Speaker(taste=-1.5), "chance": Speaker()}
_KNOWER = {"wordy": Speaker(taste=1.5), "knower": Speaker(1.5), "terse": Speaker(taste=-1.5)}
_CHANCE = {"one": Speaker(), "two": Speaker(loud=2.0), "three": Speaker(loud=8.0)}

SCENARIOS = {
    "one strong, two weak": Scenario({**_WEAK, "strong": Speaker(2.0)}, "strong"),
    "complementary, loud where right": Scenario(_halves(4.0, 0.5)),
    "complementary, equally loud": Scenario(_halves(4.0, None)),
    "complementary, loud where ignorant": Scenario(_halves(0.5, 4.0)),
    "all chance": Scenario(_CHANCE),
    "loud chance, quiet knowledge": Scenario(
        {"shouting": Speaker(loud=16.0), "quiet": Speaker(1.5, 2.0), "calm": Speaker(0.3, 2.0)},
        "quiet",
    ),
    "three equal, noisy": Scenario({name: Speaker(0.7) for name in ("one", "two", "three")}),
    "one slightly better": Scenario(
        {"fair": Speaker(0.6), "better": Speaker(0.8), "poor": Speaker(0.5)}, "better"
    ),
    "longer is better, with a knower": Scenario(_KNOWER, "knower", 1.0),
    "longer is better, without": Scenario(_TASTES, None, 1.0),
    "shorter is better, with a knower": Scenario(_KNOWER, "knower", -1.0),
    "shorter is better, without": Scenario(_TASTES, None, -1.0),
    "shorter is better by little, without": Scenario(_TASTES, None, -0.15),
}


def draw(scenario: Scenario, groups: int, seed: int, liking: float) -> Drawn:
    """Groups of a scenario, with its own or another liking for length."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(groups, RESPONSES, *shape, generator=random, dtype=torch.float64)

    quality, length = normal(), normal()
    # Where nobody likes a length, texts are alike in length and summed log-probs tell something.
    spread = 0.5 if scenario.liking else 0.01
    num_bytes = (100 * (spread * length).exp()).round().clamp(min=20)
    even = (torch.arange(groups) % 2 == 0).unsqueeze(-1)
    columns = []
    for noise, speaker in zip(
        normal(len(scenario.speakers)).unbind(-1), scenario.speakers.values(), strict=True
    ):
        knows = {"all": even | ~even, "even": even, "odd": ~even}[speaker.knows]
        elsewhere = speaker.loud if speaker.loud_elsewhere is None else speaker.loud_elsewhere
        loud = torch.where(knows, speaker.loud, elsewhere)
        opinion = torch.where(knows, speaker.skill, 0.0) * quality + noise + speaker.taste * length
        columns.append(num_bytes * (-0.4 + 0.01 * loud * opinion).clamp(max=-1e-3))
    return Drawn(quality + liking * length, num_bytes, torch.stack(columns, dim=-1))


def cache_of(path: Path, scenario: Scenario, groups: int = 300, seed: int = 0) -> Cache:
    """A cache that holds one draw of a scenario."""
    drawn = draw(scenario, groups, seed, scenario.liking)
    texts, logps = [], {}
    for index in range(groups):
        responses = []
        for place in range(RESPONSES):
            content = f"{index}.{place} ".ljust(int(drawn.num_bytes[index, place]), "x")
            responses.append(Response(content, float(drawn.scores[index, place])))
            logps[content] = drawn.logps[index, place].tolist()
        texts.append(Group(user_prompt(f"Question {index}?"), tuple(responses)))
    speakers = {
        name: lambda _random, _index, response, place=place: logps[response.content][place]
        for place, name in enumerate(scenario.speakers)
    }
    return made_up_cache(path, texts, speakers)


class Truth:
    """What is true of a scenario, measured on fresh groups in which length is not liked.

    Args:
        scenario: the scenario.
        groups: fresh ones.

    Attributes:
        best: as the scenario has it.
        accuracies: of each reference.
    """

    def __init__(self, scenario: Scenario, groups: int = 3000) -> None:
        self.best = scenario.best
        self._names = list(scenario.speakers)
        self._fresh = draw(scenario, groups, 4242, 0.0)
        logps = self._fresh.logps.unbind(-1)
        self.accuracies = {
            name: _accuracy(self._fresh, column)
            for name, column in zip(self._names, logps, strict=True)
        }

    def gain(self, candidate: Candidate) -> float:
        """Of a candidate over its first reference alone."""
        virtual = _virtual(self._fresh, self._names, candidate)
        return _accuracy(self._fresh, virtual) - self.accuracies[candidate.references[0]]


def judge(ranking: Ranking, truth: Truth) -> tuple[Verdict, Verdict]:
    """What is said of the first reference, and of combinations, against the truth."""
    advice = ranking.recommendation
    if advice.confidence == "low":
        first: Verdict = "right" if truth.best is None else "cannot tell"
    else:
        first = "right" if advice.reference_1 == truth.best else "wrong"
    if advice.others:
        advised = next(
            row for row in ranking.virtual
            if row.references == (advice.reference_1, *advice.others)
            and (row.combination, row.epsilon_max) == (advice.combination, advice.epsilon_max)
        )  # fmt: skip
        return first, "right" if truth.gain(advised) > 0 else "wrong"
    if max(map(truth.gain, ranking.virtual)) < WORTH_HAVING:
        return first, "right"
    return first, "cannot tell" if advice.combination_confidence == "low" else "wrong"


def _virtual(fresh: Drawn, names: Sequence[str], candidate: Candidate) -> Tensor:
    logps = fresh.logps[..., [names.index(name) for name in candidate.references]]
    region: Literal["none", "adaptive"] = "none" if candidate.epsilon_max is None else "adaptive"
    how = Combination(
        candidate.combination, trust_region=region, epsilon_max=candidate.epsilon_max or 0.0
    )
    return combine(logps, torch.ones_like(fresh.scores, dtype=torch.bool), how).virtual


def _accuracy(fresh: Drawn, logps: Tensor) -> float:
    rewards = logps / fresh.num_bytes
    right = [
        (rewards[:, a] > rewards[:, b]) == (fresh.scores[:, a] > fresh.scores[:, b])
        for a, b in combinations(range(RESPONSES), 2)
    ]
    return float(torch.stack(right).double().mean())
