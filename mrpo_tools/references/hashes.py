"""SHA-256 of files, and a memory of those that take long."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import platformdirs

from mrpo_tools.errors import ResourceError
from mrpo_tools.files import write_whole

MEMORY = "file-hashes.json"


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class HashMemo:
    """SHA-256 of big files, remembered by path, size and modification time.

    A directory of several gigabytes is then identified at once on every start but the first, and of
    several processes that start together one reads it for all: a file that is being hashed is
    locked, and who waited takes the hash from the memory. The memory is a JSON file in the user's
    cache directory; losing it costs time only. So does a file system without locks.

    Args:
        path: of the memory; the locks are held on a file beside it.
        hash_file: what computes a hash that is not remembered.
    """

    def __init__(
        self, path: Path | None = None, hash_file: Callable[[Path], str] = hash_file
    ) -> None:
        self.path = path or platformdirs.user_cache_path("mrpo", appauthor=False) / MEMORY
        self._hash_file = hash_file

    def hash_files(
        self, files: Iterable[Path], on_hash: Callable[[Path], None] | None = None
    ) -> dict[str, str]:
        """SHA-256 by file name.

        Args:
            files: any; each is read only where no hash of it is remembered.
            on_hash: told each file before it is read.
        """
        memory = self._read()
        hashes = {}
        for file in files:
            stat = file.stat()
            key = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
            hashes[file.name] = memory.get(key) or self._hash_once(file, key, on_hash)
        return hashes

    def _hash_once(self, file: Path, key: str, on_hash: Callable[[Path], None] | None) -> str:
        """A hash that was not remembered a moment ago; one process at a time computes it."""
        with _locks(self.path.with_suffix(".lock")) as lock:
            lock(key)
            remembered = self._read().get(key)
            if remembered:
                return remembered
            if on_hash:
                on_hash(file)
            fresh = self._hash_file(file)
            lock(MEMORY)
            self._write({**self._read(), key: fresh})
            return fresh

    def _read(self) -> dict[str, str]:
        try:
            memory = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(memory, dict):
            return {}
        return {
            key: value
            for key, value in memory.items()
            if isinstance(value, str) and len(value) == 64
        }

    def _write(self, memory: dict[str, str]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, json.dumps(memory).encode())
        except (OSError, ResourceError):
            return  # a memory that cannot be kept is only slower next time


@contextlib.contextmanager
def _locks(path: Path) -> Iterator[Callable[[str], None]]:
    """A function that keeps other processes out by a name, until the block ends.

    A name is a byte of the file. The system lets go of it when this process ends, however it does.
    Nobody is kept out where the file cannot be written or the file system has no locks.
    """
    with contextlib.ExitStack() as stack:
        file = None
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("ab"))

        def lock(name: str) -> None:
            if file is not None:
                with contextlib.suppress(OSError):
                    fcntl.lockf(file, fcntl.LOCK_EX, 1, zlib.crc32(name.encode()))

        yield lock
