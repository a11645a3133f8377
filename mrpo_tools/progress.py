"""What a terminal shows: a bar and lines on stderr, and text in columns."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

_name = ""

Advance = Callable[..., None]
"""`advance(n)` after n more units; `advance(n, note="…")` also shows a note."""
SECONDS_A_LINE = 60.0
"""Where stderr is no terminal, a line so often says how far the work is."""


@contextlib.contextmanager
def bar(description: str, total: float, unit: str = "") -> Iterator[Advance]:
    """A progress bar while the block runs; where stderr is no terminal, a line a minute."""
    if total <= 0:
        yield lambda *_, **__: None
        return
    if not sys.stderr.isatty():
        yield lines(description, total)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (  # a narrow terminal cuts the last ones
        TextColumn("{task.description}"),
        TaskProgressColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=total, note="")

        def advance(amount: float = 1, note: str = "") -> None:
            progress.advance(task, amount)
            if note:
                progress.update(task, note=note)

        yield advance


def lines(description: str, total: float, clock: Callable[[], float] = time.monotonic) -> Advance:
    """Progress as lines to stderr, one a minute: none of work that takes less.

    Args:
        description: of the work.
        total: units of it.
        clock: seconds since any moment.
    """
    started = told = clock()
    done = 0.0

    def advance(amount: float = 1, note: str = "") -> None:
        nonlocal done, told
        done += amount
        now = clock()
        if now - told >= SECONDS_A_LINE and 0 < done < total:
            told = now
            minutes = (now - started) * (total / done - 1) / 60
            beside = f", {note}" if note else ""
            say(f"{description}: {done / total:.0%}, about {minutes:.0f} min to go{beside}")

    return advance


@contextlib.contextmanager
def bar_to(description: str, unit: str = "") -> Iterator[Callable[[float, float], None]]:
    """A bar for work that reports `(done, total)`; it appears with the first report."""
    with contextlib.ExitStack() as stack:
        advance: Advance | None = None
        reported = 0.0

        def report(done: float, total: float) -> None:
            nonlocal advance, reported
            advance = advance or stack.enter_context(bar(description, total, unit))
            advance(done - reported)
            reported = done

        yield report


def say(message: str) -> None:
    """One line to stderr."""
    print(_name + message, file=sys.stderr, flush=True)


def name_lines(name: str) -> None:
    """From here on this process's lines begin with a name, for several at work together."""
    global _name
    _name = f"[{name}] "


def rank_and_count(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Which process this is, from 0, and of how many: (0, 1) for one that was started alone.

    torchrun and accelerate tell both; RANK alone, which job schedulers set too, means nothing. For
    srun see `cli.srun`.
    """
    if {"RANK", "WORLD_SIZE"} <= environment.keys():
        return int(environment["RANK"]), int(environment["WORLD_SIZE"])
    return 0, 1


def is_first_process() -> bool:
    """Whether this is the process that reports and writes, of those that work together."""
    rank, _ = rank_and_count()
    return rank == 0


def say_once(message: str) -> None:
    """One line to stderr from the first process alone, for what all of them find alike."""
    if is_first_process():
        say(message)


def aligned(
    rows: Sequence[Sequence[str]], right: Sequence[bool], *, rule: bool = False
) -> Iterator[str]:
    """Lines of columns, two spaces apart, each as wide as its widest text on a terminal.

    Args:
        rows: as many texts in each; the first is the header.
        right: which columns stand to the right, as numbers do.
        rule: draw a line below the header.
    """
    from rich.cells import cell_len

    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    ruled = [rows[0], ["─" * width for width in widths], *rows[1:]] if rule else rows
    for row in ruled:
        cells = []
        for text, width, at_right in zip(row, widths, right, strict=True):
            space = " " * (width - cell_len(text))
            cells.append(space + text if at_right else text + space)
        yield "  ".join(cells).rstrip()


def cut(text: str, width: int) -> str:
    """A text, or as much of its beginning as fits a width on a terminal, and `…`."""
    from rich.cells import cell_len, set_cell_size

    return text if cell_len(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"
