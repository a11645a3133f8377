"""What is wrong with data, and the one line that says so."""

from __future__ import annotations

import codecs
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_data import prompts

from mrpo_tools.config import check_name
from mrpo_tools.errors import DataError, UsageError
from mrpo_tools.sources import load_groups
from mrpo_tools.sources.readers.rows import MAX_TEXT_CHARS

GOOD = b'{"prompt": "Q", "chosen": "a", "rejected": "b"}\n'
SCORED = (
    b'{"prompt": "Q", "responses": [{"content": "a", "score": 1}, {"content": "b", "score": 2}]}\n'
)
AB = ({"content": "a"}, {"content": "b"})
NO_PARQUET = (
    "damaged, cut short or no Parquet (Parquet magic bytes not found in footer. Either the file is "
    "corrupted or this is not a parquet file)"
)
ANSWER = "text, a message or a list of messages"
PROMPT = "text or a list of messages"
ROLE = "one of system, developer, user, assistant, tool, human, gpt"
FINITE = "a finite number of at most 1e+30"
IN_TURN = "expected [system] user assistant user …"
CUT = "ends in the middle of a value (is the file cut short?)"
DEEP = "JSON: nested too deeply; rows of preference data are a few levels deep"
NO_JSON = "file: empty; expected rows"
PAIRS = pa.table({"prompt": ["Q", "R"], "chosen": ["a", "b"], "rejected": ["c", "d"]})
ARRAY = b"[\n" + GOOD + b",\n" + GOOD + b"]\n"
pytestmark = pytest.mark.usefixtures("here")


def problems_of(name: str, content: bytes, **options: Any) -> list[str]:
    Path(name).write_bytes(content)
    with pytest.raises(DataError) as error:
        load_groups(name, **options)
    assert error.value.exit_code == 2
    assert os.listdir() == [name], "nothing may be written"
    return [str(problem) for problem in error.value.problems]


def row(**changes: Any) -> bytes:
    """A good pair with other fields; None for a field leaves it out."""
    fields = {"prompt": "Q", "chosen": "a", "rejected": "b"} | changes
    return (json.dumps({k: v for k, v in fields.items() if v is not ...}) + "\n").encode()


def group(*responses: Any, prompt: Any = "Q") -> bytes:
    return (json.dumps({"prompt": prompt, "responses": responses}) + "\n").encode()


def roles(*names: str) -> bytes:
    return group(*AB, prompt=[{"role": name, "content": name} for name in names])


