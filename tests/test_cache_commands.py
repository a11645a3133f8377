"""`mrpo cache`: what it says is what is there, and what it writes is what was meant."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from simulated import Simulation, Spoiled, loading

from mrpo_tools.cache import Cache, LogpRow, ReferenceStore, WriterRecord, datasets, files, upkeep
from mrpo_tools.cache.coverage import coverage
from mrpo_tools.cache.imported import import_logps
from mrpo_tools.cache.pairs import PAIRS_SCHEMA, TRL_SCHEMA, export_pairs
from mrpo_tools.cli import run
from mrpo_tools.cli.precompute import _shard
from mrpo_tools.config import Recipe, Reference, absolute_paths
from mrpo_tools.errors import CacheStale, DataError, ResourceError, UsageError
from mrpo_tools.evaluation.rank import cached_groups
from mrpo_tools.files import make_directory, write_whole
from mrpo_tools.groups import Group, Response, user_prompt
from mrpo_tools.maths import contrasts
from mrpo_tools.methods.tensors import look_up
from mrpo_tools.precomputing import rescore
from mrpo_tools.precomputing.estimate import estimate
from mrpo_tools.precomputing.precompute import precompute
from mrpo_tools.references.devices import out_of_memory
from mrpo_tools.references.identity import Identity
from mrpo_tools.references.resolved import resolve
from mrpo_tools.sql import open_sql
from mrpo_tools.training.train import prepare

IDENTITY = Identity({"model": None, "weights": "abc", "max_length": 512})


def row(index: int, logp: float | None = -1.5, status: str = "ok", **other: Any) -> LogpRow:
    values = {"num_tokens": 7, "num_bytes": 21, "truncated": False, "token_hash": "0" * 16, **other}
    return LogpRow(f"r{index:04}", f"p{index // 2:04}", logp, status=status, **values)


@pytest.fixture
def store(tmp_path) -> ReferenceStore:
    return Cache(tmp_path / "cache").store("llama", IDENTITY)


@pytest.fixture
def cache(store) -> Cache:
    return Cache(store.directory.parent.parent)


def said(capsys, *words: str, code: int = 0) -> str:
    """stdout of a command that ends with a code; its stderr after it."""
    capsys.readouterr()
    assert run(list(words)) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.out + captured.err


# Rows that were scored twice.


def test_the_earliest_row_counts_everywhere(tmp_path, capsys):
    """Training's look-up, SQL and export give the first number, whatever the files' names; verify
    tells of the difference."""
    group = Group(user_prompt("q"), (Response("a", 2.0), Response("b", 1.0)))
    cache = Cache(tmp_path / "cache")
    store = cache.store("llama", IDENTITY)

    def rows(first: float) -> pa.Table:
        return pa.Table.from_pylist(
            [
                {**vars(row(0, first - n)), "response_id": key, "prompt_id": group.prompt_id}
                for n, key in enumerate(group.response_ids)
            ],
            schema=files_schema(),
        )

    names = [store.write(rows(-3.0), 2000.0, []), store.write(rows(-1.0), 1000.0, [])]
    store.write(rows(-1.0 - 6.9e-5), 3000.0, [])  # noise: 7 tokens of 1e-5 each are allowed
    cache.save_groups("some", [group])
    assert len(set(names)) == 2
    assert look_up([store], [group]).logps.flatten().tolist() == [-1.0, -2.0]
    with open_sql(cache.path) as database:
        found = database.query("SELECT logp FROM logps ORDER BY logp").to_pylist()
    assert [one["logp"] for one in found] == [-2.0, -1.0]
    pair = export_pairs(cache, store).table.to_pylist()[0]
    assert (pair["ref_chosen_logps"], pair["ref_rejected_logps"]) == (-1.0, -2.0)
    text = said(capsys, "cache", "verify", "--cache", str(cache.path), code=3)
    for key, first in zip(group.response_ids, (-1.0, -2.0), strict=True):
        assert f"response {key} was scored twice: logp {first}, later {first - 2}" in text
    upkeep.compact(cache)
    assert look_up([store], [group]).logps.flatten().tolist() == [-1.0, -2.0]
    said(capsys, "cache", "verify", "--cache", str(cache.path))


def files_schema() -> pa.Schema:
    from mrpo_tools.cache import LOGPS_SCHEMA

    return LOGPS_SCHEMA


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
    assert [(one.response_id, one.field) for one in upkeep.disagreements(store)] == [
        ("r0000", field)
    ]


def test_measured_noise_is_allowed(store):
    """Coarse arithmetic differs more: four times what was measured, for each of 7 tokens."""
    store.append([row(0), row(1)], WriterRecord(noise=0.01))
    store.append([row(0, -1.5 - 0.27), row(1, -1.5 - 0.29)], WriterRecord(noise=0.001))
    assert [one.response_id for one in upkeep.disagreements(store)] == ["r0001"]


def test_an_interrupted_start_leaves_no_second_identity(cache, store, references, some_groups):
    """A model that does not load leaves nothing; a store without parts is not in the way."""
    store.append([row(0)])

    def broken(*_: object) -> None:
        raise UsageError("cannot be loaded")

    with pytest.raises(UsageError):
        precompute({"llama": references["llama"]}, some_groups[:2], cache, "some", load=broken)
    assert [one.short for one in cache.references()] == [store.short]
    empty = cache.store("llama", Identity({"model": "other"}))
    make_directory(empty.directory)
    write_whole(empty.identity_path, empty.identity.content)
    assert cache.find("llama").short == store.short
    assert cache.find(f"llama@{empty.short}").short == empty.short


# Status.


def test_status_counts_each_reference_data_set_and_split(tmp_path, capsys, monkeypatch):
    first = [Group(user_prompt(f"q{n}"), (Response("a"), Response("b")), split=split)
             for n, split in enumerate(["train", "train", "test"])]  # fmt: skip
    other = [Group(user_prompt("x"), (Response("c"), Response("d")))]
    cache = Cache(tmp_path / "cache")
    keys = [key for group in first for key in group.response_ids]
    rows = [row(n, -1.0) for n in range(5)] + [row(5, None, "overlong"), row(6, -2.0)]
    rows[4] = row(4, None, "nonfinite")
    named = [LogpRow(key, *list(vars(one).values())[1:]) for key, one in zip(keys, rows[1:])]  # noqa: B905
    store = cache.store("llama", IDENTITY)
    store.append([*named, row(99)], WriterRecord(device="cpu"))
    cache.save_groups("first", first)
    cache.save_groups("other", other)
    found = json.loads(said(capsys, "cache", "status", "--json", "--cache", str(cache.path)))[0]
    assert (found["reference"], found["parts"], found["rows"]) == ("llama", 1, 7)
    assert found["bytes"] == store.part_paths()[0].stat().st_size
    assert time.time() - 60 < found["first"] <= found["last"] <= time.time()
    assert found["versions"]["pyarrow"] == [pa.__version__]
    assert found["devices"] == ["cpu"]
    fields = ("dataset", "split", "responses", "ok", "missing", "overlong", "nonfinite")
    cells = [tuple(one[name] for name in fields) for one in found["coverage"]]
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
    found = json.loads(said(capsys, "cache", "status", "--json", "--cache", str(cache.path)))[0]
    assert [one["ok"] for one in found["coverage"]] == [rows] * bool(rows)


# Compaction and upgrade.


def test_compact_keeps_every_row_and_is_repeatable(cache, store):
    for start in range(0, 40, 4):
        rows = [row(n, -float(n + 1)) for n in range(start, start + 6)]
        store.append(rows, WriterRecord(device="cpu"))
    before, created = store.table().sort_by("response_id"), store.parts()[0].created
    merged = upkeep.compact(cache)[0]
    assert (merged.before, merged.after, merged.dropped_rows) == (10, 1, 18)
    assert store.table().sort_by("response_id").equals(before)
    assert store.parts()[0].created == created
    assert [one.device for one in store.recorded()] == ["cpu"]
    assert upkeep.compact(cache)[0].before == 1
    assert upkeep.damaged(cache) == []


def test_compact_in_slices(cache, store):
    for start in range(0, 28, 4):
        store.append([row(n) for n in range(start, start + 4)])
    before = store.table().sort_by("response_id")
    assert upkeep.compact(cache, merged_rows=10)[0].after == 3
    assert store.table().sort_by("response_id").equals(before)
    assert upkeep.compact(cache, merged_rows=10)[0].after == 3


def test_saved_data_that_was_saved_again_goes(cache, store):
    """Of a data set the latest file stays."""
    store.append([row(0)])
    groups = [Group(user_prompt(f"q{n}"), (Response("a"), Response("b"))) for n in range(4)]
    cache.save_groups("some", groups[:3])
    cache.save_groups("some", [one.with_split("test") for one in groups[:3]])
    cache.save_groups("other", groups[3:])
    before = cache.groups_table().sort_by("group_id")
    assert upkeep.compact(cache)[-1].after == 2
    assert cache.groups_table().sort_by("group_id").equals(before)
    assert set(before["split"].to_pylist()) == {"test", None}


def saved_groups(cache: Cache, column: str) -> list[str]:
    """A column of the view `groups`, sorted."""
    cache.references_path.mkdir(exist_ok=True)
    with open_sql(cache.path) as database:
        return sorted(database.query(f"SELECT {column} FROM groups")[column].to_pylist())


@pytest.mark.parametrize("compacted", [False, True])
def test_a_corrected_label_takes_the_wrong_one_away(cache, store, compacted):
    """In ranking, export, status and SQL alike, though the group's id is another one."""

    def pair(n: int, *labels: bool) -> Group:
        responses = (Response(text, chosen=one) for text, one in zip("ab", labels, strict=True))
        return Group(user_prompt(f"q{n}"), tuple(responses))

    wrong = [pair(0, True, False), pair(1, True, False)]
    right = [wrong[0], pair(1, False, True)]
    keys = [key for one in right for key in one.response_ids]
    numbers = [LogpRow(key, "p", -1.0 - n, 3, 2, "ok", False, "") for n, key in enumerate(keys)]
    store.append(numbers)
    cache.save_groups("some", wrong)
    cache.save_groups("some", right)
    if compacted:
        assert upkeep.compact(cache)[-1] == upkeep.Merged("groups", 2, 1, 2)
    assert cached_groups(cache, "all") == right
    assert export_pairs(cache, store).table["chosen"].to_pylist() == ["a", "b"]
    assert sum(one.responses for one in coverage(cache)) == 4
    assert saved_groups(cache, "group_id") == sorted(one.group_id for one in right)
    with open_sql(cache.path) as database:
        margins = database.query("SELECT margin FROM margins()")["margin"].to_pylist()
    assert sorted(margins) == [-1.0, 1.0]


