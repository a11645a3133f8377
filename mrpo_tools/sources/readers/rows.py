"""What every reader yields: rows and problems, each with its place in the source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

MAX_TEXT_CHARS = 4_000_000  # more than the longest context window holds
MAX_ROW_BYTES = 64 * 2**20
_BOMB_BYTES = 256 * 2**20
_BOMB_RATIO = 200


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a source, not yet understood.

    Attributes:
        where: `file:line` of a text file, `file:row N` (from 1) of a table.
        value: what the reader found there; an object, if all is well.
        split: the split that the file's name or the data set gives, or None.
    """

    where: str
    value: object
    split: str | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where, in which field, and what to do about it.

    `fatal` means that the rest of the file was not read, so it cannot be skipped.
    """

    where: str
    field: str
    reason: str
    fatal: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.field}: {self.reason}"


class Cell(str):
    """A value of a table without types (CSV, TSV): text that may stand for a number or a truth."""

    __slots__ = ()


class Unreadable(Exception):
    """A reader cannot go on in this file; `problem` says why."""

    def __init__(self, where: str, field: str, reason: str) -> None:
        self.problem = Problem(where, field, reason, fatal=True)
        super().__init__(str(self.problem))


def ignore_progress(done: int, total: int) -> None:
    """Nobody watches the progress."""


@dataclass
class Reading:
    """What readers tell the caller besides rows: counts, and how far they are.

    Attributes:
        counts: things that were noticed and are no error, such as `empty_lines`.
        progress: called with (done, total); bytes of files, or rows of a hub data set.
        total: the size of all files of the source.
        done: the size of those that were read to the end.
        revision: the commit of a hub data set.
        mark: how many bytes of a byte order mark the present file begins with.
    """

    counts: Counter[str] = field(default_factory=Counter)
    progress: Callable[[int, int], None] = ignore_progress
    total: int = 0
    done: int = 0
    revision: str | None = None
    mark: int = 0

    def tick(self, within: int) -> None:
        """Report that `within` units of the present file are read."""
        self.progress(min(self.done + within, self.total), self.total)


def refuse_bomb(path: Path, expanded: int) -> None:
    """Stop at a small file that became large: nothing that people wrote is so repetitive."""
    stored = path.stat().st_size
    if expanded > max(_BOMB_BYTES, _BOMB_RATIO * stored):
        raise Unreadable(f"{path}", "file", f"{stored:,} bytes expand to more than {expanded:,}")
