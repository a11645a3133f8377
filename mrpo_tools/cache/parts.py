"""Kinds of rows that a cache stores, and one part of them.

Every kind is stored alike: immutable Parquet parts under the hash of their bytes, in a directory of
one identity. A kind says what its rows are; another one is a schema, its statuses and a line in
`store.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

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
SCORES_SCHEMA = pa.schema(
    [
        pa.field("response_id", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("num_tokens", pa.int32()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("truncated", pa.bool_(), nullable=False),
        pa.field("reason", pa.string()),
    ]
)
"""One row per response: `score` absent unless `status` is `ok`, `num_tokens` of prompt and response
where a model read them, `reason` why a scorer failed."""

VERDICTS_SCHEMA = pa.schema(
    [
        pa.field("verdict_id", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("first_id", pa.string(), nullable=False),
        pa.field("second_id", pa.string(), nullable=False),
        pa.field("repeat", pa.int32(), nullable=False),
        pa.field("preference", pa.float64()),
        pa.field("label", pa.string()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reasoning", pa.string()),
        pa.field("prompt_tokens", pa.int32()),
        pa.field("completion_tokens", pa.int32()),
    ]
)
"""One row per question to a judge, who was shown `first_id` above `second_id` (response ids):
`preference` for the first one, −1 to 1, absent unless `status` is `ok`; the judge's own `label`,
and what it said before it. `repeat` is 0, or the number of a question that was asked once more."""

STATUSES = ("ok", "overlong", "nonfinite")
FAILED = "failed"
"""Of a score: the scorer gave none. It is asked again, and another row then counts."""
UNUSABLE, REFUSED, CUT = "unusable", "refused", "length"
"""Of a verdict: no label can be read in the answer, which is asked for again; the judge will not
say; its token limit cut the answer."""

Row: TypeAlias = Mapping[str, Any]
"""A row by its columns."""


@dataclass(frozen=True)
class Kind:
    """What the rows of some stores are.

    Attributes:
        folder: of the cache, in which each identity has a directory.
        noun: of a row's number, for messages.
        schema: columns of a part; the first is the key, of which each value counts once.
        number: the column of the number, which a row has where its status is `ok`, and only there.
        statuses: that a row may have.
        same: columns that two rows of a key share, whatever the noise.
        provisional: statuses of rows that count only where a key has no other.
    """

    folder: str
    noun: str
    schema: pa.Schema
    number: str
    statuses: tuple[str, ...]
    same: tuple[str, ...]
    provisional: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The column by which rows are found."""
        return str(self.schema.names[0])

    def table(self, rows: Sequence[object]) -> pa.Table:
        """Rows as a part holds them.

        Raises:
            ValueError: one has no such status, or a number against its status, or one that is not
                finite.
        """
        columns = {field.name: [getattr(row, field.name) for row in rows] for field in self.schema}
        table = pa.table(columns, schema=self.schema)
        unknown = set(columns["status"]) - set(self.statuses)
        good = pc.equal(table["status"], "ok")
        finite = pc.is_finite(table[self.number]).fill_null(fill_value=False)
        if unknown or not pc.all(pc.equal(good, finite), min_count=0).as_py():
            raise ValueError(f"rows with status {unknown or 'ok'} that no part of {self.noun} has")
        return table

    def counting(self, tables: Sequence[pa.Table]) -> pa.Table:
        """Every key once: of rows present twice the first one, a provisional one last."""
        rows = pa.concat_tables([self.schema.empty_table(), *tables])
        if self.provisional:
            waiting = pc.is_in(rows["status"], value_set=pa.array(self.provisional))
            rows = pa.concat_tables([rows.filter(pc.invert(waiting)), rows.filter(waiting)])
        return first_of_each(rows, self.key)


LOGPS = Kind(
    folder="references",
    noun="log-probs",
    schema=LOGPS_SCHEMA,
    number="logp",
    statuses=STATUSES,
    same=("token_hash", "num_tokens", "status", "truncated"),
)
SCORES = Kind(
    folder="scores",
    noun="scores",
    schema=SCORES_SCHEMA,
    number="score",
    statuses=(*STATUSES, FAILED),
    same=("num_tokens", "status", "truncated"),
    provisional=(FAILED,),
)


VERDICTS = Kind(
    folder="verdicts",
    noun="verdicts",
    schema=VERDICTS_SCHEMA,
    number="preference",
    statuses=("ok", UNUSABLE, REFUSED, CUT),
    same=("prompt_id", "first_id", "second_id", "repeat"),
    provisional=(UNUSABLE,),
)


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
class ScoreRow:
    """A scorer's number for one response, as `SCORES_SCHEMA` stores it."""

    response_id: str
    prompt_id: str
    score: float | None
    status: str = "ok"
    num_tokens: int | None = None
    truncated: bool = False
    reason: str | None = None


@dataclass(frozen=True)
class VerdictRow:
    """A judge's answer to one question, as `VERDICTS_SCHEMA` stores it."""

    verdict_id: str
    prompt_id: str
    first_id: str
    second_id: str
    repeat: int
    preference: float | None
    label: str | None = None
    status: str = "ok"
    reasoning: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


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
