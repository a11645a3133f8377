"""A query in a process of its own, whose end is an error here, whatever ends it.

Deeply nested text ends DuckDB by a signal (a cast of JSON to VARIANT, `from_json` with a deep
structure), and while it plans a query it holds Python's lock, so that no watch in its own process
can run. The watch of `sandbox` ends what listens, and the one of this module what does not.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from mrpo_tools.errors import MrpoError, ResourceError
from mrpo_tools.sql.database import open_sql
from mrpo_tools.sql.formats import fill
from mrpo_tools.sql.sandbox import (
    POLL_SECONDS,
    SLACK_BYTES,
    out_of_memory,
    out_of_time,
    parse_bytes,
    private_bytes,
)
from mrpo_tools.words import ResultFormat

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Question:
    """A query, and all that its process needs to answer it: as `open_sql`, `stream` and `fill` have
    it."""

    sql: str
    params: Mapping[str, object]
    form: ResultFormat
    cache: Path
    runs: str | None
    references: list[str] | None
    timeout: float
    memory_limit: str
    width: int | None = None
    score: str | None = None


class _Event(Enum):
    """What the process says beside the bytes of its answer."""

    OPENED = "every file of the cache has been checked"
    DONE = "the answer is whole"


def answer(question: Question) -> Iterator[bytes]:
    """The result of a query in its form, as it comes.

    Raises:
        As `open_sql` and `Database.stream` do.
        MrpoError: the engine was ended by a signal.
        ResourceError: the process was killed, as a system does that has no memory left.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(question, there), daemon=True)
    process.start()
    there.close()
    try:
        yield from _received(here, process, question)
    finally:
        process.kill()
        process.join()
        here.close()


def _received(here: Connection, process: BaseProcess, question: Question) -> Iterator[bytes]:
    """The bytes that the process sends, until it has done."""
    watch: _Watch | None = None
    while True:
        try:
            while not here.poll(POLL_SECONDS):
                if watch:
                    watch.check()
            message = here.recv()
        except (EOFError, ConnectionResetError):
            process.join()
            raise _ended(process.exitcode) from None
        if isinstance(message, BaseException):
            raise message
        if message is _Event.DONE:
            return
        if message is _Event.OPENED:
            watch = _Watch(psutil.Process(process.pid), question)
        else:
            yield message


class _Watch:
    """Ends what the watch inside the process should have ended: at half as much time again, and
    twice the memory.

    Only what is waited for counts, not how long a reader takes.
    """

    def __init__(self, process: psutil.Process, question: Question) -> None:
        self._process, self._seconds = process, question.timeout
        self._memory_bytes = parse_bytes(question.memory_limit)
        room = self._memory_bytes + max(self._memory_bytes * 3 // 4, SLACK_BYTES)  # it grows on
        self._ceiling = self._held() + room
        self._left = 1 + 1.5 * question.timeout

    def check(self) -> None:
        """After `POLL_SECONDS` without a word.

        Raises:
            MrpoError, ResourceError: a limit is met.
        """
        self._left -= POLL_SECONDS
        if self._left < 0:
            raise out_of_time(self._seconds)
        if self._held() > self._ceiling:
            raise out_of_memory(self._memory_bytes)

    def _held(self) -> int:
        """Bytes that are the process's own; none once it has ended."""
        try:
            return private_bytes(self._process)
        except psutil.Error:
            return 0


def _ended(code: int | None) -> MrpoError:
    """What an end without a last word means."""
    if code == -signal.SIGKILL:
        return ResourceError(
            "the query's process was killed, as happens where memory runs out",
            "narrow or aggregate it, or lower --memory-limit",
        )
    return MrpoError(
        f"the query ended the engine ({_name(code)})",
        "take it apart: a text that is nested thousands deep is more than the engine can read",
    )


def _name(code: int | None) -> str:
    try:
        return signal.Signals(-(code or 0)).name
    except ValueError:
        return f"exit code {code}"


class _Pipe(io.RawIOBase):
    """A file whose bytes go through a connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def writable(self) -> bool:
        return True

    def write(self, content: ReadableBuffer) -> int:
        self._connection.send(bytes(content))
        return memoryview(content).nbytes


def _answer(question: Question, there: Connection) -> None:
    """In the process: open, ask, send; then end at once, whatever threads are left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that waits hears it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _send_result(question, there)
        there.send(_Event.DONE)
    except MrpoError as error:
        there.send(error)
    except BaseException as error:
        there.send(RuntimeError(f"{type(error).__name__}: {error}"))
    os._exit(0)


def _send_result(question: Question, there: Connection) -> None:
    cache, limit = question.cache, question.memory_limit
    database = open_sql(cache, question.runs, limit, question.references, question.score)
    there.send(_Event.OPENED)
    result = database.stream(question.sql, question.params, question.timeout)
    with io.BufferedWriter(_Pipe(there), CHUNK_BYTES) as sink:
        fill(result, question.form, sink, question.width)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
