"""Results as text and Parquet: no format confuses NULL, NaN and text."""

from __future__ import annotations

import csv
import io
import json
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mrpo_tools import words
from mrpo_tools.cli import sql as command
from mrpo_tools.errors import UsageError
from mrpo_tools.sql import FORMATS, write


def written(table: pa.Table, form: str) -> bytes:
    sink = io.BytesIO()
    write(table, form, sink)
    return sink.getvalue()


@pytest.fixture(scope="module")
def odd_table(database):
    return database.query(
        "SELECT * FROM (VALUES "
        "(1, 'plain', 1.5::DOUBLE, true, [1, 2], NULL::VARCHAR), "
        "(-20, 'a,\"b\"\n|c', 'nan'::DOUBLE, false, [], ''), "
        "(NULL, NULL, '-inf'::DOUBLE, NULL, NULL, ' x')) AS t(n, text, value, flag, list, other)"
    )


def test_csv(odd_table):
    text = written(odd_table, "csv").decode()
    assert text == (
        "n,text,value,flag,list,other\n"
        '1,plain,1.5,true,"[1, 2]",\n'
        '-20,"a,""b""\n|c",NaN,false,[],""\n'
        ',,-Infinity,,," x"\n'
    )
    assert list(csv.reader(io.StringIO(text)))[2][1] == 'a,"b"\n|c'


def test_json_is_strict_and_tells_null_from_nan(odd_table):
    def refuse(word):
        raise AssertionError(word)

    rows = json.loads(written(odd_table, "json"), parse_constant=refuse)
    lines = written(odd_table, "jsonl").decode().splitlines()
    assert [json.loads(line, parse_constant=refuse) for line in lines] == rows
    assert [row["value"] for row in rows] == [1.5, "NaN", "-Infinity"]
    assert rows[2]["n"] is None
    assert rows[1]["text"] == 'a,"b"\n|c'
    assert rows[0]["list"] == [1, 2]


def test_table_is_aligned_and_markdown_has_one_line_per_row(odd_table):
    lines = written(odd_table, "table").decode().splitlines()
    assert lines == [
        "   n  text           value  flag   list    other",
        "────  ─────────  ─────────  ─────  ──────  ─────",
        "   1  plain            1.5  true   [1, 2]  NULL",
        ' -20  a,"b"\\n|c        NaN  false  []',
        "NULL  NULL       -Infinity  NULL   NULL     x",
        "(3 rows)",
    ]
    assert written(odd_table, "markdown").decode().splitlines() == [
        "| n | text | value | flag | list | other |",
        "| ---: | --- | ---: | --- | --- | --- |",
        "| 1 | plain | 1.5 | true | [1, 2] | NULL |",
        '| -20 | a,"b" \\|c | NaN | false | [] |  |',
        "| NULL | NULL | -Infinity | NULL | NULL |  x |",
    ]


def test_parquet_is_the_table(odd_table, tmp_path):
    path = tmp_path / "out.parquet"
    write(odd_table, "parquet", path)
    back = pq.read_table(path)
    assert back.schema.names == odd_table.schema.names
    assert str(back.to_pylist()) == str(odd_table.to_pylist())


def test_long_wide_and_dangerous_text_is_tamed_on_a_screen():
    texts = ["x" * 100, "日本" * 40, "\x1b[31mred\x07\u202e", "é"]
    lines = written(pa.table({"text": texts, "n": range(4)}), "table").decode().splitlines()
    assert lines[2].startswith("x" * 59 + "…  ")
    assert lines[3].count("日") == 15
    assert lines[4].startswith("\\x1b[31mred\\x07\\u202e ")
    assert not any(ord(char) < 32 or char == "\u202e" for line in lines for char in line)
    # The last column starts in one place of the screen on every line.
    widths = [
        sum(
            0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF")
            for char in line
        )
        for line in lines[:6]
    ]
    assert len(set(widths)) == 1


def test_every_type_of_the_engine_has_a_text(database):
    table = database.query(
        "SELECT sum(range) AS huge, 1.50::DECIMAL(9, 2) AS price, DATE '2024-02-29' AS day, "
        "TIMESTAMP '2024-02-29 12:00:00.5' AS at, TIME '01:02:03' AS time, INTERVAL 3 DAY AS gap, "
        "'ab'::BLOB AS bytes, {'a': [1, NULL], 'b': 'nan'::DOUBLE} AS struct, MAP {'k': 1} AS map, "
        "'x'::ENUM('x', 'y') AS enum, uuid() IS NOT NULL AS id, '{\"a\": 1}'::JSON AS json, "
        "NULL AS nothing FROM range(3)"
    )
    row = json.loads(written(table, "jsonl"))
    assert row | {"gap": None, "json": None} == {
        "huge": 3, "price": 1.5, "day": "2024-02-29", "at": "2024-02-29T12:00:00.500000",
        "time": "01:02:03", "gap": None, "bytes": "6162", "struct": {"a": [1, None], "b": "NaN"},
        "map": {"k": 1}, "enum": "x", "id": True, "json": None, "nothing": None,
    }  # fmt: skip
    for form in ("table", "csv", "markdown", "json"):
        assert written(table, form)
    with pytest.raises(UsageError, match="parquet cannot hold"):
        written(table, "parquet")


@pytest.mark.parametrize("form", FORMATS)
def test_equal_names_and_no_rows(database, form):
    assert written(database.query("SELECT 1 AS a, 2 AS a, 3 AS a_1"), form)
    both = json.loads(written(database.query("SELECT 1 AS a, 2 AS a"), "jsonl"))
    assert both == {"a": 1, "a_1": 2}
    empty = written(database.query("SELECT * FROM runs WHERE false"), form)
    expected = {"json": b"[\n]\n", "jsonl": b""}
    assert empty == expected.get(form, empty)
    if form == "table":
        assert empty.decode().endswith("(0 rows)\n")


def test_a_file_appears_whole_or_not_at_all(database, tmp_path):
    path = tmp_path / "out.csv"
    path.write_text("before")
    failing = database.stream("SELECT CASE WHEN range > 3e5 THEN error('x') END FROM range(500000)")
    with pytest.raises(UsageError, match="x"):
        write(failing, "csv", path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    write(database.query("SELECT 1 AS a"), "csv", path)
    assert path.read_text() == "a\n1\n"
    with pytest.raises(UsageError, match="no format"):
        write(database.query("SELECT 1 AS a"), "xml", path)


def test_the_formats_of_the_command_are_the_formats():
    assert tuple(FORMATS) == words.choices(words.ResultFormat)
    assert set(command.SUFFIXES.values()) == set(FORMATS) - {"table"}
