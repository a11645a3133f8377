"""From measured references to advice, by stated rules (docs/methods.md, Ranking references)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mrpo_tools.evaluation.ranking import VirtualReference

CLEAR_GAP = 0.01
"""Accuracy between reference 1 and the next that counts as something even if it is not certain."""
ENOUGH_PROMPTS = 30
"""With fewer, bootstrap intervals are narrower than the truth."""
PAPER = (
    "arXiv 2512.10040 reports that DPO with a single reference, for 6 of 7 references, beat every "
    "multi-reference method it tried"
)


@dataclass(frozen=True)
class Recommendation:
    """Which references to train against.

    Attributes:
        reference_1: its name.
        others: that join it; empty where one is enough.
        combination: of them; None where one is enough.
        epsilon_max: of the trust region; None where one is enough, or without clipping.
        why: the numbers behind it, in sentences.
        confidence: `low`, `medium` or `high`.
    """

    reference_1: str
    others: list[str]
    combination: str | None
    epsilon_max: float | None
    why: str
    confidence: str


@dataclass(frozen=True)
class Evidence:
    """What advice is made from.

    Attributes:
        labels: references, the largest accuracy first.
        alone: their summed accuracies.
        ahead: 95 % interval of the gap between the first two; None for one reference.
        above_chance: whether reference 1's interval lies above 0.5.
        prompts: with a group that has a pair.
        longer: accuracy of always preferring the longer response.
        tried: the virtual references, in the order of `candidates`.
    """

    labels: Sequence[str]
    alone: Sequence[float]
    ahead: Sequence[float] | None
    above_chance: bool
    prompts: int
    longer: float
    tried: Sequence[VirtualReference]

    @property
    def best(self) -> VirtualReference | None:
        """The one tried with the largest gain, the first of equal ones."""
        return max(self.tried, key=lambda virtual: virtual.gain.value or 0.0, default=None)

    @property
    def winner(self) -> VirtualReference | None:
        """The best one if it certainly beats reference 1 alone."""
        return self.best if self.best is not None and (self.best.gain.low or 0.0) > 0 else None


def recommend(evidence: Evidence) -> Recommendation:
    """The recommendation, by these rules.

    * Reference 1 is the reference with the largest summed accuracy.
    * Others join it only if the best of the virtual references tried beats reference 1 alone:
      the interval of the paired gain, at 95 % for all of those tried together, lies above 0. Of
      equal ones the first in the order of `candidates` wins: fewer references, harmonic, smaller
      ε_max. Otherwise one well-chosen reference is enough.
    * Confidence is `low` where reference 1 is not above chance (its interval holds 0.5) or fewer
      than 30 prompts have a pair; else `high` where it is ahead of the next reference (95 %
      interval above 0) or alone, `medium` where the gap is at least 0.01 but not certain, `low`
      otherwise.
    """
    winner = evidence.winner
    return Recommendation(
        reference_1=evidence.labels[0],
        others=list(winner.references[1:]) if winner else [],
        combination=winner.combination if winner else None,
        epsilon_max=winner.epsilon_max if winner else None,
        why=" ".join(_reasons(evidence)),
        confidence=_confidence(evidence),
    )


def _confidence(evidence: Evidence) -> str:
    if not evidence.above_chance or evidence.prompts < ENOUGH_PROMPTS:
        return "low"
    if evidence.ahead is None or evidence.ahead[0] > 0:
        return "high"
    return "medium" if evidence.alone[0] - evidence.alone[1] >= CLEAR_GAP else "low"


def _reasons(evidence: Evidence) -> list[str]:
    """The numbers behind the recommendation, in sentences."""
    first = evidence.labels[0]
    reasons = [f"{first} alone ranks {evidence.alone[0]:.1%} of a group's pairs right."]
    if not evidence.above_chance:
        reasons.append("That is not above chance: no reference here knows what is preferred.")
    if evidence.longer > evidence.alone[0]:
        reasons.append(f"Always preferring the longer response ranks more: {evidence.longer:.1%}.")
    if evidence.prompts < ENOUGH_PROMPTS:
        reasons.append(f"Prompts with a pair: {evidence.prompts}, too few to be sure of anything.")
    if evidence.ahead is not None:
        reasons.append(
            f"It is {_points(evidence.alone[0] - evidence.alone[1])} points ahead of "
            f"{evidence.labels[1]} (95 % interval {_points(evidence.ahead[0])} to "
            f"{_points(evidence.ahead[1])})."
        )
    if evidence.best is not None:
        gain = evidence.best.gain
        reasons.append(
            f"The best of {len(evidence.tried)} virtual references ({evidence.best}) changes the "
            f"accuracy by {_points(gain.value)} points (95 % interval for all of them together "
            f"{_points(gain.low)} to {_points(gain.high)})."
        )
        if evidence.winner:
            reasons.append(
                "That a combination ranks better is no promise that training against it does: "
                f"compare it with single-reference DPO (mrpo sweep); {PAPER}."
            )
        elif evidence.above_chance:
            reasons.append(f"So one well-chosen reference is enough; {PAPER}.")
    return reasons


def _points(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:+.1f}"