def packed_parquet(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return bytes(sink.getvalue())


# The second line of a file whose first line is good; every message begins with its place.
BAD_LINES: dict[str, tuple[bytes, str]] = {
    "not JSON": (b"hello world\n", "JSON: expected JSON, found 'hello world' at column 1"),
    "single quotes": (b"{'prompt': 1}\n",
        "JSON: expected JSON, found \"'prompt': 1}\" at column 2"),
    "truncated last line": (GOOD[:30], f"JSON: {CUT}"),
    "truncated in a key": (b'{"pro', f"JSON: {CUT}"),
    "concatenated objects": (GOOD.strip() + GOOD,
        "JSON: expected one object per line, found a second value at column 48"),
    "comma after the object": (GOOD.strip() + b",\n",
        "JSON: expected one object per line, found a comma at column 48"),
    "trailing comma": (b'{"prompt": "Q",}\n', "JSON: a comma before '}' at column 16"),
    "trailing comma in a list": (b'{"prompt": ["Q", ]}\n', "JSON: a comma before ']' at column 18"),
    "missing colon": (b'{"prompt" "Q"}\n', "JSON: expected JSON, found '\"Q\"}' at column 11"),
    "bad escape": (b'{"prompt": "\\x"}\n', "JSON: an invalid escape in a string at column 13"),
    "raw tab": (b'{"prompt": "a\tb"}\n',
        "JSON: an unescaped control character U+0009 at column 14"),
    "duplicate key": (b'{"prompt": "Q", "prompt": "R"}\n',
        "JSON: the key 'prompt' appears twice in one object"),
    "duplicate key inside": (b'{"prompt": [{"role": "user", "role": "user"}]}\n',
        "JSON: the key 'role' appears twice in one object"),
    "too deep": (b"[" * 100_000 + b"]" * 100_000 + b"\n", DEEP),
    "too deep in objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"\n", DEEP),
    "invalid UTF-8": (b'{"prompt": "\xff"}\n',
        f"UTF-8: invalid byte 0xff at byte {len(GOOD) + 12} of the file"),
    "UTF-8 cut short": ('{"prompt": "é'.encode()[:-1] + b'"}\n',
        f"UTF-8: invalid byte 0xc3 at byte {len(GOOD) + 12} of the file"),
    "raw NUL": (b'{"prompt": "a\0b"}\n', "NUL: at byte 14; expected UTF-8 text"),
    "escaped NUL": (row(chosen="ab\0"),
        "chosen: found a NUL at character 3, expected text without any"),
    "lone surrogate": (b'{"prompt": "Q", "chosen": "x\\ud83d", "rejected": "b"}\n',
        "chosen: found half a surrogate pair (U+D83D) at character 2, expected text without any"),
    "a list": (b"[1, 2]\n", "row: found a list of 2, expected an object"),
    "a number": (b"12\n", "row: found the number 12, expected an object"),
    "null": (b"null\n", "row: found null, expected an object"),
    "missing field": (row(rejected=...), f"rejected: missing, expected {ANSWER}"),
    "null for text": (row(chosen=None), f"chosen: found null, expected {ANSWER}"),
    "number for text": (row(prompt=5), f"prompt: found the number 5, expected {PROMPT}"),
    "huge integer for text": (b'{"prompt": ' + b"1" * 5000 + b', "chosen": "a", "rejected": "b"}\n',
        f"prompt: found an infinite number, expected {PROMPT}"),
    "boolean for text": (row(chosen=True), f"chosen: found true, expected {ANSWER}"),
    "list of numbers for text": (row(chosen=[1]),
        "chosen[0]: found the number 1, expected an object"),
    "empty response": (row(chosen=""), f"chosen: found empty text, expected {ANSWER}"),
    "whitespace response": (row(rejected=" \n\t"),
        f"rejected: found only spaces, expected {ANSWER}"),
    "empty prompt": (row(prompt=""), f"prompt: found empty text, expected {PROMPT}"),
    "no messages": (row(prompt=[]), "prompt: found a list of 0, expected a list of messages"),
    "identical pair": (row(chosen="b"),
        "responses: the same text is both chosen and rejected, expected different texts"),
    "10 MB response": (row(chosen="x" * 10_000_000),
        f"chosen: found 10,000,000 characters, expected at most {MAX_TEXT_CHARS:,}"),
    "id of a wrong type": (row(id=[1]), "id: found a list of 1, expected text or an integer"),
    "split of a wrong type": (row(split=3), "split: found the number 3, expected text"),
}  # fmt: skip

# The same for the canonical form.
BAD_GROUPS: dict[str, tuple[bytes, str]] = {
    "one response": (group({"content": "a"}), "responses: found 1, expected at least 2"),
    "no responses": (group(), "responses: found none, expected at least 2"),
    "responses missing": (b'{"prompt": "Q"}\n',
        "responses: missing, expected a list of objects with 'content'"),
    "responses an object": (b'{"prompt": "Q", "responses": {"content": "a"}}\n',
        "responses: found an object, expected a list of objects with 'content'"),
    "a text among the responses": (group({"content": "a"}, "b"),
        "responses[1]: found the text 'b', expected an object"),
    "too many responses": (group(*({"content": str(number)} for number in range(5000))),
        "responses: found a list of 5,000, expected at most 4,096"),
    "all the same": (group({"content": "a"}, {"content": "a"}, {"content": "a"}),
        "responses: all 3 are the same text, expected at least 2 different ones"),
    "boolean score": (group({"content": "a", "score": True}, {"content": "b", "score": 1}),
        "responses[0].score: found true, expected a number"),
    "text score": (group({"content": "a", "score": 1}, {"content": "b", "score": "4.5"}),
        "responses[1].score: found the text '4.5', expected a number"),
    **{f"score {text:.9}": (SCORED.replace(b"1}", text.encode() + b"}"),
        f"responses[0].score: found {words}, expected {FINITE}")
       for text, words in (("NaN", "NaN"), ("Infinity", "an infinite number"),
                           ("-Infinity", "an infinite number"), ("1e400", "an infinite number"),
                           ("9" * 5000, "an infinite number"), ("1e200", "the number 1e+200"))},
    "some scores": (group({"content": "a", "score": 1}, {"content": "b"}),
        "responses: 1 of 2 have a 'score', expected all of them or none"),
    "some labels": (group({"content": "a", "chosen": True}, {"content": "b"}, {"content": "c"}),
        "responses: 1 of 3 have a 'chosen', expected all of them or none"),
    "text label": (group({"content": "a", "chosen": "yes"}, {"content": "b", "chosen": False}),
        "responses[0].chosen: found the text 'yes', expected true or false"),
    "unknown role": (roles("user", "robot", "user"),
        f"prompt[1].role: found the text 'robot', expected {ROLE}"),
    "role missing": (group(*AB, prompt=[{"content": "Q"}]),
        f"prompt[0].role: missing, expected {ROLE}"),
    "role null": (group(*AB, prompt=[{"role": None, "content": "Q"}]),
        f"prompt[0].role: found null, expected {ROLE}"),
    "content missing": (group(*AB, prompt=[{"role": "user"}]),
        "prompt[0].content: missing, expected text"),
    "content a list": (group({"content": ["a"]}, {"content": "b"}),
        "responses[0].content: found a list of 1, expected text"),
    "system not first": (roles("user", "system", "user"),
        f"prompt: the roles are user system user; {IN_TURN}"),
    "user twice": (roles("system", "user", "user"),
        f"prompt: the roles are system user user; {IN_TURN}"),
    "assistant first": (roles("assistant", "user"),
        f"prompt: the roles are assistant user; {IN_TURN}"),
    "system alone": (roles("system"),
        "prompt: the last message is the system's; expected the user's"),
}  # fmt: skip

# Whole files.
BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    "empty": ("e.jsonl", b"", f"e.jsonl: {NO_JSON}"),
    "only a mark": ("e.jsonl", codecs.BOM_UTF8, f"e.jsonl: {NO_JSON}"),
    "empty .json": ("e.json", b"", f"e.json: {NO_JSON}"),
    "UTF-16": ("u.jsonl", GOOD.decode().encode("utf-16"),
        "u.jsonl:1: UTF-16: expected UTF-8; convert it with: iconv -f UTF-16 -t UTF-8"),
    "UTF-16 without a mark": ("u.jsonl", GOOD.decode().strip().encode("utf-16-le"),
        "u.jsonl:1: NUL: at byte 2; expected UTF-8 text"),
    "invalid UTF-8 after a mark": ("u.jsonl", codecs.BOM_UTF8 + GOOD + b'{"prompt": "\xff"}\n',
        f"u.jsonl:2: UTF-8: invalid byte 0xff at byte {3 + len(GOOD) + 12} of the file"),
    "invalid UTF-8 in an array after a mark": ("a.json",
        codecs.BOM_UTF8 + ARRAY.replace(b'"a"', b'"\xe9"', 1),
        "a.json:2: UTF-8: invalid byte 0xe9 at byte 32 of the file"),
    "an array cut short": ("a.json", ARRAY[:-3],
        "a.json:4: JSON: the array does not end (is the file cut short?)"),
    "an array cut in an element": ("a.json", ARRAY[:-9], f"a.json:4: JSON: {CUT}"),
    "a comma before the end of an array": ("a.json", ARRAY[:-2] + b",]\n",
        "a.json:5: JSON: a comma before ']'"),
    "no comma in an array": ("a.json", ARRAY.replace(b"\n,", b"\n"),
        "a.json:4: JSON: found '{' after an element, expected ',' or ']'"),
    "text after an array": ("a.json", ARRAY + b"[]",
        "a.json:6: JSON: found '[' after the array's end"),
    "a bad element": ("a.json", ARRAY.replace(b'"a"', b"None", 1),
        'a.json:2: JSON: expected JSON, found \'None, "rejected": "b"}\\n…\' at column 27'),
    "a key twice in an array": ("a.json", ARRAY.replace(b'"chosen"', b'"prompt"', 1),
        "a.json:2: JSON: the key 'prompt' appears twice in one object"),
    "invalid UTF-8 in an array": ("a.json", ARRAY.replace(b'"a"', b'"\xe9"', 1),
        "a.json:2: UTF-8: invalid byte 0xe9 at byte 29 of the file"),
    "an array too deep": ("a.json", b"[\n" + b"[" * 100_000, f"a.json:2: {DEEP}"),
    "one object over many lines": ("a.json", b'{\n "data": []\n}\n',
        "a.json:1: JSON: one object; expected an array of objects"),
    "gzip that is none": ("g.jsonl.gz", GOOD,
        "g.jsonl.gz: gzip: damaged or cut short (Not a gzipped file (b'{\"'))"),
    "gzip cut short": ("g.jsonl.gz", gzip.compress(GOOD, mtime=0)[:-8],
        "g.jsonl.gz: gzip: damaged or cut short "
        "(Compressed file ended before the end-of-stream marker was reached)"),
    "zstd that is none": ("z.jsonl.zst", GOOD, "z.jsonl.zst: zstd: damaged or cut short "
        "(ZSTD decompress failed: Unknown frame descriptor)"),
    "Parquet that is none": ("p.parquet", GOOD * 9, f"p.parquet: Parquet: {NO_PARQUET}"),
    "torn Parquet": ("p.parquet", packed_parquet(PAIRS)[:-20], f"p.parquet: Parquet: {NO_PARQUET}"),
    "Parquet without rows": ("p.parquet", packed_parquet(PAIRS.slice(0, 0)),
        "p.parquet: file: no rows; expected one row per group"),
    "Parquet with a number for text": ("p.parquet",
        packed_parquet(PAIRS.slice(0, 1).set_column(1, "chosen", pa.array([7]))),
        f"p.parquet:row 1: chosen: found the number 7, expected {ANSWER}"),
    "Parquet with bytes for text": ("p.parquet",
        packed_parquet(PAIRS.slice(0, 1).set_column(1, "chosen", pa.array([b"ab"]))),
        f"p.parquet:row 1: chosen: found 2 bytes, expected {ANSWER}"),
    "Parquet with null": ("p.parquet",
        packed_parquet(PAIRS.set_column(2, "rejected", pa.array(["c", None]))),
        f"p.parquet:row 2: rejected: found null, expected {ANSWER}"),
}  # fmt: skip


