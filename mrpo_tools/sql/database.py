"""A cache opened for queries."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from mrpo_tools.cache import GROUPS_SCHEMA, LOGPS_SCHEMA, Cache, ReferenceStore
from mrpo_tools.errors import CacheDamaged, MrpoError, UsageError
from mrpo_tools.sql import macros, names, rows, sandbox, views
from mrpo_tools.sql.runs import run_tables

DEFAULT_MEMORY = "1GB"
DEFAULT_TIMEOUT = 60.0
BATCH_ROWS = 65536

REFS_SCHEMA = pa.schema(
    [
        pa.field("place", pa.int64()),
        pa.field("reference", pa.string()),
        pa.field("name", pa.string()),
        pa.field("identity", pa.string()),
        pa.field("model", pa.string()),
        pa.field("revision", pa.string()),
        pa.field("dtype", pa.string()),
        pa.field("quantization", pa.string()),
        pa.field("max_length", pa.int64()),
        pa.field("parts", pa.int64()),
        pa.field("bytes", pa.int64()),
        pa.field("created", pa.timestamp("s")),
        pa.field("updated", pa.timestamp("s")),
    ]
)
_GROUP_FIELDS = [GROUPS_SCHEMA.field(n) for n in ("group_id", "prompt_id", "dataset", "split")]
_JUDGEMENT = pa.struct(
    [
        pa.field("response_id", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("chosen", pa.bool_()),
    ]
)
_LEAVES = [field.name for field in _GROUP_FIELDS] + [
    f"responses.list.element.{field.name}" for field in _JUDGEMENT
]
_JUDGED = f"""
CREATE VIEW {macros.JUDGED} AS
SELECT grp, group_id, prompt_id, dataset, split, responses, len(responses)::INTEGER AS size,
       list_bool_and(list_transform(responses, lambda r: r.chosen IS NOT NULL)) AS labelled,
       list_bool_and(list_transform(responses, lambda r: r.score IS NOT NULL)) AS scored
FROM stored_judgements"""


class Database:
    """A cache's views and macros; read-only, one query at a time.

    Every byte of every file has been checked by the time this exists; what other processes add to
    the cache later is not seen.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        groups: rows.Files,
        memory_bytes: int,
    ) -> None:
        self.stuck = False
        self._connection, self._memory_bytes = connection, memory_bytes
        self._groups: rows.Files | None = groups
        self._reader: pa.RecordBatchReader | None = None
        self._turn = 0

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give memory back; a query that cannot be stopped keeps its own."""
        if not self.stuck:
            self._end_query()
            self._connection.close()

    def query(
        self,
        sql: str,
        params: Mapping[str, Any] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> pa.Table:
        """The whole result, held in memory.

        Args:
            sql: one SELECT, or EXPLAIN of one.
            params: values for `$name`.
            timeout: seconds.

        Raises:
            UsageError: the statement is refused or wrong; DuckDB's first line says why.
            ResourceError: it needs more memory than was allowed.
            MrpoError: it took longer than `timeout`.
        """
        return self.stream(sql, params, timeout).read_all()

    def stream(
        self,
        sql: str,
        params: Mapping[str, Any] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> pa.RecordBatchReader:
        """The result batch by batch; the next query ends it.

        Raises:
            As `query`; errors may also come while batches are read.
        """
        if self.stuck:
            raise UsageError("an earlier query could not be stopped", "open the cache again")
        self._end_query()
        watch = sandbox.Watch(self._connection.interrupt, timeout, self._memory_bytes)
        schema = self._guarded(watch, lambda: self._start(sql, dict(params or {})))
        return pa.RecordBatchReader.from_batches(schema, self._batches(watch, self._turn))

    def _start(self, sql: str, params: dict[str, Any]) -> pa.Schema:
        known = frozenset(macro.name for macro in macros.MACROS)
        statement, wanted, called = sandbox.check_statement(self._connection, sql, known)
        _check_params(wanted, params)
        if called:
            self._read_judgements()
        self._connection.execute("BEGIN TRANSACTION READ ONLY")
        relation = self._connection.sql(statement, params=params or None)
        self._reader = relation.to_arrow_reader(BATCH_ROWS)
        return self._reader.schema

    def _batches(self, watch: sandbox.Watch, turn: int) -> Iterator[pa.RecordBatch]:
        while True:
            if turn != self._turn:
                raise UsageError("this result ended when the next query began")
            batch = self._guarded(watch, self._next_batch)
            if batch is None:
                return
            yield batch

    def _next_batch(self) -> pa.RecordBatch | None:
        return None if self._reader is None else next(self._reader, None)

    def _guarded(self, watch: sandbox.Watch, work: Callable[[], Any]) -> Any:
        """Run `work` within the limits, its errors told in the project's own words."""
        try:
            return watch.call(work)
        except (duckdb.Error, pa.ArrowException, OSError, MemoryError, RuntimeError) as error:
            raise _translated(error, self._memory_bytes) from None
        finally:
            self.stuck = watch.stuck

    def _end_query(self) -> None:
        self._turn += 1
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        with contextlib.suppress(duckdb.TransactionException):  # there may be none
            self._connection.execute("ROLLBACK")

    def _read_judgements(self) -> None:
        """The groups without their text, once, for the macros."""
        if self._groups is not None:
            self._connection.register("stored_judgements", _judgements(self._groups))
            self._groups = None


