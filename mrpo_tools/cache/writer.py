"""Rows that are collected into parts, which are written beside the model's work."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from mrpo_tools.cache.parts import PART_ROWS, PART_SECONDS
from mrpo_tools.cache.records import WriterRecord
from mrpo_tools.cache.store_of_parts import PartStore
from mrpo_tools.errors import Preempted

WORTH_A_THREAD = 500
"""Rows of a part from which on writing it takes long enough to be done beside the model."""


class PartWriter:
    """Collects rows and writes parts in a thread of its own, so that the model does not wait.

    Parts of a few rows, which take milliseconds, are written at once.

    Whenever `add` has returned, fewer than `rows` rows, and none older than about `seconds`, are
    not on the disk yet: up to half of them being collected, half being written. A context manager:
    leaving it writes what is left, also after an error or Ctrl-C, so only a kill loses rows: those,
    and the batch at hand.

    Args:
        store: the parts become its own.
        record: of the writer.
        seconds: see above.
        rows: see above.
        clock: seconds since any moment.
    """

    def __init__(
        self,
        store: PartStore,
        record: WriterRecord | None = None,
        *,
        seconds: float = PART_SECONDS,
        rows: int = PART_ROWS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store, self.record, self.clock = store, record, clock
        self.seconds, self.rows = seconds / 2, max(1, rows // 2)
        self._pending: list[object] = []
        self._since = clock()
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[Path] | None = None

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.flush()
        finally:
            if self._thread is not None:
                self._thread.shutdown()

    def add(self, rows: Iterable[object]) -> None:
        """Take rows; they are on the disk soon.

        Raises:
            ResourceError: these or earlier rows could not be written.
        """
        self._pending.extend(rows)
        while len(self._pending) >= self.rows:
            self._hand_over()
        if self._pending and self.clock() - self._since >= self.seconds:
            self._hand_over()

    def flush(self) -> None:
        """Return when every row is on the disk."""
        while self._pending:
            self._hand_over()
        self._wait()

    def _hand_over(self) -> None:
        """Let one half be written, once the half before it is."""
        self._wait()
        half = self._pending[: self.rows]
        del self._pending[: self.rows]
        self._since = self.clock()
        if len(half) < WORTH_A_THREAD:
            self.store.append(half, self.record)
            return
        self._thread = self._thread or ThreadPoolExecutor(1)
        self._writing = self._thread.submit(self.store.append, half, self.record)

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as an error does, rows at hand written; in a main thread only."""

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the rows are being written
        raise Preempted(
            "stopped by a signal; what was computed so far is kept",
            "the same command computes what is missing",
        )

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
