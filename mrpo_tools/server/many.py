"""Many requests at a time."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from mrpo_tools.errors import ServerError

Item = TypeVar("Item")
Result = TypeVar("Result")

GIVEN_UP = 5
"""So many requests given up one after the other end the work: the server is not well."""


def together(
    function: Callable[[Item], Result], items: Sequence[Item], concurrency: int
) -> Iterator[list[tuple[Item, Result]]]:
    """Results as they come: in each list those that are there at the moment, one at least.

    An item whose request is given up or refused does not stop the others, so what can be had is
    had. Threads end with the process: nobody waits for them after an error or Ctrl-C.

    Raises:
        ServerError: at once, when `GIVEN_UP` requests in a row came to nothing; else after the
            last result, if any did.
    """
    failures: list[ServerError] = []
    in_a_row = 0
    for batch in _outcomes(function, items, concurrency):
        results = []
        for item, outcome in batch:
            if isinstance(outcome, ServerError):
                failures.append(outcome)
                in_a_row += 1
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                results.append((item, outcome))
                in_a_row = 0
        if results:
            yield results
        if in_a_row >= GIVEN_UP:
            what = f"{in_a_row} requests in a row came to nothing; {failures[-1].what}"
            raise ServerError(what, failures[-1].hint)
    if failures:
        what = f"{len(failures):,} of {len(items):,} requests came to nothing; {failures[0].what}"
        raise ServerError(what, failures[0].hint)


def _outcomes(
    function: Callable[[Item], Result], items: Sequence[Item], concurrency: int
) -> Iterator[list[tuple[Item, Result | BaseException]]]:
    waiting: queue.SimpleQueue[Item] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Item, Result | BaseException]] = queue.SimpleQueue()
    ended = threading.Event()
    for item in items:
        waiting.put(item)

    def work() -> None:
        while not ended.is_set():
            try:
                item = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((item, function(item)))
            except BaseException as error:
                done.put((item, error))

    for _ in range(min(concurrency, len(items))):
        threading.Thread(target=work, daemon=True).start()
    left = len(items)
    try:
        while left:
            batch = [done.get()]
            with contextlib.suppress(queue.Empty):
                while True:
                    batch.append(done.get_nowait())
            left -= len(batch)
            yield batch
    finally:
        ended.set()
