"""A run: the directory that training writes and that evaluation, reports and SQL read."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import yaml

from mrpo_tools.config import DEFAULT_CACHE, Project, Recipe, Reference, parse, read_yaml
from mrpo_tools.errors import UsageError
from mrpo_tools.files import write_whole
from mrpo_tools.runs.checkpoints import checkpoints, is_sealed
from mrpo_tools.runs.record import RECIPE, RUN, RunRecord

METRICS = "metrics.json"
"""Written last: a run that has it is finished."""
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
    record: RunRecord

    @property
    def finished(self) -> bool:
        """Whether it is trained to its end."""
        return is_finished(self.path)

    @property
    def trained_policy(self) -> Reference:
        """The policy after training, as a reference."""
        policy = self.record.policy
        if (self.path / "adapter_config.json").exists():
            return policy.model_copy(update={"adapter": str(self.path)})
        return policy.model_copy(update={"model": str(self.path), "revision": None})


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
    if is_finished(path):
        return Stage.FINISHED
    return Stage.INTERRUPTED if any(map(is_sealed, checkpoints(path))) else Stage.BEGUN


def is_run(path: Path) -> bool:
    """Whether a directory holds a run, however far it has come."""
    return (path / RUN).is_file() and (path / RECIPE).is_file()


def is_finished(path: Path) -> bool:
    """Whether a directory's run is trained to its end."""
    return (path / METRICS).exists()


def read_run(path: Path) -> Run:
    """What a run's directory says, however far it has come.

    Raises:
        UsageError: there is no run there, or its recipe or record cannot be read.
    """
    if not is_run(path):
        raise UsageError(
            f"{path} holds no run: it has no {RECIPE} and {RUN}",
            "mrpo train --output DIR makes one",
        )
    return Run(path, read_recipe(path), RunRecord.read(path / RUN))


def load_run(path: Path) -> Run:
    """Read a run whose trained policy is to be used.

    Raises:
        UsageError: there is no run there, or it has not finished, or its weights are gone.
    """
    run = read_run(path)
    if not run.finished:
        raise UsageError(f"{path} has not finished training", resume_command(path))
    if not (any(path.glob("adapter_model*")) or any(path.glob("model*.safetensors"))):
        raise UsageError(f"{path} has lost its weights", "mrpo train --output DIR makes them anew")
    return run


def project_of(path: Path) -> Project:
    """The data, cache and models that a run began with."""
    record = RunRecord.read(path / RUN)
    cache = record.cache or DEFAULT_CACHE
    return Project(dataset=record.dataset, cache=cache, references=record.models)


def resume_command(path: Path) -> str:
    """What finishes a run: its directory says everything else."""
    return f"mrpo train --resume --output {path}"


def read_recipe(path: Path) -> Recipe:
    """The resolved recipe of a run's directory.

    Raises:
        UsageError: it cannot be read, or is none.
    """
    return parse(Recipe, read_yaml(path / RECIPE), str(path / RECIPE))


def save_recipe(path: Path, recipe: Recipe) -> None:
    """The resolved recipe, every key with its value."""
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_whole(path / RECIPE, text.encode())
