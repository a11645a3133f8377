"""Results as text or Parquet. NULL and NaN are spelled so that no format confuses them.

    format     NULL     NaN, ±∞                       nested values   text
    table      NULL     NaN, Infinity, -Infinity      JSON            cut, control codes escaped
    markdown   NULL     the same                      JSON            pipes escaped, one line
    csv        nothing  the same                      JSON            an empty text is ""
    json(l)    null     the same, as text             as they are     as it is
    parquet    as they are

JSON has no number for NaN, so a text stands for it: a reader fails on it or sees it, and never
takes it for a missing value.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as kinds

from mrpo_tools.errors import ResourceError, UsageError
from mrpo_tools.files import whole_file
from mrpo_tools.progress import aligned, cut
from mrpo_tools.words import ResultFormat

WIDEST_CELL = 60


def write(
    result: pa.Table | pa.RecordBatchReader, form: ResultFormat, target: Path | BinaryIO
) -> None:
    """Write a result; a file appears whole or not at all.

    Args:
        result: a table, or batches, which are written as they come (but for `table`, which must
            know its widths first).
        form: one of `FORMATS`.
        target: a path, or an open binary file such as standard output's.

    Raises:
        UsageError: no such format, or a column that Parquet has no type for.
        ResourceError: the disk is full, or refuses.
    """
    with sink_of(target) as sink:
        fill(result.to_reader() if isinstance(result, pa.Table) else result, form, sink)


def fill(
    reader: pa.RecordBatchReader, form: ResultFormat, sink: BinaryIO, width: int | None = None
) -> None:
    """Write a result, batch by batch, into an open file.

    Args:
        reader: the batches.
        form: one of `FORMATS`.
        sink: the file.
        width: what a `table` is folded to; None for no limit.

    Raises:
        UsageError: no such format, or a column that Parquet has no type for.
    """
    if form not in FORMATS:
        raise UsageError(f"no format {form!r}", f"one of {', '.join(FORMATS)}")
    try:
        if form == "table":
            _write_table(reader, sink, width)
        else:
            FORMATS[form](reader, sink)
    except (pa.ArrowNotImplementedError, OverflowError) as error:  # intervals; the year 0
        raise UsageError(f"{form} cannot hold this result: {error}", "cast the column") from None


@contextlib.contextmanager
def sink_of(target: Path | BinaryIO) -> Iterator[BinaryIO]:
    """Where a result is written: a file appears whole or not at all.

    Raises:
        ResourceError: the disk is full, or refuses.
    """
    try:
        if not isinstance(target, Path):
            yield target
            target.flush()
        elif target.exists() and not target.is_file():  # /dev/null, a named pipe
            with target.open("wb") as sink:
                yield sink
        else:
            with whole_file(target) as sink:
                yield sink
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        raise ResourceError(
            f"cannot write to {target if isinstance(target, Path) else 'the output'}: "
            f"{error.strerror or error}",
            "check the path, its permissions and the space left",
        ) from None


def plain(value: Any) -> Any:
    """A value as JSON can hold it."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else _not_finite(value)
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    if isinstance(value, bytes):
        return value.hex()
    return str(value)


def cell(value: Any, null: str = "") -> str:
    """A value as one text."""
    value = plain(value)
    if value is None:
        return null
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    return repr(value) if isinstance(value, float) else str(value)


def _write_table(reader: pa.RecordBatchReader, sink: BinaryIO, width: int | None = None) -> None:
    names, right = _columns(reader.schema)
    if names == ["explain_key", "explain_value"]:
        for row in _rows(reader):
            sink.write(f"{row[1]}\n".encode())
        return
    rows = [[_screen(value) for value in row] for row in _rows(reader)]
    header = [cut(_visible(name), WIDEST_CELL) for name in names]
    for line in aligned([header, *rows], right, rule=True, width=width):
        sink.write(f"{line}\n".encode())
    sink.write(f"({len(rows):,} {'row' if len(rows) == 1 else 'rows'})\n".encode())


def _write_markdown(reader: pa.RecordBatchReader, sink: BinaryIO) -> None:
    names, right = _columns(reader.schema)
    head = [_one_line(name) for name in names]
    rule = ["---:" if at_right else "---" for at_right in right]
    rows = ([_one_line(cell(value, "NULL")) for value in row] for row in _rows(reader))
    for texts in itertools.chain([head, rule], rows):
        sink.write(f"| {' | '.join(texts)} |\n".encode())


def _write_csv(reader: pa.RecordBatchReader, sink: BinaryIO) -> None:
    names, _ = _columns(reader.schema)
    for row in itertools.chain([tuple(names)], _rows(reader)):
        sink.write((",".join(_csv_cell(value) for value in row) + "\n").encode())


def _write_json(reader: pa.RecordBatchReader, sink: BinaryIO) -> None:
    sink.write(b"[")
    for index, line in enumerate(_json_lines(reader)):
        sink.write(f"{',' if index else ''}\n  {line}".encode())
    sink.write(b"\n]\n")


def _write_jsonl(reader: pa.RecordBatchReader, sink: BinaryIO) -> None:
    for line in _json_lines(reader):
        sink.write(f"{line}\n".encode())


def _write_parquet(reader: pa.RecordBatchReader, sink: BinaryIO) -> None:
    names, _ = _columns(reader.schema)
    schema = pa.schema(
        [field.with_name(name) for field, name in zip(reader.schema, names, strict=True)]
    )
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for batch in reader:
            writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=schema))


FORMATS: dict[ResultFormat, Callable[[pa.RecordBatchReader, BinaryIO], None]] = {
    "table": _write_table,
    "csv": _write_csv,
    "json": _write_json,
    "jsonl": _write_jsonl,
    "markdown": _write_markdown,
    "parquet": _write_parquet,
}


def _columns(schema: pa.Schema) -> tuple[list[str], list[bool]]:
    """Distinct names, and whether each column is of numbers."""
    names: list[str] = []
    for name in schema.names:
        taken, number = name, 0
        while taken in names:
            number += 1
            taken = f"{name}_{number}"
        names.append(taken)
    return names, [
        kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_decimal(kind)
        for kind in schema.types
    ]


def _rows(reader: pa.RecordBatchReader) -> Iterator[tuple[Any, ...]]:
    for batch in reader:
        columns = [_values(column) for column in batch.columns]
        yield from zip(*columns, strict=True)


def _values(column: pa.Array) -> Sequence[Any]:
    values: list[Any] = column.to_pylist()
    if kinds.is_map(column.type):
        return [None if pairs is None else dict(pairs) for pairs in values]
    return values


def _json_lines(reader: pa.RecordBatchReader) -> Iterator[str]:
    names, _ = _columns(reader.schema)
    for row in _rows(reader):
        values = {name: plain(value) for name, value in zip(names, row, strict=True)}
        yield json.dumps(values, ensure_ascii=False, allow_nan=False)


def _not_finite(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _screen(value: Any) -> str:
    """A value for people: six digits of a number, text without control codes, cut."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.6g}"
    return cut(_visible(cell(value, "NULL")), WIDEST_CELL)


def _visible(text: str) -> str:
    """Text that cannot steer a terminal: control and format characters are spelled out."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def _one_line(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").splitlines())


def _csv_cell(value: Any) -> str:
    if value is None:
        return ""
    text = cell(value)
    if text == "" or text != text.strip() or any(char in text for char in ',"\n\r'):
        return '"' + text.replace('"', '""') + '"'
    return text
