"""A reference's rows as arrays, by the keys of their responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mrpo_tools.cache.parts import LOGPS_SCHEMA, STATUSES
from mrpo_tools.groups.facts import Keys, Places, keys_of_bytes

COLUMNS = ("response_id", "logp", "num_tokens", "status", "truncated", "token_hash")
"""Of a part that `Numbers` is made of."""
ID_BYTES, HASH_BYTES = 32, 16
NO_DIGIT = 16
_DIGITS = np.full(256, NO_DIGIT, dtype=np.uint8)
_DIGITS[np.frombuffer(b"0123456789abcdef", dtype=np.uint8)] = np.arange(16)


@dataclass(frozen=True)
class Numbers:
    """P rows.

    Attributes:
        keys: [P, 2] of the responses.
        logps: [P] nats; NaN where the status is not `ok`.
        num_tokens: [P].
        statuses: [P] places in `STATUSES`.
        truncated: [P] whether the reference read the beginning of the response alone.
        token_hashes: [P] of the tokens; empty where the row has none.
    """

    keys: Keys
    logps: npt.NDArray[np.float64]
    num_tokens: npt.NDArray[np.int32]
    statuses: npt.NDArray[np.int8]
    truncated: npt.NDArray[np.bool_]
    token_hashes: npt.NDArray[np.bytes_]

    @classmethod
    def of(cls, table: pa.Table) -> Numbers:
        """The rows of a part, without those whose id is no response's."""
        ids = _bytes_of(table["response_id"], ID_BYTES)
        statuses = pc.index_in(table["status"], value_set=pa.array(STATUSES))
        hashes = _bytes_of(table["token_hash"], HASH_BYTES)
        keys, real = _keys_of_digits(ids)
        return cls(
            keys,
            table["logp"].to_numpy()[real],
            table["num_tokens"].to_numpy()[real],
            statuses.to_numpy().astype(np.int8)[real],
            table["truncated"].to_numpy()[real],
            hashes.view(f"S{HASH_BYTES}").reshape(-1)[real],
        )

    @classmethod
    def together(cls, several: Sequence[Numbers]) -> Numbers:
        """All rows, one part's after another's."""
        every = [cls.of(_NOTHING), *several]
        return cls(
            **{
                field.name: np.concatenate([getattr(numbers, field.name) for numbers in every])
                for field in fields(cls)
            }
        )

    def at(self, places: Places) -> Numbers:
        """The rows at some places."""
        return Numbers(**{name: column[places] for name, column in vars(self).items()})


def _bytes_of(texts: pa.ChunkedArray, width: int) -> npt.NDArray[np.uint8]:
    """[P, width] bytes of ASCII texts; zeros in place of a text of another length."""
    fitting = pc.equal(pc.binary_length(texts), width)
    wide = pc.if_else(fitting, texts.cast(pa.binary()), bytes(width)).combine_chunks()
    content = wide.cast(pa.binary(width)).buffers()[1] if len(wide) else b""
    return np.frombuffer(content, dtype=np.uint8).reshape(-1, width)


def _keys_of_digits(digits: npt.NDArray[np.uint8]) -> tuple[Keys, Any]:
    """[D, 2] of the rows of [P, 32] that are hexadecimal digits throughout, and which these are."""
    values = _DIGITS[digits]
    real = np.all(values < NO_DIGIT, axis=-1)
    content = np.bitwise_or(values[real, ::2] << 4, values[real, 1::2])
    return keys_of_bytes(content.astype(np.uint8).reshape(-1)), real


_NOTHING = LOGPS_SCHEMA.empty_table()
