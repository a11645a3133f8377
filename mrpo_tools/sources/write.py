"""Rows to a file, which appears when it is whole."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mrpo_tools.errors import UsageError, disk_error
from mrpo_tools.files import whole_file

Put = Callable[[Mapping[str, Any]], object]
BATCH_ROWS = 1024
BATCH_CHARACTERS = 2**24
"""A table is written when it has so many rows, or so much text."""
KINDS = (".jsonl", ".parquet")


@contextlib.contextmanager
def writing(target: Path, columns: Mapping[str, Any], *, overwrite: bool = False) -> Iterator[Put]:
    """A function that writes one row; the file takes its name only if the block ends well.

    Args:
        target: a .jsonl or .parquet file.
        columns: the columns of a table and their types, by the words of `export.Form`.
        overwrite: replace a file that is there.

    Raises:
        UsageError: another suffix, no such folder, or a file that is there.
        ResourceError: no permission, or the disk refuses.
    """
    if target.suffix.lower() not in KINDS:
        kind = f"{target.suffix} files" if target.suffix else "a file without a suffix"
        raise UsageError(f"{target}: cannot write {kind}", f"name it {' or '.join(KINDS)}")
    if target.is_dir() or not target.absolute().parent.is_dir():
        what = "is a folder" if target.is_dir() else f"there is no folder {target.parent}"
        raise UsageError(f"{target}: {what}", "name a file in a folder that is there")
    if target.exists() and not overwrite:
        raise UsageError(f"{target} is there already", "--overwrite replaces it")
    write = _jsonl if target.suffix.lower() == ".jsonl" else _parquet
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(whole_file(target))
        except OSError as error:
            raise disk_error(target, error) from None
        yield stack.enter_context(write(file, columns))


@contextlib.contextmanager
def _jsonl(file: BinaryIO, _columns: Mapping[str, Any]) -> Iterator[Put]:
    yield lambda row: file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


@contextlib.contextmanager
def _parquet(file: BinaryIO, columns: Mapping[str, Any]) -> Iterator[Put]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, _arrow_type(kind)) for name, kind in columns.items()])
    rows: list[Mapping[str, Any]] = []
    held = 0
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:

        def flush() -> None:
            nonlocal held
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                rows.clear()
                held = 0

        def put(row: Mapping[str, Any]) -> None:
            nonlocal held
            rows.append(row)
            held += _characters(row)
            if len(rows) == BATCH_ROWS or held >= BATCH_CHARACTERS:
                flush()

        yield put
        flush()


def _characters(value: Any) -> int:
    """Of all text in a value."""
    if isinstance(value, Mapping):
        return sum(map(_characters, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(_characters, value))
    return len(value) if isinstance(value, str) else 0


def _arrow_type(kind: Any) -> Any:
    """The Arrow type of a name (`string`), a list of one kind, or a mapping of fields."""
    import pyarrow as pa

    if isinstance(kind, list):
        return pa.list_(_arrow_type(kind[0]))
    if isinstance(kind, Mapping):
        return pa.struct([(name, _arrow_type(field)) for name, field in kind.items()])
    return pa.type_for_alias(kind)
