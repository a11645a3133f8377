"""`ROUNDS/round-N/round.json`: what a round did and measured; written last, it finishes it."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from mrpo_tools.runs.outcomes import Outcome
from mrpo_tools.runs.record import Estimate, Interval, Record

ROUND = "round.json"
SECONDS = "seconds.json"
"""What the phases took so far: a round that was stopped adds to it."""
PHASES = ("sample", "score", "precompute", "train", "evaluate")


class RoundRecord(Record):
    """One round.

    Attributes:
        number: from 1.
        policy: name and identity of the policy that answered: `base@ab12…`.
        trained: name of the policy that the round made, as later rounds' references have it.
        references: that were trained against, reference 1 first.
        statuses: answers by what is amiss with them, `ok` where nothing is.
        groups: that were trained on, those of earlier rounds among them.
        kept: of these, of earlier rounds.
        score: mean of the scores that were trained on, over this round's own groups.
        outcomes: by scorer; the one that is trained on leads, the held-out one stands beside.
        untrained: the same of the first policy.
        kl_last_nats: KL(π‖the last round's policy), of the same samples.
        kl_last_interval: its 95 % interval.
        seconds: of each phase, every attempt counted.
    """

    number: int = 0
    policy: str = ""
    trained: str = ""
    references: list[str] = Field(default_factory=list)
    statuses: dict[str, int] = Field(default_factory=dict)
    groups: int = 0
    kept: int = 0
    score: float | None = None
    outcomes: list[Outcome] = Field(default_factory=list)
    untrained: list[Outcome] = Field(default_factory=list)
    kl_last_nats: float | None = None
    kl_last_interval: Interval | None = None
    seconds: dict[str, float] = Field(default_factory=dict)

    @property
    def kl_last(self) -> Estimate:
        """KL to the last round's policy with its interval."""
        return Estimate(self.kl_last_nats, *(self.kl_last_interval or (None, None)))

    @property
    def answered(self) -> int:
        """How many answers were sampled."""
        return sum(
            count for status, count in self.statuses.items() if not status.startswith("prompts")
        )


def round_directory(output: Path, number: int) -> Path:
    """Where a round is."""
    return output / f"round-{number}"


def read_round(output: Path, number: int) -> RoundRecord | None:
    """What a finished round measured; None of one that has not finished."""
    file = round_directory(output, number) / ROUND
    return RoundRecord.read(file) if file.exists() else None
