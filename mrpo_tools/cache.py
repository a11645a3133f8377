"""The store of log-probs: immutable, content-addressed Parquet parts in a directory.

    cache/
      groups/<dataset>-<sha256 of the bytes, 16 hex>.parquet      the data that was scored
      references/<name>-<identity, 12 hex>/identity.json          written first, never changed
      references/<name>-<identity, 12 hex>/part-<sha256, 16 hex>.parquet

A file's name carries the hash of its bytes, so the directory listing is the truth: there is no
index to corrupt and no lock to hold. A writer writes to a temporary name, flushes it to the disk
and renames it; two writers cannot collide, and a killed one leaves nothing that is read. Every
byte is hashed at every read.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mrpo_tools.errors import (
    CacheDamaged,
    CacheError,
    CacheMissing,
    CacheStale,
    ResourceError,
    UsageError,
)
from mrpo_tools.groups import Group, Message, Response
from mrpo_tools.identity import Identity

FORMAT_VERSION = 1
ROW_GROUP = 8192
"""Rows of a row group: small ones keep a scan of long texts within memory."""
PART_SECONDS = 60.0
PART_ROWS = 8192
LISTINGS = 5
"""How often a directory is listed again when a file of it went away."""
STALE_TEMPORARY_SECONDS = 24 * 3600
LIBRARIES = ("torch", "transformers", "tokenizers", "pyarrow", "peft", "bitsandbytes")

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
    ]
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
class Part:
    """One verified part file.

    Attributes:
        path: where it is.
        created: when it was written, seconds since 1970.
        recorded: library versions, device and measured noise of the writer; no identity.
        table: its rows.
    """

    path: Path
    created: float
    recorded: dict[str, Any]
    table: pa.Table


class ReferenceStore:
    """The log-probs of one identity of one reference."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name, self.short = split_directory_name(directory.name)

    def __str__(self) -> str:
        return f"{self.name}@{self.short}"

    @cached_property
    def identity(self) -> Identity:
        """The fields of `identity.json`, checked against the directory's name.

        Raises:
            CacheDamaged: the file is not what its directory's name says.
        """
        path = self.directory / "identity.json"
        content = _read_bytes(path)
        if hashlib.sha256(content).hexdigest()[:12] != self.short:
            raise CacheDamaged(
                f"{path} is damaged: its bytes do not have the hash in its directory's name",
                "mrpo cache repair",
            )
        return Identity(json.loads(content))

    def part_paths(self) -> list[Path]:
        return sorted(self.directory.glob("part-*.parquet"))

    def parts(self) -> list[Part]:
        """Every part, verified, the earliest first.

        Raises:
            CacheDamaged: a part is not what its name says; all of them are named.
            CacheStale: a part was written by a newer format.
        """
        _ = self.identity
        for _attempt in range(LISTINGS):
            try:
                return self._listed_parts()
            except FileNotFoundError:
                continue  # merged into another part meanwhile: list again
        raise CacheError(f"the parts in {self.directory} keep changing", "try again")

    def _listed_parts(self) -> list[Part]:
        parts, damaged = [], []
        for path in self.part_paths():
            try:
                parts.append(self.read_part(path))
            except CacheDamaged as error:
                damaged.append(error.what)
        if damaged:
            raise CacheDamaged("\n".join(damaged), "mrpo cache repair")
        return sorted(parts, key=lambda part: (part.created, part.path.name))

    def table(self) -> pa.Table:
        """Every row once; of rows present twice, the earliest part's."""
        tables = [part.table for part in self.parts()]
        if not tables:
            return LOGPS_SCHEMA.empty_table()
        return first_of_each(pa.concat_tables(tables), "response_id")

    def response_ids(self) -> set[str]:
        return set(self.table()["response_id"].to_pylist())

    def count_by_status(self) -> dict[str, int]:
        """Rows of each status, duplicates counted once."""
        statuses = self.table()["status"].to_pylist()
        return {status: statuses.count(status) for status in STATUSES}

    def recorded(self) -> list[dict[str, Any]]:
        """What each part's writer recorded about itself."""
        return [part.recorded for part in self.parts()]

    def append(self, rows: Sequence[LogpRow], recorded: Mapping[str, Any]) -> Path:
        """Write one immutable part.

        Raises:
            ResourceError: no space or no permission; nothing is left behind.
        """
        columns = {field.name: [getattr(row, field.name) for row in rows] for field in LOGPS_SCHEMA}
        table = pa.table(columns, schema=LOGPS_SCHEMA)
        metadata = {
            "mrpo.format_version": str(FORMAT_VERSION),
            "mrpo.identity": self.identity.hash,
            "mrpo.created": repr(time.time()),
            "mrpo.recorded": json.dumps({**recorded, "versions": library_versions()}),
        }
        return write_content_addressed(self.directory, "part-", table, metadata)

    def read_part(self, path: Path) -> Part:
        """One part, its bytes, format and identity checked."""
        table, metadata = read_verified(path)
        check_format(path, metadata)
        if metadata.get("mrpo.identity") != self.identity.hash:
            raise CacheDamaged(f"{path} belongs to another reference's identity")
        if table.schema.names[: len(LOGPS_SCHEMA)] != LOGPS_SCHEMA.names:
            raise CacheDamaged(f"{path} has other columns than a part of a cache")
        return Part(
            path,
            float(metadata["mrpo.created"]),
            json.loads(metadata["mrpo.recorded"]),
            table.select(LOGPS_SCHEMA.names).cast(LOGPS_SCHEMA).replace_schema_metadata(None),
        )


