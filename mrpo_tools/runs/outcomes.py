"""`RUN/outcomes/<split>.json`: numbers about the answers that a policy gives, which come first.

An outcome is what a rule, a reward model, a judge or a benchmark says of generated answers,
with its interval, beside the distance KL(π‖reference 1) that the same answers measure. Whatever
said it, the columns are these, so tables and pictures treat all of them alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import Field

from mrpo_tools.runs.record import Estimate, Interval, Part, Record, Setting

OUTCOMES = "outcomes"
"""Where a run keeps its generated answers and what was said of them, by split."""
BENCHMARKS = "benchmarks"
"""In place of a split, of outcomes whose prompts are a benchmark's own."""
VERDICTS = "verdicts"
"""The same of win rates: of the prompts that a judge was asked about."""


Quantity: TypeAlias = Literal["mean", "full", "kl_nats", "gain"]
"""A number of an outcome."""


class Outcome(Part):
    """What one scorer said of one kind of answers to the prompts of a split.

    Attributes:
        scorer: who said it, as the user named it: `MODULE:FUNCTION` of a rule, a task of the
            language-model harness.
        kind: of scorer.
        held_out: it stands beside the others; nothing was chosen or trained by it.
        decoding: `greedy`, or `sampled` at `temperature`.
        mean: score, over prompts (of several samples of a prompt, their mean).
        full: share of answers at full marks; None where scores have no largest.
        kl_nats: KL(π‖reference 1) of a whole response, nats; None of greedy answers, which
            are no samples of π.
        prompts: that were answered.
        samples: of each prompt.
        temperature: of sampling; 0 for greedy.
        sampling: everything that determines the answers of a given policy.
        full_marks: of the scorer; None where scores have no largest.
        gain: `mean` less that of the untrained policy's answers; None where it gave none.
        note: why KL is not measured, where it could be expected.
        truncated: share of answers that the token limit cut.
        mean_tokens: of an answer.
        identity: hash of what scored: another version of a rule is another outcome.
        settings: of a benchmark: metric, shots, versions, standard errors, and on how many examples
            the trained policy did better and worse.
        intervals: 95 % of `mean`, `full`, `kl_nats` and `gain`, bootstrap over prompts; of a
            benchmark by standard errors.
    """

    scorer: str
    kind: Literal["rule", "reward", "judge", "benchmark"] = "rule"
    held_out: bool = False
    decoding: Literal["greedy", "sampled"] = "greedy"
    mean: float | None = None
    full: float | None = None
    kl_nats: float | None = None
    prompts: int = 0
    samples: int = 1
    temperature: float = 0.0
    sampling: dict[str, int | float] = Field(default_factory=dict)
    full_marks: float | None = None
    gain: float | None = None
    note: str | None = None
    truncated: float | None = None
    mean_tokens: float | None = None
    identity: str | None = None
    settings: dict[str, Setting] = Field(default_factory=dict)
    intervals: dict[str, Interval | None] = Field(default_factory=dict)

    @property
    def key(self) -> str:
        """Its name in tables: one scorer and one decoding; of a benchmark its task."""
        return self.scorer if self.kind == "benchmark" else f"{self.scorer} {self.decoding}"

    @property
    def way(self) -> str:
        """How the answers were drawn, for people: `greedy`, `4 samples at T 1`, `5-shot`."""
        if self.kind == "benchmark":
            return f"{self.settings.get('shots', 0)}-shot"
        if self.decoding == "greedy":
            return "greedy"
        return f"{self.samples} sample{'s'[: self.samples > 1]} at T {self.temperature:g}"

    def estimate(self, what: Quantity) -> Estimate:
        """One of its numbers with its interval."""
        return Estimate(getattr(self, what), *(self.intervals.get(what) or (None, None)))


class OutcomesRecord(Record):
    """Every outcome of a run on a split.

    Attributes:
        split: of the prompts.
        prompts_hash: of the prompts that were answered: outcomes of others are not comparable.
        outcomes: by scorer and decoding, the first one leads.
        untrained: the same of the policy before training.
    """

    split: str = "test"
    prompts_hash: str | None = None
    outcomes: list[Outcome] = Field(default_factory=list)
    untrained: list[Outcome] = Field(default_factory=list)

    def before(self, outcome: Outcome) -> Outcome | None:
        """What stands for an outcome before training; None where nothing was measured."""
        return next((each for each in self.untrained if each.key == outcome.key), None)

    def over(self, earlier: OutcomesRecord | None) -> OutcomesRecord:
        """With what an earlier record of the same prompts has of other scorers, after its own."""
        if earlier is None or earlier.prompts_hash != self.prompts_hash:
            return self
        keys = {outcome.key for outcome in self.outcomes}
        return self.model_copy(
            update={
                "outcomes": [
                    *self.outcomes, *(each for each in earlier.outcomes if each.key not in keys)
                ],
                "untrained": [
                    *self.untrained, *(each for each in earlier.untrained if each.key not in keys)
                ],
            }
        )  # fmt: skip


def outcomes_file(run: Path, split: str) -> Path:
    """Where a run's outcomes on a split of its own data are."""
    return run / OUTCOMES / f"{split}.json"


def read_outcomes(run: Path, split: str) -> OutcomesRecord | None:
    """A run's outcomes on a split; None where nothing was generated."""
    file = outcomes_file(run, split)
    return OutcomesRecord.read(file) if file.exists() else None


def every_outcome(run: Path, split: str) -> OutcomesRecord | None:
    """A run's outcomes on a split and, after them, win rates and benchmarks; None where there are
    none."""
    places = dict.fromkeys([split, VERDICTS, BENCHMARKS])
    records = [record for place in places if (record := read_outcomes(run, place)) is not None]
    if not records:
        return None
    return records[0].model_copy(
        update={
            "outcomes": [each for record in records for each in record.outcomes],
            "untrained": [each for record in records for each in record.untrained],
        }
    )
