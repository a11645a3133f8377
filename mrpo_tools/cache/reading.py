"""A data set that was read once is not read again: its groups are kept in a mapped file.

    cache/read/<name>-<key>.arrow     the groups
    cache/read/<name>-<key>.json      what was noticed of them, and the SHA-256 of the groups' bytes

The key is of the source's bytes, the words by which it was read, and the code that read it. The
record is written last; groups whose bytes are not those it says are read anew from the source.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from mrpo_tools import sources
from mrpo_tools.cache.mapped import MappedGroups, write_groups
from mrpo_tools.config import Dataset
from mrpo_tools.errors import ResourceError
from mrpo_tools.files import make_directory, save_json, sweep_temporaries, temporary_path
from mrpo_tools.groups import canonical_json
from mrpo_tools.progress import say_once
from mrpo_tools.references.hashes import HashMemo, hash_file
from mrpo_tools.sources import GroupStream, Options, Source, load_dataset
from mrpo_tools.sources.load import source_of
from mrpo_tools.sources.locate import locate
from mrpo_tools.sources.readers.rows import ignore_progress

WORTH_KEEPING = 32 * 2**20
"""Bytes of a source; a smaller one is read in a second or two."""
CODE = ("sources/**/*.py", "groups/*.py", "messages.py", "cache/mapped.py")
"""What decides the groups that become of a source."""


def read_dataset(
    cache: Path,
    dataset: Dataset,
    on_progress: Callable[[int, int], None] = ignore_progress,
    *,
    worth: int = WORTH_KEEPING,
) -> Source:
    """The data that a project or a run names, from the cache if they were read before.

    Groups of large files are kept in the cache, if there is one, and mapped from there; those of
    small ones, and of the hub, are read each time.

    Args:
        cache: its directory.
        dataset: the words.
        on_progress: told (done, total) bytes while the source is read.
        worth: bytes of a source from which on it is kept.

    Raises:
        As `sources.load_groups`.
    """
    files = locate(dataset.source).files
    large = sum(path.stat().st_size for path in files) >= worth
    if not files or not large or not os.access(cache, os.W_OK):
        return load_dataset(dataset, on_progress)
    place = _Place.of(cache, dataset)
    kept = _kept(place.record)
    if kept is not None:
        return kept
    try:
        return _read(cache, dataset, on_progress)
    except ResourceError as error:
        say_once(f"note: the groups are not kept in the cache: {error.what}")
        return load_dataset(dataset, on_progress)


class _Place(NamedTuple):
    """Where a data set is kept.

    Attributes:
        record: what was noticed; the groups lie beside it.
        origin: the source.
        files: hash of its names and bytes.
    """

    record: Path
    origin: str
    files: str

    @classmethod
    def of(cls, cache: Path, dataset: Dataset) -> _Place:
        """By the bytes of the source, which are hashed where no hash is remembered."""
        located, memo = locate(dataset.source), HashMemo()
        hashes = [[path.name, memo.hash_files([path])[path.name]] for path in located.files]
        files = hashlib.sha256(canonical_json(hashes).encode()).hexdigest()
        words = dataset.model_dump(mode="json", exclude={"source"})
        value = canonical_json([files, words, Path(dataset.source).name, _code()])
        key = hashlib.sha256(value.encode()).hexdigest()[:16]
        record = cache / "read" / f"{located.name}-{key}.json"
        return cls(record, str(Path(dataset.source).resolve()), files)

    @property
    def groups(self) -> Path:
        """The file of the groups."""
        return self.record.with_suffix(".arrow")


@functools.cache
def _code() -> str:
    """Of the code that makes groups of a source."""
    package = Path(sources.__file__).parent.parent
    paths = sorted(path for pattern in CODE for path in package.glob(pattern))
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def _kept(record: Path) -> Source | None:
    """What was read before; None where there is none, or not as it was written."""
    groups = record.with_suffix(".arrow")
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        noticed = json.loads(record.read_text(encoding="utf-8"))
        if hash_file(groups) == noticed["groups_sha256"]:
            return Source(groups=MappedGroups.of_file(groups), **noticed["source"])
        say_once(f"note: {groups} is damaged; the source is read again")
    return None


def _read(cache: Path, dataset: Dataset, on_progress: Callable[[int, int], None]) -> Source:
    """Read a source into a file, and map that.

    Raises:
        ResourceError: the file cannot be written.
        As `sources.load_groups`; nothing is kept then.
    """
    stream = GroupStream(dataset.source, Options.of(dataset, on_progress=on_progress))
    folder = cache / "read"
    make_directory(folder)
    sweep_temporaries(folder)
    path = temporary_path(folder / "groups.arrow")
    try:
        with path.open("xb") as file:
            write_groups(file, stream)
        source = source_of(stream, MappedGroups.of_file(path))
        if not source.skipped:  # they are listed at every reading
            keep_groups(cache, dataset, source, path)
    except OSError as error:
        raise ResourceError(f"{folder}: {error.strerror or error}") from None
    finally:
        path.unlink(missing_ok=True)
    return source


def keep_groups(cache: Path, dataset: Dataset, source: Source, groups: Path) -> None:
    """Keep what was read of a source.

    Args:
        cache: its directory.
        dataset: the words by which it was read.
        source: what was noticed.
        groups: a file by `write_groups`, which is moved.

    Raises:
        OSError: the file system refuses.
    """
    place = _Place.of(cache, dataset)
    place.record.parent.mkdir(exist_ok=True)
    digest = hash_file(groups)
    groups.replace(place.groups)
    noticed = {
        name: getattr(source, name)
        for name in ("name", "adapter", "reason", "counts", "revision", "unused", "drawn")
    }
    about = {"origin": place.origin, "files": place.files, "groups_sha256": digest}
    save_json(place.record, {**about, "source": noticed})
    _forget(place)


def _forget(place: _Place) -> None:
    """Remove what was read of the same source before it changed."""
    for other in place.record.parent.glob("*.json"):
        with contextlib.suppress(OSError, ValueError):
            values: dict[str, Any] = json.loads(other.read_text(encoding="utf-8"))
            if values.get("origin") == place.origin and values.get("files") != place.files:
                other.unlink()
                other.with_suffix(".arrow").unlink(missing_ok=True)
