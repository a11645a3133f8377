"""Looking after a cache: damage, repair, compaction, upgrade, and rows that disagree.

Everything here may run beside readers and writers. A file is removed only after the file that
replaces it is on the disk, and a reader that misses a file lists again.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mrpo_tools.cache import datasets, files
from mrpo_tools.cache.files import FORMAT_VERSION
from mrpo_tools.cache.parts import Row
from mrpo_tools.cache.records import distinct
from mrpo_tools.cache.store import Cache, store_at
from mrpo_tools.cache.store_of_parts import IDENTITY, PartStore
from mrpo_tools.errors import CacheDamaged
from mrpo_tools.files import TEMPORARY, remove, sweep_temporaries, write_whole
from mrpo_tools.runs.run import EVALUATION

MERGED_ROWS = 1_000_000
"""Rows of a part that compaction writes."""


@dataclass(frozen=True)
class Damaged:
    """A file that is not what its name says."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Disagreement:
    """One response with two numbers under one identity, and more than noise between them.

    Attributes:
        reference: or scorer, with its identity.
        response_id: whose numbers they are.
        earliest: the number of the earliest part, which counts everywhere; None if it has none.
        other: the number in a later part that is farthest from it.
        field: what differs: the number's column, or one that should not differ at all.
    """

    reference: str
    response_id: str
    field: str
    earliest: float | str | bool | None
    other: float | str | bool | None


@dataclass(frozen=True)
class Merged:
    """What `compact` did to one reference or scorer, or to the saved data.

    Attributes:
        name: of the store; `groups` for the saved data.
        before: files.
        after: files.
        dropped_rows: repeated ones, or groups of files that were replaced.
    """

    name: str
    before: int
    after: int
    dropped_rows: int


def damaged(cache: Cache) -> list[Damaged]:
    """Every file that is not what its name says, of all references and data sets."""
    unreadable: list[Damaged] = []
    for store in cache.stores():
        try:
            _ = store.identity
        except CacheDamaged as error:
            unreadable.append(Damaged(store.identity_path, error.what))
            unreadable += _unreadable(store.part_paths(), files.read_verified)
        else:
            unreadable += _unreadable(store.part_paths(), store.read_part)
    unreadable += _unreadable(files.listed(cache.groups_path, "*.parquet"), datasets.load)
    return unreadable


def _unreadable(paths: list[Path], read: Callable[[Path], object]) -> Iterator[Damaged]:
    for path in paths:
        try:
            with contextlib.suppress(FileNotFoundError):  # merged meanwhile
                read(path)
        except CacheDamaged as error:
            yield Damaged(path, error.what)


def repair(cache: Cache) -> list[tuple[Damaged, str]]:
    """Mend what is damaged; with each damaged file what was done.

    A damaged part or data file is removed: `mrpo precompute` computes its rows again. A damaged or
    missing `identity.json` is written again from the footer of a whole part; where there is none,
    the parts cannot be told apart from another model's, and the reference goes as a whole.

    Raises:
        ResourceError: the file system refuses.
    """
    identities_last = sorted(damaged(cache), key=lambda file: file.path.name == IDENTITY)
    return [(file, _mend(file.path)) for file in identities_last]


def _mend(path: Path) -> str:
    """What was done: with an identity the whole parts beside it can help."""
    if path.name == IDENTITY:
        return _restore_identity(store_at(path.parent))
    remove(path)
    return "removed"


def _restore_identity(store: PartStore) -> str:
    identity = store.identity_in_parts()
    if identity is not None:
        write_whole(store.identity_path, identity.content, durable=True)
        return "restored from a part"
    paths = store.part_paths()
    for path in (*paths, store.identity_path):
        remove(path)
    with contextlib.suppress(OSError):  # a writer may be at work in it
        store.directory.rmdir()
    return f"removed, with the {len(paths)} parts that only it could name"


def compact(cache: Cache, *, merged_rows: int = MERGED_ROWS) -> list[Merged]:
    """Merge each reference's parts, and drop saved data that later data replaces.

    The numbers stay: of rows present twice the earliest part's stays. Rows are sorted, so two
    compactions of the same rows write the same bytes under the same name.

    Args:
        cache: others may read and write it meanwhile.
        merged_rows: of a part that is written, at most.

    Raises:
        CacheDamaged: nothing is merged then.
        ResourceError: no space; what was there is still there.
    """
    refuse_damage(cache)
    merged = [compact_store(store, merged_rows) for store in cache.stores()]
    return [*merged, _compact_datasets(cache)]


