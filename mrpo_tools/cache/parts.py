"""Rows of log-probs, and one part of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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


@dataclass(frozen=True)
class Part:
    """One verified part file.

    Attributes:
        path: where it is.
        created: when it was written, seconds since 1970.
        format: the version it is written in.
        records: what each of its writers recorded: library versions, device, measured noise, the
            words it was scored under. No identity. A merged part keeps those of all its parts.
        table: its rows.
    """

    path: Path
    created: float
    format: int
    records: list[dict[str, Any]]
    table: pa.Table


def first_of_each(table: pa.Table, key: str) -> pa.Table:
    """The first row of each key, in order."""
    if pc.count_distinct(table[key]).as_py() == table.num_rows:
        return table
    numbered = pa.table({"key": table[key], "place": np.arange(table.num_rows)})
    first = numbered.group_by("key", use_threads=False).aggregate([("place", "min")])["place_min"]
    return table.take(pa.array(np.sort(first.to_numpy())))
