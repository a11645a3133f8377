"""The store: what is written is what is read, whoever is killed, and damage is named."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import pyarrow.parquet as pq
import pytest
from stores import IDENTITY, row, said

from mrpo_tools.cache import (
    Cache,
    LogpRow,
    PartWriter,
    WriterRecord,
    files,
    group_from_row,
)
from mrpo_tools.errors import CacheDamaged, CacheMissing, CacheStale, ResourceError
from mrpo_tools.files import host
from mrpo_tools.groups import Group, Response, user_prompt
from mrpo_tools.references.identity import Identity, imported_identity


def test_rows_come_back_as_they_were_written(store):
    rows = [row(0, -1.0 / 3), row(1, None, "overlong"), row(2, -1e-300), row(3, -123456.789)]
    store.append(rows, WriterRecord(device="cpu"))
    assert [LogpRow(**values) for values in store.table().to_pylist()] == rows
    part = store.parts()[0]
    assert part.records[0].device == "cpu"
    assert part.records[0].versions["pyarrow"]
    footer = pq.read_metadata(part.path)
    assert footer.metadata[b"mrpo.identity"].decode() == IDENTITY.hash
    assert footer.row_group(0).column(0).compression == "ZSTD"


def test_a_writer_makes_a_part_by_rows_and_keeps_the_rest_on_an_error(store):
    def interrupted(index: int) -> LogpRow:
        if index == 5:
            raise KeyboardInterrupt
        return row(index)

    with pytest.raises(KeyboardInterrupt), PartWriter(store, rows=6) as writer:
        [writer.add([interrupted(index)]) for index in range(6)]
    assert sorted(part.table.num_rows for part in store.parts()) == [2, 3]


class Sink:
    """Takes a writer's parts in place of a store: `take` is called with the rows of each."""

    def __init__(self, take: Callable[[int], object]) -> None:
        self.take = take

    def append(self, rows: Sequence[LogpRow], _: WriterRecord | None) -> None:
        self.take(len(rows))


@pytest.mark.parametrize("batch", [1, 4, 7, 30])
def test_a_kill_loses_less_than_a_part_and_the_batch_at_hand(batch):
    """However large the batches are: parts are halves, and fewer than `rows` rows wait."""
    written: list[int] = []
    with PartWriter(Sink(written.append), rows=8) as writer:
        for count in range(batch, 60, batch):
            writer.add([row(index) for index in range(batch)])
            writing = writer._writing
            under_way = writer.rows if writing and not writing.done() else 0
            assert count - sum(written) - under_way <= len(writer._pending) < writer.rows
    assert max(written) <= writer.rows == 4
    assert sum(written) == count


def test_a_writer_makes_a_part_by_time():
    """Rows are handed over after half of the sixty seconds, so that none waits longer than them."""
    clock, written = iter([0.0, 10.0, 31.0, 31.0, 40.0, 41.0, 42.0]), []
    with PartWriter(Sink(written.append), clock=lambda: next(clock)) as writer:
        for index in range(3):
            writer.add([row(index)])
    assert written == [2, 1]


@pytest.mark.parametrize("rows", [1, 600], ids=["at once", "in the thread"])
def test_a_part_that_cannot_be_written_ends_the_writer(rows):
    """The thread's error is raised in the caller, at the latest when it leaves; nothing hangs."""

    def full(_: int) -> None:
        raise ResourceError("no space left")

    with pytest.raises(ResourceError, match="no space left"), PartWriter(Sink(full)) as writer:
        writer.add([row(index) for index in range(rows)])


def test_foreign_and_newer_parts_are_refused(cache, store):
    foreign = cache.store("other", Identity({"weights": "x"}))
    path = foreign.append([row(0)])
    store.append([row(1)])
    (store.directory / path.name).write_bytes(path.read_bytes())
    with pytest.raises(CacheDamaged, match="belongs to another reference"):
        store.table()
    (store.directory / path.name).unlink()
    table, metadata = files.read_verified(store.part_paths()[0])
    files.write_content_addressed(
        store.directory, "part-", table, {**metadata, "mrpo.format_version": "3"}
    )
    with pytest.raises(CacheStale, match="has format 3; this mrpo reads up to 2"):
        store.table()


