"""Run directories as two tables: what each run was, and what it measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds

from mrpo_tools.errors import UsageError
from mrpo_tools.progress import say
from mrpo_tools.runs.outcomes import OUTCOMES, Outcome, OutcomesRecord
from mrpo_tools.runs.read import numbers, read_history, run_directories
from mrpo_tools.runs.record import EvaluationRecord, Metrics, Record
from mrpo_tools.runs.run import EVALUATION, METRICS, Run, read_run

NOT_MEASURED = ("version", "histograms", "dataset")
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
    UsageError, OSError, ValueError, ArithmeticError, RecursionError, pa.ArrowException,
)  # fmt: skip
"""What a directory raises that cannot be read, or whose values fit no column."""


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
    run_tables, metric_tables = [RUNS_SCHEMA.empty_table()], [METRICS_SCHEMA.empty_table()]
    for path in run_directories(root):
        name = path.name if path == root else path.relative_to(root).as_posix()
        try:
            run, metrics = _run_table(read_run(path), name), _metrics_table(path, name)
        except UNREADABLE as error:
            problems = str(error).replace("\n", "; ")
            say(f"warning: {path} is left out of the views runs and metrics: {problems}")
            continue
        run_tables.append(run)
        metric_tables.append(metrics)
    return {
        "stored_runs": ds.dataset(pa.concat_tables(run_tables)),
        "stored_metrics": ds.dataset(pa.concat_tables(metric_tables)),
    }


def _run_table(run: Run, name: str) -> pa.Table:
    """One row."""
    recipe, record = run.recipe, run.record
    row = {
        "run": name,
        "path": str(run.path),
        "loss": recipe.loss,
        "objective": record.objective,
        "reference_names": record.references,
        "policy": record.policy.model,
        "dataset": record.dataset.source if record.dataset else None,
        "split": recipe.split,
        "seed": recipe.seed,
        "finished": run.finished,
        "recipe": json.dumps(recipe.model_dump(mode="json"), ensure_ascii=False),
        "record": json.dumps(record.as_json(), ensure_ascii=False),
    }
    return pa.Table.from_pylist([row], schema=RUNS_SCHEMA)


def _metrics_table(path: Path, name: str) -> pa.Table:
    """A row for each number."""
    rows = [
        {"run": name, "step": step, "metric": metric, "value": value}
        for step, metric, value in _measured(path)
    ]
    return pa.Table.from_pylist(rows, schema=METRICS_SCHEMA)


def _measured(path: Path) -> Iterator[tuple[int | None, str, float]]:
    """(step, name, number): of training's end, of evaluation as `evaluation.<split>.…`, of outcomes
    as `outcomes.<split>.<scorer> <decoding>.…`, of the log.

    Only entries of the log have a step. What is no measurement is left out.
    """
    records: list[tuple[str, Record]] = []
    if (path / METRICS).exists():
        records.append(("", Metrics.read(path / METRICS)))
    for file in sorted(path.glob(f"{EVALUATION}/*.json")):
        records.append((f"{EVALUATION}.{file.stem}", EvaluationRecord.read(file)))
    for prefix, record in records:
        values = {key: inner for key, inner in record.as_json().items() if key not in NOT_MEASURED}
        for metric, value in numbers(values, prefix):
            yield None, metric, value
    for file in sorted(path.glob(f"{OUTCOMES}/*.json")):
        outcomes = OutcomesRecord.read(file)
        prefix = f"{OUTCOMES}.{file.stem}"
        yield from _of_outcomes(prefix, outcomes.outcomes)
        yield from _of_outcomes(f"{prefix}.untrained", outcomes.untrained)
    for entry in read_history(path):
        for metric, value in entry.values.items():
            yield entry.step, metric, value


def _of_outcomes(prefix: str, outcomes: Iterable[Outcome]) -> Iterator[tuple[None, str, float]]:
    """Every number of each outcome."""
    for outcome in outcomes:
        for metric, value in numbers(outcome.model_dump(mode="json"), f"{prefix}.{outcome.key}"):
            yield None, metric, value
