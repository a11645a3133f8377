"""A cache opened for queries."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from mrpo_tools.cache import Cache
from mrpo_tools.errors import MrpoError, UsageError
from mrpo_tools.sql import macros, names, rows, sandbox, stored, views
from mrpo_tools.sql.runs import run_datasets

DEFAULT_MEMORY = "2GB"
DEFAULT_TIMEOUT = 60.0
BATCH_ROWS = 65536
Params = Mapping[str, object]
"""The value of each `$name`."""
ResultT = TypeVar("ResultT")
_SHOW_TABLES = re.compile(r"\s*SHOW\s+(ALL\s+)?TABLES\s*;?\s*", re.IGNORECASE)
_NAMES = names.text_list([view.name for view in views.VIEWS])
_VIEW_NAMES = f"SELECT unnest({_NAMES}) AS name ORDER BY name"


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
        counted: pa.Table | None = None,
    ) -> None:
        self.stuck = False
        self._counted = counted
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
        params: Params | None = None,
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
        params: Params | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> pa.RecordBatchReader:
        """The result batch by batch; the next query ends it.

        Raises:
            As `query`; errors may also come while batches are read.
        """
        if self.stuck:
            raise UsageError("an earlier query could not be stopped", "open the cache again")
        if not timeout > 0:
            raise UsageError(f"a timeout of {timeout:g} seconds leaves no time", "--timeout 60")
        self._end_query()
        watch = sandbox.Watch(self._connection.interrupt, timeout, self._memory_bytes)
        schema = self._guarded(watch, lambda: self._start(sql, params or {}))
        return pa.RecordBatchReader.from_batches(schema, self._batches(watch, self._turn))

    def _start(self, sql: str, params: Params) -> pa.Schema:
        if _SHOW_TABLES.fullmatch(sql):  # the engine's own answer lists what the views read, too
            sql = _VIEW_NAMES
        names_of_macros = frozenset(macro.name for macro in macros.MACROS)
        statement = sandbox.check_statement(self._connection, sql, names_of_macros)
        _check_params(statement.params, params)
        if statement.macros:
            self._read_judgements()
        self._connection.execute("BEGIN TRANSACTION READ ONLY")
        relation = self._connection.sql(statement.sql, params=dict(params) or None)
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

    def _guarded(self, watch: sandbox.Watch, work: Callable[[], ResultT]) -> ResultT:
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
            self._connection.register(
                "stored_judgements", stored.judgements(self._groups, self._counted)
            )
            self._groups = None


def open_sql(
    cache_path: Path | str,
    runs: Path | str | None = None,
    memory_limit: int | str = DEFAULT_MEMORY,
    references: Sequence[str] | None = None,
    score: str | None = None,
) -> Database:
    """Open a cache for queries, every file verified.

    Args:
        cache_path: the cache's directory.
        runs: directory of run directories; None means ./runs, if there is one.
        memory_limit: for a query, `1GB` or bytes.
        references: the ones to load, reference 1 first; None means all, by name. Their order is
            the macros' default.
        score: the scorer whose scores stand in place of the data's scores and labels, in
            `responses` and in the macros; None for the data's own.

    Raises:
        CacheMissing: no cache there, or no such reference or scorer in it.
        CacheDamaged: names every file whose bytes are not those that were written.
    """
    cache = Cache(cache_path)
    memory_bytes = sandbox.parse_bytes(memory_limit)
    stores = cache.references()
    if references is not None:
        stores = list({str(store): store for store in map(cache.find, references)}.values())
    verified = stored.files(cache, stores)
    counted = None
    if score is not None:
        wanted, scorers = str(cache.find_scores(score)), cache.scorers()
        label = dict(zip(map(str, scorers), names.labels(scorers), strict=True))[wanted]
        counted = stored.counting(verified.scores, label)
    connection = sandbox.connect(memory_bytes)
    tables = stored.datasets(verified, stores) | run_datasets(runs)
    if counted is not None:
        tables["stored_counting"] = ds.dataset(counted)
    for name, dataset in tables.items():
        connection.register(name, dataset)
    labels = names.labels(stores)
    for statement in (
        *views.view_statements(labels, counted=counted is not None),
        *macros.macro_statements(labels, names.spellings(stores)),
    ):
        connection.execute(statement)
    sandbox.lock(connection)
    return Database(connection, verified.groups, memory_bytes, counted)


def _check_params(wanted: set[str], params: Params) -> None:
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
