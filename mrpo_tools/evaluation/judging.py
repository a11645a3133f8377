"""From answers and rules to outcomes: means over prompts with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mrpo_tools.evaluation.estimates import estimates
from mrpo_tools.groups import Group
from mrpo_tools.runs.answers import TRAINED, UNTRAINED, Judged, Prompted
from mrpo_tools.runs.outcomes import Outcome, OutcomesRecord
from mrpo_tools.runs.record import Estimate
from mrpo_tools.sampling import Answer, Sampling
from mrpo_tools.scoring.rules import Rule


@dataclass(frozen=True)
class Given:
    """The answers of one policy to P prompts, n each, drawn in one way.

    Attributes:
        sampling: the way.
        answers: to each prompt.
        logps: of the answers' tokens under the policy (nats); None where KL is not measured.
        logps_reference_1: the same under reference 1.
        note: why KL is not measured, where it could be expected.
    """

    sampling: Sampling
    answers: list[list[Answer]]
    logps: list[list[float]] | None = None
    logps_reference_1: list[list[float]] | None = None
    note: str | None = None

    @property
    def log_ratios(self) -> Tensor | None:
        """[P, n] float64 ℓ − r_1 of each answer, nats."""
        if self.logps is None or self.logps_reference_1 is None:
            return None
        own, theirs = (
            torch.tensor(logps, dtype=torch.float64)
            for logps in (self.logps, self.logps_reference_1)
        )
        return own - theirs


def judged(
    asked: Sequence[Group],
    rules: Sequence[Rule],
    after: Sequence[Given],
    before: Sequence[Given] = (),
) -> tuple[OutcomesRecord, list[Prompted]]:
    """Every rule's outcome of every way of answering, and the answers with the first rule's marks.

    Args:
        asked: a group of each prompt.
        rules: the first one leads.
        after: answers of the policy.
        before: of the untrained one, in the same ways; empty where there is none.

    Raises:
        UsageError: a rule fails.
    """
    outcomes: list[Outcome] = []
    untrained: list[Outcome] = []
    rows: list[list[Judged]] = [[] for _ in asked]
    for rule in rules:
        for place, given in enumerate(after):
            old = before[place] if before else None
            old_marks = None if old is None else _marks(rule, asked, old)
            marks = _marks(rule, asked, given)
            outcomes.append(_outcome(rule, given, marks, old_marks))
            if old is not None and old_marks is not None:
                untrained.append(_outcome(rule, old, old_marks, None))
                if rule is rules[0]:
                    _collect(rows, old, old_marks, UNTRAINED)
            if rule is rules[0]:
                _collect(rows, given, marks, TRAINED)
    return OutcomesRecord(outcomes=outcomes, untrained=untrained), [
        Prompted(group, answers) for group, answers in zip(asked, rows, strict=True)
    ]


def _marks(rule: Rule, asked: Sequence[Group], given: Given) -> Tensor:
    """[P, n] float64."""
    marks = [
        [rule.marks(group.prompt, answer.content) for answer in answers]
        for group, answers in zip(asked, given.answers, strict=True)
    ]
    return torch.tensor(marks, dtype=torch.float64)


def _outcome(rule: Rule, given: Given, marks: Tensor, old_marks: Tensor | None) -> Outcome:
    columns = {"mean": marks.mean(1)}
    if rule.full_marks is not None:
        columns["full"] = (marks >= rule.full_marks).double().mean(1)
    if (log_ratios := given.log_ratios) is not None:
        columns["kl_nats"] = log_ratios.mean(1)
    if old_marks is not None:
        columns["gain"] = columns["mean"] - old_marks.mean(1)
    values = torch.stack(list(columns.values()), dim=-1)
    measured: dict[str, Estimate] = dict(
        zip(columns, estimates(values, torch.arange(len(values))), strict=True)
    )
    every = [answer for answers in given.answers for answer in answers]
    about = Outcome(
        scorer=rule.name,
        decoding=given.sampling.decoding,
        prompts=len(given.answers),
        samples=given.sampling.n,
        temperature=given.sampling.temperature,
        sampling=given.sampling.as_dict(),
        truncated=sum(answer.finish_reason == "length" for answer in every) / len(every),
        mean_tokens=sum(len(answer.ids) for answer in every) / len(every),
        full_marks=rule.full_marks,
        identity=rule.identity,
        note=given.note,
        intervals={name: estimate.interval for name, estimate in measured.items()},
    )
    values_of = {name: estimate.value for name, estimate in measured.items()}
    return about.model_copy(update=values_of)


def _collect(rows: list[list[Judged]], given: Given, marks: Tensor, model: str) -> None:
    """Add a policy's answers, with their marks, to those of each prompt."""
    for row, answers, scores in zip(rows, given.answers, marks.tolist(), strict=True):
        row += [
            Judged(answer.content, score, model, given.sampling.decoding, answer.finish_reason)
            for answer, score in zip(answers, scores, strict=True)
        ]
