"""A table under the hash of its own bytes: written once, checked at every read.

Nothing is ever locked or overwritten.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from mrpo_tools.config import DEFAULT_CACHE
from mrpo_tools.errors import CacheDamaged, CacheError, CacheStale
from mrpo_tools.files import write_whole

FORMAT_VERSION = 2
"""1: no time in the footer of saved data, no identity fields in the footer of parts."""
ROW_GROUP = 8192
"""Rows of a row group: small ones keep a scan of long texts within memory."""
LISTINGS = 5
"""How often a directory is listed again when a file of it went away."""
LIBRARIES = ("torch", "transformers", "tokenizers", "pyarrow", "peft", "bitsandbytes")

ResultT = TypeVar("ResultT")
SourceT = TypeVar("SourceT")


@functools.cache
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
    """Write a table under the hash of its own bytes.

    Args:
        directory: exists.
        prefix: of the name, before the 16 digits.
        table: the rows.
        metadata: of the footer; the format's version is added.

    Raises:
        ResourceError: the disk is full, or refuses; no temporary file is left.
    """
    footer = {"mrpo.format_version": str(FORMAT_VERSION), **metadata}
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata(footer),
        sink,
        compression="zstd",
        write_page_checksum=True,
        row_group_size=ROW_GROUP,
    )
    content = memoryview(sink.getvalue())
    digest = hashlib.sha256(content).hexdigest()[:16]
    return write_whole(directory / f"{prefix}{digest}.parquet", content, durable=True)


def read_verified(
    path: Path, columns: Sequence[str] | None = None
) -> tuple[pa.Table, dict[str, str]]:
    """A content-addressed table and its metadata, its bytes checked against its name.

    Args:
        path: of the file.
        columns: those to take, in this order; one that is not there is left out. None takes all.

    Raises:
        CacheDamaged: the bytes are not the ones that were written.
        CacheStale: they were written by a newer format.
        FileNotFoundError: the file went away.
    """
    content = read_bytes(path)
    if hashlib.sha256(content).hexdigest()[:16] != path.stem.rpartition("-")[2]:
        raise CacheDamaged(f"{path} is damaged: its bytes do not have the hash in its name")
    try:
        # A command that ends while Arrow starts threads is aborted now and then: none here.
        with pq.ParquetFile(pa.BufferReader(content), pre_buffer=False) as file:
            there = set(file.schema_arrow.names)
            names = None if columns is None else [name for name in columns if name in there]
            table = file.read(columns=names, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise CacheDamaged(f"{path} is no Parquet file: {error}") from None
    metadata = texts(table.schema.metadata)
    check_format(path, metadata)
    return table, metadata


def texts(footer: Mapping[bytes, bytes] | None) -> dict[str, str]:
    """A footer's entries as text."""
    return {key.decode(): value.decode() for key, value in (footer or {}).items()}


def check_format(path: Path, metadata: Mapping[str, str]) -> None:
    """Refuse a file of a newer format, or of another program."""
    version = metadata.get("mrpo.format_version", "")
    if not version.isdigit():
        raise CacheDamaged(f"{path} was not written by mrpo: its footer has no format_version")
    if int(version) > FORMAT_VERSION:
        raise CacheStale(
            f"{path} has format {version}; this mrpo reads up to {FORMAT_VERSION}",
            "pip install --upgrade mrpo-tools",
        )


def created(path: Path, metadata: Mapping[str, str]) -> float:
    """When a file was written, seconds since 1970: its footer says so, or, before format 2, the
    file system."""
    written = metadata.get("mrpo.created")
    return path.stat().st_mtime if written is None else float(written)


def read_bytes(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        FileNotFoundError: the file went away.
        CacheError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CacheError(f"{path} cannot be read: {error.strerror}") from None


def cache_option(cache: Path) -> str:
    """` --cache DIR` for a command that is to find this cache; nothing for the usual place."""
    return "" if str(cache) == DEFAULT_CACHE else f" --cache {shlex.quote(str(cache))}"


def repair_command(cache: Path) -> str:
    """What mends a cache, wherever it is."""
    return f"mrpo cache repair{cache_option(cache)}"


def listed(directory: Path, pattern: str) -> list[Path]:
    """The files of a directory that fit, by name; what is no file is somebody else's."""
    return sorted(path for path in directory.glob(pattern) if path.is_file())


def read_all(
    sources: Iterable[SourceT], read: Callable[[SourceT], ResultT], hint: str
) -> list[ResultT]:
    """What each file, or whatever else is read, holds.

    Raises:
        CacheDamaged: naming every file that is not what its name says, with the hint.
    """
    contents, damaged = [], []
    for source in sources:
        try:
            contents.append(read(source))
        except CacheDamaged as error:
            damaged.append(error.what)
    if damaged:
        raise CacheDamaged("\n".join(damaged), hint)
    return contents


def listed_again(directory: Path, read: Callable[[], ResultT]) -> ResultT:
    """The result of listing a directory and reading its files; both again where one went away.

    Raises:
        CacheError: files keep going away.
    """
    for _attempt in range(LISTINGS):
        with contextlib.suppress(FileNotFoundError):  # merged into another file meanwhile
            return read()
    raise CacheError(f"the files in {directory} keep changing", "try again")
