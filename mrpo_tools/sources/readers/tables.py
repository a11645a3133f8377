"""Tables to rows: Parquet files and `datasets` objects, a bounded piece at a time.

A dictionary-encoded Parquet file of a kilobyte can hold a gigabyte of text. Text columns are
therefore read as dictionaries, the size of a batch as Python objects is computed before it is
made, and a footer that promises an absurd expansion is refused.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrpo_tools.sources.readers.rows import (
    MAX_ROW_BYTES,
    Problem,
    Reading,
    Row,
    Unreadable,
    refuse_bomb,
)

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

BATCH_ROWS = 1024
_SUSPICIOUS_BYTES = 256 * 2**20
_SUSPICIOUS_RATIO = 200
_SUSPICIOUS_VALUES = 50_000_000


def read_parquet(path: Path, reading: Reading) -> Iterator[Row | Problem]:
    """The rows of a Parquet file, as Python objects."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as plain:
            text_columns = _text_columns(plain)
        _check_sizes(path)
        with pq.ParquetFile(
            path,
            read_dictionary=text_columns,
            buffer_size=2**20,
            page_checksum_verification=True,
        ) as file:
            total = max(1, file.metadata.num_rows)
            done = expanded = 0
            for batch in _batches(file):
                expanded += _expanded_bytes(batch)
                refuse_bomb(path, expanded)
                yield from batch_rows(batch, f"{path}", done)
                done += batch.num_rows
                reading.tick(path.stat().st_size * done // total)
            if not done:
                raise Unreadable(f"{path}", "file", "no rows; expected one row per group")
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        reason = f"damaged, cut short or no Parquet ({_first_line(error)})"
        raise Unreadable(f"{path}", "Parquet", reason) from None


def _batches(file: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    """Batches within row groups: Arrow cannot join the nested dictionaries of two of them."""
    for index in range(file.metadata.num_row_groups):
        yield from file.iter_batches(batch_size=BATCH_ROWS, row_groups=[index])


def _check_sizes(path: Path) -> None:
    """Refuse a file whose footer declares more than preference data can be.

    By DuckDB: where the metadata of a column is damaged, pyarrow's accessors end the process.
    """
    import duckdb

    query = """
        SELECT max(row_group_num_rows), max(row_group_bytes), sum(total_compressed_size),
               max(num_values)
        FROM parquet_metadata(?) GROUP BY row_group_id ORDER BY row_group_id
    """
    try:
        with duckdb.connect(config={"autoinstall_known_extensions": "false"}) as connection:
            groups = connection.execute(query, [glob.escape(str(path))]).fetchall()
    except duckdb.Error as error:
        raise ValueError(_first_line(error)) from None
    for rows, size, compressed, values in groups:
        stored = max(1, compressed)
        if size > max(_SUSPICIOUS_BYTES, _SUSPICIOUS_RATIO * stored):
            _refuse(path, f"{stored:,} bytes that expand to {size:,}")
        if values > max(_SUSPICIOUS_VALUES, 4096 * rows):
            _refuse(path, f"{values:,} values in {rows:,} rows")


def _text_columns(file: pq.ParquetFile) -> list[str]:
    """The paths of the columns that hold texts or bytes."""
    columns = (file.schema.column(index) for index in range(len(file.schema)))
    return [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]


def _refuse(path: Path, what: str) -> None:
    raise Unreadable(f"{path}", "Parquet", f"a row group of {what}; preference data is not so")


def batch_rows(batch: pa.RecordBatch, name: str, start: int) -> Iterator[Row | Problem]:
    """The rows of a batch that begins at row `start` (from 0), never too many at once."""
    if batch.num_rows > 1 and _expanded_bytes(batch) > MAX_ROW_BYTES:
        half = batch.num_rows // 2
        yield from batch_rows(batch.slice(0, half), name, start)
        yield from batch_rows(batch.slice(half), name, start + half)
    elif batch.num_rows == 1 and (size := _expanded_bytes(batch)) > MAX_ROW_BYTES:
        yield Problem(f"{name}:row {start + 1}", "row", f"{size:,} bytes; expected far less")
    else:
        yield from _converted(batch, name, start)


def _converted(batch: pa.RecordBatch, name: str, start: int) -> Iterator[Row | Problem]:
    import pyarrow as pa

    try:
        values: list[Any] = batch.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError) as error:
        if batch.num_rows == 1:
            yield Problem(f"{name}:row {start + 1}", "row", _first_line(error))
            return
        for index in range(batch.num_rows):
            yield from _converted(batch.slice(index, 1), name, start + index)
        return
    nested = [field.name for field in batch.schema if pa.types.is_nested(field.type)]
    for number, value in enumerate(values, start + 1):
        value |= {column: _without_nulls(value[column]) for column in nested}
        yield Row(f"{name}:row {number}", value)


def _without_nulls(value: Any) -> Any:
    """A value without the null fields of its objects: a table has every field in every object."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _expanded_bytes(data: Any) -> int:
    """The size of a batch or an array once every dictionary index is replaced by its text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(data, pa.RecordBatch):
        return sum(_expanded_bytes(column) for column in data.columns)
    if pa.types.is_struct(data.type):
        return sum(_expanded_bytes(child) for child in data.flatten())
    if pa.types.is_list(data.type) or pa.types.is_large_list(data.type):
        return _expanded_bytes(data.flatten())
    if pa.types.is_dictionary(data.type) and not pa.types.is_primitive(data.type.value_type):
        lengths = pc.binary_length(data.dictionary)
        return pc.sum(lengths.cast(pa.int64()).take(data.indices)).as_py() or 0
    return int(data.nbytes)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
