"""What a terminal shows: tables that fold to its width, and a bar whose numbers survive."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest
from small_data import write_lines
from trained import recipe

from mrpo_tools.progress import aligned, folded_text
from mrpo_tools.training.train import train

WIDTHS = pytest.mark.parametrize("width", [40, 60, 80])
ROWS = [
    ["name", "what it is", "largest micro-batch", "count"],
    ["first", "a few words that fold", "1.5", "12"],
    ["second", "a word", "20.25", "3"],
]
RIGHT = [False, False, True, True]


def test_a_table_that_fits_is_left_alone():
    """Columns of 6, 21, 19 and 5 with three gaps of two are 57 wide."""
    wide = list(aligned(ROWS, RIGHT))
    assert wide[0] == "name    what it is             largest micro-batch  count"
    assert wide == list(aligned(ROWS, RIGHT, width=57))
    assert wide != list(aligned(ROWS, RIGHT, width=56))


def test_headers_and_texts_fold_between_words_and_numbers_do_not():
    """At 40: 6 + 5 of the outer columns and three gaps leave 23: 12 for the text, 11 at least for
    `micro-batch`."""
    assert list(aligned(ROWS, RIGHT, width=40)) == [
        "name    what it is        largest  count",
        "                      micro-batch",
        "first   a few words           1.5     12",
        "        that fold",
        "second  a word              20.25      3",
    ]


def test_columns_that_do_not_fit_stand_below_with_the_names_of_the_rows():
    rows = [
        ["name", "aaaaaaaa", "bbbbbbbb", "cccccccc"],
        ["x", "1", "2", "3"],
    ]
    assert list(aligned(rows, [False, True, True, True], rule=True, width=24)) == [
        "name  aaaaaaaa  bbbbbbbb",
        "────  ────────  ────────",
        "x            1         2",
        "",
        "name  cccccccc",
        "────  ────────",
        "x            3",
    ]


def test_as_many_columns_are_repeated_as_tell_the_rows_apart():
    rows = [["a", "b", "number", "figure"], ["x", "1", "10", "20"], ["x", "2", "30", "40"]]
    assert list(aligned(rows, [False, False, True, True], width=14)) == [
        "a  b  number", "x  1      10", "x  2      30", "",
        "a  b  figure", "x  1      20", "x  2      40",
    ]  # fmt: skip


def test_where_no_two_columns_fit_each_row_becomes_lines():
    rows = [["reference", "identity"], ["llama", "0123456789ab and more"], ["qwen", ""]]
    assert list(aligned(rows, [False, False], width=20)) == [
        "reference: llama", "identity:", "  0123456789ab and", "  more", "",
        "reference: qwen", "identity: ",
    ]  # fmt: skip


def test_wide_characters_count_twice():
    """Four characters of two cells each do not fit in seven."""
    assert folded_text("日本 語文", 9) == ["日本 語文"]
    assert folded_text("日本 語文", 8) == ["日本", "語文"]


@pytest.fixture(scope="module")
def project(tmp_path_factory, references, some_groups, cached) -> Path:
    """A directory with data, a cache, a project and an evaluated run."""
    root = tmp_path_factory.mktemp("tables")
    groups = [group.with_split(("train", "test")[n % 2]) for n, group in enumerate(some_groups)]
    write_lines(root / "data.jsonl", (group.as_dict() for group in groups))
    names = "".join(f"  {name}: {ref.model}\n" for name, ref in references.items())
    (root / "recipe.yaml").write_text("learning_rate: 1e-4\n")
    (root / "mrpo.yaml").write_text(
        f"dataset: data.jsonl\ncache: {cached.path}\nreferences:\n{names}"
    )
    train(recipe(max_steps=1, split="train"), groups, cached, references, root / "run")
    return root


TABLES = [
    "losses",
    "data show data.jsonl --ref llama",
    "precompute",
    "cache status",
    "rank --split all",
    "evaluate run",
    "sweep recipe.yaml --grid loss=dpo,mrpo --dry-run",
    "sql 'SELECT * FROM refs'",
]
"""Commands that print tables."""
CHANGING = r"[\d.,]+|[─█]+"
"""Seconds, bytes that are free, and what is drawn to the width."""


@pytest.mark.parametrize("line", TABLES)
def test_tables_of_commands_fit_and_break_no_word(line, project, mrpo, monkeypatch):
    """Every word is one of the wide table, which has no width, and no line of a table is too
    wide. What stands in columns has two spaces in it; texts of the data begin with two."""
    monkeypatch.chdir(project)
    monkeypatch.delenv("COLUMNS", raising=False)
    wide = words(mrpo(line).out)
    for width in (40, 60, 80):
        monkeypatch.setenv("COLUMNS", str(width))
        narrow = mrpo(line).out
        assert words(narrow) <= {*wide, *(f"{word}:" for word in wide)}
        assert wide <= {*words(narrow), *(word.removesuffix(":") for word in words(narrow))}
        tables = [text for text in narrow.splitlines() if "  " in text.strip() and text[:2] != "  "]
        assert max(map(len, tables), default=0) <= width


def words(text: str) -> set[str]:
    return set(re.sub(CHANGING, " ", text).split())


BAR = """
import time
from mrpo_tools.progress import bar
with bar("computing log-probs of mistral", 200, "responses") as advance:
    for _ in range(5):
        advance(20, note="12,345 tokens, 3% padding, 1,234 tokens/s, 45% of the peak")
        time.sleep(0.12)
"""


@WIDTHS
def test_percent_and_time_to_go_survive_on_a_narrow_terminal(width):
    """On a pseudo-terminal: half is done, and the line with it fits."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", BAR], stderr=theirs,
        env={**os.environ, "COLUMNS": str(width), "TERM": "xterm"},
    )  # fmt: skip
    shown = b""
    while process.poll() is None or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.1)[0]:
            shown += os.read(ours, 65536)
    os.close(ours)
    os.close(theirs)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    frames = [frame.strip() for frame in re.split(r"[\r\n]+", text)]
    assert any("50%" in frame and re.search(r"ETA \d:\d\d:\d\d", frame) for frame in frames)
    assert max(map(len, frames)) <= width


def test_where_nothing_is_a_terminal_there_is_no_bar(capfd):
    subprocess.run([sys.executable, "-c", BAR], check=True)
    assert capfd.readouterr().err == ""
