"""From answers and scorers to outcomes: means over prompts with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mrpo_tools.cache import Cache
from mrpo_tools.evaluation.estimates import estimates
from mrpo_tools.groups import Group, Response
from mrpo_tools.runs.answers import TRAINED, UNTRAINED, Judged, Prompted
from mrpo_tools.runs.outcomes import Outcome, OutcomesRecord
from mrpo_tools.runs.record import Estimate
from mrpo_tools.sampling import Answer, Sampling
from mrpo_tools.scoring.ensure import stored_marks
from mrpo_tools.scoring.protocol import Scorer, marks_of


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
    scorers: Sequence[Scorer],
    after: Sequence[Given],
    before: Sequence[Given] = (),
    *,
    cache: Cache | None = None,
    held_out: Sequence[Scorer] = (),
) -> tuple[OutcomesRecord, list[Prompted]]:
    """Every scorer's outcome of every way of answering, and the answers with the first's scores.

    Args:
        asked: a group of each prompt.
        scorers: the first one leads.
        after: answers of the policy.
        before: of the untrained one, in the same ways; empty where there is none.
        cache: keeps the scores of models, so that no answer is scored twice; None for no cache.
        held_out: scorers whose means stand beside, marked as held out.

    Raises:
        UsageError: a rule fails, or an answer gets no score.
    """
    outcomes: list[Outcome] = []
    untrained: list[Outcome] = []
    rows: list[list[Judged]] = [[] for _ in asked]
    for number, scorer in enumerate((*scorers, *held_out)):
        marks = _marks(scorer, asked, [*after, *before], cache)
        about: dict[str, object] = {} if scorer.kind == "rule" else {"kind": scorer.kind}
        about |= {"held_out": True} if number >= len(scorers) else {}
        for place, given in enumerate(after):
            own, old = marks[place], marks[len(after) + place] if before else None
            outcomes.append(_outcome(scorer, given, own, old).model_copy(update=about))
            if old is not None:
                first = _outcome(scorer, before[place], old, None)
                untrained.append(first.model_copy(update=about))
                if number == 0:
                    _collect(rows, before[place], old, UNTRAINED)
            if number == 0:
                _collect(rows, given, own, TRAINED)
    return OutcomesRecord(outcomes=outcomes, untrained=untrained), [
        Prompted(group, answers) for group, answers in zip(asked, rows, strict=True)
    ]


def _marks(
    scorer: Scorer, asked: Sequence[Group], ways: Sequence[Given], cache: Cache | None
) -> list[Tensor]:
    """[P, n] float64 for each way of answering, all scored together."""
    groups = [
        replace(group, responses=tuple(Response(answer.content) for answer in answers))
        for given in ways
        for group, answers in zip(asked, given.answers, strict=True)
    ]
    if cache is None or scorer.kind == "rule":
        marks = marks_of(scorer, groups)
    else:
        marks = stored_marks(scorer, groups, cache)
    count = len(asked)
    return [
        torch.tensor(marks[start : start + count], dtype=torch.float64)
        for start in range(0, len(marks), count)
    ]


def _outcome(scorer: Scorer, given: Given, marks: Tensor, old_marks: Tensor | None) -> Outcome:
    columns = {"mean": marks.mean(1)}
    if scorer.full_marks is not None:
        columns["full"] = (marks >= scorer.full_marks).double().mean(1)
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
        scorer=scorer.name,
        decoding=given.sampling.decoding,
        prompts=len(given.answers),
        samples=given.sampling.n,
        temperature=given.sampling.temperature,
        sampling=given.sampling.as_dict(),
        truncated=sum(answer.finish_reason == "length" for answer in every) / len(every),
        mean_tokens=sum(len(answer.ids) for answer in every) / len(every),
        full_marks=scorer.full_marks,
        identity=scorer.identity,
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
