"""Progress on stderr: a bar on a terminal, nothing otherwise."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

_name = ""

Advance = Callable[..., None]
"""`advance(n)` after n more units; `advance(n, note="…")` also shows a note."""


@contextlib.contextmanager
def bar(description: str, total: float, unit: str = "") -> Iterator[Advance]:
    """A progress bar while the block runs; silent where stderr is no terminal."""
    if not sys.stderr.isatty() or total <= 0:
        yield lambda amount=1, note="": None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=total, note="")

        def advance(amount: float = 1, note: str = "") -> None:
            progress.advance(task, amount)
            if note:
                progress.update(task, note=note)

        yield advance


@contextlib.contextmanager
def bar_to(description: str, unit: str = "") -> Iterator[Callable[[float, float], None]]:
    """A bar for work that reports `(done, total)`; it appears with the first report."""
    with contextlib.ExitStack() as stack:
        state: dict[str, Any] = {"done": 0.0, "advance": None}

        def report(done: float, total: float) -> None:
            if state["advance"] is None:
                state["advance"] = stack.enter_context(bar(description, total, unit))
            state["advance"](done - state["done"])
            state["done"] = done

        yield report


def say(message: str) -> None:
    """One line to stderr."""
    print(_name + message, file=sys.stderr, flush=True)


def name_lines(name: str) -> None:
    """From here on this process's lines begin with a name, for several at work together."""
    global _name
    _name = f"[{name}] "


def is_first_process() -> bool:
    """Whether this is the process that reports and writes, of those that torchrun started."""
    return int(os.environ.get("RANK", "0")) == 0


def say_once(message: str) -> None:
    """One line to stderr from the first process alone, for what all of them find alike."""
    if is_first_process():
        say(message)
