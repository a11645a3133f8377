"""Work that goes on in a thread while its last results are being used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
DEPTH = 2


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], depth: int = DEPTH
) -> Iterator[Result]:
    """`map` with the next results computed beforehand, beginning now, in one other thread.

    A single item is computed when it is asked for.

    Args:
        function: of an item.
        items: in order.
        depth: results that may wait or be in the making.

    Raises:
        Exception: what `function` raised, when its result is asked for.
    """
    rest = iter(items)
    first = list(islice(rest, 2))
    if len(first) < 2:  # nothing to be ahead of
        return map(function, first)
    rest = chain(first, rest)
    thread = ThreadPoolExecutor(1)
    waiting = deque(thread.submit(function, item) for item in islice(rest, depth))

    def results() -> Iterator[Result]:
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(thread.submit(function, item) for item in islice(rest, 1))
                yield result
        finally:
            thread.shutdown(cancel_futures=True)

    return results()
