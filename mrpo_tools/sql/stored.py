"""What a cache has stored, as Arrow data sets that queries read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from mrpo_tools.cache import (
    GROUPS_SCHEMA,
    LOGPS_SCHEMA,
    SCORES_SCHEMA,
    VERDICTS_SCHEMA,
    Cache,
    PartStore,
    ReferenceStore,
)
from mrpo_tools.cache.datasets import latest_of_each
from mrpo_tools.cache.files import listed, read_all, repair_command
from mrpo_tools.cache.records import records_of
from mrpo_tools.errors import CacheDamaged
from mrpo_tools.sql import names, rows

REFS_SCHEMA = pa.schema(
    [
        pa.field("place", pa.int64()),
        pa.field("reference", pa.string()),
        pa.field("name", pa.string()),
        pa.field("identity", pa.string()),
        pa.field("model", pa.string()),
        pa.field("revision", pa.string()),
        pa.field("dtype", pa.string()),
        pa.field("quantization", pa.string()),
        pa.field("max_length", pa.int64()),
        pa.field("parts", pa.int64()),
        pa.field("bytes", pa.int64()),
        pa.field("created", pa.timestamp("s")),
        pa.field("updated", pa.timestamp("s")),
    ]
)
_GROUP_FIELDS = [GROUPS_SCHEMA.field(n) for n in ("group_id", "prompt_id", "dataset", "split")]
_JUDGEMENT = pa.struct(
    [
        pa.field("response_id", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("chosen", pa.bool_()),
    ]
)
_LEAVES = [field.name for field in _GROUP_FIELDS] + [
    f"responses.list.element.{field.name}" for field in _JUDGEMENT
]


class Verified(NamedTuple):
    """What a cache holds, every byte checked: the saved groups, each reference's parts, the scores
    of all scorers and the verdicts of all judges."""

    groups: rows.Files
    parts: list[rows.Files]
    scores: pa.Table
    verdicts: pa.Table


def files(cache: Cache, stores: Sequence[ReferenceStore]) -> Verified:
    """The saved groups, the parts of these references, all scores and verdicts.

    Raises:
        CacheDamaged: names every damaged file of all of them.
    """
    scorers, judges = cache.scorers(), cache.judges()
    readers: list[Callable[[], Any]] = [partial(group_files, cache)]
    readers += [partial(part_files, store) for store in stores]
    readers += [store.table for store in (*scorers, *judges)]
    contents = read_all(readers, lambda read: read(), repair_command(cache.path))
    last = 1 + len(stores)
    scored, judged = contents[last : last + len(scorers)], contents[last + len(scorers) :]
    return Verified(
        contents[0],
        contents[1:last],
        _named("scorer", SCORES_SCHEMA, scorers, scored),
        _named("judge", VERDICTS_SCHEMA, judges, judged),
    )


def _named(
    column: str, kind: pa.Schema, stores: Sequence[PartStore], tables: Sequence[pa.Table]
) -> pa.Table:
    """The rows of all stores of a kind, under their names."""
    field, labels = pa.field(column, pa.string()), names.labels(stores)
    named = [
        table.add_column(0, field, pa.repeat(pa.scalar(label, pa.string()), table.num_rows))
        for label, table in zip(labels, tables, strict=True)
    ]
    schema = pa.schema([field, *kind])
    return pa.concat_tables([schema.empty_table(), *(table.cast(schema) for table in named)])


def counting(scores: pa.Table, label: str) -> pa.Table:
    """(response_id, counted) of one scorer."""
    own = scores.filter(pc.equal(scores["scorer"], label))
    return own.select(["response_id", "score"]).rename_columns(["response_id", "counted"])


def datasets(verified: Verified, stores: Sequence[ReferenceStore]) -> dict[str, ds.Dataset]:
    """What the views and macros read, by the name they call it."""
    groups, parts, scores, verdicts = verified
    return {
        "stored_groups": groups.dataset(),
        "stored_datasets": rows.Files(groups.files, groups.schema).dataset(),
        "stored_judgements": judgements(None),
        "stored_scores": ds.dataset(scores),
        "stored_verdicts": ds.dataset(verdicts),
        "stored_logps_none": ds.dataset(LOGPS_SCHEMA.empty_table()),
        "stored_refs": ds.dataset(_refs_table(stores, parts)),
        **{f"stored_logps_{place}": part.dataset() for place, part in enumerate(parts)},
    }


def group_files(cache: Cache) -> rows.Files:
    """Each data set's latest file; a group in several data sets counts where it is latest."""

    def paths() -> list[Path]:
        return listed(cache.groups_path, "*.parquet")

    files = latest_of_each(rows.verified(paths, GROUPS_SCHEMA))
    return rows.first_of_each(files, GROUPS_SCHEMA, "group_id")


