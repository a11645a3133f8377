"""The data whose log-probs are stored, as it is saved beside them.

Of a data set the latest file counts, alone: a score or a label that was corrected makes another
group, and the wrong one must not live on.

A group of more than text (tools, calls, hidden reasoning) is in `structured` as it is; its other
columns hold all that is said as text.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from mrpo_tools.cache import files
from mrpo_tools.errors import CacheDamaged
from mrpo_tools.files import make_directory, sweep_temporaries
from mrpo_tools.groups import Group, Response, canonical_json, group_from_dict
from mrpo_tools.messages import json_text, message_from_dict
from mrpo_tools.progress import say

_MESSAGE = pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())])
_RESPONSE = pa.struct(
    [
        pa.field("response_id", pa.string()),
        pa.field("content", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("chosen", pa.bool_()),
        pa.field("model", pa.string()),
    ]
)
GROUPS_SCHEMA = pa.schema(
    [
        pa.field("group_id", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("split", pa.string()),
        pa.field("source_id", pa.string()),
        pa.field("prompt", pa.list_(_MESSAGE), nullable=False),
        pa.field("responses", pa.list_(_RESPONSE), nullable=False),
        pa.field("structured", pa.string()),
    ]
)
_WITHOUT_STRUCTURE = GROUPS_SCHEMA.names[:-1]
"""The columns of files of before, all of whose groups are text."""


CLOCK_STEP = 1e-3
"""Seconds by which a file is later than the one it replaces, though the clock went back."""


class File(Protocol):
    """A file of a data set, however much of it was read."""

    @property
    def path(self) -> Path:
        """Where it is."""

    @property
    def created(self) -> float:
        """When it was written, seconds since 1970."""


FileT = TypeVar("FileT", bound=File)


@dataclass(frozen=True)
class Footer:
    """What the end of a file says: its bytes are not verified.

    Attributes:
        path: where it is.
        created: when it was written, seconds since 1970.
        content: SHA-256 of its rows; None before format 2.
        rows: how many.
    """

    path: Path
    created: float
    content: str | None
    rows: int


@dataclass(frozen=True)
class Saved:
    """One verified file of groups.

    Attributes:
        path: where it is.
        created: when it was written, seconds since 1970.
        format: the version it is written in.
        content: SHA-256 of its rows; None before format 2.
        table: its rows.
    """

    path: Path
    created: float
    format: int
    content: str | None
    table: pa.Table


def save(directory: Path, dataset: str, groups: Sequence[Group], now: float) -> Path:
    """Keep groups in a file, unless the latest file of this data set holds just these.

    Where there are fewer groups now than before, that is said: those before no longer count.

    Args:
        directory: of saved data; it is created if need be.
        dataset: its name.
        groups: all of them.
        now: seconds since 1970; the file is later than the one it replaces in any case.
    """
    rows = [_row(dataset, group) for group in groups]
    digest = content_hash(rows)
    latest = next(iter(latest_of_each(_footers(directory, dataset))), None)
    if latest is not None:
        if latest.content == digest:
            return latest.path
        now = max(now, latest.created + CLOCK_STEP)
    make_directory(directory)
    sweep_temporaries(directory)
    written = write(directory, pa.Table.from_pylist(rows, schema=GROUPS_SCHEMA), now, digest)
    if latest is not None and len(rows) < latest.rows:
        say(
            f"note: data set {dataset!r} of the cache is {len(rows):,} groups now; the "
            f"{latest.rows:,} saved before no longer count"
        )
    return written


def latest_of_each(candidates: Iterable[FileT]) -> list[FileT]:
    """The one file of each data set that counts, the latest first."""
    latest: dict[str, FileT] = {}
    for file in sorted(candidates, key=lambda file: (-file.created, file.path.name)):
        latest.setdefault(dataset_of(file.path), file)
    return list(latest.values())


def content_hash(rows: Sequence[Mapping[str, object]]) -> str:
    """SHA-256 of rows, whenever and by whatever library they are written."""
    return hashlib.sha256("\n".join(map(canonical_json, rows)).encode()).hexdigest()


def write(directory: Path, table: pa.Table, created: float, content: str) -> Path:
    """Write groups of one data set as one file."""
    metadata = {"mrpo.created": repr(created), "mrpo.content": content}
    dataset = table["dataset"][0].as_py() if table.num_rows else "empty"
    return files.write_content_addressed(directory, f"{dataset}-", table, metadata)


def load(path: Path) -> Saved:
    """One file, its bytes and format checked.

    Raises:
        CacheDamaged: they are not those that were written.
        CacheStale: a newer format.
        FileNotFoundError: the file went away.
    """
    table, metadata = files.read_verified(path)
    if table.schema.names == _WITHOUT_STRUCTURE:
        table = table.append_column("structured", pa.nulls(table.num_rows, pa.string()))
    if table.schema.names != GROUPS_SCHEMA.names:
        raise CacheDamaged(f"{path} has other columns than saved data of a cache")
    return Saved(
        path=path,
        created=files.created(path, metadata),
        format=int(metadata["mrpo.format_version"]),
        content=metadata.get("mrpo.content"),
        table=table.cast(GROUPS_SCHEMA).replace_schema_metadata(None),
    )


def load_all(directory: Path) -> list[Saved]:
    """Every file, also those that no longer count.

    Raises:
        CacheDamaged: naming every file that is not what its name says.
    """
    return files.listed_again(directory, lambda: _load_listed(directory))


def _load_listed(directory: Path) -> list[Saved]:
    paths = files.listed(directory, "*.parquet")
    return files.read_all(paths, load, files.repair_command(directory.parent))


def group_from_row(row: Mapping[str, Any]) -> Group:
    """A group as `save` stored it."""
    if row["structured"] is not None:
        return group_from_dict(json.loads(row["structured"]))
    return Group(
        tuple(map(message_from_dict, row["prompt"])),
        tuple(
            Response(response["content"], response["score"], response["chosen"], response["model"])
            for response in row["responses"]
        ),
        row["source_id"],
        row["split"],
    )


def dataset_of(path: Path) -> str:
    """`pairs` of `groups/pairs-0123456789abcdef.parquet`."""
    return path.stem.rpartition("-")[0]


def _footers(directory: Path, dataset: str) -> Iterator[Footer]:
    """Of a data set's files; those that cannot be read are left out."""
    for path in files.listed(directory, "*.parquet"):
        if dataset_of(path) == dataset:
            with contextlib.suppress(OSError, pa.ArrowException):
                footer = pq.read_metadata(path)
                metadata = files.texts(footer.metadata)
                created, content = files.created(path, metadata), metadata.get("mrpo.content")
                yield Footer(path, created, content, footer.num_rows)


def _row(dataset: str, group: Group) -> dict[str, object]:
    structured = {} if group.is_plain else {"structured": json_text(group.as_dict())}
    return {
        "group_id": group.group_id,
        "prompt_id": group.prompt_id,
        "dataset": dataset,
        "split": group.split,
        "source_id": group.source_id,
        "prompt": [{"role": turn.role, "content": turn.written} for turn in group.prompt],
        "responses": [
            {
                "response_id": response_id,
                "content": response.message.written,
                "score": response.score,
                "chosen": response.chosen,
                "model": response.model,
            }
            for response_id, response in zip(group.response_ids, group.responses, strict=True)
        ],
        **structured,
    }
