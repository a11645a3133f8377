"""What a query may do: read the views, within a limit of time and of memory.

Four walls, each of which holds alone against most attacks: DuckDB's own settings (no files, no
network, no extensions, no Python variables, configuration locked), a look at the parsed statement
(DuckDB calls `WITH x AS (COPY … TO …) SELECT` a SELECT), a read-only transaction, and a watch that
ends a query which outgrows its limits.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import duckdb
import psutil

from mrpo_tools.errors import MrpoError, ResourceError, UsageError

LONGEST_QUERY = 200_000
"""Characters. Parsing takes kilobytes of memory for each."""

READING_NODES = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})
TABLE_FUNCTIONS = frozenset(
    {"range", "generate_series", "unnest", "json_each", "json_tree", "repeat", "repeat_row"}
)
"""Table functions beside the project's macros; none of them sees anything but its arguments."""

SETTINGS = (
    ("secret_directory", ""),
    ("temp_directory", ""),
    ("max_temp_directory_size", "0B"),
    ("python_enable_replacements", "false"),
    ("autoinstall_known_extensions", "false"),
    ("autoload_known_extensions", "false"),
    ("allow_community_extensions", "false"),
    ("enable_external_access", "false"),
)

GRACE_SECONDS = 2.0
POLL_SECONDS = 0.02
SLACK_BYTES = 128 * 2**20

_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)
_EXPLAIN = re.compile(r"\s*EXPLAIN\s+(ANALYZE\s+)?", re.IGNORECASE)

ResultT = TypeVar("ResultT")


def connect(memory_bytes: int) -> duckdb.DuckDBPyConnection:
    """An in-memory database that sees nothing but what is registered with it."""
    connection = duckdb.connect(":memory:")
    for setting, value in (("memory_limit", f"{memory_bytes}B"), *SETTINGS):
        connection.execute(f"SET {setting} = '{value}'")
    return connection


def lock(connection: duckdb.DuckDBPyConnection) -> None:
    """From here on no statement changes a setting."""
    connection.execute("SET lock_configuration = true")


def parse_bytes(size: int | str) -> int:
    """Bytes of `2GB`, `512MiB` or a number.

    Raises:
        UsageError: not a size, or too little for any query.
    """
    parts = _SIZE.fullmatch(str(size).strip())
    if not parts:
        raise UsageError(f"memory limit {size!r} is no size", "for example 2GB or 512MB")
    number, unit, binary = parts.groups()
    wanted = float(number) * (1024 if binary else 1000) ** _POWERS[unit.upper()]
    if wanted < 2**24:
        raise UsageError(f"a memory limit of {size} is too little for any query", "try 1GB")
    return int(wanted)


@dataclass(frozen=True)
class Statement:
    """A query that may run.

    Attributes:
        sql: what to execute.
        params: names of its parameters.
        macros: those of the project's macros that it calls.
    """

    sql: str
    params: set[str]
    macros: set[str]


def check_statement(
    connection: duckdb.DuckDBPyConnection, sql: str, macros: frozenset[str]
) -> Statement:
    """Refuse everything but one SELECT, or EXPLAIN of one.

    Args:
        connection: parses; nothing is executed.
        sql: what the user wrote.
        macros: table macros that may be called.

    Raises:
        UsageError: two statements, none, one that is no SELECT, one that writes inside a common
            table expression, or a table function that could reach outside.
    """
    if any("\ud800" <= char <= "\udfff" for char in sql):
        raise UsageError("the query is not Unicode text", "save it as UTF-8")
    if len(sql) > LONGEST_QUERY:
        raise UsageError(
            f"the query has {len(sql):,} characters; at most {LONGEST_QUERY:,} are read",
            "move long lists into a join",
        )
    statement = _single(connection, sql)
    prefix, inner = "", sql
    if _kind(statement) == "EXPLAIN":
        prefix, inner = _split_explain(sql)
        statement = _single(connection, inner)
    if _kind(statement) != "SELECT":
        raise _refused(f"this is {_kind(statement)}")
    nodes, functions = _look_inside(connection, inner)
    for node in sorted(nodes - READING_NODES):
        raise _refused(f"a common table expression holds {node.partition('_')[0]}")
    for function in sorted(functions - TABLE_FUNCTIONS - macros):
        raise UsageError(
            f"the table function {function} is not available: a query reads the cache's views "
            "and nothing else",
            "mrpo sql lists views and macros",
        )
    return Statement(prefix + inner, set(statement.named_parameters), functions & macros)