def compact_store(store: PartStore, merged_rows: int = MERGED_ROWS) -> Merged:
    """Merge the parts of one store; see `compact`."""
    sweep_temporaries(store.directory)
    parts = store.parts()
    if len(parts) < 2:
        return Merged(str(store), len(parts), len(parts), 0)
    rows = pa.concat_tables([part.table for part in parts])
    table = store.kind.counting([rows]).sort_by(
        [("prompt_id", "ascending"), (store.kind.key, "ascending")]
    )
    created = parts[0].created
    records = distinct(record for part in parts for record in part.records)
    written = {
        store.write(table.slice(start, merged_rows), created, records)
        for start in range(0, table.num_rows, merged_rows)
    }
    for part in parts:
        if part.path not in written:
            remove(part.path)
    return Merged(str(store), len(parts), len(written), rows.num_rows - table.num_rows)


def _compact_datasets(cache: Cache) -> Merged:
    """Remove the files of each data set but its latest."""
    sweep_temporaries(cache.groups_path)
    saved = datasets.load_all(cache.groups_path)
    latest = {file.path for file in datasets.latest_of_each(saved)}
    replaced = [file for file in saved if file.path not in latest]
    for file in replaced:
        remove(file.path)
    return Merged(
        name="groups",
        before=len(saved),
        after=len(latest),
        dropped_rows=sum(file.table.num_rows for file in replaced),
    )


def upgrade(cache: Cache) -> list[tuple[Path, Path]]:
    """Write files of an older format anew; (old, new) of each.

    Raises:
        CacheDamaged: nothing is upgraded then.
        ResourceError: no space; what was there is still there.
    """
    refuse_damage(cache)
    renewed = []
    for store in cache.stores():
        for part in store.parts():
            if part.format < FORMAT_VERSION:
                renewed.append((part.path, store.write(part.table, part.created, part.records)))
    for file in datasets.load_all(cache.groups_path):
        if file.format < FORMAT_VERSION:
            content = datasets.content_hash(file.table.to_pylist())
            path = datasets.write(cache.groups_path, file.table, file.created, content)
            renewed.append((file.path, path))
    for old, new in renewed:
        if old != new:
            remove(old)
    return renewed


def refuse_damage(cache: Cache) -> None:
    """Return where every file is what its name says.

    Raises:
        CacheDamaged: naming every file that is not.
    """
    reasons = [file.reason for file in damaged(cache)]
    if reasons:
        raise CacheDamaged("\n".join(reasons), files.repair_command(cache.path))


def disagreements(store: PartStore) -> list[Disagreement]:
    """Responses that have two numbers, with more than noise between them.

    Raises:
        CacheDamaged: a part is not what its name says.
    """
    kind, key = store.kind, store.kind.key
    rows = pa.concat_tables([kind.schema.empty_table(), *(part.table for part in store.parts())])
    waiting = pc.is_in(rows["status"], value_set=pa.array(kind.provisional, pa.string()))
    rows = rows.filter(pc.invert(waiting))
    rows = rows.append_column("place", pa.array(np.arange(rows.num_rows)))
    grouped = rows.group_by(key, use_threads=False)
    counts = grouped.aggregate([("place", "count"), ("place", "min")])
    twice = counts.filter(pc.greater(counts["place_count"], 1))
    earliest = {row[key]: row for row in rows.take(twice["place_min"]).to_pylist()}
    later = rows.filter(pc.is_in(rows[key], value_set=twice[key]))
    pairs = [(earliest[row[key]], row) for row in later.to_pylist()]
    strange = _strange([pair for pair in pairs if pair[0]["place"] != pair[1]["place"]], store)
    worst = {each.first[key]: each for each in sorted(strange, key=lambda each: each.size)}
    return [
        Disagreement(
            reference=str(store),
            response_id=of,
            field=each.field,
            earliest=each.first[each.field],
            other=each.other[each.field],
        )
        for of, each in worst.items()
    ]


class _Pair(NamedTuple):
    """Two rows of a response: the column in which they differ, by how much of what is allowed."""

    first: Row
    other: Row
    field: str
    size: float


def _strange(rows: Sequence[tuple[Row, Row]], store: PartStore) -> list[_Pair]:
    """What noise does not explain."""
    kind, alike, pairs = store.kind, [], []
    for first, other in rows:
        field = next((name for name in kind.same if first[name] != other[name]), None)
        if field is None:
            alike.append((first, other))
        else:
            pairs.append(_Pair(first, other, field, math.inf))
    sizes = zip(alike, store.apart(alike), strict=True)
    pairs += [_Pair(first, other, kind.number, size) for (first, other), size in sizes]
    return [pair for pair in pairs if pair.size > 1]


def foreign(cache: Cache) -> list[Path]:
    """Files that no `mrpo` wrote: nothing reads them, and nothing removes them.

    The cache of evaluated models is one of its own: `mrpo cache verify --cache CACHE/evaluation`.
    """
    stores = cache.stores()
    own = {path for store in stores for path in (store.identity_path, *store.part_paths())}
    own |= set(files.listed(cache.groups_path, "*.parquet"))
    return sorted(
        path
        for path in cache.path.rglob("*")
        if path.is_file()
        and path not in own
        and not path.name.startswith(TEMPORARY)
        and not path.is_relative_to(cache.path / EVALUATION)
    )
