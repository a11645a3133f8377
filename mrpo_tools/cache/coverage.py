"""Which data have numbers under which reference, and scores by which scorer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from mrpo_tools.cache.datasets import GROUPS_SCHEMA
from mrpo_tools.cache.records import WriterRecord
from mrpo_tools.cache.store import Cache
from mrpo_tools.cache.store_of_parts import PartStore


@dataclass(frozen=True)
class Coverage:
    """Responses of one split of one data set under one reference or scorer.

    `dataset` None counts the rows whose responses are in no saved data; `whose` is `reference` or
    `scorer`, and `failed` is of scorers.
    """

    whose: str
    reference: str
    identity: str
    dataset: str | None
    split: str | None
    responses: int
    ok: int
    missing: int
    overlong: int
    nonfinite: int
    failed: int = 0


@dataclass(frozen=True)
class Holding:
    """What one identity of a reference or a scorer holds.

    Attributes:
        whose: `reference` or `scorer`.
        reference: its name.
        identity: its twelve digits.
        parts: files.
        rows: responses, each once.
        bytes: of the files.
        first: when the first part was written, seconds since 1970; None without parts.
        last: when the last part was written, or the last of the parts that it merges.
        versions: of every library that wrote a part: all that were used, in order.
        devices: the same of devices.
        origin: where imported numbers come from; None for those computed here.
    """

    whose: str
    reference: str
    identity: str
    parts: int
    rows: int
    bytes: int
    first: float | None
    last: float | None
    versions: dict[str, list[str]]
    devices: list[str]
    origin: str | None


def coverage(cache: Cache, stores: Sequence[PartStore] | None = None) -> list[Coverage]:
    """Each store × data set × split, in this order; None takes the references.

    Raises:
        CacheMissing: there is no cache.
        CacheDamaged: a file is not what its name says.
    """
    wanted = _wanted(cache)
    chosen = cache.references() if stores is None else stores
    return [cell for store in chosen for cell in _cells(store, wanted)]


def holdings(stores: Sequence[PartStore]) -> list[Holding]:
    """What each store holds."""
    return [_holding(store) for store in stores]


def _wanted(cache: Cache) -> pa.Table:
    """(data set, split, response), each once."""
    groups = pa.concat_tables([GROUPS_SCHEMA.empty_table(), *cache.group_tables().values()])
    responses = groups["responses"].combine_chunks()
    owners = pc.list_parent_indices(responses)
    table = groups.select(["dataset", "split"]).take(owners)
    ids = pc.struct_field(pc.list_flatten(responses), "response_id")
    table = table.append_column("response_id", ids)
    return table.group_by(table.column_names, use_threads=False).aggregate([])


def _cells(store: PartStore, wanted: pa.Table) -> Iterator[Coverage]:
    rows = store.table().select(["response_id", "status"])
    joined = wanted.join(rows, "response_id", use_threads=False)
    grouped = joined.group_by(["dataset", "split", "status"], use_threads=False)
    counted = grouped.aggregate([([], "count_all")])
    counts: dict[tuple[str, str | None], Counter[str | None]] = {}
    for row in counted.to_pylist():
        of_split = counts.setdefault((row["dataset"], row["split"]), Counter())
        of_split[row["status"]] += row["count_all"]
    for dataset, split in sorted(counts, key=lambda key: (key[0], str(key))):
        yield _cell(store, dataset, split, counts[dataset, split])
    saved = pc.is_in(rows["response_id"], value_set=wanted["response_id"])
    elsewhere = rows.filter(pc.invert(saved))
    if elsewhere.num_rows:
        yield _cell(store, None, None, Counter(elsewhere["status"].to_pylist()))


def _cell(
    store: PartStore, dataset: str | None, split: str | None, counts: Counter[str | None]
) -> Coverage:
    return Coverage(
        whose=store.whose,
        reference=store.name,
        identity=store.short,
        dataset=dataset,
        split=split,
        responses=counts.total(),
        missing=counts[None],
        **{status: counts[status] for status in store.kind.statuses},
    )


def _holding(store: PartStore) -> Holding:
    parts = store.parts()
    records = [record for part in parts for record in part.records]
    times = [record.created for record in records if record.created is not None]
    times += [part.created for part in parts]
    return Holding(
        whose=store.whose,
        reference=store.name,
        identity=store.short,
        parts=len(parts),
        rows=store.table().num_rows,
        bytes=sum(part.path.stat().st_size for part in parts),
        first=min(times, default=None),
        last=max(times, default=None),
        versions=_versions(records),
        devices=[*dict.fromkeys(record.device for record in records if record.device)],
        origin=store.identity.fields.get("origin"),
    )


def _versions(records: Sequence[WriterRecord]) -> dict[str, list[str]]:
    versions: dict[str, list[str]] = {}
    for record in records:
        for library, version in record.versions.items():
            used = versions.setdefault(library, [])
            if version not in used:
                used.append(version)
    return versions
