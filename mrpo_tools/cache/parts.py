"""Rows of log-probs, and one part of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mrpo_tools.cache.records import WriterRecord

PART_SECONDS = 60.0
PART_ROWS = 8192

LOGPS_SCHEMA = pa.schema(
    [
        pa.field("response_id", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("logp", pa.float64()),
        pa.field("num_tokens", pa.int32(), nullable=False),
        pa.field("num_bytes", pa.int32(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("truncated", pa.bool_(), nullable=False),
        pa.field("token_hash", pa.string(), nullable=False),
    ]
)
"""One row per response: `logp` in nats, absent unless `status` is `ok`."""

STATUSES = ("ok", "overlong", "nonfinite")


@dataclass(frozen=True)
class LogpRow:
    """A reference's number for one response, as `LOGPS_SCHEMA` stores it."""

    response_id: str
    prompt_id: str
    logp: float | None
    num_tokens: int
    num_bytes: int
    status: str
    truncated: bool
    token_hash: str


def table_of(rows: Sequence[LogpRow]) -> pa.Table:
    """Rows as a part holds them."""
    columns = {field.name: [getattr(row, field.name) for row in rows] for field in LOGPS_SCHEMA}
    return pa.table(columns, schema=LOGPS_SCHEMA)


@dataclass(frozen=True)
class Part:
    """One verified part file.

    Attributes:
        path: where it is.
        created: when it was written, seconds since 1970.
        format: the version it is written in.
        records: of each of its writers; a merged part keeps those of all its parts.
        table: its rows.
    """

    path: Path
    created: float
    format: int
    records: list[WriterRecord]
    table: pa.Table


def first_of_each(table: pa.Table, key: str) -> pa.Table:
    """The first row of each key, in order."""
    if pc.count_distinct(table[key]).as_py() == table.num_rows:
        return table
    numbered = pa.table({"key": table[key], "place": np.arange(table.num_rows)})
    first = numbered.group_by("key", use_threads=False).aggregate([("place", "min")])["place_min"]
    return table.take(pa.array(np.sort(first.to_numpy())))