class PartWriter:
    """Collects rows and writes a part every `PART_SECONDS` or `PART_ROWS`.

    A context manager: leaving it writes what is left, also after an error or Ctrl-C, so only a kill
    loses rows, and never more than one part's.
    """

    def __init__(
        self,
        store: ReferenceStore,
        recorded: Mapping[str, Any],
        seconds: float = PART_SECONDS,
        rows: int = PART_ROWS,
    ) -> None:
        self.store, self.recorded = store, recorded
        self.seconds, self.rows = seconds, rows
        self._pending: list[LogpRow] = []
        self._since = time.monotonic()

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def add(self, rows: Iterable[LogpRow]) -> None:
        self._pending.extend(rows)
        if len(self._pending) >= self.rows or time.monotonic() - self._since >= self.seconds:
            self.flush()

    def flush(self) -> None:
        if self._pending:
            self.store.append(self._pending, self.recorded)
        self._pending = []
        self._since = time.monotonic()


class Cache:
    """A cache directory."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def references_path(self) -> Path:
        return self.path / "references"

    @property
    def groups_path(self) -> Path:
        return self.path / "groups"

    def references(self) -> list[ReferenceStore]:
        """Every stored identity of every reference, by name.

        Raises:
            CacheMissing: there is no cache at this path.
        """
        if not self.path.is_dir():
            raise CacheMissing(f"no cache at {self.path}", "mrpo precompute --ref NAME")
        if not self.references_path.is_dir():
            return []
        return [
            ReferenceStore(directory)
            for directory in sorted(self.references_path.iterdir())
            if (directory / "identity.json").exists()
        ]

    def find(self, wanted: str) -> ReferenceStore:
        """The store of a reference, `mistral` or, where there are several, `mistral@ab12`.

        Raises:
            CacheMissing: none of this name.
            CacheStale: two identities of this name, and no digits to tell which.
        """
        name, _, digits = wanted.partition("@")
        stores = self.references()
        found = [one for one in stores if one.name == name and one.short.startswith(digits)]
        if len(found) == 1:
            return found[0]
        if not found:
            names = ", ".join(sorted({str(one) for one in stores})) or "none yet"
            raise CacheMissing(
                f"reference {wanted!r} has no log-probs in {self.path} (cached: {names})",
                f"create them with: mrpo precompute --ref {name}",
            )
        differing = ", ".join(
            field for field, _, _ in found[0].identity.differences(found[1].identity)
        )
        raise CacheStale(
            f"reference {name!r} has {len(found)} identities in {self.path}: "
            f"{', '.join(map(str, found))}; they differ in {differing}",
            f"name the one you mean: {found[0].name}@{found[0].short[:4]}",
        )

    def store(self, name: str, identity: Identity) -> ReferenceStore:
        """The store of an identity, created if it is new."""
        directory = self.references_path / f"{name}-{identity.short}"
        make_directory(directory)
        sweep_temporaries(directory)
        if not (directory / "identity.json").exists():
            with _atomic(directory, "identity-") as temporary:
                temporary.path.write_bytes(identity.content)
                temporary.commit(directory / "identity.json")
        store = ReferenceStore(directory)
        if store.identity.hash != identity.hash:
            raise CacheDamaged(f"{directory} holds another identity", "mrpo cache repair")
        return store

    def save_groups(self, dataset: str, groups: Sequence[Group]) -> Path:
        """Keep the data that was scored, once for each content."""
        make_directory(self.groups_path)
        sweep_temporaries(self.groups_path)
        table = pa.Table.from_pylist(
            [_group_row(dataset, group) for group in groups], schema=GROUPS_SCHEMA
        )
        metadata = {"mrpo.format_version": str(FORMAT_VERSION)}
        return write_content_addressed(self.groups_path, f"{dataset}-", table, metadata)

    def group_tables(self) -> list[pa.Table]:
        """Every saved data set, verified, the latest first."""
        paths = sorted(
            self.groups_path.glob("*.parquet"), key=lambda p: (-p.stat().st_mtime, p.name)
        )
        tables = []
        for path in paths:
            table, metadata = read_verified(path)
            check_format(path, metadata)
            tables.append(table.cast(GROUPS_SCHEMA).replace_schema_metadata(None))
        return tables

    def damaged(self) -> list[tuple[Path, str]]:
        """(file, reason) of every file that is not what its name says."""
        found = []
        for store in self.references():
            try:
                _ = store.identity
            except (CacheDamaged, FileNotFoundError) as error:
                found.append((store.directory / "identity.json", str(error)))
                continue
            for path in store.part_paths():
                try:
                    store.read_part(path)
                except CacheDamaged as error:
                    found.append((path, error.what))
        for path in sorted(self.groups_path.glob("*.parquet")):
            try:
                read_verified(path)
            except CacheDamaged as error:
                found.append((path, error.what))
        return found

    def repair(self) -> list[tuple[Path, str]]:
        """Remove damaged files; a reference whose identity is damaged goes as a whole."""
        found = self.damaged()
        for path, _ in found:
            doomed = sorted(path.parent.iterdir()) if path.name == "identity.json" else [path]
            for one in doomed:
                one.unlink(missing_ok=True)
            if path.name == "identity.json":
                path.parent.rmdir()
        return found


def split_directory_name(name: str) -> tuple[str, str]:
    """(`mistral`, `ab12…`) of `mistral-ab12…`."""
    reference, _, short = name.rpartition("-")
    return reference, short


def first_of_each(table: pa.Table, key: str) -> pa.Table:
    """The first row of each key, in order."""
    if pc.count_distinct(table[key]).as_py() == table.num_rows:
        return table
    seen: set[str] = set()
    keep = []
    for index, value in enumerate(table[key].to_pylist()):
        if value not in seen:
            seen.add(value)
            keep.append(index)
    return table.take(pa.array(keep, pa.int64()))


def group_from_row(row: Mapping[str, Any]) -> Group:
    """A group as `Cache.save_groups` stored it."""
    return Group(
        tuple(Message(turn["role"], turn["content"]) for turn in row["prompt"]),
        tuple(
            Response(one["content"], one["score"], one["chosen"], one["model"])
            for one in row["responses"]
        ),
        row["source_id"],
        row["split"],
    )


def library_versions() -> dict[str, str]:
    """Versions of the libraries that numbers may depend on."""
    versions = {}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def write_content_addressed(
    directory: Path, prefix: str, table: pa.Table, metadata: Mapping[str, str]
) -> Path:
    """Write a table under the hash of its own bytes; the file appears whole or not at all.

    Raises:
        ResourceError: the disk is full, or refuses; no temporary file is left.
    """
    with _atomic(directory, f"{prefix}") as temporary:
        described = table.replace_schema_metadata(dict(metadata))
        with pa.OSFile(str(temporary.path), "wb") as sink:
            pq.write_table(
                described,
                sink,
                compression="zstd",
                write_page_checksum=True,
                row_group_size=ROW_GROUP,
            )
        digest = hashlib.sha256(temporary.path.read_bytes()).hexdigest()[:16]
        return temporary.commit(directory / f"{prefix}{digest}.parquet")


def read_verified(path: Path) -> tuple[pa.Table, dict[str, str]]:
    """A content-addressed table and its metadata, its bytes checked against its name.

    Raises:
        CacheDamaged: the bytes are not the ones that were written.
        FileNotFoundError: the file went away.
    """
    content = _read_bytes(path)
    expected = path.stem.rpartition("-")[2]
    if hashlib.sha256(content).hexdigest()[:16] != expected:
        raise CacheDamaged(f"{path} is damaged: its bytes do not have the hash in its name")
    try:
        table = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        raise CacheDamaged(f"{path} is no Parquet file: {error}") from None
    metadata = {
        key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()
    }
    return table, metadata


def make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _resource_error(path, error) from None


def sweep_temporaries(directory: Path) -> None:
    """Remove temporary files whose writer on this host is dead, and those older than a day."""
    for path in directory.glob(".tmp-*"):
        with contextlib.suppress(OSError, ValueError):
            _, host, pid, _ = path.name.split("~")
            here = host == _host()
            abandoned = here and not _is_alive(int(pid))
            if abandoned or time.time() - path.stat().st_mtime > STALE_TEMPORARY_SECONDS:
                path.unlink()


class _Temporary:
    """A file on its way to its final name."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def commit(self, final: Path) -> Path:
        """Flush to the disk and rename; the directory is flushed too."""
        _fsync(self.path, os.O_RDWR)
        os.replace(self.path, final)
        _fsync(final.parent, os.O_RDONLY)
        return final


