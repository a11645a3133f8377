"""Verified files of a cache as Arrow data sets, every row once.

A file is mapped into memory, its bytes are hashed, and the very bytes that were hashed are what
queries read: a file that another process merges away meanwhile breaks nothing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from mrpo_tools.cache import LISTINGS, check_format, created
from mrpo_tools.cache.files import texts
from mrpo_tools.errors import CacheDamaged, CacheError

LATER = ("structured",)
"""Columns that files of before do not have; there they are null."""
Losers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Stored:
    """One verified file.

    Attributes:
        path: where it is, or was.
        content: its bytes, mapped.
        fragment: the same, as a part of a data set.
        metadata: of its footer.
        created: when it was written, seconds since 1970.
    """

    path: Path
    content: pa.Buffer
    fragment: ds.ParquetFileFragment
    metadata: dict[str, str]
    created: float

    @property
    def rows(self) -> int:
        """How many there are."""
        return int(self.fragment.metadata.num_rows)

    def leaves(self, columns: Sequence[str]) -> pa.Table:
        """Some columns, fields of nested ones too, without decoding the others."""
        return pq.ParquetFile(pa.BufferReader(self.content)).read(columns=list(columns))


@dataclass(frozen=True)
class Files:
    """Files of one kind; of rows with equal keys the first file's first row counts.

    Attributes:
        files: the one that wins first.
        schema: of the rows.
        losers: by file, the rows that do not count.
    """

    files: list[Stored]
    schema: pa.Schema
    losers: dict[int, Losers] = field(default_factory=dict)

    def dataset(self) -> ds.Dataset:
        """The rows that count; only files with repeated rows are held in memory."""
        clean = [file.fragment for place, file in enumerate(self.files) if place not in self.losers]
        held = [
            self.counting(place, self.files[place].fragment.to_table(schema=self.schema))
            for place in self.losers
        ]
        rest = pa.concat_tables([self.schema.empty_table(), *held])
        return ds.dataset(
            [ds.FileSystemDataset(clean, self.schema, ds.ParquetFileFormat()), ds.dataset(rest)]
        )

    def counting(self, place: int, table: pa.Table) -> pa.Table:
        """The rows of a file's table that count."""
        if place not in self.losers:
            return table
        mask = np.ones(table.num_rows, dtype=bool)
        mask[self.losers[place]] = False
        return table.filter(pa.array(mask))

    def leaves(self, columns: Sequence[str]) -> pa.Table:
        """Some columns of all rows that count, fields of nested ones too."""
        return pa.concat_tables(
            self.counting(place, file.leaves(columns)) for place, file in enumerate(self.files)
        )


def verified(list_paths: Callable[[], list[Path]], schema: pa.Schema) -> list[Stored]:
    """Every file of a listing, its bytes checked against its name.

    Raises:
        CacheDamaged: bytes or columns are not those that were written; every such file is named.
        CacheStale: a newer format.
    """
    for _ in range(LISTINGS):
        paths = list_paths()
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            opened = list(pool.map(lambda path: _open_or_error(path, schema), paths))
        problems = [error.what for error in opened if isinstance(error, CacheDamaged)]
        if problems:
            raise CacheDamaged("\n".join(problems))
        for error in opened:
            if isinstance(error, CacheError):
                raise error
        files = [file for file in opened if isinstance(file, Stored)]
        if len(files) == len(paths):
            return files
    raise CacheError(f"{paths[0].parent} keeps changing while it is read", "try again")


def first_of_each(files: Sequence[Stored], schema: pa.Schema, key: str) -> Files:
    """The files with the rows that repeat an earlier row's key marked; the order decides."""
    everything = Files(list(files), schema)
    if not files:
        return everything
    fragments = [file.fragment for file in files]
    repeated = repeats(ds.FileSystemDataset(fragments, schema, ds.ParquetFileFormat()), key)
    if not len(repeated):
        return everything
    ends = np.cumsum([file.rows for file in files])
    owner = np.searchsorted(ends, repeated, side="right")
    losers = {
        int(index): repeated[owner == index] - (ends[index] - files[index].rows)
        for index in np.unique(owner)
    }
    return Files(list(files), schema, losers)


def repeats(dataset: ds.Dataset, key: str) -> Losers:
    """The places of rows whose key stands earlier already, ascending.

    Free of Python loops and of the keys themselves while no key repeats, which is nearly always.
    """
    digests = [_digests(batch.column(0)) for batch in dataset.to_batches(columns=[key])]
    if any(digest is None for digest in digests):
        candidates = np.arange(dataset.count_rows())
    else:
        every = np.concatenate([digest for digest in digests if digest is not None])
        ordered = np.sort(every)
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if not len(twice):
            return np.empty(0, np.int64)
        candidates = np.flatnonzero(np.isin(every, twice))
    texts = dataset.to_table([key])[key].take(pa.array(candidates)).to_pylist()
    seen: set[str] = set()
    losers = []
    for place, text in zip(candidates.tolist(), texts, strict=True):
        if text in seen:
            losers.append(place)
        seen.add(text)
    return np.array(losers, np.int64)


def _open_or_error(path: Path, schema: pa.Schema) -> Stored | CacheError | None:
    """The file, what is wrong with it, or None where it went away."""
    try:
        return _open(path, schema)
    except FileNotFoundError:
        return None
    except CacheError as error:
        return error
    except OSError as error:
        return CacheError(f"{path} cannot be read: {error.strerror or error}")


def _open(path: Path, schema: pa.Schema) -> Stored:
    if not path.stat().st_size:
        raise CacheDamaged(f"{path} is damaged: it is empty")
    with pa.memory_map(str(path)) as mapped:
        content = mapped.read_buffer()
    digest = hashlib.sha256(memoryview(content)).hexdigest()
    if digest[:16] != path.stem.rpartition("-")[2]:
        raise CacheDamaged(f"{path} is damaged: its bytes do not have the hash in its name")
    try:
        fragment = ds.ParquetFileFormat().make_fragment(content)
        metadata = texts(fragment.metadata.metadata)
        names = fragment.physical_schema.names
    except (pa.ArrowException, OSError) as error:
        raise CacheDamaged(f"{path} is no Parquet file: {error}") from None
    check_format(path, metadata)
    if names[: len(schema)] not in (schema.names, [n for n in schema.names if n not in LATER]):
        raise CacheDamaged(f"{path} has other columns than its kind of file in a cache")
    return Stored(
        path=path,
        content=content,
        fragment=fragment,
        metadata=metadata,
        created=created(path, metadata),
    )


def _digests(keys: pa.StringArray) -> npt.NDArray[np.uint64] | None:
    """64 bits of each key, for ids of 32 hexadecimal digits; None for other keys.

    The first 16 digits carry 64 bits, so two unequal ids share a digest about never, and where
    they do, only time is lost.
    """
    if not len(keys):
        return np.empty(0, np.uint64)
    _, ends, data = keys.buffers()
    places = np.frombuffer(ends, np.int32)[keys.offset : keys.offset + len(keys) + 1]
    if keys.null_count or not (np.diff(places) == 32).all():
        return None
    words = np.frombuffer(data, np.uint64, 4 * len(keys), int(places[0])).reshape(-1, 4)
    digests: npt.NDArray[np.uint64] = words[:, 0] * np.uint64(0x9E3779B97F4A7C15) ^ words[:, 1]
    return digests
