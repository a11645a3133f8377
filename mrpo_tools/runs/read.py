"""Run directories as plain values."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrpo_tools.config import read_yaml
from mrpo_tools.errors import UsageError
from mrpo_tools.progress import say
from mrpo_tools.runs.run import EVALUATION, METRICS, RECIPE, RUN, STATE, is_run


@dataclass(frozen=True)
class Result:
    """One finished run.

    Attributes:
        path: its directory.
        recipe: every key with its value.
        record: `run.json`: policy, references, what the combination was.
        metrics: `metrics.json`: what training took and where it ended.
        history: log entries by step, oldest first.
        evaluation: of one split; None where it was not evaluated.
    """

    path: Path
    recipe: dict[str, Any]
    record: dict[str, Any]
    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    evaluation: dict[str, Any] | None

    @property
    def seed(self) -> int:
        return int(self.recipe.get("seed") or 0)

    @property
    def reference_names(self) -> list[str]:
        """Reference 1 first, without the digits of identities."""
        return [name.partition("@")[0] for name in self.references]

    @property
    def references(self) -> list[str]:
        """`name@identity` of each reference, reference 1 first."""
        return list(self.record.get("references") or [])


def read_results(paths: Iterable[Path], split: str = "test") -> list[Result]:
    """Every finished run at or below the paths, in their order, each once.

    Runs that have not finished are left out with a warning.

    Raises:
        UsageError: a path is not there, holds no finished run, or one that cannot be read.
    """
    found: dict[Path, Result] = {}
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path} holds no run: it is not there", "mrpo train --output DIR")
        for directory in run_directories(path):
            place = directory.resolve()
            if place in found:
                continue
            if not (directory / METRICS).exists():
                say(f"warning: {directory} has not finished training; it is left out")
                continue
            found[place] = _read(directory, split)
    if not found:
        named = ", ".join(map(str, paths))
        raise UsageError(f"no finished run in {named}", "mrpo train --output DIR makes one")
    return list(found.values())


def run_directories(path: Path) -> list[Path]:
    """The path itself if it is a run, else every run below it, by name."""
    if is_run(path):
        return [path]
    return sorted(record.parent for record in path.rglob(RUN) if is_run(record.parent))


def plain_names(references: Iterable[str]) -> dict[str, str]:
    """`name@identity` to what people read: the name; with digits where two share it."""
    identities = sorted(set(references))
    names = [one.partition("@")[0] for one in identities]
    return {
        one: f"{name}@{one.partition('@')[2][:4]}" if names.count(name) > 1 else name
        for one, name in zip(identities, names, strict=True)
    }


def _read(path: Path, split: str) -> Result:
    evaluation = path / EVALUATION / f"{split}.json"
    state = path / STATE
    return Result(
        path,
        read_yaml(path / RECIPE),
        _json(path / RUN),
        _json(path / METRICS),
        _json(state).get("log_history", []) if state.exists() else [],
        _json(evaluation) if evaluation.exists() else None,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} is no JSON object")
    return values