def test_two_identities_of_one_name_are_offered(tmp_path):
    cache = Cache(tmp_path / "cache")
    first = cache.store("mistral", IDENTITY)
    second = cache.store("mistral", Identity({**IDENTITY.fields, "max_length": 64}))
    for store, when in ((first, 10), (second, 20)):
        os.utime(store.append([row(0)]), (when, when))
    with pytest.raises(CacheStale, match="they differ in max_length ") as error:
        cache.find("mistral")
    assert f"mistral@{second.short[:4]} was written last" in str(error.value.hint)
    assert all(text in str(error.value) for text in ("64", str(first), str(second)))
    assert cache.find(f"mistral@{second.short[:5]}").short == second.short
    with pytest.raises(CacheMissing, match="reference 'qwen' has no log-probs") as missing:
        cache.find("qwen")
    assert missing.value.hint == (
        f"create them with: mrpo precompute --ref qwen --cache {cache.path}"
    )


def test_temporaries_of_dead_writers_are_swept(cache, store):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
    store.append([row(0)])
    ours = store.directory / f".tmp-part-~{host()}~{os.getpid()}~x"
    abandoned = store.directory / f".tmp-part-~{host()}~{dead}~x"
    elsewhere = store.directory / ".tmp-part-~otherhost~1~x"
    ancient = store.directory / ".tmp-part-~otherhost~2~x"
    for path in (ours, abandoned, elsewhere, ancient):
        path.write_bytes(b"")
    os.utime(ancient, (0, time.time() - 2 * 86400))
    cache.store("llama", IDENTITY)
    left = {path.name for path in store.directory.glob(".tmp-*")}
    assert left == {ours.name, elsewhere.name}


def test_groups_come_back_as_they_were_saved(tmp_path):
    groups = [
        Group(user_prompt("q", "be brief"), (Response("a", 1.0), Response("b", None, None, "m"))),
        Group(user_prompt("ü"), (Response("x", None, True), Response("y", None, False)), "7", "t"),
    ]
    cache = Cache(tmp_path / "cache")
    path = cache.save_groups("demo", groups)
    assert cache.save_groups("demo", groups) == path
    rows = cache.group_tables()["demo"].to_pylist()
    assert [group_from_row(values) for values in rows] == groups
    assert [values["group_id"] for values in rows] == [group.group_id for group in groups]


def test_what_is_not_the_caches_is_left_alone(tmp_path, capsys):
    """A copied directory, a link to nothing, a folder in a part's place and a note: nothing reads
    them, repair removes none of them, and verify tells of the files."""
    cache = Cache(tmp_path / "cache")
    store = cache.store("mistral", IDENTITY)
    part = store.append([row(0)])
    copy = store.directory.with_name(f"{store.directory.name}.bak")
    shutil.copytree(store.directory, copy)
    (store.directory / f"part-{'0' * 16}.parquet").symlink_to(tmp_path / "nowhere")
    (store.directory / f"part-{'1' * 16}.parquet").mkdir()
    note = cache.references_path / "notes.txt"
    note.write_text("mine")
    assert list(map(str, cache.references())) == [str(store)]
    assert store.part_paths() == [part]
    verified = said(capsys, "cache", "verify", "--cache", str(cache.path))
    said(capsys, "cache", "repair", "--cache", str(cache.path))
    for path in (copy / part.name, note):
        assert path.exists()
        assert f"note: {path} is no file of mrpo's" in verified


def test_numbers_of_another_program_are_not_hinted_to_precompute(tmp_path):
    cache = Cache(tmp_path / "cache")
    store = cache.store("big", imported_identity("vLLM 0.11, bf16", None))
    with pytest.raises(CacheMissing, match="log-probs for 0 of 1") as error:
        store.require({"x"}, set())
    assert "mrpo cache import FILE --ref big --origin 'vLLM 0.11, bf16'" in str(error.value.hint)
    assert str(error.value.hint).endswith(f"--cache {cache.path}")
