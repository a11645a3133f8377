"""The verdicts of one identity of one judge."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from mrpo_tools.cache.parts import VERDICTS, Row, VerdictRow
from mrpo_tools.cache.store_of_parts import PartStore


class VerdictStore(PartStore):
    """The verdicts of one identity of one judge, a row per question."""

    kind = VERDICTS
    whose = "judge"

    def verdicts_of(self, keys: Iterable[str]) -> dict[str, VerdictRow]:
        """The rows of those questions that were answered, usably or not."""
        table = self.table()
        wanted = pc.is_in(table[self.kind.key], value_set=pa.array(keys, pa.string()))
        rows = table.filter(wanted).to_pylist()
        return {row[self.kind.key]: VerdictRow(**row) for row in rows}

    def apart(self, pairs: Sequence[tuple[Row, Row]]) -> list[float]:
        """A judge who is asked twice may say another thing; the earliest verdict counts."""
        return [0.0 for _ in pairs]

    def _way_to_more(self) -> str:
        return "mrpo judge A B --judge URL#MODEL"