class Watch:
    """Runs a query's calls in a thread of their own and ends them at a limit.

    DuckDB's own memory limit misses what a single function allocates (`repeat`, `lpad`), and its
    interrupt is not heard inside one; so time and the process's memory are watched from outside.
    What the caller computes between the calls counts too (writing a long result takes longer than
    finding it), but not what it waits for (a reader at the end of a pipe).

    Args:
        interrupt: asks the engine to stop.
        seconds: for all calls together.
        memory_bytes: by which the process may grow.
    """

    def __init__(self, interrupt: Callable[[], None], seconds: float, memory_bytes: int) -> None:
        self.interrupt = interrupt
        self.seconds, self.memory_bytes = seconds, memory_bytes
        self.stuck = False
        self._left = seconds
        self._computed = time.thread_time()
        self._ceiling = private_bytes() + memory_bytes + SLACK_BYTES

    def call(self, work: Callable[[], ResultT]) -> ResultT:
        """The result of `work`, or the limit it met.

        Raises:
            MrpoError: the time is over. `stuck` is then True if the engine did not even stop.
            ResourceError: the memory is used up.
        """
        call = _Call(work)
        self._left -= time.thread_time() - self._computed
        started = time.monotonic()
        call.start()
        try:
            problem = None
            while problem is None and not call.done.wait(POLL_SECONDS):
                problem = self._problem(started)
        except BaseException:
            self._stop(call)
            raise
        if problem is not None:
            self._stop(call)
        problem = problem or self._problem(started)  # short calls may exceed the limits together
        self._left -= time.monotonic() - started
        self._computed = time.thread_time()
        for error in (problem, call.error):
            if error is not None:
                raise error
        return cast(ResultT, call.result)

    def _problem(self, started: float) -> MrpoError | None:
        if time.monotonic() - started > self._left:
            return out_of_time(self.seconds)
        return out_of_memory(self.memory_bytes) if private_bytes() > self._ceiling else None

    def _stop(self, call: _Call[ResultT]) -> None:
        """Interrupt; past the grace or half as much memory again, give the thread up."""
        until = time.monotonic() + GRACE_SECONDS
        while not call.done.is_set() and time.monotonic() < until:
            self.interrupt()
            call.done.wait(POLL_SECONDS)
            if private_bytes() > self._ceiling + self.memory_bytes // 2:
                break
        self.stuck = not call.done.is_set()


class _Call(threading.Thread, Generic[ResultT]):
    """One call of the engine.

    Its end is an event: joining a thread is not safe from Ctrl-C before Python 3.13, which may
    then take a running thread for a finished one.
    """

    def __init__(self, work: Callable[[], ResultT]) -> None:
        super().__init__(daemon=True)
        self.work, self.done = work, threading.Event()
        self.result: ResultT | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self.work()
        except BaseException as error:
            self.error = error
        finally:
            self.done.set()


def out_of_memory(memory_bytes: int) -> ResourceError:
    """What a query that outgrew its limit is told."""
    return ResourceError(
        f"the query needs more than {memory_bytes / 1e9:.3g} GB of memory",
        "narrow or aggregate it, or allow more with --memory-limit",
    )


def out_of_time(seconds: float) -> MrpoError:
    """What a query that took too long is told."""
    return MrpoError(
        f"the query was stopped after {seconds:g} seconds",
        "narrow it, or allow more with --timeout SECONDS",
    )


def private_bytes(process: psutil.Process | None = None) -> int:
    """Memory that is a process's own, by default of this one: mapped files do not count."""
    memory = (process or psutil.Process()).memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))  # Linux alone says what is shared


def _single(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.Statement:
    statements = connection.extract_statements(sql)
    if not statements:
        raise UsageError("the query is empty", 'mrpo sql "SELECT * FROM refs"')
    if len(statements) > 1:
        raise _refused(f"these are {len(statements)} statements")
    return statements[0]


def _kind(statement: duckdb.Statement) -> str:
    """`SELECT`, `COPY`, …"""
    try:
        return str(statement.type).rpartition(".")[2]
    except ValueError:  # the engine has kinds that its Python client cannot name
        return "another kind of statement"


def _split_explain(sql: str) -> tuple[str, str]:
    """(`EXPLAIN `, the statement it explains): only what is looked at is executed."""
    prefix = _EXPLAIN.match(sql)
    if not prefix:
        raise _refused("EXPLAIN takes no comments or options here but ANALYZE")
    return f"EXPLAIN {prefix.group(1) or ''}", sql[prefix.end() :]


def _look_inside(connection: duckdb.DuckDBPyConnection, sql: str) -> tuple[set[str], set[str]]:
    """(kinds of query nodes, lower-case names of table functions) anywhere in a SELECT."""
    rows = connection.execute(
        "SELECT DISTINCT key, lower(json_extract_string(atom, '$')) FROM "
        "json_tree(json_serialize_sql($sql)::JSON) "
        "WHERE (key = 'type' AND atom LIKE '%_NODE\"') "
        "OR (key = 'function_name' AND path LIKE '%.function') OR key = 'error_message'",
        {"sql": sql},
    ).fetchall()
    problems = [value for key, value in rows if key == "error_message"]
    if problems:
        raise _refused(problems[0])
    return (
        {value.upper() for key, value in rows if key == "type"},
        {value for key, value in rows if key == "function_name"},
    )


def _refused(reason: str) -> UsageError:
    return UsageError(
        f"a query is one SELECT, or EXPLAIN [ANALYZE] of one; {reason}", "mrpo sql lists examples"
    )