def test_overlapping_data_sets_keep_all_their_groups(cache, store):
    """Named, each is whole; together a group counts once, as the latest data set has it."""
    groups = [Group(user_prompt(f"q{n}"), (Response("a", 1.0), Response("b", 2.0)), split="train")
              for n in range(4)]  # fmt: skip
    keys = [key for one in groups for key in one.response_ids]
    store.append([LogpRow(key, "p", -1.0, 3, 2, "ok", False, "") for key in keys])
    cache.save_groups("small", groups[:2])
    cache.save_groups("large", [one.with_split("test") for one in groups])
    assert upkeep.compact(cache)[-1] == upkeep.Merged("groups", 2, 2, 0)
    assert [one.split for one in cached_groups(cache, "all", "small")] == ["train"] * 2
    assert export_pairs(cache, store, "small").table.num_rows == 2
    assert export_pairs(cache, store).table.num_rows == 4
    assert [(one.dataset, one.split, one.ok) for one in coverage(cache)] == [
        ("large", "test", 8), ("small", "train", 4),
    ]  # fmt: skip
    assert saved_groups(cache, "dataset") == ["large"] * 4
    with open_sql(cache.path) as database:
        assert database.query("SELECT * FROM margins()").num_rows == 4
        named = "SELECT * FROM margins() JOIN datasets USING (group_id) WHERE datasets.dataset = $d"
        assert database.query(named, {"d": "small"}).num_rows == 2
        assert database.query(named, {"d": "large"}).num_rows == 4


