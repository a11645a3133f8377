"""The memory of file hashes: a file is read once, and never believed when it may have changed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import time
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
from reference_changes import read_json

from mrpo_tools.references.hashes import HashMemo, hash_file

WEIGHTS = {"model.safetensors": sha256(b"weights").hexdigest()}
OTHERS = {"model.safetensors": sha256(b"Weights").hexdigest()}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    return path


class Reader:
    """Memories of one file, with the names of the files that are really read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.read: list[str] = []

    def memo(self) -> HashMemo:
        return HashMemo(self.path, hash_file=self.hash_file)

    def hash_file(self, path: Path) -> str:
        self.read.append(path.name)
        return hash_file(path)


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return Reader(tmp_path / "memo" / "hashes.json")


def test_an_unchanged_file_is_read_once(weights, reader):
    """The second answer comes from the memory, in this process and in the next."""
    announced = []
    for _ in range(3):
        assert reader.memo().hash_files([weights], announced.append) == WEIGHTS
    assert reader.read == ["model.safetensors"]
    assert announced == [weights]


def test_a_file_of_the_same_size_and_another_time_is_read_again(weights, reader):
    """Same length, other bytes, a nanosecond later: other hash. Same bytes touched: same hash."""
    memo = reader.memo()
    memo.hash_files([weights])
    time = weights.stat().st_mtime_ns
    weights.write_bytes(b"Weights")
    for later in (1, 2):
        os.utime(weights, ns=(time + later, time + later))
        assert memo.hash_files([weights]) == OTHERS
    assert len(reader.read) == 3


def test_another_size_or_another_place_is_read(weights, reader, tmp_path):
    """The time alone is no key: a longer file with the old time, a file of the same name."""
    memo = reader.memo()
    memo.hash_files([weights])
    time = weights.stat().st_mtime_ns
    other = tmp_path / "other" / weights.name
    other.parent.mkdir()
    for path, content in ((other, b"Weights"), (weights, b"weights, longer")):
        path.write_bytes(content)
        os.utime(path, ns=(time, time))
        assert memo.hash_files([path]) == {path.name: sha256(content).hexdigest()}
    assert len(reader.read) == 3


def test_the_memory_keeps_what_others_wrote(weights, tmp_path, reader):
    """Two memories of one file: the second does not forget what the first learned."""
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"Weights")
    for files in ([weights], [other], [weights, other]):
        reader.memo().hash_files(files)
    assert reader.read == ["model.safetensors", "other.safetensors"]
    assert sorted(os.listdir(reader.path.parent)) == ["hashes.json", "hashes.lock"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"3", b'"x"', b"\xff\xfe", b"{}", b'{"a": 1}']
)
def test_a_corrupted_memory_is_ignored(weights, reader, content):
    """Whatever the file holds, the hash is right, and the memory works again afterwards."""
    reader.path.parent.mkdir()
    reader.path.write_bytes(content)
    for _ in range(2):
        assert reader.memo().hash_files([weights]) == WEIGHTS
    assert reader.read == ["model.safetensors"]


def test_a_corrupted_hash_is_no_hash(weights, reader):
    """An entry that cannot be a SHA-256 is not believed."""
    reader.memo().hash_files([weights])
    for value in (None, 5, "", "abc", ["x"], {}):
        reader.path.write_text(json.dumps(dict.fromkeys(read_json(reader.path), value)))
        assert reader.memo().hash_files([weights]) == WEIGHTS


@pytest.mark.parametrize("where", ["a file", "a directory", "read-only"])
def test_a_memory_that_cannot_be_kept_is_harmless(weights, tmp_path, monkeypatch, where):
    """A parent that is a file, a directory in its place, a disk that refuses: slower, no worse."""
    blocked = tmp_path / "blocked"
    if where == "a directory":
        (blocked / "hashes.json").mkdir(parents=True)
    elif where == "a file":
        blocked.write_text("x")
    else:
        monkeypatch.setattr(os, "replace", refuse)
    for _ in range(2):
        assert HashMemo(blocked / "hashes.json").hash_files([weights]) == WEIGHTS
    if where == "a directory":
        left = sorted(os.listdir(blocked))
        assert left == ["hashes.json", "hashes.lock"], "no temporary stays behind"


def refuse(*_: object, **__: object) -> None:
    raise PermissionError(13, "Permission denied")


SERVER = """
import sys, time
from pathlib import Path
from mrpo_tools.references.hashes import HashMemo, hash_file

folder, name, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])

def counted(path):
    with (folder / "reads").open("a") as reads:
        print(path.name, file=reads)
    time.sleep(seconds)
    return hash_file(path)

print("ready", flush=True)
sys.stdin.readline()
print(HashMemo(folder / "hashes.json", hash_file=counted).hash_files([folder / name])[name])
"""
"""A process that hashes a file so many seconds long, once it is told to, and notes that it does."""


class Hasher:
    """Such a process, which is ready."""

    def __init__(self, weights: Path, seconds: float) -> None:
        arguments = [str(weights.parent), weights.name, str(seconds)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", SERVER, *arguments], **pipes)
        assert self.process.stdout.readline() == "ready\n"

    def begin(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> str:
        answer, _ = self.process.communicate(timeout=60)
        return answer.strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def reads(folder: Path, count: int = 0) -> list[str]:
    """The files that were read so far; waits until there are so many."""
    path = folder / "reads"
    while not path.exists() or len(path.read_text().splitlines()) < count:
        time.sleep(0.01)
    return path.read_text().splitlines()


def test_of_processes_that_start_together_one_reads(weights):
    """Torchrun on fresh weights: the second and third wait, and take the hash from the memory."""
    hashers = [Hasher(weights, seconds=0.5) for _ in range(3)]
    for hasher in hashers:
        hasher.begin()
    assert {hasher.end() for hasher in hashers} == set(WEIGHTS.values())
    assert reads(weights.parent) == [weights.name]


def test_who_is_killed_while_reading_blocks_nobody(weights):
    """The second waits for the first; when that is killed it reads the file itself."""
    first, second = Hasher(weights, seconds=600), Hasher(weights, seconds=0)
    first.begin()
    reads(weights.parent, 1)
    second.begin()
    time.sleep(0.5)
    assert second.process.poll() is None, "the second did not wait"
    first.kill()
    assert second.end() == WEIGHTS[weights.name]
    assert len(reads(weights.parent)) == 2


def test_other_files_do_not_wait(weights):
    """An adapter is hashed while another process reads a big model."""
    other = weights.with_name("adapter_model.safetensors")
    other.write_bytes(b"Weights")
    big, small = Hasher(weights, seconds=600), Hasher(other, seconds=0)
    big.begin()
    reads(weights.parent, 1)
    small.begin()
    assert small.end() == sha256(b"Weights").hexdigest()
    assert big.process.poll() is None
    big.kill()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(weights, reader, monkeypatch, code):
    """The file is hashed, and remembered all the same."""
    monkeypatch.setattr(fcntl, "lockf", partial(refuse_with, code))
    for _ in range(2):
        assert reader.memo().hash_files([weights]) == WEIGHTS
    assert reader.read == ["model.safetensors"]


def refuse_with(code: int, *_: object) -> None:
    raise OSError(code, os.strerror(code))


def test_the_memory_lives_in_the_users_cache(monkeypatch, tmp_path):
    """`XDG_CACHE_HOME` where it is set, `~/.cache` elsewhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert HashMemo().path == tmp_path / "xdg" / "mrpo" / "file-hashes.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert HashMemo().path == tmp_path / ".cache" / "mrpo" / "file-hashes.json"
