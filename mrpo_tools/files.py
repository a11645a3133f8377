"""Files and directories that appear whole or not at all.

Everything is written under a temporary name, `.tmp-NAME~host~process~…`, beside its place, and
renamed. Of the file system this needs: a rename within a directory replaces in one step, and
`fsync` of a file and of its directory returns when both are on the disk.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mrpo_tools.errors import disk_error

TEMPORARY = ".tmp-"
"""How the names of what is not whole yet begin."""
STALE_TEMPORARY_SECONDS = 24 * 3600


def shipped(folder: str) -> Path:
    """A folder that comes with the package: inside it when installed, beside it in a checkout."""
    package = Path(__file__).parent
    places = [package / folder, package.parent / folder]
    return next((place for place in places if place.is_dir()), places[0])


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the name `path` if the block ends well.

    Raises:
        OSError: the disk is full, or refuses; no temporary file is left.
    """
    with (
        _replacing(path, durable=False) as descriptor,
        os.fdopen(descriptor, "wb", closefd=False) as file,
    ):
        yield file


def write_whole(path: Path, content: bytes | memoryview, *, durable: bool = False) -> Path:
    """Write a file that is seen whole or not at all.

    Args:
        path: in a directory that is there; a file of this name is replaced.
        content: its bytes.
        durable: return only when the bytes and the name are on the disk.

    Raises:
        ResourceError: the disk is full, or refuses; no temporary file is left.
    """
    try:
        with _replacing(path, durable=durable) as descriptor:
            left = memoryview(content)
            while left:
                left = left[os.write(descriptor, left) :]
    except OSError as error:
        raise disk_error(path.parent, error) from None
    return path


class AppendedFile:
    """A file of this process's own, to which lines are added; it is made with the first of them.

    No other process writes to it, so lines of several never mix. Names sort by the time they were
    made. After a kill the last line may be torn, which `whole_lines` leaves out.

    Args:
        directory: it is made with the file.
        suffix: of the file's name.
    """

    def __init__(self, directory: Path, suffix: str = ".jsonl") -> None:
        self.directory, self.suffix = directory, suffix
        self._descriptor: int | None = None

    def append(self, lines: Iterable[str]) -> None:
        """Add lines, which hold no line break; they are on the disk on return.

        Raises:
            ResourceError: the disk is full, or refuses; what comes next goes to another file.
        """
        left = memoryview("".join(f"{line}\n" for line in lines).encode())
        try:
            if self._descriptor is None:
                make_directory(self.directory)
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
                self._descriptor = os.open(self._name(), flags, 0o666)
                _fsync_directory(self.directory)
            while left:
                left = left[os.write(self._descriptor, left) :]
            os.fsync(self._descriptor)
        except OSError as error:
            self.close()
            raise disk_error(self.directory, error) from None

    def close(self) -> None:
        """No more lines; others go to another file."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _name(self) -> Path:
        mark = f"{time.time_ns():020d}~{host()}~{os.getpid()}~{secrets.token_hex(4)}"
        return self.directory / f"{mark}{self.suffix}"


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that somebody appends to, or did until a kill: those that have an end.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is no text.
    """
    *whole, _torn = path.read_bytes().split(b"\n")
    return [line.decode() for line in whole]


@contextlib.contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """A directory to fill, which takes the name `path` if the block ends well.

    Args:
        path: nothing is there, or an empty directory.

    Raises:
        OSError: the disk is full, or refuses; what was written is removed.
    """
    temporary = temporary_path(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_json(path: Path, values: object) -> None:
    """Readable JSON, replaced in one step; a number that is not finite becomes null.

    Raises:
        ResourceError: the disk is full, or refuses.
    """
    text = json.dumps(finite(values), indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(path, f"{text}\n".encode())


def finite(values: Any) -> Any:
    """JSON values with None in place of NaN and the infinities, which JSON does not have."""
    if isinstance(values, Mapping):
        return {key: finite(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def make_directory(path: Path) -> None:
    """A directory, and those above it, on the disk.

    Raises:
        ResourceError: the file system refuses.
    """
    try:
        missing = [directory for directory in (path, *path.parents) if not directory.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for directory in missing:
            _fsync_directory(directory.parent)
    except OSError as error:
        raise disk_error(path, error) from None


def remove(path: Path) -> None:
    """Remove a file that may be gone already.

    Raises:
        ResourceError: the file system refuses.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(path, error) from None


def sweep_temporaries(directory: Path) -> None:
    """Remove temporary files whose writer on this host is dead, and those older than a day."""
    for path in directory.glob(f"{TEMPORARY}*"):
        with contextlib.suppress(OSError, ValueError):
            _, where, process, _ = path.name.split("~")
            abandoned = where == host() and not _is_alive(int(process))
            if abandoned or time.time() - path.stat().st_mtime > STALE_TEMPORARY_SECONDS:
                path.unlink()


def host() -> str:
    """This machine's name in letters that a file's name may hold."""
    return "".join(char if char.isalnum() else "-" for char in socket.gethostname())


@contextlib.contextmanager
def _replacing(path: Path, *, durable: bool) -> Iterator[int]:
    """The descriptor of a temporary file, which takes the name `path` if the block ends well."""
    temporary = temporary_path(path)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            yield descriptor
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
        if durable:
            _fsync_directory(path.parent)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def temporary_path(path: Path) -> Path:
    """A name beside `path` that tells `sweep_temporaries` whose it is."""
    marker = f"{TEMPORARY}{path.name[:40]}~{host()}~{os.getpid()}~"
    return path.with_name(marker + secrets.token_hex(4))


def _fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_alive(process: int) -> bool:
    import psutil

    return psutil.pid_exists(process)