def test_fewer_groups_than_before_are_told(cache, capsys):
    groups = [Group(user_prompt(f"q{n}"), (Response("a"), Response("b"))) for n in range(3)]
    cache.save_groups("some", groups)
    assert capsys.readouterr().err == ""
    cache.save_groups("some", groups[:2])
    assert "data set 'some' of the cache is 2 groups now; the 3 saved" in capsys.readouterr().err
    assert len(cached_groups(cache, "all")) == 2
    cache.save_groups("some", groups)
    assert (len(cached_groups(cache, "all")), capsys.readouterr().err) == (3, "")


def test_what_is_saved_is_whole_whatever_is_scored(references, some_groups, tmp_path, monkeypatch):
    """A split or a shard of the data is scored; all of the data is saved, whoever ends last."""
    load = Simulation().load
    cache = Cache(tmp_path / "cache")
    groups = [one.with_split("test" if n % 2 else "train") for n, one in enumerate(some_groups[:8])]
    llama = {"llama": references["llama"]}
    precompute(llama, groups, cache, "some", "test", load=load)
    assert cached_groups(cache, "all") == groups
    cache = Cache(cache.path, clock=lambda: 1e9)  # it stands, and went back
    changed = [one.with_split("train") for one in groups]
    for shard in ((1, 2), (0, 2), (1, 2)):
        precompute(llama, changed, cache, "some", None, shard, load=load)
    assert cached_groups(cache, "all") == changed


def test_of_files_of_one_moment_the_same_one_counts_everywhere(cache):
    """Of two files of the same time every reader, and compaction, takes the same one."""
    groups = [Group(user_prompt(f"q{n}"), (Response("a"), Response("b"))) for n in range(3)]
    path = cache.save_groups("some", groups)
    saved = datasets.load(path)
    datasets.write(cache.groups_path, saved.table.slice(1), saved.created, "other")
    assert len(list(cache.groups_path.iterdir())) == 2
    found = [one.group_id for one in cached_groups(cache, "all")]
    assert saved_groups(cache, "group_id") == sorted(found)
    upkeep.compact(cache)
    assert [one.group_id for one in cached_groups(cache, "all")] == found


