"""A run: the directory that training writes and that evaluation, reports and SQL read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from mrpo_tools.config import Dataset, Project, Recipe, Reference, parse, read_yaml
from mrpo_tools.errors import UsageError

RECIPE = "recipe.yaml"
RUN = "run.json"
METRICS = "metrics.json"
STATE = "trainer_state.json"
"""The log of training, step by step."""
EVALUATION = "evaluation"
"""Where a run keeps what `mrpo evaluate` found, a JSON file per split."""


@dataclass(frozen=True)
class Run:
    """What a run's directory says about it.

    Attributes:
        path: the directory.
        recipe: resolved; with `record` it determines the run.
        record: the policy, the references' identities, the data set, what the combination did.
    """

    path: Path
    recipe: Recipe
    record: dict[str, Any]

    @property
    def policy(self) -> Reference:
        """The policy before training, as a reference."""
        return Reference.model_validate(self.record["policy"])

    @property
    def trained_policy(self) -> Reference:
        """The policy after training, as a reference."""
        if (self.path / "adapter_config.json").exists():
            return self.policy.model_copy(update={"adapter": str(self.path)})
        return self.policy.model_copy(update={"model": str(self.path), "revision": None})

    @property
    def dataset(self) -> Dataset:
        return Dataset.model_validate(self.record["dataset"])

    @property
    def reference_stores(self) -> list[str]:
        """`name@identity` of each reference, reference 1 first."""
        return list(self.record["references"])


class Stage(Enum):
    """How far a run's directory has come."""

    EMPTY = "nothing is there"
    BEGUN = "no checkpoint yet"
    INTERRUPTED = "a checkpoint, and more steps to go"
    FINISHED = "trained and measured"


def stage_of(path: Path) -> Stage:
    """Where a run stands.

    Raises:
        UsageError: something other than a run is there.
    """
    if path.is_file():
        raise UsageError(f"{path} is a file; a run needs a directory")
    if not path.is_dir() or not any(path.iterdir()):
        return Stage.EMPTY
    if not (path / RECIPE).exists():
        raise UsageError(f"{path} is not empty and holds no run", "choose another --output")
    if (path / METRICS).exists():
        return Stage.FINISHED
    return Stage.INTERRUPTED if last_checkpoint(path) else Stage.BEGUN


def last_checkpoint(path: Path) -> str | None:
    """The latest checkpoint that was written to its end; a kill may leave a later one in part."""
    whole = [one for one in path.glob("checkpoint-*") if (one / STATE).exists()]
    latest = max(whole, key=lambda one: int(one.name.rpartition("-")[2]), default=None)
    return None if latest is None else str(latest)


def read_json(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def project_of(path: Path) -> Project:
    """The data, cache and models that a run began with."""
    record = read_json(path / RUN)
    return parse(
        Project,
        {name: record[key] for name, key in (("dataset", "dataset"), ("cache", "cache"),
                                             ("references", "models"))},
        str(path / RUN),
    )  # fmt: skip


def is_run(path: Path) -> bool:
    return (path / RUN).exists() and (path / RECIPE).exists()


def load_run(path: Path) -> Run:
    """Read a run's directory.

    Raises:
        UsageError: there is no run there, or it has not finished.
    """
    if not is_run(path):
        raise UsageError(
            f"{path} holds no run: it has no {RECIPE} and {RUN}",
            "mrpo train --output DIR makes one",
        )
    recipe = parse(Recipe, read_yaml(path / RECIPE), str(path / RECIPE))
    record = read_json(path / RUN)
    trained = [*path.glob("adapter_model*"), *path.glob("model*.safetensors")]
    if not trained:
        raise UsageError(f"{path} has not finished training", resume_command(path))
    return Run(path, recipe, record)


def resume_command(path: Path) -> str:
    """What finishes a run: its directory says everything else."""
    return f"mrpo train --resume --output {path}"


def save_recipe(path: Path, recipe: Recipe) -> None:
    """The resolved recipe, every key with its value."""
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    (path / RECIPE).write_text(text, encoding="utf-8")
