"""What a terminal shows: a bar and lines on stderr, and text in columns."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Task

_name = ""

Advance = Callable[..., None]
"""`advance(n)` after n more units; `advance(n, note="…")` also shows a note."""
SECONDS_A_LINE = 60.0
"""Where stderr is no terminal, a line so often says how far the work is."""
GAP = 2
"""Spaces between the columns of a table."""
BAR_CELLS = 20
WIDE = 110
"""A terminal of so many columns has room for a bar that is drawn."""


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
    from rich.progress import Progress, ProgressColumn
    from rich.text import Text

    console = Console(stderr=True)

    class Line(ProgressColumn):
        def render(self, task: Task) -> Text:
            line = _bar_line(description, unit, task, str(task.fields["note"]), console.width)
            return Text(line, no_wrap=True)

    with Progress(Line(), console=console, transient=True) as progress:
        task = progress.add_task(description, total=total, note="")

        def advance(amount: float = 1, note: str = "") -> None:
            progress.advance(task, amount)
            if note:
                progress.update(task, note=note)

        yield advance


def _bar_line(description: str, unit: str, task: Task, note: str, width: int) -> str:
    """What is done of a task: a narrow terminal cuts the description, and leaves the last parts
    out; percent and time to go stay."""
    share = min(task.completed / (task.total or 1), 1.0)
    first = f"{share:4.0%}  ETA {_clock(task.time_remaining)}"
    filled = round(share * BAR_CELLS) if width >= WIDE else None
    parts = [
        cut(description, max(width - len(first) - GAP, 1)),
        first,
        f"{task.completed:,.0f}/{task.total or 0:,.0f} {unit}".rstrip(),
        _clock(task.elapsed),
        "" if filled is None else "━" * filled + "╌" * (BAR_CELLS - filled),
        note,
    ]
    return cut((" " * GAP).join(part for part in parts if part), width)


def _clock(seconds: float | None) -> str:
    """`0:01:30`."""
    return "-:--:--" if seconds is None else str(datetime.timedelta(seconds=int(seconds)))


def lines(description: str, total: float, clock: Callable[[], float] = time.monotonic) -> Advance:
    """Progress as lines to stderr, one a minute: none of work that takes less.

    Args:
        description: of the work.
        total: units of it.
        clock: seconds since any moment.
    """
    started = told = clock()
    done, last_note = 0.0, ""

    def advance(amount: float = 1, note: str = "") -> None:
        nonlocal done, told, last_note
        done += amount
        last_note = note or last_note
        now = clock()
        if now - told >= SECONDS_A_LINE and 0 < done < total:
            told = now
            minutes = (now - started) * (total / done - 1) / 60
            beside = f", {last_note}" if last_note else ""
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


def terminal_width() -> int | None:
    """Columns of the terminal that stdout is, or as COLUMNS says; None where nothing says it."""
    told = os.environ.get("COLUMNS", "")
    if told.isascii() and told.isdecimal() and int(told):
        return int(told)
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def aligned(
    rows: Sequence[Sequence[str]],
    right: Sequence[bool],
    *,
    rule: bool = False,
    width: int | None = None,
) -> Iterator[str]:
    """Lines of columns, two spaces apart, each as wide as its widest text on a terminal.

    Where that is wider than `width`, headers and texts fold between words; where it still is, the
    columns stand in several tables one below the other, each with the columns that tell the rows
    apart, or the first; and where no other column fits beside them, each row becomes lines of
    `header: text`. No word and no number is broken.

    Args:
        rows: as many texts in each; the first is the header.
        right: which columns stand to the right, as numbers do; their cells do not fold.
        rule: draw a line below the header.
        width: of the terminal; None for no limit.
    """
    columns = list(zip(*rows, strict=True))
    natural = [max(map(_cells, column)) for column in columns]
    if width is None or sum(natural) + GAP * (len(natural) - 1) <= width:
        yield from _lines(rows, natural, right, rule=rule)
        return
    least = [
        max(map(_cells if at_right else _longest_word, column[1:]), default=0)
        for column, at_right in zip(columns, right, strict=True)
    ]
    least = [max(of, _longest_word(column[0])) for of, column in zip(least, columns, strict=True)]
    blocks = _blocks(least, width, _telling(rows)) or _blocks(least, width, 1)
    if not blocks:
        yield from _stacked(rows, width)
    for number, block in enumerate(blocks):
        widths = _narrowed([natural[c] for c in block], [least[c] for c in block], width)
        part = [[row[c] for c in block] for row in rows]
        yield from [""] * bool(number)
        yield from _lines(part, widths, [right[c] for c in block], rule=rule)


def _lines(
    rows: Sequence[Sequence[str]], widths: Sequence[int], right: Sequence[bool], *, rule: bool
) -> Iterator[str]:
    """The lines of a table whose columns have these widths."""
    for number, row in enumerate(rows):
        folded = [folded_text(text, width) for text, width in zip(row, widths, strict=True)]
        for texts in itertools.zip_longest(*folded, fillvalue=""):
            cells = []
            for text, width, at_right in zip(texts, widths, right, strict=True):
                space = " " * (width - _cells(text))
                cells.append(space + text if at_right else text + space)
            yield (" " * GAP).join(cells).rstrip()
        if rule and number == 0:
            yield (" " * GAP).join("─" * width for width in widths)


def _telling(rows: Sequence[Sequence[str]]) -> int:
    """So many of the first columns tell the rows apart; 1 where not even all of them do."""
    counts = range(1, len(rows[0]))
    return next((n for n in counts if len({tuple(row[:n]) for row in rows}) == len(rows)), 1)


def _blocks(least: Sequence[int], width: int, keys: int) -> list[list[int]]:
    """Which columns stand side by side, the first `keys` in each block; none where no other fits
    beside them."""
    if len(least) == keys:
        return [[*range(keys)]] if sum(least) + GAP * (keys - 1) <= width else []
    blocks: list[list[int]] = []
    used = width
    for column in range(keys, len(least)):
        if used + GAP + least[column] > width:
            blocks.append([*range(keys)])
            used = sum(least[:keys]) + GAP * (keys - 1)
        blocks[-1].append(column)
        used += GAP + least[column]
        if used > width:
            return []
    return blocks


def _narrowed(natural: Sequence[int], least: Sequence[int], width: int) -> list[int]:
    """Widths that fit: the widest of those that can give way do, a column at a time."""
    widths = list(natural)
    while sum(widths) + GAP * (len(widths) - 1) > width:
        able = [c for c, of in enumerate(widths) if of > least[c]]
        widths[max(able, key=widths.__getitem__)] -= 1
    return widths


def _stacked(rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """`header: text` for each cell of each row, an empty line between rows."""
    header, *others = rows
    for number, row in enumerate(others):
        yield from [""] * bool(number)
        for name, text in zip(header, row, strict=True):
            yield from folded_text(f"{name}: {text}" if name else text, width, indent=2)


def folded_text(text: str, width: int | None, indent: int = 0) -> list[str]:
    """A text as lines of a width, broken at spaces alone; a longer word has a line of its own.

    Args:
        text: without line breaks.
        width: in cells of a terminal; None for no limit.
        indent: of every line but the first.
    """
    if width is None or _cells(text) <= width:
        return [text]
    first, *words = text.split(" ")
    lines = [first]
    for word in words:
        if _cells(lines[-1]) + 1 + _cells(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(" " * indent + word)
    return lines


def _cells(text: str) -> int:
    """How wide a text is on a terminal."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _longest_word(text: str) -> int:
    return max(map(_cells, text.split(" ")))


def cut(text: str, width: int) -> str:
    """A text, or as much of its beginning as fits a width on a terminal, and `…`."""
    from rich.cells import cell_len, set_cell_size

    return text if cell_len(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"
