"""From measured references to advice, by stated rules (docs/methods.md, Ranking references)."""

from __future__ import annotations

from dataclasses import dataclass

from mrpo_tools.evaluation.evidence import Confidence, Evidence
from mrpo_tools.runs.record import Estimate

ENOUGH_PROMPTS = 30
"""With fewer, bootstrap intervals are narrower than the truth."""
SURE: tuple[Confidence, ...] = ("low", "medium", "high")
PAPER = (
    "arXiv 2512.10040 reports that DPO with a single reference, for 6 of 7 references, beat every "
    "multi-reference method it tried"
)
ONE_SIDED = (
    "but not both where the longer response is better and where the shorter is, so it may be a "
    "taste for length"
)
FIGURES = {"summed": "", "per_byte_at_equal_length": ", per byte and at equal length,"}


@dataclass(frozen=True)
class Recommendation:
    """Which references to train against, and what is sure of it.

    Attributes:
        reference_1: its name.
        others: that join it; empty where no combination is shown to help.
        combination: of them; None without others.
        epsilon_max: of the trust region; None without others, or without clipping.
        why: the numbers behind it, in sentences.
        confidence: that reference 1 is the best: `low` (it cannot be told), `medium` or `high`.
        combination_confidence: that this combination helps, or without others that none does:
            `low` (a gain is neither shown nor ruled out), `medium` or `high`; None for a single
            reference.
        combination_gain: in accuracy, to expect of choosing a combination by these numbers: chosen
            on one half of the prompts, measured on the other; None for a single reference.
        notes: what else to know, in sentences.
    """

    reference_1: str
    others: list[str]
    combination: str | None
    epsilon_max: float | None
    why: str
    confidence: Confidence
    combination_confidence: Confidence | None
    combination_gain: Estimate | None
    notes: list[str]


def recommend(evidence: Evidence) -> Recommendation:
    """The recommendation, by these rules.

    * Reference 1 is the reference with the largest accuracy by the leading figure.
    * Confidence in that is `low` with fewer than 30 prompts, where reference 1 is not above chance
      (the interval for all references together holds 0.5) or not ahead of every other one (the
      interval of each paired gap above 0).
    * Others join it only if the best of the virtual references tried beats reference 1 alone and
      chance: the interval of the paired gain for all of those tried together lies above 0, and so
      does that of the gain when the choice is made on one half of the prompts and measured on the
      other; at equal length it gains on both sides. Of equal ones the first in the order of
      `candidates` wins: fewer references, harmonic, smaller ε_max.
    * Otherwise no gain is shown; confidence that there is none is `low` unless none of those tried
      gains 0.01 by their intervals.
    * Confidence is `high` where all of that holds by intervals at 99 %, `medium` at 97.5 %.
    """
    known = evidence.prompts >= ENOUGH_PROMPTS
    helps = evidence.helps if known else "low"
    winner = evidence.best if helps != "low" else None
    useless = evidence.useless if known else "low"
    return Recommendation(
        reference_1=evidence.labels[0],
        others=list(winner.references[1:]) if winner else [],
        combination=winner.combination if winner else None,
        epsilon_max=winner.epsilon_max if winner else None,
        why=" ".join([*_about_the_first(evidence), *_about_combinations(evidence, helps, useless)]),
        confidence=min(evidence.above_chance, evidence.ahead, key=SURE.index) if known else "low",
        combination_confidence=(helps if winner else useless) if evidence.tried else None,
        combination_gain=evidence.crossed,
        notes=_notes(evidence),
    )


def _about_the_first(evidence: Evidence) -> list[str]:
    """What is known of reference 1, in sentences."""
    first = evidence.labels[0]
    sentences = [] if evidence.rules.better is None else [_about_length(evidence)]
    sentences.append(
        f"{first} alone{FIGURES[evidence.figure]} ranks {_percent(evidence.alone[0])} of a group's "
        "pairs right."
    )
    if evidence.above_chance == "low":
        sentences.append(
            "That is not above chance: no reference here is shown to know what is preferred."
        )
    if evidence.prompts < ENOUGH_PROMPTS:
        sentences.append(
            f"Prompts to judge by: {evidence.prompts}, too few to be sure of anything."
        )
    if evidence.behind:
        gap = evidence.behind[0]
        sentences.append(
            f"It is {_points(gap.value)} points ahead of {evidence.labels[1]} ({_interval(gap)})."
        )
        if evidence.ahead == "low":
            sentences.append("Which reference is first cannot be told from these groups at 97.5 %.")
    return sentences


def _about_length(evidence: Evidence) -> str:
    rules = evidence.rules
    rule = rules.longer if rules.better == "longer" else rules.shorter
    return (
        f"Always preferring the {rules.better} response ranks {_percent(rule)} right, so a summed "
        "log-prob may know no more than length: log-probs per byte are compared, over pairs "
        "weighted so that the longer response is the better one as often as the shorter."
    )


def _about_combinations(evidence: Evidence, helps: Confidence, useless: Confidence) -> list[str]:
    """Whether others should join reference 1, in sentences."""
    if evidence.best is None or evidence.crossed is None:
        return []
    gain = evidence.best.gain
    tried = (
        f"The best of {len(evidence.tried)} virtual references ({evidence.best}) changes the "
        f"accuracy by {_points(gain.value)} points ({_interval(gain)} for all of them together)"
    )
    crossed = (
        f"chosen on one half of the prompts and measured on the other by "
        f"{_points(evidence.crossed.value)} ({_interval(evidence.crossed)})"
    )
    if helps != "low":
        return [
            f"{tried}, {crossed}.",
            "That a combination ranks better is no promise that training against it does: "
            f"compare it with single-reference DPO (mrpo sweep); {PAPER}.",
        ]
    if evidence.one_sided:
        tried, crossed = f"{tried}, {crossed}", ONE_SIDED
    more = "None of them gains a point" if useless != "low" else "A gain is not ruled out either"
    return [f"{tried}, {crossed}: no gain is shown at 97.5 %. {more}; {PAPER}."]


def _notes(evidence: Evidence) -> list[str]:
    """Where the weights that methods use by default favour the reference that is worst."""
    equal = 1 / len(evidence.labels)
    last, weight = evidence.labels[-1], evidence.mean_weights[-1]
    if not evidence.behind or (evidence.behind[-1].low or 0.0) <= 0 or weight <= equal:
        return []
    accuracy = evidence.alone[-1].value
    return [
        f"Confidence weights favour the worst reference: {last} has accuracy {accuracy:.3f} and "
        f"weight {weight:.3f}, where an equal share is {equal:.3f}. They say how far apart a "
        "reference holds the responses, not how often it is right; compare with --weights uniform "
        "(mrpo sweep)."
    ]


def _percent(accuracy: Estimate) -> str:
    return "–" if accuracy.value is None else f"{accuracy.value:.1%}"


def _interval(difference: Estimate) -> str:
    return f"95 % interval {_points(difference.low)} to {_points(difference.high)}"


def _points(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:+.1f}"