def test_the_latest_data_is_told_by_its_footer(cache):
    """Copies and backups change a file's time; what was saved last stays so."""
    import os

    groups = [Group(user_prompt("q"), (Response("a"), Response("b")))]
    first = cache.save_groups("some", groups)
    second = cache.save_groups("some", [groups[0].with_split("test")])
    third = cache.save_groups("some", groups)
    assert len({first, second, third}) == 3
    os.utime(second, (2e9, 2e9))
    assert cache.groups_table()["split"].to_pylist() == [None]
    cache.references_path.mkdir()
    with open_sql(cache.path) as database:
        assert database.query("SELECT split FROM groups").to_pylist() == [{"split": None}]


def test_upgrade_writes_old_formats_anew(cache, store, capsys, monkeypatch):
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
    assert {one.format for one in datasets.load_all(cache.groups_path)} == {2}
    assert store.identity_in_parts() == IDENTITY
    assert "0 files upgraded" in said(capsys, "cache", "upgrade", "--cache", str(cache.path))


# Identities.


def test_diff_names_field_and_values(cache, store, capsys):
    other = cache.store("llama", Identity({**IDENTITY.fields, "max_length": 64}))
    for one in (store, other):
        one.append([row(0)])
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


def test_rescore_agrees_with_a_sound_cache_and_not_with_a_false_one(cached, tmp_path, capsys):
    """A part whose hash is right and whose number is wrong: only the model can tell."""
    path = Path(shutil.copytree(cached.path, tmp_path / "cache"))
    words = ["cache", "verify", "--cache", str(path), "--rescore", "16", "--json"]
    found = json.loads(said(capsys, *words))
    assert [one["rows"] for one in found["rescored"]] == [16] * 3
    assert all(float(one["nats per token"]) < 1e-5 for one in found["rescored"])
    store = Cache(path).find("llama")
    part = store.parts()[0]
    logps = pa.array([one - 0.5 for one in part.table["logp"].to_pylist()])
    part.path.unlink()
    store.write(part.table.set_column(2, "logp", logps), part.created, part.records)
    text = said(capsys, "cache", "verify", "--cache", str(path), "--rescore", "4", "--ref",
                "llama", code=3)  # fmt: skip
    assert "nats per token apart" in text


def test_rescore_of_two_identities_of_one_name(references, some_groups, tmp_path, capsys,
                                               monkeypatch):  # fmt: skip
    """The project has words for one of them; the other is asked as it was scored."""
    cache = Cache(tmp_path / "cache")
    long = references["llama"]
    short = long.model_copy(update={"max_length": 64})
    for words in (long, short):
        precompute({"llama": words}, some_groups[:4], cache, "some")
    monkeypatch.chdir(tmp_path)
    check = ["cache", "verify", "--cache", "cache", "--rescore", "3", "--json"]
    Path("mrpo.yaml").write_text(f"references: {{llama: {{model: {long.model}, max_length: 64}}}}")
    for _ in range(2):
        found = json.loads(said(capsys, *check))["rescored"]
        assert sorted(one["rescored"] for one in found) == sorted(map(str, cache.references()))
        assert [one["rows"] for one in found] == [3, 3]
        Path("mrpo.yaml").write_text("references: {llama: {model: ./gone}}")


# Out and in.


@pytest.fixture
def scored() -> list[Group]:
    """A labelled pair, a scored set with a tie, a set of equals, in two splits."""
    labelled = (Response("yes", 1.0, True), Response("no", 3.0, False))
    judged = tuple(Response(f"a{n}", float(score)) for n, score in enumerate([2, 5, 1, 5]))
    return [
        Group(user_prompt("q1", "be brief"), labelled, split="train"),
        Group(user_prompt("q2"), judged, split="train"),
        Group(user_prompt("q3"), (Response("x", 1.0), Response("y", 1.0)), split="test"),
    ]


@pytest.fixture
def filled(tmp_path, scored) -> Cache:
    """Their log-probs, −1, −2, …, of 3 tokens each, with `a2` overlong."""
    cache = Cache(tmp_path / "cache")
    keys = [(key, group) for group in scored for key in group.response_ids]
    rows = [
        LogpRow(key, group.prompt_id, -1.0 - n, 3, 2, "ok", False, "")
        for n, (key, group) in enumerate(keys)
    ]
    rows[4] = LogpRow(keys[4][0], scored[1].prompt_id, None, 3, 2, "overlong", False, "")
    cache.store("llama", IDENTITY).append(rows)
    cache.save_groups("some", scored)
    return cache


def test_export_by_hand(filled, scored):
    """Best against worst of those that have a number: the label, else the score, decides."""
    found = export_pairs(filled, filled.find("llama"))
    got = [
        (one["chosen"], one["ref_chosen_logps"], one["rejected"], one["ref_rejected_logps"])
        for one in found.table.to_pylist()
    ]
    assert got == [("yes", -1.0, "no", -2.0), ("a1", -4.0, "a0", -3.0)]
    assert found.skipped == {"overlong": 1, "groups without a pair": 1}
    every = export_pairs(filled, filled.find("llama"), pairing="all").table
    assert every.schema == PAIRS_SCHEMA
    assert sorted(every["chosen"].to_pylist()) == ["a1", "a3", "yes"]
    assert export_pairs(filled, filled.find("llama"), split="test").table.num_rows == 0
    with pytest.raises(UsageError, match=r"saved: some train \(2\), some test \(1\)"):
        export_pairs(filled, filled.find("llama"), split="typo")


