"""The parts of one identity of one reference."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shlex
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NoReturn, TypeVar

import pyarrow as pa

from mrpo_tools.cache import files
from mrpo_tools.cache.numbers import COLUMNS, Numbers
from mrpo_tools.cache.parts import (
    LOGPS_SCHEMA,
    STATUSES,
    LogpRow,
    Part,
    first_of_each,
    table_of,
)
from mrpo_tools.cache.records import WriterRecord, footer_of, records_of, wall_seconds
from mrpo_tools.config import Reference
from mrpo_tools.errors import CacheDamaged, CacheMissing, CacheStale, UsageError
from mrpo_tools.files import make_directory, write_whole
from mrpo_tools.groups.facts import Keys, count_distinct, find
from mrpo_tools.maths.noise import Noise, least_noise, loudest
from mrpo_tools.references.identity import Identity

IDENTITY = "identity.json"

ResultT = TypeVar("ResultT")


class ReferenceStore:
    """The log-probs of one identity of one reference.

    Args:
        directory: it need not exist: the first part that is written creates it.
        identity: of a store that may not exist yet; otherwise `identity.json` says it.
        clock: seconds since 1970, for the parts that are written.
    """

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
    def _repair(self) -> str:
        return files.repair_command(self.directory.parent.parent)

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

    def parts(self, columns: Sequence[str] = tuple(LOGPS_SCHEMA.names)) -> list[Part]:
        """Every part, verified, the earliest first.

        Args:
            columns: of its table.

        Raises:
            CacheDamaged: a part is not what its name says; all of them are named.
            CacheStale: a part was written by a newer format.
        """
        return self._of_parts(lambda part: part, columns)

    def _of_parts(self, what: Callable[[Part], ResultT], columns: Sequence[str]) -> list[ResultT]:
        """What is wanted of every part, the earliest first; the rest of it is not kept."""
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
        tables = [part.table for part in self.parts()]
        return first_of_each(pa.concat_tables([LOGPS_SCHEMA.empty_table(), *tables]), "response_id")

    def response_ids(self) -> set[str]:
        """Of every row."""
        return set(self.table()["response_id"].to_pylist())

    def numbers_of(self, keys: Keys) -> Numbers:
        """The rows of some responses, in their order.

        Args:
            keys: [R, 2] of the responses.

        Raises:
            CacheMissing: some have none; names the count and the command.
        """
        parts = self._of_parts(lambda part: Numbers.of(part.table), COLUMNS)
        numbers = Numbers.together(parts)
        del parts
        places = find(keys, numbers.keys)
        absent = places < 0
        if absent.any():
            self._refuse_lack(count_distinct(keys[absent]), count_distinct(keys))
        return numbers.at(places)

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
            self._refuse_lack(absent, len(wanted))

    def _refuse_lack(self, absent: int, wanted: int) -> NoReturn:
        cache = self.directory.parent.parent
        option = files.cache_option(cache)
        origin = self.identity.fields.get("origin")
        raise CacheMissing(
            f"reference {self.name!r} has log-probs for {wanted - absent:,} of {wanted:,} "
            f"responses in {cache}",
            f"create them with: mrpo precompute --ref {self.name}{option}"
            if origin is None
            else f"they come from {origin}: mrpo cache import FILE --ref {self.name} "
            f"--origin {shlex.quote(str(origin))}{option}",
        )

    def count_by_status(self) -> dict[str, int]:
        """Rows of each status, duplicates counted once."""
        counts = Counter(self.table()["status"].to_pylist())
        return {status: counts[status] for status in STATUSES}

    def recorded(self) -> list[WriterRecord]:
        """What every writer recorded about itself, the earliest first."""
        return [record for part in self.parts(columns=()) for record in part.records]

    def noise(self) -> Noise:
        """The largest noise that a writer measured, and no less than these products have; none
        where no writer did."""
        fields = self.identity.fields
        products = fields.get("autocast") or fields.get("dtype")
        return loudest([least_noise(products), *(record.noise for record in self.recorded())])

    def wall_seconds(self) -> float | None:
        """Time that computing the numbers took, loading included; None if it is not recorded."""
        return wall_seconds(self.recorded())

    def recorded_reference(self) -> Reference:
        """The words under which the latest part was computed: where the model is, among others.

        Raises:
            UsageError: nothing was computed here; the numbers were imported.
        """
        words = [record.reference for record in self.recorded() if record.reference is not None]
        if not words:
            raise UsageError(
                f"the cache does not say where the model of reference {self.name!r} is",
                f"--ref {self.name}=PATH_OR_HUB_ID, or, to start from another one, --policy MODEL",
            )
        return Reference.model_validate(words[-1])

    def append(self, rows: Sequence[LogpRow], record: WriterRecord | None = None) -> Path:
        """Write one immutable part; the first one makes the directory and `identity.json`.

        Args:
            rows: any number.
            record: of their writer; the time and the versions of libraries are added.

        Raises:
            ResourceError: no space or no permission; nothing is left behind.
        """
        now, versions = self._clock(), files.library_versions()
        record = replace(record or WriterRecord(), created=now, versions=versions)
        return self.write(table_of(rows), now, [record])

    def write(self, table: pa.Table, created: float, records: Sequence[WriterRecord]) -> Path:
        """Write rows as one part.

        Args:
            table: in `LOGPS_SCHEMA`.
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

    def read_part(self, path: Path, columns: Sequence[str] = tuple(LOGPS_SCHEMA.names)) -> Part:
        """One part, its bytes, format and identity checked.

        Args:
            path: of the part.
            columns: of its table.

        Raises:
            CacheDamaged: they are not those of a part of this identity.
            CacheStale: a newer format.
            FileNotFoundError: the file went away.
        """
        table, metadata = files.read_verified(path, columns)
        if metadata.get("mrpo.identity") != self.identity.hash:
            raise CacheDamaged(f"{path} belongs to another reference's identity")
        if table.schema.names != list(columns):
            raise CacheDamaged(f"{path} has other columns than a part of a cache")
        rows = table.cast(pa.schema([LOGPS_SCHEMA.field(name) for name in columns]))
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
    """Whether a directory's name is that of a reference and its identity, `mistral-ab12…`."""
    return re.fullmatch(r".+-[0-9a-f]{12}", directory.name) is not None


def split_directory_name(name: str) -> tuple[str, str]:
    """(`mistral`, `ab12…`) of `mistral-ab12…`."""
    reference, _, short = name.rpartition("-")
    return reference, short