BAD = {
    **{f"line: {kind}": ("bad.jsonl", GOOD + line, f"bad.jsonl:2: {message}")
       for kind, (line, message) in BAD_LINES.items()},
    **{f"group: {kind}": ("bad.jsonl", SCORED + line, f"bad.jsonl:2: {message}")
       for kind, (line, message) in BAD_GROUPS.items()},
    **{f"file: {kind}": bad for kind, bad in BAD_FILES.items()},
}  # fmt: skip
COMMANDS = (
    "data show {}",
    "data validate {}",
    "data convert {} out.jsonl",
    "precompute --ref a=./model --dataset {}",
    "train --refs a --output run --cache cache --dataset {}",
)


@pytest.mark.parametrize("kind", BAD)
def test_bad_data_is_one_line_and_ends_every_command_before_a_model_loads(kind, mrpo) -> None:
    """Exit 2, the same one line, nothing written. The reference's folder is not there and the cache
    is empty: whoever looked there first would end with another error."""
    name, content, message = BAD[kind]
    assert problems_of(name, content) == [message]
    Path("cache/references").mkdir(parents=True)
    for command in COMMANDS:
        printed = mrpo(command.format(name), 2)
        assert printed.out == "", command
        assert f"  {message}\n" in printed.err, command
        assert "Traceback" not in printed.err
        assert sorted(os.listdir()) == sorted([name, "cache"]), command
        assert os.listdir("cache") == ["references"]


