"""A data set that was read once: kept, found again, and read anew where it should be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from small_data import numbered, pairs, write_lines

from mrpo_tools.cache.reading import read_dataset
from mrpo_tools.config import Dataset
from mrpo_tools.errors import DataError
from mrpo_tools.sources import load_dataset


@pytest.fixture
def source(tmp_path) -> Path:
    rows = [{"prompt": f"?{n}", "responses": [{"content": "a", "score": n}, {"content": "ß☃",
             "score": 1}], "id": n, "comment": "unread"} for n in range(40)]  # fmt: skip
    return write_lines(tmp_path / "data.jsonl", [*rows, *rows[:3]])


@pytest.fixture
def cache(tmp_path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def kept(cache: Path) -> list[str]:
    return sorted(path.suffix for path in (cache / "read").glob("*"))


def read(cache: Path, source: Path, worth: int = 0, **words):
    """What was read, and how often its reader was heard of."""
    heard: list[tuple[int, int]] = []
    dataset = Dataset(source=str(source), test_size=0.2, **words)
    found = read_dataset(cache, dataset, lambda *done: heard.append(done), worth=worth)
    return found, len(heard)


def test_the_second_reading_is_the_first_without_the_source(source, cache):
    expected = load_dataset(Dataset(source=str(source), test_size=0.2))
    first, heard = read(cache, source)
    again, silent = read(cache, source)
    assert heard > 0
    assert silent == 0
    for found in (first, again):
        assert list(found.groups) == expected.groups
        assert replace(found, groups=[]) == replace(expected, groups=[])
    assert kept(cache) == [".arrow", ".json"]
    assert expected.counts["duplicate_groups"] == 3
    assert expected.unused == {"comment": 43}


def test_other_words_are_another_reading(source, cache):
    read(cache, source)
    limited, heard = read(cache, source, limit=5)
    assert heard > 0
    assert (
        list(limited.groups)
        == load_dataset(Dataset(source=str(source), test_size=0.2, limit=5)).groups
    )
    assert kept(cache) == [".arrow", ".arrow", ".json", ".json"]


def test_a_source_that_changed_is_read_and_the_old_one_forgotten(source, cache):
    read(cache, source)
    write_lines(source, numbered(7))
    changed, heard = read(cache, source)
    assert heard > 0
    assert len(changed.groups) == 7
    assert kept(cache) == [".arrow", ".json"]


@pytest.mark.parametrize("damage", ["a byte", "the end", "no groups", "no record"])
def test_what_is_damaged_is_read_again(source, cache, capsys, damage):
    first, _ = read(cache, source)
    [groups], [record] = (cache / "read").glob("*.arrow"), (cache / "read").glob("*.json")
    content = bytearray(groups.read_bytes())
    groups.unlink()  # what is mapped stays as it was
    if damage == "a byte":
        content[len(content) // 2] ^= 1
        groups.write_bytes(content)
    elif damage == "the end":
        groups.write_bytes(content[:-100])
    elif damage == "no record":
        groups.write_bytes(content)
        record.write_text("{}")
    again, heard = read(cache, source)
    assert heard > 0
    assert list(again.groups) == list(first.groups)
    assert ("is damaged" in capsys.readouterr().err) == (damage in ("a byte", "the end"))
    assert read(cache, source)[1] == 0


def test_bad_rows_are_told_at_every_reading(source, cache):
    write_lines(source, [*pairs("a", "b"), {"prompt": "c", "chosen": "c+"}])
    with pytest.raises(DataError):
        read(cache, source)
    assert kept(cache) == []
    for _ in range(2):
        found, heard = read(cache, source, skip_bad=True)
        assert heard > 0
        assert len(found.skipped) == 1
        assert len(found.groups) == 2
    assert kept(cache) == []


def test_small_sources_and_missing_caches_are_read_as_ever(source, cache):
    size = source.stat().st_size
    assert isinstance(read(cache, source, worth=size + 1)[0].groups, list)
    assert not (cache / "read").exists()
    assert isinstance(read(cache / "nowhere", source)[0].groups, list)
    assert not (cache / "nowhere").exists()
    assert not isinstance(read(cache, source, worth=size)[0].groups, list)


def test_the_record_says_what_was_noticed(source, cache):
    found, _ = read(cache, source)
    [record] = (cache / "read").glob("*.json")
    noticed = json.loads(record.read_text())
    assert noticed["origin"] == str(source)
    assert noticed["source"]["counts"] == found.counts
