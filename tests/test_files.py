"""Files and directories that appear whole or not at all.

What every failing call of the disk does is in test_durability.py.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mrpo_tools.errors import ResourceError
from mrpo_tools.files import save_json, whole_directory, whole_file, write_whole


class Interrupted(Exception):
    """Something that goes wrong while a block writes."""


def interrupted_file(path: Path) -> None:
    with whole_file(path) as file:
        file.write(b"half")
        raise Interrupted


def interrupted_directory(path: Path) -> None:
    with whole_directory(path) as folder:
        folder.mkdir()
        (folder / "half").write_text("half")
        raise Interrupted


@pytest.mark.parametrize("interrupted", [interrupted_file, interrupted_directory])
@pytest.mark.parametrize("before", [None, b"before"])
def test_a_block_that_fails_changes_nothing(tmp_path, interrupted, before):
    path = tmp_path / "x"
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(Interrupted):
        interrupted(path)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [before] * (before is not None)


def test_what_is_whole_takes_its_name(tmp_path):
    path = tmp_path / "x"
    for content in (b"one", b"two"):
        with whole_file(path) as file:
            file.write(content)
            assert not path.exists() or path.read_bytes() != content
        assert path.read_bytes() == content
    with whole_directory(tmp_path / "folder") as folder:
        folder.mkdir()
        (folder / "y").write_text("y")
        assert not (tmp_path / "folder").exists()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "x", "y"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_file_has_the_permissions_of_any_other(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_whole(tmp_path / "x", b"", durable=True)
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ResourceError, match=f"cannot write to {tmp_path / 'absent'}"):
        save_json(tmp_path / "absent" / "x.json", {})


def test_json_is_readable_and_strict(tmp_path):
    save_json(tmp_path / "x.json", {"é": [float("inf"), 0.5], "b": None})
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"é": [None, 0.5], "b": None}
    assert "é" in text
    assert text.endswith("}\n")