@pytest.mark.parametrize("name", ["../up", "a=b", "x" * 300, "", ".", "a/b", "a b", "ä", "a\0"])
def test_a_reference_of_a_bad_name(name: str, mrpo) -> None:
    """Refused on the command line and in the project file, where a name may hold a `=`."""
    Path("good.jsonl").write_bytes(GOOD)
    with pytest.raises(UsageError, match="is not usable as a directory and a column") as error:
        check_name(name)
    message = str(error.value)
    assert len(message) < 120
    assert ("(300 characters)" in message) == (len(name) == 300)
    project = json.dumps({"references": {name: "model"}, "dataset": "good.jsonl"})
    Path("mrpo.yaml").write_text(project)
    expected = f"error: {message}\nnext:  use up to 64 letters"
    assert mrpo("precompute", 2).err.startswith(expected)
    if "=" not in name:
        Path("mrpo.yaml").unlink()
        printed = mrpo(f"precompute --ref '{name}=model' --dataset good.jsonl", 2)
        assert printed.err.startswith(expected)
    assert "cache" not in os.listdir()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        *((word, f"{word[:200]}: no such file or folder")
          for word in ("missing.jsonl", "./missing", "a/b/c", "~nobody-of-this-name/x.jsonl",
                       "nul\0.jsonl", "x" * 5000)),
        ("", "the name of the source is empty"),
        ("table.xls", "table.xls: cannot read .xls files"),
        ("table", "table: cannot read a file without a suffix"),
        ("p.parquet.gz", "p.parquet.gz: cannot read .parquet.gz files"),
        ("folder", "folder: a folder without data"),
        ("folder.jsonl", "folder.jsonl: a folder without data"),
        ("/dev/null", "/dev/null: neither a file nor a folder"),
    ],
)  # fmt: skip
def test_a_source_that_is_not_there(source: str, message: str) -> None:
    Path("folder").mkdir()
    Path("folder.jsonl").mkdir()
    for name in ("table.xls", "table", "p.parquet.gz", "folder/readme.txt"):
        Path(name).write_text("x")
    with pytest.raises(UsageError) as error:
        load_groups(source)
    assert str(error.value) == message
    assert error.value.exit_code == 2
    assert error.value.hint


