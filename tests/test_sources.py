"""Reading: formats, compression, folders, splits, counts, and the real files."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import random
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrpo_tools.cli import run
from mrpo_tools.cli.options import read_groups
from mrpo_tools.config import Dataset, pinned
from mrpo_tools.errors import UsageError
from mrpo_tools.groups import group_from_dict
from mrpo_tools.sources import KNOWN, GroupStream, Options, load_groups
from mrpo_tools.sources.readers.hub import recorded_revisions, revisions_file
from mrpo_tools.sources.readers.text import CHUNK_BYTES
from mrpo_tools.sources.seen import Seen

ROOT = Path(__file__).parents[1]


def pairs(*names: str) -> list[dict[str, Any]]:
    return [{"prompt": name, "chosen": f"{name}+", "rejected": f"{name}-"} for name in names]


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


def prompts(source: Any) -> list[str]:
    return [group.prompt[-1].content for group in source.groups]


ROWS = pairs("é", "two\nlines", "☃")
AS_LINES = lines(ROWS)
AS_ARRAY = json.dumps(ROWS, indent=2, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl", AS_LINES),
        ("x.ndjson", AS_LINES),
        ("x.jsonl", AS_LINES.rstrip()),
        ("x.jsonl", AS_LINES.replace(b"\n", b"\r\n")),
        ("x.jsonl", codecs.BOM_UTF8 + AS_LINES),
        ("x.json", AS_ARRAY),
        ("x.json", codecs.BOM_UTF8 + b" \n" + AS_ARRAY + b"\n\n"),
        ("x.json", json.dumps(ROWS).encode()),
        ("x.json", AS_LINES),
        ("x.jsonl.gz", gzip.compress(AS_LINES)),
        ("x.jsonl.gz", gzip.compress(AS_LINES[:50]) + gzip.compress(AS_LINES[50:])),
        ("x.json.gz", gzip.compress(AS_ARRAY)),
        ("x.jsonl.zst", zstd(AS_LINES)),
        ("x.jsonl.zst", zstd(AS_LINES[:50]) + zstd(AS_LINES[50:])),
        ("x.json.zst", zstd(AS_ARRAY)),
    ],
)
def test_text_files(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    source = load_groups(tmp_path / name)
    assert prompts(source) == ["é", "two\nlines", "☃"]
    assert source.name == "x"
    assert source.counts["rows"] == source.counts["groups"] == 3


@pytest.mark.parametrize("row_group_size", [1, 2, 100])
def test_parquet(row_group_size: int, tmp_path: Path) -> None:
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Q{number}"}],
            "responses": [{"content": f"a{k}", "score": k / 2, "model": None} for k in range(3)],
            "id": f"id-{number}",
        }
        for number in range(5)
    ]
    pq.write_table(
        pa.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=row_group_size
    )
    source = load_groups(tmp_path / "x.parquet")
    assert [group.source_id for group in source.groups] == [row["id"] for row in rows]
    assert prompts(source) == [f"Q{number}" for number in range(5)]
    assert [one.score for one in source.groups[4].responses] == [0.0, 0.5, 1.0]


def test_large_string_and_dictionary_columns(tmp_path: Path) -> None:
    table = pa.table(
        {
            "prompt": pa.array(["Q", "R"], pa.large_string()),
            "chosen": pa.array(["a", "b"]).dictionary_encode(),
            "rejected": ["c", "d"],
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    assert prompts(load_groups(tmp_path / "x.parquet")) == ["Q", "R"]


def test_the_canonical_form_comes_back_as_it_was(tmp_path: Path) -> None:
    """What `Group.as_dict` writes is read as the same group, in JSONL and in Parquet."""
    row = {
        "prompt": [{"role": "system", "content": "Short."}, {"role": "user", "content": "Q"}],
        "responses": [
            {"content": " a ", "score": 1.5, "chosen": True, "model": "m"},
            {"content": "b", "score": -0.5, "chosen": False, "model": "n"},
        ],
        "id": "7",
        "split": "test",
    }
    group = group_from_dict(row)
    assert group.as_dict() == row
    (tmp_path / "x.jsonl").write_bytes(lines([row]))
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "x.parquet")
    for name in ("x.jsonl", "x.parquet"):
        (found,) = load_groups(tmp_path / name).groups
        assert found == group
        assert found.group_id == group.group_id


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=9))
)
def test_any_text_survives_lines_and_arrays(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    names = [text for text in dict.fromkeys(texts) if text.strip()]
    folder = tmp_path_factory.mktemp("any")
    rows = pairs("first", *names)
    (folder / "x.jsonl").write_bytes(lines(rows))
    (folder / "x.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    for file in ("x.jsonl", "x.json"):
        assert prompts(load_groups(folder / file, adapter="pairs")) == ["first", *names]


def test_rows_across_the_pieces_a_file_is_read_in(tmp_path: Path) -> None:
    """Rows longer than a piece, and characters of several bytes on every border."""
    rows = pairs(*(f"{number}" + "é☃𝕊" * (number * CHUNK_BYTES // 40) for number in range(1, 5)))
    for name, content in (
        ("x.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)),
        ("x.json", json.dumps(rows, ensure_ascii=False)),
        ("y.json", json.dumps(rows, indent=1)),
    ):
        (tmp_path / name).write_text(content, encoding="utf-8")
        assert prompts(load_groups(tmp_path / name)) == [row["prompt"] for row in rows]


def test_an_element_of_an_array_is_reported_at_its_line(tmp_path: Path) -> None:
    rows = [*pairs("a", "b"), {"prompt": "c", "chosen": 5, "rejected": "d"}]
    content = json.dumps(rows, indent=2)
    line = content[: content.index('"c"')].count("\n")  # the brace is one line above
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UsageError) as error:
        load_groups(tmp_path / "x.json")
    (problem,) = error.value.problems
    assert problem.where == f"{tmp_path / 'x.json'}:{line}"


def test_empty_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b"\n" + AS_LINES + b"  \n\r\n" + lines(pairs("z")))
    source = load_groups(tmp_path / "x.jsonl")
    assert len(source.groups) == 4
    assert source.counts["empty_lines"] == 3


def test_what_is_unusual_is_counted(tmp_path: Path) -> None:
    def group(
        prompt: str, *responses: tuple[str, float] | tuple[str, float, bool]
    ) -> dict[str, Any]:
        keys = ("content", "score", "chosen")
        answers = [dict(zip(keys, response, strict=False)) for response in responses]
        return {"prompt": prompt, "responses": answers}

    rows = [
        group("tied", ("a", 1), ("b", 1)),
        group("merged", ("a", 1), ("a", 2), ("b", 3)),
        group("below", ("a", 1, True), ("b", 2, False), ("c", 0, False)),
        group("twice", ("a", 1), ("b", 2)),
        group("twice", ("b", 2), ("a", 1)),
        group("twice", ("a", 2), ("b", 1)),
        {"prompt": "unjudged", "responses": [{"content": "a"}, {"content": "b"}]},
    ]
    (tmp_path / "x.jsonl").write_bytes(lines(rows))
    source = load_groups(tmp_path / "x.jsonl")
    assert {name: count for name, count in source.counts.items() if count} == {
        "rows": 7,
        "groups": 7,
        "tied_groups": 1,
        "merged_responses": 1,
        "chosen_scored_below_rejected": 1,
        "duplicate_groups": 1,
        "contradicting_groups": 1,
        "unjudged_groups": 1,
    }
    assert [(one.content, one.score) for one in source.groups[1].responses] == [
        ("a", 1.5),
        ("b", 3),
    ]


def test_files_in_a_folder_name_the_splits(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "test.jsonl").write_bytes(lines(pairs("t", "both")))
    (tmp_path / "train-00000-of-00002.json").write_text(json.dumps(pairs("a", "both")))
    (tmp_path / "data" / "train-00001-of-00002.jsonl").write_bytes(lines(pairs("b")))
    (tmp_path / "val.jsonl.gz").write_bytes(gzip.compress(lines(pairs("v"))))
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / "README.md").write_text("not data")
    source = load_groups(tmp_path)
    assert Counter((group.prompt[0].content, group.split) for group in source.groups) == Counter(
        [
            ("a", "train"),
            ("b", "train"),
            ("both", "train"),
            ("both", "train"),
            ("t", "test"),
            ("v", "validation"),
        ]
    )
    assert source.counts["prompts_in_two_splits"] == 1
    assert source.name == tmp_path.name
    assert prompts(load_groups(tmp_path, split="test")) == ["t"]


def test_a_rows_own_split_comes_first(tmp_path: Path) -> None:
    rows = [row | {"split": split} for row, split in zip(pairs("a", "b", "c"), "xyx", strict=True)]
    (tmp_path / "train.jsonl").write_bytes(lines(rows))
    assert [group.split for group in load_groups(tmp_path).groups] == ["x", "y", "x"]
    assert prompts(load_groups(tmp_path, split="x")) == ["a", "c"]
    assert prompts(load_groups(tmp_path, split="all")) == ["a", "b", "c"]


def test_prompts_without_a_split_are_drawn_by_their_id(tmp_path: Path) -> None:
    """A tenth goes to test, whatever the order, and all groups of a prompt go together."""
    names = [f"Q{number}" for number in range(2000)]
    rows = pairs(*names) + [row | {"rejected": "?"} for row in pairs(*names)]
    (tmp_path / "x.jsonl").write_bytes(lines(rows))
    (tmp_path / "y.jsonl").write_bytes(lines(rows[::-1]))
    assert {group.split for group in load_groups(tmp_path / "x.jsonl").groups} == {"train"}

    def drawn(name: str, seed: int) -> set[str]:
        return set(prompts(load_groups(tmp_path / name, split="test", test_size=0.1, seed=seed)))

    test = drawn("x.jsonl", 0)
    assert 140 < len(test) < 260, "within 4.5 standard deviations (13.4) of 200"
    assert drawn("y.jsonl", 0) == test
    assert drawn("x.jsonl", 1) != test
    train = load_groups(tmp_path / "x.jsonl", split="train", test_size=0.1)
    assert not test & set(prompts(train))
    assert len(train.groups) + 2 * len(test) == 4000


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40) | st.integers(0, 2**64 - 1), st.integers(0, 9))))
def test_seen_is_a_dict(entries: list[tuple[int, int]]) -> None:
    """`setdefault` of a dict, but that the keys 0 and 1 are one."""
    seen, plain = Seen(), {}
    for key, value in entries:
        assert seen.setdefault(key, value) == plain.setdefault(key or 1, value)
        assert len(seen) == len(plain)


def test_seen_grows_and_stays_small() -> None:
    """100,000 keys, found again; the arrays are at most 54 bytes an entry."""
    rng = random.Random(0)
    keys = [rng.getrandbits(64) for _ in range(100_000)]
    seen = Seen()
    for number, key in enumerate(keys):
        assert seen.setdefault(key, number) == number
    assert [seen.setdefault(key, 0) for key in keys] == list(range(100_000))
    assert len(seen) == 100_000
    assert 16 * len(seen._keys) <= 54 * len(seen)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A hub that serves these rows as every data set, at these commits, one call after another."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    asked: list[tuple[str, str | None, str | None]] = []

    def serve(rows: list[Any], *commits: str) -> list[tuple[str, str | None, str | None]]:
        left = list(commits or ["0" * 40])

        def builder(hub_id: str, config: str | None, revision: str | None) -> Any:
            asked.append((hub_id, config, revision))
            return SimpleNamespace(
                download_and_prepare=lambda: None,
                as_dataset=lambda: datasets.DatasetDict(
                    {"train": datasets.Dataset.from_list(rows)}
                ),
                hash=revision or (left.pop(0) if len(left) > 1 else left[0]),
            )

        monkeypatch.setattr(datasets, "load_dataset_builder", builder)
        return asked

    return serve


def test_the_papers_splits_come_out_exactly(hub: Any) -> None:
    """S1, S2 and S3 of MRPO (its Table 6), by prompt, the same whatever the order of the rows."""
    for name, train, test in (
        ("comparison-gpt4", 364, 3276),
        ("neural-dpo", 502, 502),
        ("distilabel-math", 2178, 242),
    ):
        rows = pairs(*(f"Q{number}" for number in range(train + test)))
        hub(rows)
        source = load_groups(name)
        splits = Counter(group.split for group in source.groups)
        assert splits == {"train": train, "test": test}, name
        assert source.counts["lacking_in_train"] == 0
        hub(rows[::-1])
        again = load_groups(name, split="train")
        assert set(prompts(again)) == {
            group.prompt[0].content for group in source.groups if group.split == "train"
        }
        assert set(prompts(load_groups(name, split="train", seed=1))) != set(prompts(again))


def test_a_papers_split_of_repeated_prompts(hub: Any) -> None:
    """All groups of a prompt stay together: exact where that can be, else counted."""
    once = pairs(*(f"Q{number}" for number in range(600)))
    thrice = [row | {"rejected": f"{n}"} for row in pairs(*map(str, range(200))) for n in range(3)]
    hub(once + thrice)
    source = load_groups("neural-dpo")
    assert Counter(group.split for group in source.groups) == {"train": 502, "test": 698}
    assert source.counts["lacking_in_train"] == 0
    by_split = {
        split: {group.prompt_id for group in source.groups if group.split == split}
        for split in ("train", "test")
    }
    assert not by_split["train"] & by_split["test"]
    hub(thrice)
    source = load_groups("neural-dpo")
    assert Counter(group.split for group in source.groups) == {"train": 501, "test": 99}
    assert source.counts["lacking_in_train"] == 1


def test_a_named_data_set_of_another_size(hub: Any) -> None:
    """More rows than the paper had: they are tested on. Fewer than it trained on: its share."""
    hub(pairs(*map(str, range(1200))))
    found = Counter(group.split for group in load_groups("neural-dpo").groups)
    assert found == {"train": 502, "test": 698}
    hub(pairs(*map(str, range(100))))
    found = Counter(group.split for group in load_groups("neural-dpo").groups)
    assert found == {"train": 50, "test": 50}


def test_a_share_of_the_users_own_comes_before_the_papers(hub: Any) -> None:
    hub(pairs(*map(str, range(1004))))
    groups = load_groups("neural-dpo", test_size=0.0).groups
    assert {group.split for group in groups} == {"train"}


def test_nectar_is_split_nine_to_one(hub: Any) -> None:
    rows = [
        {"prompt": f"\n\nHuman: {n}\n\nAssistant: ", "chosen": "a", "rejected": "b"}
        for n in range(4000)
    ]
    hub(rows)
    drawn = Counter(group.split for group in load_groups("nectar-binarized").groups)
    assert abs(drawn["test"] - 400) < 5 * (4000 * 0.1 * 0.9) ** 0.5
    assert drawn.total() == 4000


def test_data_that_is_all_train_can_be_split(tmp_path: Path) -> None:
    """One folder of `train` files alone; with a `test` beside it the names are what counts."""
    (tmp_path / "train.jsonl").write_bytes(lines(pairs(*map(str, range(50)))))
    assert {group.split for group in load_groups(tmp_path).groups} == {"train"}
    drawn = {group.split for group in load_groups(tmp_path, test_size=0.5).groups}
    assert drawn == {"train", "test"}
    (tmp_path / "test.jsonl").write_bytes(lines(pairs("t")))
    splits = Counter(group.split for group in load_groups(tmp_path, test_size=0.5).groups)
    assert splits == {"train": 50, "test": 1}


def test_the_commit_is_recorded_when_it_is_first_seen(hub: Any) -> None:
    first, second = "a" * 40, "b" * 40
    asked = hub(pairs("x"), first, first, second)
    assert recorded_revisions() == {}
    assert load_groups("orca-dpo").revision == first
    recorded = recorded_revisions()
    assert list(recorded["Intel/orca_dpo_pairs"]) == [first]
    load_groups("orca-dpo")
    assert recorded_revisions() == recorded, "the time of the first download stays"
    assert load_groups("orca-dpo").revision == second
    assert list(recorded_revisions()["Intel/orca_dpo_pairs"]) == [first, second]
    assert load_groups(f"orca-dpo@{first}").revision == first
    assert asked[-1] == ("Intel/orca_dpo_pairs", None, first)
    revisions_file().write_text("broken")
    assert load_groups("orca-dpo").revision == second
    revisions_file().unlink()
    revisions_file().mkdir()  # cannot be written
    assert load_groups("orca-dpo").revision == second


def test_the_commit_is_shown_and_goes_into_the_record_of_a_run(
    hub: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub([{"question": "Q", "chosen": "a", "rejected": "b"}], "c" * 40)
    assert run(["data", "show", "orca-dpo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["revision"] == "c" * 40
    source = read_groups(Dataset(source="orca-dpo"))
    assert f"orca-dpo at {'c' * 40}: 1 rows" in capsys.readouterr().err
    for word, recorded in (
        ("orca-dpo", f"orca-dpo@{'c' * 40}"),
        ("a/b:c@main", f"a/b:c@{'c' * 40}"),
        (str(tmp_path), str(tmp_path)),
    ):
        assert pinned(Dataset(source=word), source.revision).source == recorded
    assert pinned(Dataset(source="x"), None).source == "x"


def test_a_configuration_of_a_named_data_set_is_asked_for(hub: Any) -> None:
    row = {
        "context": [{"role": "user", "content": "Q"}],
        "response1": "a",
        "response2": "b",
        "overall_preference": -2,
    }
    asked = hub([row])
    assert load_groups("helpsteer3@abc").adapter == "helpsteer3"
    assert asked == [("nvidia/HelpSteer3", "preference", "abc")]


def test_limit_stops_reading(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(lines(pairs(*map(str, range(200)))) + b"not read\n")
    source = load_groups(tmp_path / "x.jsonl", limit=3)
    assert prompts(source) == ["0", "1", "2"]
    assert source.counts["groups"] == 3


def test_progress_ends_at_the_size_of_the_files(tmp_path: Path) -> None:
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_bytes(lines(pairs(*(name + str(n) * 9999 for n in range(50)))))
    pq.write_table(pa.Table.from_pylist(pairs(*map(str, range(5000)))), tmp_path / "dev.parquet")
    seen: list[tuple[int, int]] = []
    load_groups(tmp_path, on_progress=lambda done, total: seen.append((done, total)))
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert seen[-1] == (size, size)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) > 5


def test_a_stream_yields_before_the_end_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(AS_LINES + lines(pairs(*map(str, range(100)))) + b"oops\n")
    stream = GroupStream(tmp_path / "x.jsonl")
    assert (stream.name, stream.adapter.name) == ("x", "pairs")
    groups = iter(stream)
    assert next(groups).prompt[0].content == "é"
    assert not stream.problems
    with pytest.raises(UsageError):
        list(groups)
    assert len(stream.problems) == 1


def test_a_large_file_streams_in_little_memory(tmp_path: Path) -> None:
    """60 MB of JSON lines, and of one JSON array, in 100 MB; modules take the first 40."""
    body = ", ".join(f'"{key}": "{key * 600}"' for key in ("chosen", "rejected"))
    rows = [f'{{"prompt": "Q{number}", {body}}}' for number in range(7_000)]
    (tmp_path / "x.jsonl").write_text("\n".join(rows))
    (tmp_path / "x.json").write_text("[" + ",".join(rows) + "]")
    assert (tmp_path / "x.jsonl").stat().st_size > 58e6
    script = """
        import sys
        from pathlib import Path
        from mrpo_tools.sources import GroupStream
        for name in ("x.jsonl", "x.json"):
            print(sum(1 for group in GroupStream(name)))
        status = Path("/proc/self/status").read_text()
        print(int(status.partition("VmHWM:")[2].split()[0]) // 1024)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    lines_read, elements_read, megabytes = map(int, done.stdout.split())
    assert (lines_read, elements_read) == (7_000, 7_000)
    assert megabytes < 100


def test_importing_is_light() -> None:
    """Neither torch nor datasets nor pyarrow: those load where a source needs them."""
    script = """
        import sys
        import mrpo_tools.sources
        print([name for name in ("torch", "transformers", "datasets", "pandas", "pyarrow")
               if name in sys.modules])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_a_folder_of_save_to_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    splits = {"train": pairs("a", "b"), "test": pairs("c")}
    data = datasets.DatasetDict(
        {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}
    )
    data.save_to_disk(tmp_path / "both")
    data["test"].save_to_disk(tmp_path / "one")
    both = load_groups(tmp_path / "both")
    assert [(group.prompt[0].content, group.split) for group in both.groups] == [
        ("a", "train"),
        ("b", "train"),
        ("c", "test"),
    ]
    assert prompts(load_groups(tmp_path / "one")) == ["c"]
    (tmp_path / "one" / "state.json").write_text("{}")
    with pytest.raises(UsageError, match="cannot be read as a saved data set"):
        load_groups(tmp_path / "one")


def test_a_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a builder of the real library on files, as the hub would give."""
    datasets = pytest.importorskip("datasets")
    bad = [{"prompt": "d", "chosen": "", "rejected": "x"}]
    for split, rows in (("train", pairs("a", "b")), ("test", pairs("c"))):
        (tmp_path / f"{split}.jsonl").write_bytes(lines(rows))
    real, asked = datasets.load_dataset_builder, []

    def builder(hub_id: str, config: str | None, revision: str | None) -> Any:
        asked.append((hub_id, config, revision))
        files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "test")}
        return real("json", data_files=files, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    source = load_groups("someone/some_pairs:default@main")
    assert (source.name, source.adapter) == ("some_pairs", "pairs")
    assert source.revision
    assert [group.split for group in source.groups] == ["train", "train", "test"]
    assert load_groups("comparison-gpt4").name == "comparison-gpt4"
    load_groups("orca-dpo@abc123", split="train")
    assert asked == [
        ("someone/some_pairs", "default", "main"),
        (KNOWN["comparison-gpt4"].hub_id, None, None),
        (KNOWN["orca-dpo"].hub_id, None, "abc123"),
    ]
    (tmp_path / "test.jsonl").write_bytes(lines(bad))
    with pytest.raises(UsageError) as error:
        load_groups("someone/some_pairs")
    assert error.value.problems[0].where == "someone/some_pairs[test]:row 1"


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def builder(*names: Any, **options: Any) -> Any:
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    with pytest.raises(UsageError) as error:
        load_groups("someone/pairs")
    assert str(error.value) == (
        "someone/pairs: no such file, and it cannot be loaded from the Hugging Face hub: no network"
    )


REAL = os.environ.get("MRPO_TEST_DATA")


@pytest.mark.skipif(REAL is None, reason="MRPO_TEST_DATA names no folder of real data")
@pytest.mark.parametrize(
    ("name", "groups", "responses", "tied", "adapter"),
    [
        ("comparison_gpt4_pairs.json", 1095, 2, 0, "comparison-gpt4"),
        ("chat_pairs_sharegpt.json", 300, 2, 0, "sharegpt"),
        ("vicuna_scored4.jsonl", 80, 4, 6, "outputs"),
    ],
)
def test_real_files(name: str, groups: int, responses: int, tied: int, adapter: str) -> None:
    source = load_groups(Path(str(REAL)) / name)
    assert (len(source.groups), source.adapter) == (groups, adapter)
    assert {len(group.responses) for group in source.groups} == {responses}
    assert source.counts["tied_groups"] == tied


@pytest.mark.skipif(REAL is None, reason="MRPO_TEST_DATA names no folder of real data")
def test_real_conversations_are_read_word_for_word() -> None:
    path = Path(str(REAL)) / "chat_pairs_sharegpt.json"
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    rows = json.loads(path.read_text(encoding="utf-8"))
    for row, group in zip(rows, load_groups(path).groups, strict=True):
        assert [turn.as_dict() for turn in group.prompt] == [
            {"role": roles[turn["from"]], "content": turn["value"]} for turn in row["conversations"]
        ]
        assert [(one.content, one.chosen) for one in group.responses] == [
            (row["chosen"]["value"], True),
            (row["rejected"]["value"], False),
        ]


def test_options_are_checked_before_anything_is_read() -> None:
    with pytest.raises(UsageError, match="--limit -1: expected 1 or more"):
        GroupStream("nowhere.jsonl", Options(limit=-1))


def test_rows_that_say_train_are_drawn_from_when_asked(tmp_path):
    """What `convert` wrote says `train` in every row: --test-size holds some out all the same, and
    rows of another split stay there."""
    rows = [
        {"prompt": f"q{n}", "chosen": "a", "rejected": "b", "split": "test" if n < 3 else "train"}
        for n in range(60)
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert Counter(g.split for g in load_groups(path).groups) == {"train": 57, "test": 3}
    drawn = load_groups(path, test_size=0.3).groups
    assert {g.split for g in drawn if g.prompt[0].content in ("q0", "q1", "q2")} == {"test"}
    assert 8 < sum(g.split == "test" for g in drawn) < 35


def test_a_map_repeats_and_takes_commas(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.JSONL").write_text('{"q": "x", "best": "a", "worst": "b"}\n')
    assert run(["data", "validate", "data.JSONL"]) == 2
    assert "--map prompt=YOUR_COLUMN," in capsys.readouterr().err
    for words in (["--map", "prompt=q", "--map", "chosen=best", "--map", "rejected=worst"],
                  ["--map", "prompt=q,chosen=best", "--map", "rejected=worst"]):  # fmt: skip
        assert run(["data", "validate", "data.JSONL", *words]) == 0


def test_long_rows_are_written_a_few_at_a_time(tmp_path, monkeypatch):
    """A table is flushed by its text too: four rows of a third of the limit are two tables."""
    from mrpo_tools.sources import write

    monkeypatch.setattr(write, "BATCH_CHARACTERS", 300)
    with write.writing(tmp_path / "x.parquet", {"text": "string"}) as put:
        for _ in range(4):
            put({"text": "x" * 150})
    assert pq.ParquetFile(tmp_path / "x.parquet").num_row_groups == 2
