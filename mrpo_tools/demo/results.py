"""The demo's table: what was measured of each run, read from the runs' own records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mrpo_tools.runs.outcomes import Outcome
from mrpo_tools.runs.read import Result, read_result
from mrpo_tools.runs.record import Estimate

RULES = tuple(f"mrpo_tools.demo.tasks:{name}" for name in ("score", "content", "form"))
UNTRAINED = "untrained"


@dataclass(frozen=True)
class Row:
    """One policy's line of the table, all of it on the test split.

    Attributes:
        method: the loss it was trained with, or `untrained`.
        references: reference 1 first.
        marks: the rule's, 1 to 10: mean over sampled answers, with its 95 % interval.
        right_content: share of sampled answers whose value is right, whatever the form.
        right_form: share in the form asked for, whatever the value.
        kl_nats: KL of a whole answer to the untrained policy.
        clipped: share of the other references' numbers that the trust region moved.
        logp_accuracy: preference accuracy by the policy's log-prob.
        margin: mean own reward of chosen less that of rejected responses.
        train_seconds: of the steps alone.
    """

    method: str
    references: str
    marks: Estimate
    right_content: float | None
    right_form: float | None
    kl_nats: float | None
    clipped: float | None = None
    logp_accuracy: float | None = None
    margin: float | None = None
    train_seconds: float | None = None


def rows_of(runs: Iterable[Path]) -> list[Row]:
    """The untrained policy, then each finished and evaluated run.

    Raises:
        UsageError: a run that cannot be read.
        ValueError: one whose answers were not judged by `RULES`.
    """
    results = [read_result(path, "test") for path in runs]
    return [_untrained(results[0]), *map(_trained, results)]


def _untrained(result: Result) -> Row:
    outcomes = result.outcomes.untrained if result.outcomes else []
    step0 = result.evaluation.accuracies_logp_step0 if result.evaluation else None
    return _row(UNTRAINED, result.reference_names[0], outcomes, logp_accuracy=step0)


def _trained(result: Result) -> Row:
    several = len(result.references) > 1
    return _row(
        result.run.recipe.loss,
        ",".join(result.reference_names),
        result.outcomes.outcomes if result.outcomes else [],
        clipped=result.metrics.clipped_fraction if several else None,
        logp_accuracy=result.evaluation.accuracies_logp if result.evaluation else None,
        margin=result.evaluation.margins if result.evaluation else None,
        train_seconds=result.metrics.train_seconds,
    )


def _row(method: str, references: str, outcomes: Sequence[Outcome], **others: float | None) -> Row:
    sampled = {each.scorer: each for each in outcomes if each.decoding == "sampled"}
    if not set(RULES) <= set(sampled):
        raise ValueError(f"{method} with {references} was not judged by {', '.join(RULES)}")
    marks, content, form = (sampled[rule] for rule in RULES)
    return Row(
        method=method,
        references=references,
        marks=marks.estimate("mean"),
        right_content=content.full,
        right_form=form.full,
        kl_nats=marks.kl_nats,
        **others,
    )
