"""From measured references to advice, by stated rules (docs/methods.md, Ranking references)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mrpo_tools.evaluation.ranking import Candidate

CLEAR_GAP = 0.01
"""Accuracy between reference 1 and the next that counts as something even if it is not certain."""
ENOUGH_PROMPTS = 30
"""With fewer, bootstrap intervals are narrower than the truth."""
PAPER = (
    "arXiv 2512.10040 reports that DPO with a single reference, for 6 of 7 references, beat every "
    "multi-reference method it tried"
)


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
        tried: (description, gain over reference 1, its low end, its high end) of each virtual
            reference; the ends hold for all of them together.
    """

    labels: Sequence[str]
    alone: Sequence[float]
    ahead: Sequence[float] | None
    above_chance: bool
    prompts: int
    longer: float
    tried: Sequence[tuple[str, float, float, float]]

    @property
    def best(self) -> int | None:
        """The place of the virtual reference with the largest gain, the first of equal ones."""
        return max(range(len(self.tried)), key=lambda place: self.tried[place][1], default=None)

    @property
    def several(self) -> bool:
        """Whether the best virtual reference certainly beats reference 1 alone."""
        return self.best is not None and self.tried[self.best][2] > 0


def recommend(evidence: Evidence, tried: Sequence[Candidate]) -> dict[str, Any]:
    """The recommendation: fixed fields, by these rules.

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
    chosen = tried[evidence.best] if evidence.best is not None and evidence.several else None
    return {
        "reference_1": evidence.labels[0],
        "others": list(chosen.references[1:]) if chosen else [],
        "combination": chosen.combination if chosen else None,
        "epsilon_max": chosen.epsilon_max if chosen else None,
        "why": " ".join(_reasons(evidence)),
        "confidence": _confidence(evidence),
    }


def _confidence(evidence: Evidence) -> str:
    if not evidence.above_chance or evidence.prompts < ENOUGH_PROMPTS:
        return "low"
    if evidence.ahead is None or evidence.ahead[0] > 0:
        return "high"
    return "medium" if evidence.alone[0] - evidence.alone[1] >= CLEAR_GAP else "low"


def _reasons(evidence: Evidence) -> list[str]:
    """The numbers behind the recommendation, in sentences."""
    first = evidence.labels[0]
    said = [f"{first} alone ranks {evidence.alone[0]:.1%} of a group's pairs right."]
    if not evidence.above_chance:
        said.append("That is not above chance: no reference here knows what is preferred.")
    if evidence.longer > evidence.alone[0]:
        said.append(f"Always preferring the longer response ranks more: {evidence.longer:.1%}.")
    if evidence.prompts < ENOUGH_PROMPTS:
        said.append(f"Prompts with a pair: {evidence.prompts}, too few to be sure of anything.")
    if evidence.ahead is not None:
        said.append(
            f"It is {_points(evidence.alone[0] - evidence.alone[1])} points ahead of "
            f"{evidence.labels[1]} (95 % interval {_points(evidence.ahead[0])} to "
            f"{_points(evidence.ahead[1])})."
        )
    if evidence.best is not None:
        what, gain, low, high = evidence.tried[evidence.best]
        said.append(
            f"The best of {len(evidence.tried)} virtual references ({what}) changes the "
            f"accuracy by {_points(gain)} points (95 % interval for all of them together "
            f"{_points(low)} to {_points(high)})."
        )
        if evidence.several:
            said.append(
                "That a combination ranks better is no promise that training against it does: "
                f"compare it with single-reference DPO (mrpo sweep); {PAPER}."
            )
        elif evidence.above_chance:
            said.append(f"So one well-chosen reference is enough; {PAPER}.")
    return said


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"
