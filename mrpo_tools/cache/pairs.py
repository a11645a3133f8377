"""Saved pairs with one reference's log-probs, as other programs read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from mrpo_tools.cache.datasets import GROUPS_SCHEMA, group_from_row
from mrpo_tools.cache.reference import ReferenceStore
from mrpo_tools.cache.store import Cache
from mrpo_tools.errors import UsageError
from mrpo_tools.pairing import pairs_of
from mrpo_tools.words import DeterministicPairing, Truncated

_MESSAGES = GROUPS_SCHEMA.field("prompt").type
PAIRS_SCHEMA = pa.schema(
    [
        pa.field("prompt_id", pa.string()),
        pa.field("chosen_id", pa.string()),
        pa.field("rejected_id", pa.string()),
        pa.field("dataset", pa.string()),
        pa.field("split", pa.string()),
        pa.field("prompt", _MESSAGES),
        pa.field("chosen", pa.string()),
        pa.field("rejected", pa.string()),
        pa.field("chosen_score", pa.float64()),
        pa.field("rejected_score", pa.float64()),
        pa.field("ref_chosen_logps", pa.float64()),
        pa.field("ref_rejected_logps", pa.float64()),
    ]
)
"""One row per pair; log-probs in nats."""
TRL_SCHEMA = pa.schema(
    [
        pa.field("prompt", _MESSAGES),
        pa.field("chosen", _MESSAGES),
        pa.field("rejected", _MESSAGES),
        pa.field("ref_chosen_logps", pa.float64()),
        pa.field("ref_rejected_logps", pa.float64()),
    ]
)
"""The same pairs in the conversational columns of TRL's preference trainers."""


class Number(NamedTuple):
    """A reference's number for a response: nats, absent unless the status is `ok`, or `truncated`
    where the reference read its beginning alone and that is not asked for."""

    logp: float | None
    status: str


@dataclass(frozen=True)
class Pairs:
    """Exported pairs, and what could not be one.

    Attributes:
        table: in `PAIRS_SCHEMA`.
        skipped: groups without two responses that differ in quality and have a number; responses
            by status.
    """

    table: pa.Table
    skipped: Counter[str]


def export_pairs(
    cache: Cache,
    store: ReferenceStore,
    dataset: str | None = None,
    split: str | None = None,
    pairing: DeterministicPairing = "best_worst",
    truncated: Truncated = "drop",
) -> Pairs:
    """Saved pairs with one reference's log-probs.

    Args:
        cache: holds the data too.
        store: the reference.
        dataset: the name it was saved under; None takes all.
        split: None takes all.
        pairing: which pairs a group of more than two responses makes.
        truncated: whether responses take part that the reference read cut.

    Raises:
        CacheMissing: a response has no number.
        UsageError: no saved group is in this data set and split.
    """
    rows = _saved_rows(cache, dataset, split)
    table = store.table()
    names = ("response_id", "logp", "status", "truncated")
    rows_of_numbers = zip(*(table[name].to_pylist() for name in names), strict=True)
    numbers = {
        key: Number(logp, "truncated" if cut and truncated == "drop" else status)
        for key, logp, status, cut in rows_of_numbers
    }
    wanted = {response["response_id"] for row in rows for response in row["responses"]}
    store.require(wanted, numbers)
    pairs, skipped = [], Counter[str]()
    for row in rows:
        of_group, left_out = _pairs(row, numbers, pairing)
        pairs += of_group
        skipped += left_out
    return Pairs(pa.Table.from_pylist(pairs, schema=PAIRS_SCHEMA), skipped)


def as_trl(pairs: pa.Table) -> pa.Table:
    """Pairs in `TRL_SCHEMA`."""
    rows = pairs.select(["prompt", "chosen", "rejected", *TRL_SCHEMA.names[3:]]).to_pylist()
    for row in rows:
        for side in ("chosen", "rejected"):
            row[side] = [{"role": "assistant", "content": row[side]}]
    return pa.Table.from_pylist(rows, schema=TRL_SCHEMA)


def _saved_rows(cache: Cache, dataset: str | None, split: str | None) -> list[Mapping[str, Any]]:
    rows = cache.groups_table(dataset).to_pylist()
    chosen = [row for row in rows if split in (None, "all", row["split"])]
    if not chosen:
        counts = Counter(
            (name, part)
            for name, table in cache.group_tables().items()
            for part in table["split"].to_pylist()
        )
        there = ", ".join(f"{name} {part or '-'} ({n:,})" for (name, part), n in counts.items())
        raise UsageError(f"no saved group to export (saved: {there or 'none'})")
    return chosen


def _pairs(
    row: Mapping[str, Any], numbers: Mapping[str, Number], pairing: DeterministicPairing
) -> tuple[list[dict[str, object]], Counter[str]]:
    """The pairs of a saved group as rows; and what could not be one."""
    group = group_from_row(row)
    if not group.is_plain:
        return [], Counter({"groups of more than text": 1})
    ids = dict(zip(group.responses, group.response_ids, strict=True))
    statuses = {response: numbers[key].status for response, key in ids.items()}
    skipped = Counter(status for status in statuses.values() if status != "ok")
    usable = [response for response, status in statuses.items() if status == "ok"]
    pairs = [
        {
            "prompt_id": row["prompt_id"],
            "chosen_id": ids[better],
            "rejected_id": ids[worse],
            "dataset": row["dataset"],
            "split": row["split"],
            "prompt": row["prompt"],
            "chosen": better.content,
            "rejected": worse.content,
            "chosen_score": better.score,
            "rejected_score": worse.score,
            "ref_chosen_logps": numbers[ids[better]].logp,
            "ref_rejected_logps": numbers[ids[worse]].logp,
        }
        for better, worse in pairs_of(group, pairing, usable)
    ]
    if not pairs:
        judged = group.has_labels or group.has_scores
        skipped["groups without a pair" if judged else "groups without judgement"] += 1
    return pairs, skipped
