"""The memory of file hashes: a file is read once, and never believed when it may have changed."""

from __future__ import annotations

import json
import os
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
    assert os.listdir(reader.path.parent) == [reader.path.name]


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
        assert os.listdir(blocked) == ["hashes.json"], "no temporary stays behind"


def refuse(*_: object, **__: object) -> None:
    raise PermissionError(13, "Permission denied")


def test_the_memory_lives_in_the_users_cache(monkeypatch, tmp_path):
    """`XDG_CACHE_HOME` where it is set, `~/.cache` elsewhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert HashMemo().path == tmp_path / "xdg" / "mrpo" / "file-hashes.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert HashMemo().path == tmp_path / ".cache" / "mrpo" / "file-hashes.json"