@pytest.mark.parametrize(
    ("source", "message", "hint"),
    [
        ("ultrafeedbak", "ultrafeedbak: no such file or folder", "did you mean ultrafeedback"),
        ("x.jsonl", "x.jsonl: no adapter fits the columns 'prompt', 'better', 'rejected'; a row "
         'must become\n  {"prompt": "…", "responses": [{"content": "…", "score": 1}, '
         '{"content": "…", "score": 0}]}',
         "name the columns: --map chosen=BETTER,rejected=WORSE, or --map a=better,b=rejected,"),
    ],
)  # fmt: skip
def test_a_typing_error_is_answered_with_what_is_near(source, message, hint) -> None:
    Path("x.jsonl").write_text('{"prompt": "Q", "better": "a", "rejected": "b"}\n')
    with pytest.raises(UsageError) as error:
        load_groups(source)
    assert str(error.value) == message
    assert error.value.hint.startswith(hint)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("nowhere.jsonl", {"limit": 0}, "--limit 0: expected 1 or more"),
        ("nowhere.jsonl", {"limit": -1}, "--limit -1: expected 1 or more"),
        ("nowhere.jsonl", {"test_size": 1.5}, "--test-size 1.5: expected a share from 0 to 1"),
        ("x.jsonl", {"adapter": "pair"}, "there is no adapter 'pair'"),
        ("x.jsonl", {"score": "mean"}, "--score mean: the adapter pairs has one kind only"),
        ("x.jsonl", {"split": "test"},
         "x.jsonl: no group is in the split 'test', but in train (1)"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_meant(source: str, options: dict[str, Any], message: str) -> None:
    """What can be checked before anything is read is checked then."""
    Path("x.jsonl").write_bytes(GOOD)
    with pytest.raises(UsageError) as error:
        load_groups(source, **options)
    assert str(error.value) == message


def test_all_problems_are_collected_and_the_first_twenty_shown() -> None:
    content = b"".join(row(prompt="", chosen=number) for number in range(30))
    Path("x.jsonl").write_bytes(GOOD + content)
    with pytest.raises(DataError) as error:
        load_groups("x.jsonl")
    assert len(error.value.problems) == 60, "two in each row"
    report = str(error.value).splitlines()
    assert report[0] == (
        "x.jsonl: 60 problems in 31 rows, read by the adapter pairs "
        "(columns prompt: text or [message, …], chosen, rejected)"
    )
    assert len(report) == 1 + 20 + 1
    assert report[1].startswith("  x.jsonl:2: prompt: found empty text")
    assert report[-1] == "  … and 40 more"


def test_bad_first_rows_do_not_hide_the_format() -> None:
    problems = problems_of("x.jsonl", row(chosen=None) + b"oops\n" + row(rejected=...) + GOOD)
    assert [problem.split(": ")[0] for problem in problems] == [f"x.jsonl:{n}" for n in (1, 2, 3)]


def test_bad_rows_can_be_skipped_and_are_counted_but_no_damaged_file() -> None:
    Path("x.jsonl").write_bytes(GOOD + row(chosen="", prompt="") + b"oops\n" + row(prompt="R"))
    source = load_groups("x.jsonl", skip_bad=True)
    assert prompts(source) == ["Q", "R"]
    assert source.counts["skipped_rows"] == 2
    Path("x.jsonl.gz").write_bytes(gzip.compress(GOOD * 9, mtime=0)[:-8])
    with pytest.raises(DataError):
        load_groups("x.jsonl.gz", skip_bad=True)
