"""The reader of run directories: which there are, and every number in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mrpo_tools.errors import UsageError
from mrpo_tools.progress import say
from mrpo_tools.runs.outcomes import OutcomesRecord, every_outcome
from mrpo_tools.runs.record import RUN, EvaluationRecord, Metrics, read_object
from mrpo_tools.runs.run import EVALUATION, METRICS, STATE, Run, is_finished, is_run, read_run

DATA_SPLIT = -1
"""In place of a split seed: the data's own split, the same for every run."""


@dataclass(frozen=True)
class LogEntry:
    """A line of a run's log.

    Attributes:
        step: of the optimizer; None where the entry is of no step.
        values: every number in it but the step, by name.
    """

    step: int | None
    values: dict[str, float]


class Replicate(NamedTuple):
    """One of a method's repeated runs: runs of two methods with the same one are a pair.

    Attributes:
        seed: of the training.
        split_seed: of the split, where the recipe draws one anew; else `DATA_SPLIT`.
    """

    seed: int
    split_seed: int = DATA_SPLIT


@dataclass(frozen=True)
class Result:
    """One finished run and what it measured.

    Attributes:
        run: what it was.
        metrics: what training took and where it ended.
        history: the log, oldest first.
        evaluation: of one split; None where it was not evaluated.
        outcomes: of the same split, and of benchmarks; None where nothing was generated.
    """

    run: Run
    metrics: Metrics
    history: list[LogEntry]
    evaluation: EvaluationRecord | None
    outcomes: OutcomesRecord | None = None

    @property
    def path(self) -> Path:
        """The run's directory."""
        return self.run.path

    @property
    def seed(self) -> int:
        """Of the recipe."""
        return self.run.recipe.seed

    @property
    def replicate(self) -> Replicate:
        """What is drawn anew in each run of a method."""
        split_seed = self.run.recipe.split_seed
        return Replicate(self.seed, DATA_SPLIT if split_seed is None else split_seed)

    @property
    def references(self) -> list[str]:
        """`name@identity` of each reference, reference 1 first."""
        return self.run.record.references

    @property
    def reference_names(self) -> list[str]:
        """Reference 1 first, without the digits of identities."""
        return [name.partition("@")[0] for name in self.references]


def read_results(paths: Iterable[Path], split: str = "test") -> list[Result]:
    """Every finished run at or below the paths, in their order, each once.

    Runs that have not finished are left out with a warning.

    Raises:
        UsageError: a path is not there, holds no finished run, or one that cannot be read.
    """
    results: dict[Path, Result] = {}
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path} holds no run: it is not there", "mrpo train --output DIR")
        for directory in run_directories(path):
            place = directory.resolve()
            if place in results:
                continue
            if not is_finished(directory):
                say(f"warning: {directory} has not finished training; it is left out")
                continue
            results[place] = read_result(directory, split)
    if not results:
        named = ", ".join(map(str, paths))
        raise UsageError(f"no finished run in {named}", "mrpo train --output DIR makes one")
    return list(results.values())


def run_directories(path: Path) -> list[Path]:
    """The path itself if it is a run, else every run below it, by name."""
    if is_run(path):
        return [path]
    return sorted(record.parent for record in path.rglob(RUN) if is_run(record.parent))


def read_result(path: Path, split: str) -> Result:
    """A finished run, with its evaluation on a split if there is one."""
    return Result(
        read_run(path),
        Metrics.read(path / METRICS),
        read_history(path),
        read_evaluation(path, split),
        every_outcome(path, split),
    )


def evaluation_file(path: Path, split: str) -> Path:
    """Where a run's evaluation on a split of its own data is."""
    return path / EVALUATION / f"{split}.json"


def read_evaluation(path: Path, split: str) -> EvaluationRecord | None:
    """A run's evaluation on a split of its own data; None where it was not evaluated."""
    file = evaluation_file(path, split)
    return EvaluationRecord.read(file) if file.exists() else None


def read_history(path: Path) -> list[LogEntry]:
    """The log of a run's training, oldest entry first; empty where there is none.

    Raises:
        UsageError: it cannot be read.
    """
    file = path / STATE
    if not file.exists():
        return []
    entries = read_object(file).get("log_history", [])
    try:
        return [_log_entry(entry) for entry in entries]
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from None


def _log_entry(entry: dict[str, Any]) -> LogEntry:
    step = entry.get("step")
    if not isinstance(step, int | None):
        raise ValueError(f"step {step!r} is no number")
    return LogEntry(step, dict(numbers({**entry, "step": None})))


def numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """(`outer.inner.0`, number) for each number in nested JSON; truth counts as 1 and 0."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from numbers(inner, f"{name}.{index}" if name else str(index))
    elif isinstance(value, (int, float)):
        yield name, float(value)


def plain_names(references: Iterable[str]) -> dict[str, str]:
    """`name@identity` to what people read: the name; with digits where two share it."""
    identities = sorted(set(references))
    names = [identity.partition("@")[0] for identity in identities]
    return {
        identity: f"{name}@{identity.partition('@')[2][:4]}" if names.count(name) > 1 else name
        for identity, name in zip(identities, names, strict=True)
    }