@pytest.mark.parametrize(
    ("judged", "overlong", "expected"),
    [
        ("1+ 3+ 2- 0-", [], [("y1", "y3")]),  # scores decide among the chosen and the rejected
        ("3+ 3+ 1- 1-", [], [("y0", "y2")]),  # the first on a tie
        ("2+ 1- 2-", [0], []),
        ("2+ 2-", [], []),  # tied in score: no pair
        ("2+ 2- 1-", [], [("y0", "y2")]),
        ("3 5 1 5", [1], [("y3", "y2")]),
    ],
)
def test_export_takes_the_pairs_that_training_uses(tmp_path, judged, overlong, expected):
    responses = tuple(
        Response(f"y{n}", float(one[0]), {"+": True, "-": False}.get(one[1:]))
        for n, one in enumerate(judged.split())
    )
    group = Group(user_prompt("q"), responses)
    cache = Cache(tmp_path / "cache")
    cache.save_groups("some", [group])
    rows = [
        LogpRow(key, "p", *((None, 3, 2, "overlong") if n in overlong else (-1.0, 3, 2, "ok")),
                False, "")
        for n, key in enumerate(group.response_ids)
    ]  # fmt: skip
    store = cache.store("llama", IDENTITY)
    store.append(rows)
    found = export_pairs(cache, store).table.to_pylist()
    assert [(one["chosen"], one["rejected"]) for one in found] == expected
    tensors = look_up([store], [group])
    pairs = contrasts.pairs(tensors.judged.sides, "best_worst")[0].nonzero().tolist()
    assert [(f"y{one}", f"y{other}") for one, other in pairs] == expected


def test_export_formats(filled, tmp_path, capsys):
    """JSONL and Parquet hold the same rows; TRL's form has its five columns, as messages."""
    common = ["cache", "export", "--ref", "llama", "--cache", str(filled.path)]
    lines = said(capsys, *common).splitlines()
    assert lines[-1].startswith("2 pairs with the log-probs of llama; 1 overlong left out")
    rows = [json.loads(line) for line in lines[:-1]]
    for form in ("jsonl", "parquet", "trl"):
        said(capsys, *common, "--format", form, "-o", str(tmp_path / form))
    assert [json.loads(one) for one in (tmp_path / "jsonl").read_text().splitlines()] == rows
    assert pq.read_table(tmp_path / "parquet").to_pylist() == rows
    trl = pq.read_table(tmp_path / "trl")
    assert trl.schema.names == TRL_SCHEMA.names
    first = trl.to_pylist()[0]
    assert first["prompt"] == [{"role": "system", "content": "be brief"},
                               {"role": "user", "content": "q1"}]  # fmt: skip
    assert first["chosen"] == [{"role": "assistant", "content": "yes"}]
    assert first["ref_rejected_logps"] == -2.0
    assert "inside the cache" in said(capsys, *common, "-o", str(filled.path / "x"), code=2)


def numbers(groups: list[Group]) -> list[dict[str, Any]]:
    keys = [key for group in groups for key in group.response_ids]
    return [{"response_id": key, "logp": -0.5 * n, "num_tokens": n + 1}
            for n, key in enumerate(keys)]  # fmt: skip


def write_lines(path: Path, rows: list[Any]) -> Path:
    lines = (one if isinstance(one, str) else json.dumps(one) for one in rows)
    path.write_text("".join(line + "\n" for line in lines))
    return path


def test_import_by_id_by_text_and_by_tokens(filled, scored, tmp_path, capsys):
    """The same numbers in three spellings and two file formats; marked by their origin."""
    by_id = numbers(scored)
    texts = [(group, one) for group in scored for one in group.responses]
    by_text = [
        {"prompt": [turn.as_dict() for turn in group.prompt], "response": one.content,
         "token_logps": [-0.5 * n / (n + 1)] * (n + 1)}
        for n, (group, one) in enumerate(texts)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(by_id), tmp_path / "x.parquet")
    paths = [tmp_path / "x.parquet", write_lines(tmp_path / "a.jsonl", by_id),
             write_lines(tmp_path / "b.jsonl", by_text)]  # fmt: skip
    expected = {one["response_id"]: one["logp"] for one in by_id}
    for n, path in enumerate(paths):
        found = import_logps(filled, f"big{n}", scored, path, origin="vLLM 0.11", dataset="some")
        assert (found.rows, found.reused, found.ignored) == (8, 0, 0)
        table = found.store.table()
        logps = dict(zip(*(table[c].to_pylist() for c in ("response_id", "logp")), strict=True))
        assert logps == pytest.approx(expected, abs=1e-12)
        assert table["num_tokens"].to_pylist() == list(range(1, 9))
        again = import_logps(filled, f"big{n}", scored, path, origin="vLLM 0.11", dataset="some")
        assert (again.rows, again.reused) == (0, 8)
    assert "vLLM 0.11" in said(capsys, "cache", "status", "--cache", str(filled.path))
    names = ["llama", "big0"]
    tensors = look_up([filled.find(name) for name in names], scored)
    assert tensors.logps[0, :2, 1].tolist() == [0.0, -0.5]
    differing = filled.find("llama").identity.differences(filled.find("big0").identity)
    assert ("origin", None, "vLLM 0.11") in differing


