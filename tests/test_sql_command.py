"""`mrpo sql` as a user runs it, and its documentation."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import oracle
import pyarrow.parquet as pq
import pytest
from sql_world import NAMES, ROOT, close, make_run

from mrpo_tools.cli import run
from mrpo_tools.sql import MACROS, SAVED, VIEWS, open_sql

DOCS = (ROOT / "docs" / "sql.md").read_text(encoding="utf-8")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}


@pytest.fixture
def here(world, tmp_path, monkeypatch) -> None:
    """A directory where `cache` is that of `world`."""
    (tmp_path / "cache").symlink_to(world.cache.path)
    monkeypatch.chdir(tmp_path)


def in_process(capfd, *arguments: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command."""
    code = run(["sql", *map(str, arguments)])
    return code, *capfd.readouterr()


def test_the_command_answers(world, here):
    """As a user runs it."""
    command = [sys.executable, "-m", "mrpo_tools", "sql", "SELECT count(*) AS n FROM logps"]
    result = subprocess.run(command, capture_output=True, env=ENVIRONMENT, check=False)
    count = sum(map(len, world.numbers.values()))
    assert result.stdout.decode().split() == ["n", "───", str(count), "(1", "row)"]
    assert (result.stderr, result.returncode) == (b"", 0)


@pytest.mark.parametrize("source", ["file", "stdin"])
def test_the_command_reads_files_stdin_and_parameters(here, monkeypatch, capfd, source):
    query = "SELECT $text AS text, $number + 1 AS number, $list[2] AS item, $id AS id"
    Path("query.sql").write_text(query, encoding="utf-8-sig")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(query.encode())))
    digits = "12345678901234567890123456789012"
    params = ["text=12 a", "number=0.5", 'list=["x", "y"]', f"id={digits}"]
    options = [word for param in params for word in ("--param", param)]
    words = ["-f", "query.sql"] if source == "file" else ["-"]
    _, out, _ = in_process(capfd, *words, *options, "--format", "jsonl")
    assert json.loads(out) == {"text": "12 a", "number": 1.5, "item": "y", "id": digits}


def test_the_command_uses_the_projects_cache_and_writes_files(world, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("mrpo.yaml").write_text(f"cache: {world.cache.path}\n")
    assert in_process(capfd, "--saved", "best-reference", "-o", "best.md") == (0, "", "")
    assert Path("best.md").read_text().startswith("| reference | groups |")
    words = ["FROM virtual_reference($eps)", "--param", "eps=0.2", "--refs", "qwen,llama"]
    assert in_process(capfd, *words, "-o", "out.parquet") == (0, "", "")
    rows = pq.read_table("out.parquet").to_pylist()
    virtual = {(row["group_id"], row["position"]): row["logp"] for row in rows}
    combined = partial(oracle.virtual_reference, epsilon_max=0.2)
    close(virtual, world.by_response(("qwen", "llama"), combined))


def test_without_a_query_the_command_lists_everything(here, capfd):
    code, out, _ = in_process(capfd)
    assert code == 0
    for listed in (*VIEWS, *MACROS, *SAVED):
        assert re.search(rf"^  {re.escape(listed.name)}[(:]", out, re.MULTILINE), listed.name
        assert all(column in out for column in getattr(listed, "columns", ()))
    for name in NAMES:
        assert f"{name}@" in out
    assert len(SAVED) == 5


MISTAKES = [
    (["SELECT * FROM logpz"], 2, "Table with name logpz does not exist"),
    (["SELECT 1", "--saved", "clipped"], 2, "more than one query"),
    (["--saved", "cliped"], 2, "clipped"),
    (["-f", "absent.sql"], 2, "absent.sql"),
    (["-f", "latin.sql"], 2, "latin.sql cannot be read"),
    (["SELECT '\udc80'"], 2, "not Unicode"),
    (["SELECT DATE '-5000-01-01'"], 2, "cast the column"),
    (["SELECT $a", "--param", "a"], 2, "NAME=VALUE"),
    (["SELECT 1", "--format", "xml"], 2, "xml"),
    (["SELECT 1", "--runs", "absent"], 2, "no directory"),
    (["SELECT 1", "-o", "cache/x.csv"], 2, "inside the cache"),
    (["SELECT 1", "-o", "absent/x.csv"], 2, "cannot write"),
    (["SELECT 1", "--memory-limit", "lots"], 2, "no size"),
    (["SELECT 1", "--timeout", "0"], 2, "timeout"),
    (["SELECT 1", "--cache", "absent"], 3, "no cache at"),
    (["SELECT 1", "--refs", "other"], 3, "'other' has no log-probs"),
    (["SELECT 1", "-o", "/dev/full"], 4, "No space left"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), MISTAKES)
def test_mistakes_end_with_the_promised_exit_code(here, capfd, arguments, code, message):
    Path("latin.sql").write_bytes(b"SELECT '\xe9'")
    ended, out, err = in_process(capfd, *arguments)
    assert (ended, out) == (code, "")
    assert message in err


def test_a_damaged_cache_ends_with_3_and_the_files_name(world, tmp_path, capfd):
    copy = Path(shutil.copytree(world.cache.path, tmp_path / "cache"))
    path = next(copy.glob("references/qwen*/part-*"))
    path.write_bytes(path.read_bytes()[:-1])
    code, _, err = in_process(capfd, "SELECT 1", "--cache", copy)
    assert code == 3
    assert str(path) in err
    assert "mrpo cache repair" in err


@pytest.mark.parametrize(
    ("words", "lines"),
    [(["sql", "SELECT * FROM range(1000000)", "--format", "csv"], 1), (["cache", "status"], 0)],
    ids=["mrpo sql | head -1", "mrpo cache status | true"],
)
def test_a_reader_that_stops_early_is_no_error(world, words, lines):
    command = [sys.executable, "-m", "mrpo_tools", *words, "--cache", str(world.cache.path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        assert [process.stdout.readline() for _ in range(lines)] == [b"range\n"] * lines
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode in (0, 1)


def test_the_documentation_is_true(world, tmp_path):
    """Every query of docs/sql.md runs; every view, macro and saved query is in it."""
    queries = re.findall(r"```sql\n(.*?)```", DOCS, re.DOTALL)
    assert len(queries) >= 5
    make_run(tmp_path / "a", train_loss=0.5)
    with open_sql(world.cache.path, runs=tmp_path) as database:
        for query in queries:
            database.query(query)
    for listed in (*VIEWS, *MACROS, *SAVED):
        assert f"`{listed.name}" in DOCS, listed.name
    for macro in MACROS:
        assert f"`{macro.name}({macro.arguments})`" in DOCS
    for view in VIEWS:
        assert all(column in DOCS for column in view.columns), view.name


def test_the_documented_python_runs(here):
    program = re.search(r"```python\n(.*?)```", DOCS, re.DOTALL).group(1)
    exec(program, {})
    assert Path("means.csv").read_text().startswith("reference,")
