"""Queries: parameters, errors, streams, limits, and those that come with mrpo."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from sql_world import cache_of, identity, row

from mrpo_tools.errors import MrpoError, UsageError
from mrpo_tools.groups import Group, Response, user_prompt
from mrpo_tools.sql import find_saved, open_sql


def test_parameters_are_checked(database):
    query = "SELECT $a + $b AS c"
    assert database.query(query, {"a": 1, "b": 2}).to_pylist() == [{"c": 3}]
    with pytest.raises(UsageError, match=r"needs a value for \$b"):
        database.query(query, {"a": 1})
    with pytest.raises(UsageError, match=r"no parameter \$d \(it has: \$a, \$b\)"):
        database.query(query, {"a": 1, "b": 2, "d": 3})


def test_bad_sql_gives_the_engines_first_line(database):
    with pytest.raises(UsageError, match="Table with name logpz does not exist") as caught:
        database.query("SELECT * FROM logpz")
    assert caught.value.exit_code == 2
    assert "logps" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="Parser Error: syntax error") as caught:
        database.query("SELECT * FORM logps")
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="empty"):
        database.query(" -- nothing\n;")
    assert database.query("SELECT 1 AS n").to_pylist() == [{"n": 1}]


def test_results_stream_and_the_next_query_ends_them(database):
    reader = database.stream("SELECT * FROM range(500000)")
    assert reader.read_next_batch().num_rows < 500000
    assert database.query("SELECT 1").num_rows == 1
    with pytest.raises(UsageError, match="ended when the next query began"):
        reader.read_all()
    late = database.stream(
        "SELECT CASE WHEN range > 300000 THEN error('late') END FROM range(500000)"
    )
    with pytest.raises(MrpoError, match="late"):
        late.read_all()


def test_explain_is_a_query(database):
    plan = database.query("EXPLAIN SELECT count(*) FROM logps")
    assert plan.schema.names == ["explain_key", "explain_value"]
    measured = database.query("explain analyze SELECT count(*) FROM logps").to_pylist()
    assert "Total Time" in measured[0]["explain_value"]


def test_a_memory_limit_is_a_size(world):
    for size in ("512MB", "1GiB", "0.5 gb", 10**9):
        open_sql(world.cache.path, memory_limit=size).close()
    for size in ("much", "-1GB", "1KB", ""):
        with pytest.raises(UsageError, match="memory limit"):
            open_sql(world.cache.path, memory_limit=size)


def saved_rows(path: Path, name: str, **params: object) -> list[dict]:
    saved = find_saved(name)
    with open_sql(path) as database:
        return database.query(saved.sql, {**saved.params, **params}).to_pylist()


def test_saved_queries_say_what_they_promise(tmp_path):
    """Two groups of two, two references: `a` ranks both right, `b` only the first."""
    groups = [
        Group(user_prompt(prompt), (Response("good " * size, 1.0), Response("bad", 0.0)))
        for prompt, size in (("first", 1), ("second", 9))
    ]
    cache = cache_of(tmp_path, groups)
    for name, logps in {"a": [-1, -2, -3, -5], "b": [-1, -2, -30, -5]}.items():
        rows = [row(groups[n // 2], n % 2, float(logp)) for n, logp in enumerate(logps)]
        cache.store(name, identity(name)).append(rows)
    best = saved_rows(tmp_path, "best-reference")
    assert [(answer["reference"], answer["accuracy"], answer["pairs"]) for answer in best] == [
        ("a", 1.0, 2), ("b", 0.5, 2),
    ]  # fmt: skip
    assert best[1]["margin"] == ((-1 + 2) + (-30 + 5)) / 2
    worst = saved_rows(tmp_path, "disagreements", n=1)
    assert [worst[0][name] for name in ("prompt", "agreement", "tau")] == ["second", 0, -1]
    # Sums of a and b are 2, 4 and 33, 10. Radii at 0.1: 1/30, 1/15 and 33/430, 1/43. Only b's -30
    # lies outside, and moves to -3 * (1 + 33/430).
    clipped = {answer["reference"]: answer for answer in saved_rows(tmp_path, "clipped")}
    assert clipped["a"]["clipped_share"] == 0
    assert clipped["b"]["clipped_share"] == 0.25
    assert clipped["b"]["max_move_nats"] == pytest.approx(30 - 3 * (1 + 33 / 430))
    outliers = saved_rows(tmp_path, "outliers", n=1)
    odd = {(answer["reference"], answer["kind"]): answer for answer in outliers}
    assert len(odd) == len(outliers) == 4
    assert odd["a", "longest"]["content"] == ("good " * 9)
    assert odd["a", "oddest"]["nats_per_byte"] == -5 / 3
    assert odd["b", "oddest"]["content"] == "bad"
    scores = {answer["reference"]: answer for answer in saved_rows(tmp_path, "scores")}
    # Scores 1, 0, 1, 0 against -1, -2, -3, -5: covariance 3/8, deviations 1/2 and sqrt(35)/4.
    assert scores["a"]["score_logp"] == pytest.approx(0.375 / (0.5 * math.sqrt(35) / 4))