def test_training_takes_imported_numbers(cached, references, some_groups, tmp_path):
    """As a reference beside others; as reference 1 only with a policy to start from."""
    path = Path(shutil.copytree(cached.path, tmp_path / "cache"))
    cache = Cache(path)
    given = write_lines(tmp_path / "x.jsonl", numbers(some_groups))
    import_logps(cache, "big", some_groups, given, origin="elsewhere", dataset="some")
    recipe = Recipe(loss="mrpo", refs=["llama", "big"])
    found = prepare(recipe, some_groups, cache, {"llama": references["llama"]})
    expected = {one["response_id"]: one["logp"] for one in numbers(some_groups)}
    for g, group in enumerate(found.groups):
        for n, key in enumerate(group.response_ids):
            assert found.training.tensors.logps[g, n, 1] == expected[key]
    alone = recipe.model_copy(update={"refs": ["big", "llama"]})
    with pytest.raises(UsageError, match="does not say where the model of reference 'big' is"):
        prepare(alone, some_groups, cache, {})
    policy = alone.model_copy(update={"policy": references["llama"].model})
    assert prepare(policy, some_groups, cache, {}).groups


BAD = {
    "not finite": ({"logp": float("nan")}, "logp: a finite number, not above 0, is needed"),
    "infinite": ({"logp": float("-inf")}, "logp: a finite number, not above 0"),
    "positive": ({"logp": 0.1}, "logp: a finite number, not above 0, is needed, found 0.1"),
    "text": ({"logp": "-1"}, "logp: a finite number, not above 0, is needed, found '-1'"),
    "no number": ({"logp": None}, "logp: a finite number, not above 0, is needed, found None"),
    "no tokens": ({"num_tokens": 0}, "num_tokens: a whole number from 1 to 2,147,483,647"),
    "too many tokens": ({"num_tokens": 2**31}, "num_tokens: a whole number from 1 to 2,147,483,64"),
    "beyond floats": ({"logp": -(10**400)}, "logp: a finite number, not above 0, is needed"),
    "beyond together": ({"token_logps": [-1.7e308] * 2}, "token_logps: their sum is not finite"),
    "beyond in a token": ({"token_logps": [-(10**400)]}, "token_logps: a list of finite numbers"),
    "token above 0": ({"token_logps": [-1, 0.5]}, "token_logps: a list of finite numbers"),
    "no id": ({"response_id": None}, "response_id: it is needed, or prompt and response"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_log_prob_is_refused(filled, scored, tmp_path, kind):
    """With file and line, and nothing written."""
    change, message = BAD[kind]
    rows = numbers(scored)
    rows[3] |= change
    path = write_lines(tmp_path / "x.jsonl", rows)
    with pytest.raises(DataError) as raised:
        import_logps(filled, "big", scored, path, origin="elsewhere", dataset="some")
    assert f"{path}:4: {message}" in str(raised.value)
    assert [one.name for one in filled.references()] == ["llama"]


def test_incomplete_contradictory_and_broken_files_are_refused(filled, scored, tmp_path, capsys):
    rows = numbers(scored)
    for lines, message in (
        (rows[:-2], "6 of 8 responses have a row"),
        ([*rows, {**rows[0], "logp": -9.0}], "another row gives this response another number"),
        ([*rows, "{"], ":9: ends in the middle of a value"),
    ):
        path = write_lines(tmp_path / "x.jsonl", lines)
        with pytest.raises(DataError, match=message):
            import_logps(filled, "big", scored, path, origin="elsewhere", dataset="some")
    good = write_lines(tmp_path / "x.jsonl", [*rows, {**rows[0], "response_id": "f" * 32}])
    assert (
        import_logps(filled, "big", scored, good, origin="elsewhere", dataset="some").ignored == 1
    )
    rows[0]["logp"] = -3.0
    other = write_lines(tmp_path / "y.jsonl", rows)
    with pytest.raises(DataError, match="other numbers were imported into big"):
        import_logps(filled, "big", scored, other, origin="elsewhere", dataset="some")
    import_logps(filled, "big", scored, other, origin="elsewhere, again", dataset="some")
    assert "they differ in origin" in said(
        capsys, "cache", "export", "--ref", "big", "--cache", str(filled.path), code=3
    )


def test_the_commands_need_no_torch(filled, scored, tmp_path):
    """Each of them, in a process where torch cannot be imported."""
    data = write_lines(tmp_path / "data.jsonl", [group.as_dict() for group in scored])
    given = write_lines(tmp_path / "x.jsonl", numbers(scored))
    commands = [
        ["status"], ["verify"], ["compact"], ["repair"], ["upgrade"], ["diff", "llama", "llama"],
        ["export", "--ref", "llama"],
        ["import", str(given), "--ref", "big", "--origin", "x", "--dataset", str(data)],
    ]  # fmt: skip
    program = (
        "import json, sys; sys.modules['torch'] = None; from mrpo_tools.cli import run;"
        "codes = [run(['cache', *words, '--cache', sys.argv[2]])"
        " for words in json.loads(sys.argv[1])];"
        "sys.exit(max(codes))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, json.dumps(commands), str(filled.path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


# Numbers that are none, and memory.


def poisoned(tiny_models: dict[str, Path], folder: Path, token: int) -> Path:
    """A model in which one token's embedding is NaN."""
    from safetensors.torch import load_file, save_file

    model = Path(shutil.copytree(tiny_models["llama"], folder / "poisoned"))
    weights = load_file(model / "model.safetensors")
    weights["model.embed_tokens.weight"][token] = float("nan")
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    return model


def test_a_nan_in_the_weights_is_never_used(tiny_models, references, some_groups, tmp_path):
    """Responses with the token are caught, scored again in float32, stored as nonfinite, told, and
    left out of training; all others have the numbers of the sound model."""
    from mrpo_tools.references.resolved import renderer_of

    groups = some_groups[:12]
    renderer = renderer_of(resolve("llama", references["llama"]))
    encoded = [renderer.encode(group) for group in groups]
    uses: dict[int, set[str]] = {}
    for group, one in zip(groups, encoded, strict=True):
        for key, response in zip(group.response_ids, one.responses, strict=True):
            for token in response.ids[:-1]:  # the last is predicted, and predicts nothing
                uses.setdefault(token, set()).add(key)
    prompts = {token for one in encoded for token in one.prompt_ids}
    token = next(t for t, keys in uses.items() if t not in prompts and 1 <= len(keys) <= 4)
    model = poisoned(tiny_models, tmp_path, token)
    sick, sound = Cache(tmp_path / "sick"), Cache(tmp_path / "sound")
    words = Reference(model=str(model), dtype="float32")
    summary = precompute({"llama": words}, groups, sick, "some")[0]
    precompute({"llama": references["llama"]}, groups, sound, "some")
    assert summary.computed["nonfinite"] == len(uses[token])
    told = summary.warnings[-1]  # NaN reaches through the mask: siblings are scored again too
    assert f"{len(uses[token])} still have no finite log-prob; these are stored as nonfin" in told
    rows = {one["response_id"]: one for one in sick.find("llama").table().to_pylist()}
    honest = {one["response_id"]: one for one in sound.find("llama").table().to_pylist()}
    assert {key for key, one in rows.items() if one["status"] == "nonfinite"} == uses[token]
    for key, one in rows.items():
        if key not in uses[token]:
            assert one["logp"] == pytest.approx(honest[key]["logp"], abs=1e-4)
    tensors = look_up([sick.find("llama")], groups)
    assert tensors.dropped == {"nonfinite": len(uses[token])}
    assert bool(tensors.logps[tensors.mask].isfinite().all())


def test_bad_bfloat16_numbers_are_right_in_float32(references, some_groups, tmp_path):
    """A model whose 16-bit arithmetic overflows: scored again in float32 once it is out of
    memory, and right."""
    import weakref

    honest = loading(Spoiled)
    loaded: list[tuple[str, weakref.ref[Any]]] = []

    def load(resolved: Any, dtype: str, device: torch.device) -> Any:
        assert not loaded or loaded[-1][1]() is None, "two models in memory"
        model = honest(resolved, dtype, device)
        loaded.append((dtype, weakref.ref(model.scorer)))
        return model

    words = references["llama"].model_copy(update={"dtype": "bfloat16", "batch_tokens": 10**6})
    coarse, exact = Cache(tmp_path / "coarse"), Cache(tmp_path / "exact")
    summary = precompute({"llama": words}, some_groups[:6], coarse, "some", load=load)[0]
    assert [dtype for dtype, _ in loaded] == ["bfloat16", "float32"]
    precompute({"llama": references["llama"]}, some_groups[:6], exact, "some")
    assert summary.computed["nonfinite"] == 0
    columns = ("response_id", "logp")
    found, right = (
        dict(zip(*(one.find("llama").table()[c].to_pylist() for c in columns), strict=True))
        for one in (coarse, exact)
    )
    assert sum(found[key] == pytest.approx(right[key], rel=1e-6) for key in right) >= 1
    assert found.keys() == right.keys()


def test_a_full_cpu_memory_is_exit_4(references, some_groups, tmp_path):
    """torch's CPU allocator raises a plain RuntimeError; what was scored so far is kept."""

    class Full(Simulation):
        calls = 0

        def logps(self, rows: Any) -> list[float]:
            self.calls += 1
            if self.calls > 2:
                torch.empty(2**62, dtype=torch.uint8)
            return super().logps(rows)

    words = references["llama"].model_copy(update={"batch_tokens": 64})
    cache = Cache(tmp_path / "cache")
    with pytest.raises(ResourceError, match="out of memory while scoring") as raised:
        precompute({"llama": words}, some_groups[:6], cache, "some", load=Full().load)
    assert raised.value.exit_code == 4
    assert cache.find("llama").table().num_rows > 0
    assert not out_of_memory(RuntimeError("shapes do not match"))
    assert out_of_memory(MemoryError())


def test_what_does_not_fit_is_stored_as_such(references, some_groups, tmp_path):
    """`overlong` without a number, told and left out of training; or cut, flagged and used."""
    from mrpo_tools.references.resolved import renderer_of

    groups = some_groups[:8]
    renderer = renderer_of(resolve("llama", references["llama"]))
    lengths = {
        key: len(one.prompt_ids) + len(response.ids)
        for group, one in ((group, renderer.encode(group)) for group in groups)
        for key, response in zip(group.response_ids, one.responses, strict=True)
    }
    limit = sorted(lengths.values())[len(lengths) // 2]
    long = {key for key, length in lengths.items() if length > limit}
    assert 0 < len(long) < len(lengths)
    for rule, name in (("skip", "skipped"), ("truncate", "cut")):
        words = references["llama"].model_copy(update={"max_length": limit, "overlong": rule})
        cache = Cache(tmp_path / name)
        summary = precompute({"llama": words}, groups, cache, "some")[0]
        rows = {one["response_id"]: one for one in cache.find("llama").table().to_pylist()}
        overlong = {key for key, one in rows.items() if one["status"] == "overlong"}
        assert {key for key, one in rows.items() if one["truncated"]} <= long
        dropped = look_up([cache.find("llama")], groups).dropped
        if rule == "skip":
            assert overlong == long
            assert all(rows[key]["logp"] is None for key in long)
            assert dropped == {"overlong": len(long)}
            assert "do not fit max_length" in summary.warnings[0]
        else:
            cut = {key for key, one in rows.items() if one["truncated"]}
            assert cut == long - overlong != set()


# Words of `precompute`.


def test_a_split_that_is_not_there_is_named(references, some_groups, tmp_path):
    cache = Cache(tmp_path / "cache")
    groups = [one.with_split("train") for one in some_groups[:3]]
    with pytest.raises(UsageError, match=r"no group is in split 'typo' \(there are: train 3\)"):
        precompute({"llama": references["llama"]}, groups, cache, "some", split="typo")
    assert not cache.path.exists()


def test_a_dry_run_counts_the_split_and_the_shard(references, some_groups, tmp_path):
    """What it counts is what precompute then scores."""
    cache = Cache(tmp_path / "cache")
    groups = [
        one.with_split("test" if n % 2 else "train") for n, one in enumerate(some_groups[:12])
    ]
    subject = resolve("llama", references["llama"])
    for split, shard in (("test", (0, 1)), ("test", (1, 3)), (None, (0, 2))):
        expected = estimate(subject, groups, cache, split, shard)
        one = Cache(tmp_path / f"{split}-{shard[0]}")
        found = precompute({"llama": references["llama"]}, groups, one, "some", split, shard)[0]
        assert found.computed["ok"] == expected.responses > 0
    with pytest.raises(UsageError, match="no group is in split 'typo'"):
        estimate(subject, groups, cache, "typo")


@pytest.mark.parametrize(
    ("environment", "shard"),
    [({}, (0, 1)), ({"RANK": "1"}, (0, 1)), ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
     ({"WORLD_SIZE": "2"}, (0, 1))],
)  # fmt: skip
def test_a_process_takes_its_rank_only_with_the_worlds_size(monkeypatch, environment, shard):
    """RANK alone, which job schedulers set too, does not take half of the rows away."""
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert _shard(None) == shard
    assert _shard("3/16") == (2, 16)


def test_recorded_paths_work_from_elsewhere(tiny_models, some_groups, tmp_path, monkeypatch):
    """Relative paths are recorded as absolute ones; hub ids and absent paths stay as they are."""
    monkeypatch.chdir(tiny_models["llama"].parent)
    cache = Cache(tmp_path / "cache")
    words = Reference(model="llama", dtype="float32")
    precompute({"one": words}, some_groups[:2], cache, "some", load=Simulation().load)
    monkeypatch.chdir(tmp_path)
    assert cache.find("one").recorded_reference().model == str(tiny_models["llama"])
    hub = Reference(model="org/model", adapter="org/adapter")
    assert absolute_paths(hub) == hub


def test_rescoring_other_weights_is_refused(cached, references, some_groups):
    store = cached.find("llama")
    with pytest.raises(CacheStale, match="of another identity"):
        rescore.rescore(cached, store, resolve("llama", references["qwen"]), 4)
