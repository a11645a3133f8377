"""Files to rows: text and tables, packed or plain, in little memory."""

from __future__ import annotations

import codecs
import gzip
import json
import textwrap
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import PRINT_PEAK, lines, numbered, pairs, prompts, run_script, write_lines

from mrpo_tools.errors import UsageError
from mrpo_tools.groups import group_from_dict
from mrpo_tools.sources import load_groups
from mrpo_tools.sources.readers.text import CHUNK_BYTES

ROWS = pairs("é", "two\nlines", "☃")
AS_LINES = lines(ROWS)
AS_ARRAY = json.dumps(ROWS, indent=2, ensure_ascii=False).encode()


def zstd(content: bytes) -> bytes:
    return pa.compress(content, codec="zstd", asbytes=True)


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
    responses = [{"content": f"a{n}", "score": n / 2, "model": None} for n in range(3)]
    rows = [
        {"prompt": [{"role": "user", "content": f"Q{n}"}], "responses": responses, "id": f"id-{n}"}
        for n in range(5)
    ]
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group_size)
    source = load_groups(path)
    assert [group.source_id for group in source.groups] == [row["id"] for row in rows]
    assert prompts(source) == [f"Q{number}" for number in range(5)]
    assert [response.score for response in source.groups[4].responses] == [0.0, 0.5, 1.0]


def test_large_string_and_dictionary_columns(tmp_path: Path) -> None:
    columns = {
        "prompt": pa.array(["Q", "R"], pa.large_string()),
        "chosen": pa.array(["a", "b"]).dictionary_encode(),
        "rejected": ["c", "d"],
    }
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    assert prompts(load_groups(tmp_path / "x.parquet")) == ["Q", "R"]


@pytest.mark.parametrize("name", ["a[1]*?.parquet", "it's.parquet", "ä ☃.parquet"])
def test_a_parquet_file_of_any_name(name: str, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / name)
    assert len(load_groups(tmp_path / name).groups) == 3


def test_the_canonical_form_is_read_as_it_is_written() -> None:
    """`Group.as_dict` and `group_from_dict` are each other's inverse."""
    row = {
        "prompt": [{"role": "system", "content": "Short."}, {"role": "user", "content": "Q"}],
        "responses": [
            {"content": " a ", "score": 1.5, "chosen": True, "model": "m"},
            {"content": "b", "score": -0.5, "chosen": False, "model": "n"},
        ],
        "id": "7",
        "split": "test",
    }
    assert group_from_dict(row).as_dict() == row


CHARACTERS = st.characters(codec="utf-8", exclude_characters="\0")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(CHARACTERS, min_size=1, max_size=9)))
def test_any_text_survives_lines_and_arrays(tmp_path_factory, texts: list[str]) -> None:
    names = [text for text in dict.fromkeys(texts) if text.strip()]
    folder = tmp_path_factory.mktemp("any")
    rows = pairs("first", *names)
    write_lines(folder / "x.jsonl", rows)
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


def test_numbers_that_nobody_reads_may_be_anything(tmp_path: Path) -> None:
    """Python writes NaN into metadata; only a field that is used must be finite."""
    odd = lines(pairs("Q")).replace(b"}", b', "loss": NaN, "n": ' + b"1" * 5000 + b"}")
    (tmp_path / "x.jsonl").write_bytes(odd)
    assert prompts(load_groups(tmp_path / "x.jsonl")) == ["Q"]


def test_progress_ends_at_the_size_of_the_files(tmp_path: Path) -> None:
    for name in ("train.jsonl", "test.jsonl"):
        write_lines(tmp_path / name, pairs(*(name + str(n) * 9999 for n in range(50))))
    pq.write_table(pa.Table.from_pylist(numbered(5000)), tmp_path / "dev.parquet")
    reports: list[tuple[int, int]] = []
    load_groups(tmp_path, on_progress=lambda done, total: reports.append((done, total)))
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert reports[-1] == (size, size)
    assert [done for done, _ in reports] == sorted(done for done, _ in reports)
    assert len(reports) > 5


def test_a_large_file_streams_in_little_memory(tmp_path: Path) -> None:
    """60 MB of JSON lines, and of one JSON array, in 100 MB; modules take the first 40."""
    body = ", ".join(f'"{key}": "{key * 600}"' for key in ("chosen", "rejected"))
    rows = [f'{{"prompt": "Q{number}", {body}}}' for number in range(7_000)]
    (tmp_path / "x.jsonl").write_text("\n".join(rows))
    (tmp_path / "x.json").write_text("[" + ",".join(rows) + "]")
    assert (tmp_path / "x.jsonl").stat().st_size > 58e6
    script = """
        from mrpo_tools.sources import GroupStream
        for name in ("x.jsonl", "x.json"):
            print(sum(1 for group in GroupStream(name)))
    """
    printed = run_script(textwrap.dedent(script) + PRINT_PEAK, tmp_path)
    assert printed[:2] == ["7000", "7000"]
    assert int(printed[2]) < 100
