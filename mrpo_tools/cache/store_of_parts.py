"""The parts of one identity, whatever their rows are."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NoReturn, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from mrpo_tools.cache import files
from mrpo_tools.cache.parts import Kind, Part, Row
from mrpo_tools.cache.records import WriterRecord, footer_of, records_of, wall_seconds
from mrpo_tools.errors import CacheDamaged, CacheMissing, CacheStale
from mrpo_tools.files import make_directory, write_whole
from mrpo_tools.references.identity import Identity

IDENTITY = "identity.json"

ResultT = TypeVar("ResultT")


class PartStore:
    """The rows of one identity.

    Args:
        directory: it need not exist: the first part that is written creates it.
        identity: of a store that may not exist yet; otherwise `identity.json` says it.
        clock: seconds since 1970, for the parts that are written.

    Attributes:
        kind: of its rows.
        whose: what has such an identity, for messages.
    """

    kind: ClassVar[Kind]
    whose: ClassVar[str]

    def __init__(
        self,
        directory: Path,
        identity: Identity | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.directory = directory
        self.name, self.short = split_directory_name(directory.name)
        self._expected, self._clock = identity, clock

    def __str__(self) -> str:
        return f"{self.name}@{self.short}"

    @property
    def cache_path(self) -> Path:
        """Of the cache it belongs to."""
        return self.directory.parent.parent

    @property
    def _repair(self) -> str:
        return files.repair_command(self.cache_path)

    @property
    def identity_path(self) -> Path:
        """Of the file that says which numbers these are."""
        return self.directory / IDENTITY

    @cached_property
    def identity(self) -> Identity:
        """The fields of `identity.json`, checked against the directory's name.

        Raises:
            CacheDamaged: the file is not what its directory's name says, or is missing.
        """
        try:
            content = files.read_bytes(self.identity_path)
        except FileNotFoundError:
            if self._expected is not None and not self.part_paths():
                return self._expected
            raise CacheDamaged(f"{self.identity_path} is missing", self._repair) from None
        if hashlib.sha256(content).hexdigest()[:12] != self.short:
            raise CacheDamaged(
                f"{self.identity_path} is damaged: its bytes do not have the hash in its "
                "directory's name",
                self._repair,
            )
        identity = Identity(json.loads(content))
        if self._expected is not None and identity.hash != self._expected.hash:
            raise CacheDamaged(f"{self.directory} holds another identity", self._repair)
        return identity

    @property
    def written(self) -> float:
        """When its latest part was written, seconds since 1970; 0 without parts."""
        times = [0.0]
        for path in self.part_paths():
            with contextlib.suppress(FileNotFoundError):  # merged meanwhile
                times.append(path.stat().st_mtime)
        return max(times)

    def part_paths(self) -> list[Path]:
        """Of every part, by name."""
        return files.listed(self.directory, "part-*.parquet")

    def parts(self, columns: Sequence[str] | None = None) -> list[Part]:
        """Every part, verified, the earliest first.

        Args:
            columns: of its table; None takes all of the kind's.

        Raises:
            CacheDamaged: a part is not what its name says; all of them are named.
            CacheStale: a part was written by a newer format.
        """
        return self.of_parts(lambda part: part, columns)

    def of_parts(
        self, what: Callable[[Part], ResultT], columns: Sequence[str] | None = None
    ) -> list[ResultT]:
        """What is wanted of every part, the earliest first; the rest of it is not kept.

        Args:
            what: of a part.
            columns: see `parts`.

        Raises:
            As `parts`.
        """
        _ = self.identity

        def read(path: Path) -> tuple[float, str, ResultT]:
            part = self.read_part(path, columns)
            return part.created, part.path.name, what(part)

        def listed() -> list[tuple[float, str, ResultT]]:
            return files.read_all(self.part_paths(), read, self._repair)

        every = files.listed_again(self.directory, listed)
        return [result for *_, result in sorted(every, key=lambda part: part[:2])]

    def table(self) -> pa.Table:
        """Every row once; of rows present twice, the earliest part's."""
        return self.kind.counting([part.table for part in self.parts()])

    def keys(self) -> set[str]:
        """Of every row that is there to stay."""
        return self._staying(self.table())

    def keys_since(self, seen: Collection[str]) -> tuple[set[str], set[str]]:
        """(names of the parts that are there, keys of rows in those that were not seen before).

        Args:
            seen: names of parts.

        Raises:
            CacheDamaged: a new part is not what its name says.
        """

        def listed() -> tuple[set[str], set[str]]:
            paths = self.part_paths()
            new = [path for path in paths if path.name not in seen]
            tables = files.read_all(new, lambda path: self.read_part(path).table, self._repair)
            return {path.name for path in paths}, set().union(*map(self._staying, tables))

        return files.listed_again(self.directory, listed)

    def _staying(self, table: pa.Table) -> set[str]:
        waiting = pc.is_in(table["status"], value_set=pa.array(self.kind.provisional, pa.string()))
        return set(table[self.kind.key].filter(pc.invert(waiting)).to_pylist())

    def rows_of(self, keys: pa.Array) -> pa.Table:
        """The rows of some keys, in their order.

        Raises:
            CacheMissing: some have none; names the count and the command.
        """
        table = self.table()
        places = pc.index_in(keys, value_set=table[self.kind.key])
        if places.null_count:
            self.require(set(keys.to_pylist()), table[self.kind.key].to_pylist())
        return table.take(places)

    def require(self, wanted: set[str], present: Collection[str]) -> None:
        """Refuse numbers that lack some responses.

        Args:
            wanted: ids of responses.
            present: ids of those that have a row here.

        Raises:
            CacheMissing: names the count and the command.
        """
        absent = len(wanted.difference(present))
        if absent:
            self.refuse_lack(absent, len(wanted))

    def refuse_lack(self, absent: int, wanted: int) -> NoReturn:
        """Say how many of the wanted responses have no row.

        Raises:
            CacheMissing: always.
        """
        raise CacheMissing(
            f"{self.whose} {self.name!r} has {self.kind.noun} for {wanted - absent:,} of "
            f"{wanted:,} responses in {self.cache_path}",
            self._way_to_more(),
        )

    def _way_to_more(self) -> str:
        """The command that makes rows which are missing."""
        raise NotImplementedError

    def apart(self, pairs: Sequence[tuple[Row, Row]]) -> list[float]:
        """How far two rows of one key are apart, of what noise explains; more than 1 is a fault.

        Args:
            pairs: of rows that are equal in the columns `kind.same`.
        """
        raise NotImplementedError

    def count_by_status(self) -> dict[str, int]:
        """Rows of each status, duplicates counted once."""
        counts = Counter(self.table()["status"].to_pylist())
        return {status: counts[status] for status in self.kind.statuses}

    def recorded(self) -> list[WriterRecord]:
        """What every writer recorded about itself, the earliest first."""
        return [record for part in self.parts(columns=()) for record in part.records]

    def wall_seconds(self) -> float | None:
        """Time that computing the numbers took, loading included; None if it is not recorded."""
        return wall_seconds(self.recorded())

    def append(self, rows: Sequence[object], record: WriterRecord | None = None) -> Path:
        """Write one immutable part; the first one makes the directory and `identity.json`.

        Args:
            rows: any number, of the kind.
            record: of their writer; the time and the versions of libraries are added.

        Raises:
            ResourceError: no space or no permission; nothing is left behind.
        """
        now, versions = self._clock(), files.library_versions()
        record = replace(record or WriterRecord(), created=now, versions=versions)
        return self.write(self.kind.table(rows), now, [record])

    def write(self, table: pa.Table, created: float, records: Sequence[WriterRecord]) -> Path:
        """Write rows as one part.

        Args:
            table: in the kind's schema.
            created: seconds since 1970; of rows present twice those of the earliest part count.
            records: of the rows' writers.
        """
        identity = self.identity
        if not self.identity_path.exists():
            make_directory(self.directory)
            write_whole(self.identity_path, identity.content, durable=True)
        metadata = {
            "mrpo.identity": identity.hash,
            "mrpo.identity_fields": identity.content.decode(),
            "mrpo.created": repr(created),
            "mrpo.recorded": footer_of(records),
        }
        return files.write_content_addressed(self.directory, "part-", table, metadata)

    def read_part(self, path: Path, columns: Sequence[str] | None = None) -> Part:
        """One part, its bytes, format and identity checked.

        Args:
            path: of the part.
            columns: see `parts`.

        Raises:
            CacheDamaged: they are not those of a part of this identity.
            CacheStale: a newer format.
            FileNotFoundError: the file went away.
        """
        schema = self.kind.schema
        names = schema.names if columns is None else list(columns)
        table, metadata = files.read_verified(path, names)
        if metadata.get("mrpo.identity") != self.identity.hash:
            raise CacheDamaged(f"{path} belongs to another {self.whose}'s identity")
        if table.schema.names != names:
            raise CacheDamaged(f"{path} has other columns than a part of a cache")
        rows = table.cast(pa.schema([schema.field(name) for name in names]))
        return Part(
            path=path,
            created=files.created(path, metadata),
            format=int(metadata["mrpo.format_version"]),
            records=records_of(metadata["mrpo.recorded"]),
            table=rows.replace_schema_metadata(None),
        )

    def identity_in_parts(self) -> Identity | None:
        """The identity that some whole part carries in its footer; None where none does."""
        for path in self.part_paths():
            try:
                _, metadata = files.read_verified(path)
            except (CacheDamaged, CacheStale, FileNotFoundError):
                continue
            content = metadata.get("mrpo.identity_fields", "")
            if hashlib.sha256(content.encode()).hexdigest()[:12] == self.short:
                return Identity(json.loads(content))
        return None


def is_store(directory: Path) -> bool:
    """Whether a directory's name is a name and its identity, `mistral-ab12…`."""
    return re.fullmatch(r".+-[0-9a-f]{12}", directory.name) is not None


def split_directory_name(name: str) -> tuple[str, str]:
    """(`mistral`, `ab12…`) of `mistral-ab12…`."""
    called, _, short = name.rpartition("-")
    return called, short
