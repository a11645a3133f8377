"""SHA-256 of files, and a memory of those that take long."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
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

    A directory of several gigabytes is then identified at once on every start but the first. The
    memory is a JSON file in the user's cache directory; losing it costs time only.

    Args:
        path: of the memory.
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
        hashes, fresh = {}, {}
        for file in files:
            stat = file.stat()
            key = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
            if key not in memory:
                if on_hash:
                    on_hash(file)
                memory[key] = fresh[key] = self._hash_file(file)
            hashes[file.name] = memory[key]
        if fresh:
            self._write({**self._read(), **fresh})
        return hashes

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
