"""SHA-256 of files, and a memory of those that take long."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from mrpo_tools.errors import ResourceError
from mrpo_tools.files import write_whole


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class HashMemo:
    """SHA-256 of big files, remembered by path, size and modification time.

    A directory of several gigabytes is then identified at once on every start but the first. The
    memory is a JSON file in the user's cache directory; losing it costs time only.
    """

    def __init__(self, path: Path | None = None) -> None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.path = path or Path(home) / "mrpo" / "file-hashes.json"

    def hash_files(
        self, files: Iterable[Path], on_hash: Callable[[Path], None] | None = None
    ) -> dict[str, str]:
        """SHA-256 by file name."""
        known = self._read()
        found, fresh = {}, {}
        for file in files:
            stat = file.stat()
            key = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
            if key not in known:
                if on_hash:
                    on_hash(file)
                fresh[key] = hash_file(file)
            found[file.name] = known.get(key) or fresh[key]
        if fresh:
            self._write({**self._read(), **fresh})
        return found

    def _read(self) -> dict[str, str]:
        try:
            known = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(known, dict):
            return {}
        return {
            key: value
            for key, value in known.items()
            if isinstance(value, str) and len(value) == 64
        }

    def _write(self, known: dict[str, str]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, json.dumps(known).encode())
        except (OSError, ResourceError):
            return  # a memory that cannot be kept is only slower next time