def part_files(store: ReferenceStore) -> rows.Files:
    """A reference's parts, the earliest first; of rows present twice the earliest counts."""
    identity = store.identity.hash
    files = rows.verified(store.part_paths, LOGPS_SCHEMA)
    foreign = [file for file in files if file.metadata.get("mrpo.identity") != identity]
    if foreign:
        raise CacheDamaged(
            "\n".join(f"{file.path} belongs to another reference's identity" for file in foreign)
        )
    ordered = sorted(files, key=lambda file: (file.created, file.path.name))
    return rows.first_of_each(ordered, LOGPS_SCHEMA, "response_id")


def _refs_table(stores: Sequence[ReferenceStore], parts: Sequence[rows.Files]) -> pa.Table:
    labels = names.labels(stores)
    return pa.Table.from_pylist(
        [
            {"place": place, "reference": labels[place], **_ref_row(store, files)}
            for place, (store, files) in enumerate(zip(stores, parts, strict=True))
        ],
        schema=REFS_SCHEMA,
    )


def _ref_row(store: ReferenceStore, files: rows.Files) -> dict[str, object]:
    fields = store.identity.fields
    times = [int(file.created) for file in files.files]
    records = [
        record for file in files.files for record in records_of(file.metadata["mrpo.recorded"])
    ]
    words = [record.reference for record in records if record.reference is not None]
    return {
        "name": store.name,
        "identity": store.short,
        "model": fields.get("model") or (words[-1]["model"] if words else None),
        "revision": fields.get("revision"),
        "dtype": fields.get("dtype"),
        "quantization": fields.get("quantization"),
        "max_length": fields.get("max_length"),
        "parts": len(files.files),
        "bytes": sum(file.content.size for file in files.files),
        "created": min(times, default=None),
        "updated": max(times, default=None),
    }


def judgements(groups: rows.Files | None, counted: pa.Table | None = None) -> ds.Dataset:
    """Ids, scores and labels of groups, numbered; without groups an empty table like it.

    Args:
        groups: of the data.
        counted: a scorer's scores in place of these scores and labels; None for the data's own.
    """
    if groups is None or not groups.files:
        leaves = pa.schema([*_GROUP_FIELDS, pa.field("responses", pa.list_(_JUDGEMENT))])
        table = leaves.empty_table()
    else:
        table = groups.leaves(_LEAVES)
        if counted is not None:
            table = _judged_by(counted, table)
    return ds.dataset(
        table.append_column("grp", pa.array(np.arange(table.num_rows, dtype=np.int32)))
    )


def _judged_by(counted: pa.Table, table: pa.Table) -> pa.Table:
    """Groups whose responses have a scorer's scores and no labels."""
    place = table.column_names.index("responses")
    responses = table["responses"].combine_chunks()
    ids = pc.struct_field(pc.list_flatten(responses), "response_id")
    places = pc.index_in(ids, value_set=counted["response_id"])
    scores = counted["counted"].combine_chunks().take(places)
    said = pa.StructArray.from_arrays(
        [ids, scores, pa.nulls(len(ids), pa.bool_())], fields=[*_JUDGEMENT]
    )
    sizes = pa.array(np.concatenate([[0], np.cumsum(pc.list_value_length(responses))]), pa.int32())
    return table.set_column(place, "responses", pa.ListArray.from_arrays(sizes, said))
