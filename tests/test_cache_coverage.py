"""`mrpo cache status` and `diff`: what is there, and by whom."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pyarrow as pa
import pytest
from stores import IDENTITY, pairs, row, said

from mrpo_tools.cache import WriterRecord
from mrpo_tools.groups import Group, Response, user_prompt
from mrpo_tools.references.identity import Identity


def test_status_counts_each_reference_data_set_and_split(cache, store, capsys):
    splits = ("train", "train", "test")
    first = [group.with_split(split) for group, split in zip(pairs(3), splits, strict=True)]
    other = [Group(user_prompt("x"), (Response("c"), Response("d")))]
    keys = [key for group in first for key in group.response_ids]
    statuses = ["ok", "ok", "ok", "nonfinite", "overlong", "ok"]
    rows = [
        replace(row(0, -1.0 if status == "ok" else None, status), response_id=key)
        for key, status in zip(keys, statuses, strict=True)
    ]
    store.append([*rows, row(99)], WriterRecord(device="cpu"))
    cache.save_groups("first", first)
    cache.save_groups("other", other)
    holding = json.loads(said(capsys, "cache", "status", "--json", "--cache", str(cache.path)))[0]
    assert (holding["reference"], holding["parts"], holding["rows"]) == ("llama", 1, 7)
    assert holding["bytes"] == store.part_paths()[0].stat().st_size
    assert time.time() - 60 < holding["first"] <= holding["last"] <= time.time()
    assert holding["versions"]["pyarrow"] == [pa.__version__]
    assert holding["devices"] == ["cpu"]
    fields = ("dataset", "split", "responses", "ok", "missing", "overlong", "nonfinite")
    cells = [tuple(cell[name] for name in fields) for cell in holding["coverage"]]
    assert sorted(cells, key=str) == sorted(
        [
            ("first", "train", 4, 3, 0, 0, 1),
            ("first", "test", 2, 1, 0, 1, 0),
            ("other", None, 2, 0, 2, 0, 0),
            (None, None, 1, 1, 0, 0, 0),
        ],
        key=str,
    )
    assert "pyarrow" in said(capsys, "cache", "status", "--cache", str(cache.path))


@pytest.mark.parametrize("rows", [0, 2])
def test_status_without_saved_data(cache, store, capsys, rows):
    """The groups' file is gone, and perhaps every part too: what is left is told."""
    store.append([row(n) for n in range(2)], WriterRecord(device="cpu"))
    if not rows:
        store.part_paths()[0].unlink()
    text = said(capsys, "cache", "status", "--cache", str(cache.path))
    assert store.short in text
    assert ("dataset" in text) == bool(rows)
    holding = json.loads(said(capsys, "cache", "status", "--json", "--cache", str(cache.path)))[0]
    assert [cell["ok"] for cell in holding["coverage"]] == [rows] * bool(rows)


def test_diff_names_field_and_values(cache, store, capsys):
    other = cache.store("llama", Identity({**IDENTITY.fields, "max_length": 64}))
    for each in (store, other):
        each.append([row(0)])
    words = ["cache", "diff", str(store), str(other), "--cache", str(cache.path)]
    lines = said(capsys, *words).splitlines()
    assert [line.split() for line in lines] == [
        ["field", str(store), str(other)], ["max_length", "512", "64"],
    ]  # fmt: skip
    assert json.loads(said(capsys, *words, "--json")) == [
        {"field": "max_length", str(store): 512, str(other): 64}
    ]
    same = said(capsys, "cache", "diff", str(store), str(store), "--cache", str(cache.path))
    assert "have the same identity" in same
