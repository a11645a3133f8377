"""Rows with two numbers, compaction, and older formats."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from stores import IDENTITY, row, said

from mrpo_tools.cache import WriterRecord, datasets, files, upkeep
from mrpo_tools.cache.pairs import export_pairs
from mrpo_tools.cache.parts import LOGPS
from mrpo_tools.groups import Group, Response, user_prompt
from mrpo_tools.maths.noise import Noise
from mrpo_tools.methods.tensors import look_up
from mrpo_tools.sql import open_sql


def test_the_earliest_row_counts_everywhere(cache, store, capsys):
    """Training's look-up, SQL and export give the first number, whatever the files' names; verify
    tells of the difference."""
    group = Group(user_prompt("q"), (Response("a", 2.0), Response("b", 1.0)))

    def write(first: float, created: float) -> Path:
        logps = zip(group.response_ids, (first, first - 1), strict=True)
        ids = {"prompt_id": group.prompt_id}
        rows = [replace(row(0, logp), response_id=key, **ids) for key, logp in logps]
        return store.write(LOGPS.table(rows), created, [])

    names = [write(-3.0, 2000.0), write(-1.0, 1000.0)]
    write(-1.0 - 6.9e-5, 3000.0)  # noise: 7 tokens of 1e-5 each are allowed
    cache.save_groups("some", [group])
    assert len(set(names)) == 2
    assert look_up([store], [group]).logps.flatten().tolist() == [-1.0, -2.0]
    with open_sql(cache.path) as database:
        logps = database.query("SELECT logp FROM logps ORDER BY logp")["logp"].to_pylist()
    assert logps == [-2.0, -1.0]
    pair = export_pairs(cache, store).table.to_pylist()[0]
    assert (pair["ref_chosen_logps"], pair["ref_rejected_logps"]) == (-1.0, -2.0)
    text = said(capsys, "cache", "verify", "--cache", str(cache.path), code=3)
    for key, first in zip(group.response_ids, (-1.0, -2.0), strict=True):
        assert f"response {key} was computed twice: logp {first}, later {first - 2}" in text
    upkeep.compact(cache)
    assert look_up([store], [group]).logps.flatten().tolist() == [-1.0, -2.0]
    said(capsys, "cache", "verify", "--cache", str(cache.path))


@pytest.mark.parametrize(
    ("other", "field"),
    [
        ({"logp": -1.5 - 7.1e-5}, "logp"),
        ({"logp": None, "status": "nonfinite"}, "status"),
        ({"num_tokens": 8}, "num_tokens"),
        ({"token_hash": "1" * 16}, "token_hash"),
        ({"truncated": True}, "truncated"),
    ],
)
def test_what_differs_beyond_noise_is_told(store, other, field):
    store.append([row(0), row(1)])
    store.append([row(0, **other), row(1)])
    assert [(row.response_id, row.field) for row in upkeep.disagreements(store)] == [
        ("r0000", field)
    ]


def test_measured_noise_is_allowed(store):
    """Coarse arithmetic differs more: ten times the rms that was measured, times √7 of 7 tokens."""
    store.append([row(0), row(1)], WriterRecord(noise=Noise(rms=0.01)))
    store.append([row(0, -1.5 - 0.26), row(1, -1.5 - 0.27)], WriterRecord(noise=Noise(rms=0.001)))
    assert [row.response_id for row in upkeep.disagreements(store)] == ["r0001"]


def test_many_small_differences_of_one_sign_are_told(store):
    """64 responses, each two rms·√7 apart: noise where the signs alternate, none where all sink."""
    record, apart = WriterRecord(noise=Noise(rms=0.01)), 2 * 0.01 * 7**0.5
    store.append([row(n, -1.5) for n in range(128)], record)
    store.append([row(n, -1.5 - apart * (-1) ** n) for n in range(64)], record)
    assert upkeep.disagreements(store) == []
    store.append([row(n, -1.5 - apart) for n in range(64, 128)], record)
    assert len(upkeep.disagreements(store)) == 1


@pytest.mark.parametrize(("merged_rows", "count"), [(1000, 1), (20, 3)])
def test_compact_keeps_every_row_and_is_repeatable(cache, store, merged_rows, count):
    """42 rows in ten parts, with 18 repeated, as one part and as slices."""
    for start in range(0, 40, 4):
        rows = [row(n, -float(n + 1)) for n in range(start, start + 6)]
        store.append(rows, WriterRecord(device="cpu"))
    before, created = store.table().sort_by("response_id"), store.parts()[0].created
    merged = upkeep.compact(cache, merged_rows=merged_rows)[0]
    assert (merged.before, merged.after, merged.dropped_rows) == (10, count, 18)
    assert store.table().sort_by("response_id").equals(before)
    assert {part.created for part in store.parts()} == {created}
    assert {record.device for record in store.recorded()} == {"cpu"}
    paths = store.part_paths()
    assert upkeep.compact(cache, merged_rows=merged_rows)[0].before == count
    assert store.part_paths() == paths
    assert upkeep.damaged(cache) == []


def test_upgrade_writes_old_formats_anew(cache, store, capsys):
    """Format 1 had no time in saved data, no identity in parts, and one record, not a list."""
    store.append([row(0), row(1, -2.0)], WriterRecord(device="cpu"))
    cache.save_groups("some", [Group(user_prompt("q"), (Response("a"), Response("b")))])
    rows, created, groups = store.table(), store.parts()[0].created, cache.groups_table()
    for path in (store.part_paths()[0], next(cache.groups_path.iterdir())):
        table, metadata = files.read_verified(path)
        path.unlink()
        for key in ("mrpo.identity_fields", "mrpo.content"):
            metadata.pop(key, None)
        if "mrpo.recorded" in metadata:
            metadata["mrpo.recorded"] = json.dumps(json.loads(metadata["mrpo.recorded"])[0])
        else:
            del metadata["mrpo.created"]
        metadata["mrpo.format_version"] = "1"
        prefix = "part-" if path.parent == store.directory else "some-"
        files.write_content_addressed(path.parent, prefix, table, metadata)
    assert store.recorded()[0].device == "cpu"
    with open_sql(cache.path) as database:
        assert database.query("SELECT rows FROM refs").to_pylist() == [{"rows": 2}]
    text = said(capsys, "cache", "upgrade", "--cache", str(cache.path))
    assert "2 files upgraded; every file has format 2" in text
    assert store.table().equals(rows)
    assert store.parts()[0].created == created
    assert cache.groups_table().equals(groups)
    assert {part.format for part in store.parts()} == {2}
    assert {file.format for file in datasets.load_all(cache.groups_path)} == {2}
    assert store.identity_in_parts() == IDENTITY
    assert "0 files upgraded" in said(capsys, "cache", "upgrade", "--cache", str(cache.path))
