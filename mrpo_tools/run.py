"""A run: the directory that training writes and that evaluation, reports and SQL read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mrpo_tools.config import Dataset, Recipe, Reference, parse, read_yaml
from mrpo_tools.errors import UsageError

RECIPE = "recipe.yaml"
RUN = "run.json"
METRICS = "metrics.json"


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
    record = json.loads((path / RUN).read_text(encoding="utf-8"))
    trained = [*path.glob("adapter_model*"), *path.glob("model*.safetensors")]
    if not trained:
        raise UsageError(
            f"{path} has not finished training", f"mrpo train --output {path} --resume"
        )
    return Run(path, recipe, record)


def save_recipe(path: Path, recipe: Recipe) -> None:
    """The resolved recipe, every key with its value."""
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    (path / RECIPE).write_text(text, encoding="utf-8")


def save_json(path: Path, values: object) -> None:
    """Readable JSON, replaced in one step."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)
