"""The study's results: one JSON file with every run, and the frontiers read from it."""

from __future__ import annotations

import datetime
import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from arms import FILE as ARMS
from arms import SPLIT_FILE as SPLIT_ARMS
from arms import Arms, load_arms
from contrasts import Scores
from frontier import Point, score_at

from mrpo_tools.cache import library_versions

FILE = Path(__file__).parent.parent.parent / "docs" / "study.json"
UNTRAINED, COOLED = "untrained", "cooled"
DESIGNS = {"first": (".", ARMS), "split": ("split", SPLIT_ARMS)}
"""Where the results of each design lie below the working directory, and its arms."""
KLS = (1.0, 3.0)
"""Nats an answer, at which arms are compared."""
FALLEN = 0.5
"""Points of ten below the untrained policy, at which a run has diverged."""


def collect(work: Path, file: Path = FILE) -> None:
    """Every result below a working directory, as one file."""
    parts = [json.dumps(_about(), indent=1)[:-2]]
    for name, (folder, _) in DESIGNS.items():
        runs = [
            json.loads(path.read_text(encoding="utf-8"))
            for path in sorted((work / folder).glob("replicate-*/results/*.json"))
        ]
        rows = ",\n".join(json.dumps(run) for run in runs)
        parts.append(f' "{name}": [\n{rows}\n]')
    file.write_text(",\n".join(parts) + "\n}\n", encoding="utf-8")


def _about() -> dict[str, str]:
    return {
        "command": "python bench/study/run.py WORK; python bench/study/run.py WORK "
        "--split-beliefs --replicates 6; python bench/study/analyse.py WORK",
        "date": datetime.date.today().isoformat(),
        "versions": ", ".join(f"{name} {version}" for name, version in library_versions().items()),
    }


@dataclass(frozen=True)
class Study:
    """All runs of all replicates.

    Attributes:
        arms: what was trained.
        runs: as they were written.
        about: command, date and versions.
    """

    arms: Arms
    runs: Sequence[Mapping[str, Any]]
    about: Mapping[str, str]

    @cached_property
    def seeds(self) -> list[int]:
        """The replicates, those that have begun too."""
        return sorted({run["seed"] for run in self.runs})

    def of_arm(self, arm: str) -> list[Mapping[str, Any]]:
        """The runs of an arm, by replicate and learning rate."""
        mine = (run for run in self.runs if run["arm"] == arm)
        return sorted(mine, key=lambda run: (run["seed"], run["learning_rate"]))

    def points(self, arm: str, seed: int) -> list[Point] | None:
        """An arm's start and its runs in a replicate; None where a run is still to be made.

        A run that ended with an error has no point.
        """
        runs = [run for run in self.of_arm(arm) if run["seed"] == seed]
        settings = self.arms.temperatures if arm == COOLED else self.arms.rates
        if len(runs) < len(settings):
            return None
        begins = (UNTRAINED, 0.0)
        if self.arms.is_round_two(arm):
            begins = self.arms.round_one
        starts = [
            run for run in self.of_arm(begins[0])
            if run["seed"] == seed and run["learning_rate"] == begins[1]
        ]  # fmt: skip
        return [Point(run["kl"], run["score"]) for run in [*starts, *runs] if "score" in run]

    def finished(self, arm: str) -> list[int]:
        """The replicates in which every run of an arm is made."""
        return [seed for seed in self.seeds if self.points(arm, seed) is not None]

    def scores(self, arm: str, kl: float) -> Scores:
        """An arm's score at a KL, by replicate; without those in which it does not come so far."""
        at = {seed: score_at(self.points(arm, seed) or [], kl) for seed in self.finished(arm)}
        return {seed: score for seed, score in at.items() if score is not None}

    def start(self, seed: int) -> float:
        """The untrained policy's score."""
        [run] = [run for run in self.of_arm(UNTRAINED) if run["seed"] == seed]
        return float(run["score"])

    def diverged(self, arms: Iterable[str], seeds: Container[int]) -> tuple[int, int]:
        """How many runs of some arms diverged in some replicates, and how many there are."""
        runs = [run for arm in arms for run in self.of_arm(arm) if run["seed"] in seeds]
        fallen = [
            run for run in runs
            if "score" not in run or run["score"] < self.start(run["seed"]) - FALLEN
        ]  # fmt: skip
        return len(fallen), len(runs)


def read_study(design: str = "first", file: Path = FILE) -> Study:
    """One of the designs, as it was collected."""
    values = json.loads(file.read_text(encoding="utf-8"))
    _, arms = DESIGNS[design]
    about = {key: value for key, value in values.items() if key not in DESIGNS}
    return Study(load_arms(arms), values[design], about)
