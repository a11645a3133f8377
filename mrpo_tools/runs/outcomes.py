"""`RUN/outcomes/<split>.json`: numbers about the answers that a policy gives, which come first.

An outcome is what a rule, a reward model, a judge or a benchmark says of generated answers,
with its interval, beside the distance KL(π‖reference 1) that the same answers measure. Whatever
said it, the columns are these, so tables and pictures treat all of them alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from mrpo_tools.runs.record import Estimate, Interval, Part, Record

OUTCOMES = "outcomes"
"""Where a run keeps its generated answers and what was said of them, by split."""


class Outcome(Part):
    """What one scorer said of one kind of answers to the prompts of a split.

    Attributes:
        scorer: who said it, as the user named it: `MODULE:FUNCTION` of a rule.
        kind: of scorer.
        decoding: `greedy`, or `sampled` at `temperature`.
        mean: score, over prompts (of several samples of a prompt, their mean).
        full: share of answers at full marks; None where scores have no largest.
        kl_nats: KL(π‖reference 1) of a whole response, nats; None of greedy answers, which
            are no samples of π.
        prompts: that were answered.
        samples: of each prompt.
        temperature: of sampling; 0 for greedy.
        truncated: share of answers that the token limit cut.
        mean_tokens: of an answer.
        identity: hash of what scored: another version of a rule is another outcome.
        intervals: 95 % of `mean`, `full` and `kl_nats`, bootstrap over prompts.
    """

    scorer: str
    kind: Literal["rule", "reward", "judge", "benchmark"] = "rule"
    decoding: Literal["greedy", "sampled"] = "greedy"
    mean: float | None = None
    full: float | None = None
    kl_nats: float | None = None
    prompts: int = 0
    samples: int = 1
    temperature: float = 0.0
    truncated: float | None = None
    mean_tokens: float | None = None
    identity: str | None = None
    intervals: dict[str, Interval | None] = Field(default_factory=dict)

    @property
    def key(self) -> str:
        """Its name in tables: one scorer and one decoding."""
        return f"{self.scorer} {self.decoding}"

    def estimate(self, what: Literal["mean", "full", "kl_nats"]) -> Estimate:
        """One of its numbers with its interval."""
        return Estimate(getattr(self, what), *(self.intervals.get(what) or (None, None)))


class OutcomesRecord(Record):
    """Every outcome of a run on a split.

    Attributes:
        split: of the prompts.
        prompts_hash: of the prompts that were answered: outcomes of others are not comparable.
        outcomes: by scorer and decoding, the first one leads.
    """

    split: str = "test"
    prompts_hash: str | None = None
    outcomes: list[Outcome] = Field(default_factory=list)


def outcomes_file(run: Path, split: str) -> Path:
    """Where a run's outcomes on a split of its own data are."""
    return run / OUTCOMES / f"{split}.json"


def read_outcomes(run: Path, split: str) -> OutcomesRecord | None:
    """A run's outcomes on a split; None where nothing was generated."""
    file = outcomes_file(run, split)
    return OutcomesRecord.read(file) if file.exists() else None
