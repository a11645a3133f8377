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
from mrpo_tools.runs.run import EVALUATION, METRICS, RECIPE, RUN, STATE

NOT_MEASURED = ("histograms", "dataset")
DEFAULT_RUNS = Path("runs")

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
        pa.field("step", pa.int64()),
        pa.field("metric", pa.string()),
        pa.field("value", pa.float64()),
    ]
)

UNREADABLE = (
    OSError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError,
    pa.ArrowException, UsageError,
)  # fmt: skip
"""What a file that is no run's, or holds other kinds of values than a run's, raises."""


def run_datasets(runs: Path | str | None) -> dict[str, ds.Dataset]:
    """Runs and metrics below a directory, at any depth, or of a directory that is itself a run.

    A run is called by its path below that directory: `mrpo`, `sweep/mrpo/seed-0`.

    A run that cannot be read, or does not fit the two tables, is left out with a warning: it must
    not keep anybody from the cache.

    Args:
        runs: None means ./runs, which may be absent.

    Raises:
        UsageError: a directory was named and is not there.
    """
    root = DEFAULT_RUNS if runs is None else Path(runs)
    if runs is not None and not root.is_dir():
        raise UsageError(f"no directory {root} with runs", "--runs DIR")
    runs_found, metrics = [RUNS_SCHEMA.empty_table()], [METRICS_SCHEMA.empty_table()]
    for path in _directories(root):
        try:
            name = path.name if path == root else path.relative_to(root).as_posix()
            run, measured = _read(path, name)
        except UNREADABLE as error:
            say(f"warning: {path} is left out of the views runs and metrics: {error}")
            continue
        runs_found.append(run)
        metrics.append(measured)
    return {
        "stored_runs": ds.dataset(pa.concat_tables(runs_found)),
        "stored_metrics": ds.dataset(pa.concat_tables(metrics)),
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
    return sorted(path.parent for path in root.rglob(RUN))


def _read(path: Path, name: str) -> tuple[pa.Table, pa.Table]:
    """A run's row, and its metrics."""
    record = _json(path / RUN)
    references = record.get("references") or []
    if not isinstance(references, list):
        raise ValueError(f"references of {RUN} is no list")
    recipe = read_yaml(path / RECIPE) if (path / RECIPE).exists() else {}
    run = {
        "run": name,
        "path": str(path),
        "loss": recipe.get("loss"),
        "objective": record.get("objective"),
        "reference_names": references,
        "policy": (record.get("policy") or {}).get("model"),
        "dataset": (record.get("dataset") or {}).get("source"),
        "split": recipe.get("split"),
        "seed": recipe.get("seed"),
        "finished": (path / METRICS).exists(),
        "recipe": json.dumps(recipe, ensure_ascii=False),
        "record": json.dumps(record, ensure_ascii=False),
    }
    metrics = [
        {"run": name, "step": step, "metric": metric, "value": value}
        for step, metric, value in _measured(path)
    ]
    return (
        pa.Table.from_pylist([run], schema=RUNS_SCHEMA),
        pa.Table.from_pylist(metrics, schema=METRICS_SCHEMA),
    )


def _measured(path: Path) -> Iterator[tuple[int | None, str, float]]:
    """(step, name, number): of training's end, of evaluation as `evaluation.<split>.…`, of the log.

    Only entries of the log have a step. What is no measurement is left out.
    """
    if (path / METRICS).exists():
        for name, value in flatten(_json(path / METRICS)):
            yield None, name, value
    for split in sorted(path.glob(f"{EVALUATION}/*.json")):
        found = {key: one for key, one in _json(split).items() if key not in NOT_MEASURED}
        for name, value in flatten(found, f"{EVALUATION}.{split.stem}"):
            yield None, name, value
    if (path / STATE).exists():
        for entry in _json(path / STATE).get("log_history", []):
            step = entry.get("step")
            for name, value in flatten({key: one for key, one in entry.items() if key != "step"}):
                yield step, name, value


def _json(path: Path) -> dict[str, Any]:
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} is no JSON object")
    return values