def open_sql(
    cache_path: Path | str,
    runs: Path | str | None = None,
    memory_limit: int | str = DEFAULT_MEMORY,
    references: Sequence[str] | None = None,
) -> Database:
    """Open a cache for queries, every file verified.

    Args:
        cache_path: the cache's directory.
        runs: directory of run directories; None means ./runs, if there is one.
        memory_limit: for a query, `1GB` or bytes.
        references: the ones to load, reference 1 first; None means all, by name. Their order is
            the macros' default.

    Raises:
        CacheMissing: no cache there, or no such reference in it.
        CacheDamaged: names every file whose bytes are not those that were written.
    """
    cache = Cache(cache_path)
    memory_bytes = sandbox.parse_bytes(memory_limit)
    stores = cache.references()
    if references is not None:
        stores = [cache.find(wanted) for wanted in references]
    groups = _group_files(cache)
    parts = [_part_files(store) for store in stores]
    connection = sandbox.connect(memory_bytes)
    tables = {
        "stored_groups": groups.dataset(),
        "stored_judgements": _judgements(None),
        "stored_logps_none": ds.dataset(LOGPS_SCHEMA.empty_table()),
        "stored_refs": ds.dataset(_refs_table(stores, parts)),
        **{f"stored_logps_{place}": files.dataset() for place, files in enumerate(parts)},
        **_run_datasets(runs),
    }
    for name, dataset in tables.items():
        connection.register(name, dataset)
    labels = names.labels(stores)
    for statement in (
        *views.view_statements(labels),
        _JUDGED,
        *macros.macro_statements(labels, names.spellings(stores)),
    ):
        connection.execute(statement)
    sandbox.lock(connection)
    return Database(connection, groups, memory_bytes)


def _group_files(cache: Cache) -> rows.Files:
    """Saved groups, the latest file first; a group in several files counts where it is latest."""

    def paths() -> list[Path]:
        return sorted(cache.groups_path.glob("*.parquet"), key=lambda path: path.name)

    def latest_first(file: rows.Stored) -> tuple[float, str]:
        return -file.modified, file.path.name

    files = sorted(rows.verified(paths, GROUPS_SCHEMA), key=latest_first)
    return rows.first_of_each(files, GROUPS_SCHEMA, "group_id")


def _part_files(store: ReferenceStore) -> rows.Files:
    """A reference's parts, the earliest first; of rows present twice the earliest counts."""
    identity = store.identity.hash
    files = rows.verified(store.part_paths, LOGPS_SCHEMA)
    foreign = [file for file in files if file.metadata.get("mrpo.identity") != identity]
    if foreign:
        raise CacheDamaged(
            "\n".join(f"{file.path} belongs to another reference's identity" for file in foreign),
            "mrpo cache repair",
        )
    ordered = sorted(files, key=lambda file: (_created(file), file.path.name))
    return rows.first_of_each(ordered, LOGPS_SCHEMA, "response_id")


def _created(file: rows.Stored) -> float:
    return float(file.metadata["mrpo.created"])


def _refs_table(stores: Sequence[ReferenceStore], parts: Sequence[rows.Files]) -> pa.Table:
    labels = names.labels(stores)
    return pa.Table.from_pylist(
        [
            {"place": place, "reference": labels[place], **_ref_row(store, files)}
            for place, (store, files) in enumerate(zip(stores, parts, strict=True))
        ],
        schema=REFS_SCHEMA,
    )


def _ref_row(store: ReferenceStore, files: rows.Files) -> dict[str, Any]:
    fields = store.identity.fields
    times = [int(_created(file)) for file in files.files]
    recorded = json.loads(files.files[-1].metadata["mrpo.recorded"]) if files.files else {}
    return {
        "name": store.name,
        "identity": store.short,
        "model": fields.get("model") or (recorded.get("reference") or {}).get("model"),
        "revision": fields.get("revision"),
        "dtype": fields.get("dtype"),
        "quantization": fields.get("quantization"),
        "max_length": fields.get("max_length"),
        "parts": len(files.files),
        "bytes": sum(file.content.size for file in files.files),
        "created": min(times, default=None),
        "updated": max(times, default=None),
    }


def _run_datasets(runs: Path | str | None) -> dict[str, ds.Dataset]:
    run_table, metric_table = run_tables(None if runs is None else Path(runs))
    return {"stored_runs": ds.dataset(run_table), "stored_metrics": ds.dataset(metric_table)}


def _judgements(groups: rows.Files | None) -> ds.Dataset:
    """Ids, scores and labels of groups, numbered; without groups an empty table like it."""
    if groups is None or not groups.files:
        leaves = pa.schema([*_GROUP_FIELDS, pa.field("responses", pa.list_(_JUDGEMENT))])
        table = leaves.empty_table()
    else:
        table = groups.leaves(_LEAVES)
    return ds.dataset(
        table.append_column("grp", pa.array(np.arange(table.num_rows, dtype=np.int32)))
    )


def _check_params(wanted: set[str], params: Mapping[str, Any]) -> None:
    missing, unknown = sorted(wanted - params.keys()), sorted(params.keys() - wanted)
    if missing:
        listed = ", ".join(f"${name}" for name in missing)
        raise UsageError(f"the query needs a value for {listed}", f"--param {missing[0]}=VALUE")
    if unknown:
        listed = ", ".join(f"${name}" for name in unknown)
        used = ", ".join(f"${name}" for name in sorted(wanted)) or "none"
        raise UsageError(f"the query has no parameter {listed} (it has: {used})")


def _translated(error: Exception, memory_bytes: int) -> MrpoError:
    """DuckDB's first line, and its suggestion as the hint."""
    if isinstance(error, (duckdb.OutOfMemoryException, MemoryError)):
        return sandbox.out_of_memory(memory_bytes)
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if "Out of Memory Error" in lines[0]:
        return sandbox.out_of_memory(memory_bytes)
    hints = [line for line in lines[1:] if line.startswith(("Did you mean", "Candidate"))]
    return UsageError(lines[0], hints[0] if hints else None)
