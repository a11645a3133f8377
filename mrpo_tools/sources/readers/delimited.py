"""CSV and TSV to rows: the first line names the columns, an empty cell is null.

The cells have no types, so they stay text (`rows.Cell`), and the check of a number or a truth
decides whether one stands there: a response `4` is never a number by accident.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

from mrpo_tools.sources.readers.rows import MAX_ROW_BYTES, Cell, Problem, Reading, Row, Unreadable
from mrpo_tools.sources.readers.text import TOO_LONG, chunks_of, decoded


def read_delimited(delimiter: str) -> Callable[[Path, Reading], Iterator[Row | Problem]]:
    """A reader of files whose cells are kept apart by `delimiter`."""
    return lambda path, reading: _rows(path, delimiter, reading)


def _rows(path: Path, delimiter: str, reading: Reading) -> Iterator[Row | Problem]:
    csv.field_size_limit(MAX_ROW_BYTES)
    lines = _lines(path, decoded(path, chunks_of(path, reading), reading.mark))
    records = csv.reader(lines, delimiter=delimiter, strict=True)
    names: list[str] = []
    first, read = 1, 0
    try:
        for cells in records:
            where, first = f"{path}:{first}", records.line_num + 1
            if not names:
                names = _names(where, cells)
            elif not cells:
                reading.counts["empty_lines"] += 1
            else:
                read += 1
                yield _row(where, names, cells)
    except csv.Error as error:
        raise Unreadable(f"{path}:{records.line_num}", "cells", f"{error}") from None
    if not read:
        raise Unreadable(f"{path}", "file", "no rows; expected a line of names, then the rows")


def _names(where: str, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if len(set(names)) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise Unreadable(where, "names", f"{twice!r} stands twice in the first line")
    return names


def _row(where: str, names: list[str], cells: list[str]) -> Row | Problem:
    if len(cells) != len(names):
        return Problem(where, "row", f"found {len(cells)} cells, expected {len(names)}")
    values = (Cell(cell) if cell else None for cell in cells)
    return Row(where, dict(zip(names, values, strict=True)))


def _lines(path: Path, pieces: Iterator[str]) -> Iterator[str]:
    """Lines with their line feeds, as the standard library's reader wants them."""
    held: list[str] = []
    size, number = 0, 1
    for piece in pieces:
        first, *others = piece.split("\n")
        held.append(first)
        size += len(first)
        for other in others:
            yield "".join(held) + "\n"
            held, size, number = [other], len(other), number + 1
        if size > MAX_ROW_BYTES:
            raise Unreadable(f"{path}:{number}", "line", TOO_LONG)
    if size:
        yield "".join(held)
