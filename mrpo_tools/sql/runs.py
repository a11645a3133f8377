"""Run directories as two tables: what each run was, and what it measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from mrpo_tools.config import read_yaml
from mrpo_tools.errors import UsageError
from mrpo_tools.progress import say
from mrpo_tools.run import METRICS, RECIPE, RUN

DEFAULT_RUNS = Path("runs")
EVALUATION = "evaluation"
"""Where a run keeps what `mrpo evaluate` found, a JSON file per split."""

RUNS_SCHEMA = pa.schema(
    [
        pa.field("run", pa.string()),
        pa.field("path", pa.string()),
        pa.field("loss", pa.string()),
        pa.field("objective", pa.string()),
        pa.field("reference_names", pa.list_(pa.string())),
        pa.field("policy", pa.string()),
        pa.field("dataset", pa.string()),
        pa.field("split", pa.string()),
        pa.field("seed", pa.int64()),
        pa.field("finished", pa.bool_()),
        pa.field("recipe", pa.string()),
        pa.field("record", pa.string()),
    ]
)
METRICS_SCHEMA = pa.schema(
    [
        pa.field("run", pa.string()),
        pa.field("metric", pa.string()),
        pa.field("value", pa.float64()),
    ]
)


def run_datasets(runs: Path | str | None) -> dict[str, ds.Dataset]:
    """Runs and metrics below a directory, or of a directory that is itself a run.

    A run whose JSON cannot be read is left out with a warning: it must not keep anybody from the
    cache.

    Args:
        runs: None means ./runs, which may be absent.

    Raises:
        UsageError: a directory was named and is not there.
    """
    root = DEFAULT_RUNS if runs is None else Path(runs)
    if runs is not None and not root.is_dir():
        raise UsageError(f"no directory {root} with runs", "--runs DIR")
    found: list[dict[str, Any]] = []
    metrics: list[dict[str, Any]] = []
    for path in _directories(root):
        try:
            run, measured = _read(path)
        except (OSError, ValueError, AttributeError, UsageError) as error:
            say(f"warning: {path} is left out of the views runs and metrics: {error}")
            continue
        found.append(run)
        metrics += measured
    return {
        "stored_runs": ds.dataset(pa.Table.from_pylist(found, schema=RUNS_SCHEMA)),
        "stored_metrics": ds.dataset(pa.Table.from_pylist(metrics, schema=METRICS_SCHEMA)),
    }


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """(`outer.inner.0`, number) for each number in nested JSON; truth counts as 1 and 0."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flatten(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from flatten(inner, f"{name}.{index}" if name else str(index))
    elif isinstance(value, (int, float)):
        yield name, float(value)


def _directories(root: Path) -> list[Path]:
    if (root / RUN).is_file():
        return [root]
    return sorted(path.parent for path in root.glob(f"*/{RUN}"))


def _read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    record = _json(path / RUN)
    recipe = read_yaml(path / RECIPE) if (path / RECIPE).exists() else {}
    run = {
        "run": path.name,
        "path": str(path),
        "loss": recipe.get("loss"),
        "objective": record.get("objective"),
        "reference_names": record.get("references") or [],
        "policy": (record.get("policy") or {}).get("model"),
        "dataset": (record.get("dataset") or {}).get("source"),
        "split": recipe.get("split"),
        "seed": recipe.get("seed"),
        "finished": (path / METRICS).exists(),
        "recipe": json.dumps(recipe, ensure_ascii=False),
        "record": json.dumps(record, ensure_ascii=False),
    }
    return run, [
        {"run": path.name, "metric": metric, "value": value} for metric, value in _measured(path)
    ]


def _measured(path: Path) -> Iterator[tuple[str, float]]:
    """Numbers of training by their own names, those of evaluation as `evaluation.<split>.…`."""
    if (path / METRICS).exists():
        yield from flatten(_json(path / METRICS))
    for split in sorted(path.glob(f"{EVALUATION}/*.json")):
        yield from flatten(_json(split), f"{EVALUATION}.{split.stem}")


def _json(path: Path) -> dict[str, Any]:
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} is no JSON object")
    return values
