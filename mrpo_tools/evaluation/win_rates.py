"""Win rates as outcomes of runs: `RUN/outcomes/verdicts.json`, a row a judge and opponent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mrpo_tools.evaluation.contest import Bout, BoutResult, bout_result
from mrpo_tools.evaluation.contestants import Entered
from mrpo_tools.evaluation.outcomes import hash_prompts
from mrpo_tools.files import make_directory
from mrpo_tools.judging.ensure import Verdicts
from mrpo_tools.runs.outcomes import (
    VERDICTS,
    Outcome,
    OutcomesRecord,
    outcomes_file,
    read_outcomes,
)
from mrpo_tools.runs.record import Estimate
from mrpo_tools.runs.run import is_run


def keep_win_rates(
    words: Sequence[str], entry: Entered, bouts: Sequence[Bout], said: Sequence[Verdicts]
) -> list[Path]:
    """Write down, for each contestant that is a run, how it did; returns the files.

    What other judges said of the same prompts stays beside.

    Args:
        words: the contestants as the user named them; a run by its directory.
        entry: the contestants' answers, in the same order.
        bouts: of every two.
        said: by each judge.

    Raises:
        ResourceError: a file cannot be written.
        UsageError: one that is there cannot be read.
    """
    written = []
    for word, name in zip(words, entry.names, strict=True):
        run = Path(word)
        if not is_run(run):
            continue
        outcomes = [
            _outcome(row, name, each)
            for each in said
            for bout in bouts
            if name in ((row := bout_result(bout, entry.names, each.rows)).first, row.second)
        ]
        record = OutcomesRecord(
            split=VERDICTS, prompts_hash=hash_prompts(entry.prompts), outcomes=outcomes
        ).over(read_outcomes(run, VERDICTS))
        file = outcomes_file(run, VERDICTS)
        make_directory(file.parent)
        record.write(file)
        written.append(file)
    return written


def _outcome(row: BoutResult, name: str, verdicts: Verdicts) -> Outcome:
    """One side's win rate; ties are half a win, so the other side's is what is left of 1."""
    other, rate = row.second, row.win_rate
    if name == row.second:
        other, rate = row.first, _other_side(row.win_rate)
    return Outcome(
        scorer=f"{verdicts.judge.name} against {other}",
        kind="judge",
        mean=rate.value,
        prompts=row.prompts,
        identity=verdicts.judge.identity.hash,
        intervals={"mean": rate.interval},
    )


def _other_side(rate: Estimate) -> Estimate:
    ends = (rate.value, rate.high, rate.low)
    return Estimate(*(None if end is None else 1 - end for end in ends))
