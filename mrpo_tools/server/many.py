"""Many requests at a time."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

from mrpo_tools.errors import ServerError

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2
"""Times the concurrency: items that are drawn before the results of others are there."""
GIVEN_UP = 5
"""So many requests given up one after the other end the work: the server is not well."""


def together(
    function: Callable[[Item], Result], items: Iterable[Item], concurrency: int
) -> Iterator[list[tuple[Item, Result]]]:
    """Results as they come: in each list those that are there at the moment, one at least.

    Items are drawn as they are needed, by the caller's thread. An item whose request is given up or
    refused does not stop the others, so what can be had is had. Threads end with the process:
    nobody waits for them after an error or Ctrl-C.

    Raises:
        GaveUp: at once, when `GIVEN_UP` requests in a row came to nothing.
        ServerError: after the last result, if any request came to nothing.
    """
    failures: list[ServerError] = []
    in_a_row = answered = 0
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
            answered += len(results)
            yield results
        if in_a_row >= GIVEN_UP:
            what = f"{in_a_row} requests in a row came to nothing; {failures[-1].what}"
            raise GaveUp(what, failures[-1].hint)
    if failures:
        asked = answered + len(failures)
        what = f"{len(failures):,} of {asked:,} requests came to nothing; {failures[0].what}"
        raise ServerError(what, failures[0].hint)


class GaveUp(ServerError):
    """So many requests in a row came to nothing that the others were not asked."""


def _outcomes(
    function: Callable[[Item], Result], items: Iterable[Item], concurrency: int
) -> Iterator[list[tuple[Item, Result | BaseException]]]:
    waiting: queue.SimpleQueue[Item | _End] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Item, Result | BaseException]] = queue.SimpleQueue()
    ended = threading.Event()

    def work() -> None:
        while not isinstance(item := waiting.get(), _End) and not ended.is_set():
            try:
                done.put((item, function(item)))
            except BaseException as error:
                done.put((item, error))

    rest, left, threads = iter(items), 0, 0
    try:
        room = AHEAD * concurrency
        while True:
            for item in islice(rest, room):
                waiting.put(item)
                left += 1
                if threads < concurrency:
                    threading.Thread(target=work, daemon=True).start()
                    threads += 1
            if not left:
                return
            batch = [done.get()]
            with contextlib.suppress(queue.Empty):
                while True:
                    batch.append(done.get_nowait())
            left -= len(batch)
            yield batch
            room = len(batch)
    finally:
        ended.set()
        for _ in range(threads):
            waiting.put(_End())


class _End:
    """Tells a thread that nothing is left."""