@contextlib.contextmanager
def _atomic(directory: Path, prefix: str) -> Iterator[_Temporary]:
    handle, name = -1, ""
    try:
        marker = f".tmp-{prefix}~{_host()}~{os.getpid()}~"
        handle, name = tempfile.mkstemp(prefix=marker, dir=directory)
        os.close(handle)
        os.chmod(name, 0o644)
        yield _Temporary(Path(name))
    except OSError as error:
        raise _resource_error(directory, error) from None
    finally:
        if name:
            with contextlib.suppress(OSError):
                os.unlink(name)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CacheError(f"{path} cannot be read: {error.strerror}") from None


def check_format(path: Path, metadata: Mapping[str, str]) -> None:
    """Refuse a file of a newer format, or of another program."""
    version = metadata.get("mrpo.format_version")
    if version is None:
        raise CacheDamaged(f"{path} was not written by mrpo: its footer has no format_version")
    if int(version) > FORMAT_VERSION:
        raise CacheStale(
            f"{path} has format {version}; this mrpo reads up to {FORMAT_VERSION}",
            "pip install --upgrade mrpo-tools",
        )


def _group_row(dataset: str, group: Group) -> dict[str, Any]:
    return {
        "group_id": group.group_id,
        "prompt_id": group.prompt_id,
        "dataset": dataset,
        "split": group.split,
        "source_id": group.source_id,
        "prompt": [message.as_dict() for message in group.prompt],
        "responses": [
            {"response_id": response_id, **vars(response)}
            for response_id, response in zip(group.response_ids, group.responses, strict=True)
        ],
    }


def _host() -> str:
    return "".join(char if char.isalnum() else "-" for char in socket.gethostname())


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _resource_error(path: Path, error: OSError) -> ResourceError | UsageError:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceError(f"no space left while writing to {path}: {reason}", "free some space")
    return ResourceError(f"cannot write to {path}: {reason}", "check the path and its permissions")
