"""`mrpo sql`: views, macros, formats and the command, against plain Python over the same rows."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mrpo_tools import words
from mrpo_tools.cache import Cache, LogpRow, WriterRecord
from mrpo_tools.errors import (
    CacheDamaged,
    CacheMissing,
    CacheStale,
    MrpoError,
    ResourceError,
    UsageError,
)
from mrpo_tools.groups import Group, Message, Response, user_prompt
from mrpo_tools.references.identity import Identity
from mrpo_tools.sql import FORMATS, MACROS, SAVED, VIEWS, open_sql, write
from mrpo_tools.sql import database as database_module

ROOT = Path(__file__).parent.parent
NAMES = ("llama", "mistral", "qwen")


def make_groups(count: int, seed: int = 0, *, labels: bool = False) -> list[Group]:
    """Ragged groups of one to five responses with scores, ties and letters of all kinds."""
    rng = random.Random(seed)
    groups = []
    for index in range(count):
        size = rng.choice([1, 2, 2, 3, 4, 5])
        chosen = rng.randrange(size)
        groups.append(
            Group(
                user_prompt(f"What is {seed}.{index}? ✓", "Be brief." if index % 5 == 0 else None),
                tuple(
                    Response(
                        f"answer {place} to {index}: {'🙂 é' * rng.randrange(4)}",
                        None if labels else float(rng.randrange(5)),
                        place == chosen if labels else None,
                        rng.choice(["gpt", None]),
                    )
                    for place in range(size)
                ),
                source_id=str(index),
                split=rng.choice(["train", "test"]),
            )
        )
    return groups


def row(group: Group, place: int, logp: float | None, status: str = "ok") -> LogpRow:
    content = group.responses[place].content
    return LogpRow(
        group.response_ids[place],
        group.prompt_id,
        logp,
        len(content) // 3 + place,
        len(content.encode()),
        status,
        False,
        "0123456789abcdef",
    )


def identity(name: str, **fields: object) -> Identity:
    return Identity({"model": f"hub/{name}", "dtype": "float32", "max_length": 64, **fields})


def make_numbers(
    groups: list[Group], seed: int, bad: float = 0.0
) -> dict[str, tuple[float | None, str]]:
    """A log-prob and a status for each response; a share of them is overlong or nonfinite."""
    rng = random.Random(seed)
    numbers: dict[str, tuple[float | None, str]] = {}
    for group in groups:
        for key in group.response_ids:
            if rng.random() < bad:
                numbers[key] = (None, rng.choice(["overlong", "nonfinite"]))
            else:
                numbers[key] = (-rng.uniform(0.1, 300.0), "ok")
    return numbers


def fill(cache: Cache, name: str, groups: list[Group], numbers, parts: int = 3, **fields):
    """Write a reference's rows in several parts through the store."""
    store = cache.store(name, identity(name, **fields))
    seen: set[str] = set()
    rows = []
    for group in groups:
        for place, key in enumerate(group.response_ids):
            if key in numbers and key not in seen:
                seen.add(key)
                rows.append(row(group, place, *numbers[key]))
    size = max(1, -(-len(rows) // parts))
    for start in range(0, len(rows), size):
        record = WriterRecord(reference={"model": f"models/{name}"})
        store.append(rows[start : start + size], record)
    return store


class World:
    """A cache with what was written into it."""

    def __init__(self, path: Path, *, bad: float = 0.05, labels: bool = False) -> None:
        self.cache = Cache(path)
        self.groups = make_groups(60, seed=1, labels=labels)
        self.cache.save_groups("toy", self.groups)
        self.numbers = {
            name: make_numbers(self.groups, seed, bad) for seed, name in enumerate(NAMES)
        }
        for name in NAMES:
            fill(self.cache, name, self.groups, self.numbers[name])

    def usable(self, group: Group, names) -> list[int]:
        """Places of responses that every reference has a number for."""
        return [
            place
            for place, key in enumerate(group.response_ids)
            if all(self.numbers[name][key][1] == "ok" for name in names)
        ]

    def logp(self, group: Group, place: int, name: str) -> float:
        value = self.numbers[name][group.response_ids[place]][0]
        assert value is not None
        return value


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("sql") / "cache")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    return World(tmp_path_factory.mktemp("sql") / "cache", labels=True)


@pytest.fixture(scope="module")
def database(world):
    with open_sql(world.cache.path) as opened:
        yield opened


def rows_of(table: pa.Table) -> list[tuple]:
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def run_cli(*arguments: object, **kwargs) -> subprocess.CompletedProcess:
    """The command as a user runs it, in a directory without project and runs."""
    kwargs.setdefault("cwd", Path(os.environ["XDG_CACHE_HOME"]))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        [sys.executable, "-m", "mrpo_tools", "sql", *map(str, arguments)],
        capture_output=True,
        env=environment,
        timeout=60,
        **kwargs,
    )


# Views


def test_responses_are_the_groups_responses(world, database):
    expected = [
        (
            group.group_id,
            group.prompt_id,
            group.response_ids[place],
            "toy",
            group.split,
            place,
            *(getattr(response, field) for field in ("content", "score", "chosen", "model")),
        )
        for group in world.groups
        for place, response in enumerate(group.responses)
    ]
    assert Counter(rows_of(database.query("SELECT * FROM responses"))) == Counter(expected)


def test_groups_show_the_prompt_as_text(world, database):
    table = database.query("SELECT group_id, prompt, turns, responses, source_id FROM groups")
    expected = {
        (
            group.group_id,
            group.prompt[0].content
            if len(group.prompt) == 1
            else "\n\n".join(f"{turn.role}: {turn.content}" for turn in group.prompt),
            len(group.prompt),
            len(group.responses),
            group.source_id,
        )
        for group in world.groups
    }
    assert set(rows_of(table)) == expected
    assert table.num_rows == len(world.groups)


def test_logps_are_the_rows_of_every_reference(world, database):
    table = database.query("SELECT reference, response_id, logp, status FROM logps")
    expected = {
        (name, key, *number) for name in NAMES for key, number in world.numbers[name].items()
    }
    assert set(rows_of(table)) == expected
    assert table.num_rows == len(expected)


def test_logps_wide_has_a_column_per_reference(world, database):
    table = database.query("SELECT response_id, llama, mistral, qwen FROM logps_wide")
    expected = {
        (key, *(world.numbers[name][key][0] for name in NAMES)) for key in world.numbers["llama"]
    }
    assert set(rows_of(table)) == expected
    assert table.num_rows == len(expected)


def test_refs_count_rows_by_status(world, database):
    table = database.query("SELECT * FROM refs").to_pylist()
    assert [one["reference"] for one in table] == list(NAMES)
    for one in table:
        statuses = Counter(status for _, status in world.numbers[one["name"]].values())
        assert one["rows"] == sum(statuses.values())
        assert (one["ok"], one["overlong"], one["nonfinite"]) == tuple(
            statuses[status] for status in ("ok", "overlong", "nonfinite")
        )
        store = world.cache.find(one["name"])
        assert one["identity"] == store.short
        assert one["model"] == f"hub/{one['name']}"
        assert one["parts"] == len(store.part_paths()) == 3
        assert one["bytes"] == sum(path.stat().st_size for path in store.part_paths())
        assert one["created"] <= one["updated"]


def test_the_listed_columns_are_the_columns(database):
    """What the overview promises is what a query finds."""
    for view in VIEWS:
        columns = tuple(database.query(f"SELECT * FROM {view.name} LIMIT 0").schema.names)
        expected = ("response_id", *NAMES) if view.name == "logps_wide" else view.columns
        assert columns == expected, view.name
    for macro in MACROS:
        columns = database.query(f"SELECT * FROM {macro.name}() LIMIT 0").schema.names
        assert tuple(columns) == macro.columns, macro.name


def test_show_tables_shows_the_views(database):
    """What `mrpo sql` lists, and nothing that the views are made of."""
    for query in ("SHOW TABLES", " show all tables ; "):
        found = [one["name"] for one in database.query(query).to_pylist()]
        assert found == sorted(view.name for view in VIEWS)


def test_an_empty_cache_has_every_view_and_macro(tmp_path):
    Cache(tmp_path).save_groups("none", [])
    for path in (tmp_path, tmp_path / "groups"):  # no references; not even groups
        with open_sql(path) as database:
            for view in VIEWS:
                assert database.query(f"SELECT * FROM {view.name}").num_rows == 0, view.name
            for macro in MACROS:
                if macro.name != "agreement":
                    assert database.query(f"FROM {macro.name}()").num_rows == 0, macro.name
            with pytest.raises(UsageError, match="agreement needs two references"):
                database.query("FROM agreement()")


def test_rows_of_another_data_set_stay_in_logps_wide(tmp_path):
    """Responses that only some references have scored: a row each, NULL for the others."""
    cache, groups = Cache(tmp_path), make_groups(6)
    cache.save_groups("toy", groups)
    fill(cache, "a", groups[:4], make_numbers(groups, 0))
    fill(cache, "b", groups[2:], make_numbers(groups, 1))
    with open_sql(tmp_path) as database:
        known = database.query(
            "SELECT count(*) AS rows, count(a) AS a, count(b) AS b FROM logps_wide"
        ).to_pylist()[0]
    sizes = [len(group.responses) for group in groups]
    assert known == {"rows": sum(sizes), "a": sum(sizes[:4]), "b": sum(sizes[2:])}


# Names


def test_two_identities_of_one_name_are_told_apart(tmp_path):
    cache, groups = Cache(tmp_path), make_groups(3)
    cache.save_groups("toy", groups)
    stores = [fill(cache, "m", groups, make_numbers(groups, n), revision=str(n)) for n in (0, 1)]
    with open_sql(tmp_path) as database:
        labels = database.query("SELECT reference FROM refs").column(0).to_pylist()
        assert sorted(labels) == sorted(f"m@{store.short[:4]}" for store in stores)
        columns = database.query("SELECT * FROM logps_wide").schema.names
        assert sorted(columns) == sorted(["response_id", *labels])
        with pytest.raises(UsageError, match="no reference m in this cache"):
            database.query("SELECT * FROM margins('m')")
        short = database.query("FROM margins($name)", {"name": f"m@{stores[0].short[:5]}"})
        assert set(short["reference"].to_pylist()) == {f"m@{stores[0].short[:4]}"}
    with open_sql(tmp_path, references=[f"m@{stores[1].short[:3]}"]) as database:
        assert database.query("SELECT reference FROM refs").column(0).to_pylist() == ["m"]
    with pytest.raises(CacheStale, match="2 identities"):
        open_sql(tmp_path, references=["m"])


@pytest.mark.parametrize(
    "names",
    [("Llama", "llama"), ("response_id", "b"), ("it's", 'a"b'), ("a b", "select"), ("é", "x;--")],
)
def test_any_name_is_a_column(tmp_path, names):
    """Also names that differ in case alone, for SQL does not tell such columns apart."""
    cache, groups = Cache(tmp_path), make_groups(2)
    cache.save_groups("toy", groups)
    numbers = {name: make_numbers(groups, seed) for seed, name in enumerate(names)}
    for name in names:
        fill(cache, name, groups, numbers[name])
    with open_sql(tmp_path) as database:
        wide = database.query("SELECT * FROM logps_wide")
        labels = dict(rows_of(database.query("SELECT name, reference FROM refs")))
        for name in names:
            found = dict(rows_of(wide.select(["response_id", labels[name]])))
            assert found == {key: number for key, (number, _) in numbers[name].items()}
            assert database.query("FROM weights(refs := [$name])", {"name": name}).num_rows == 2


# Rows that are there twice


def test_of_rows_present_twice_the_earliest_part_counts(tmp_path):
    """Also within one part, where the first row counts; the same rows as the store's own table."""
    cache, groups = Cache(tmp_path), make_groups(5)
    cache.save_groups("toy", groups)
    store = cache.store("m", identity("m"))
    every = [(group, place) for group in groups for place in range(len(group.responses))]
    store.append([row(*one, -1.0) for one in every[:4]])
    store.append([row(*one, -2.0) for one in every[2:6]])
    store.append([row(*one, -3.0) for one in [*every[5:], every[7], every[7]]])
    store.append([row(*one, -4.0) for one in every[:3]])
    with open_sql(tmp_path) as database:
        table = database.query("SELECT response_id, logp FROM logps")
        assert database.query("SELECT rows FROM refs").column(0).to_pylist() == [len(every)]
    expected = {
        group.response_ids[place]: -1.0 if n < 4 else -2.0 if n < 6 else -3.0
        for n, (group, place) in enumerate(every)
    }
    assert dict(rows_of(table)) == expected
    assert table.num_rows == len(expected)
    assert set(rows_of(table)) == set(rows_of(store.table().select(["response_id", "logp"])))


def test_rows_with_other_ids_are_told_apart_too(tmp_path):
    """Ids that are no 32 hexadecimal digits take the slow road to the same end."""
    store = Cache(tmp_path).store("m", identity("m"))
    for logp, keys in ((-1.0, ["a", "bb", "a"]), (-2.0, ["bb", "c"]), (-3.0, [])):
        store.append([LogpRow(key, "p", logp, 1, 1, "ok", False, "") for key in keys])
    with open_sql(tmp_path) as database:
        found = database.query("SELECT response_id, logp FROM logps ORDER BY 1")
    assert rows_of(found) == [("a", -1.0), ("bb", -1.0), ("c", -2.0)]


def test_of_groups_saved_twice_the_latest_file_counts(tmp_path):
    cache, groups = Cache(tmp_path), make_groups(8)
    saved = [
        cache.save_groups(dataset, groups[start:stop])
        for dataset, start, stop in (("old", 0, 3), ("middle", 2, 8), ("new", 1, 4))
    ]
    for age, path in enumerate(reversed(saved)):
        os.utime(path, (1e9 - age, 1e9 - age))
    expected = {group.group_id: "middle" for group in groups}
    expected |= {groups[0].group_id: "old"} | {one.group_id: "new" for one in groups[1:4]}
    with open_sql(tmp_path) as database:
        for view in ("groups", "responses"):
            found = database.query(f"SELECT DISTINCT group_id, dataset FROM {view}")
            assert dict(rows_of(found)) == expected
            assert found.num_rows == len(groups)


def test_a_group_twice_in_one_file_is_one_group(tmp_path):
    cache, groups = Cache(tmp_path), make_groups(3)
    cache.save_groups("toy", [*groups, groups[1]])
    numbers = make_numbers(groups, 0)
    fill(cache, "m", groups, numbers)
    with open_sql(tmp_path) as database:
        assert database.query("SELECT * FROM groups").num_rows == 3
        assert database.query("SELECT * FROM weights()").num_rows == 3
        assert database.query("SELECT * FROM responses").num_rows == len(numbers)


# Macros, by plain loops


def loops_weights(world: World, names) -> dict[tuple[str, str], float]:
    """MRPO Eq. 10: shares of the mean distance over pairs."""
    weights = {}
    for group in world.groups:
        places = world.usable(group, names)
        spreads = [
            sum(
                abs(world.logp(group, i, name) - world.logp(group, j, name))
                for i, j in itertools.combinations(places, 2)
            )
            for name in names
        ]
        for name, spread in zip(names, spreads, strict=True):
            total = sum(spreads)
            weights[group.group_id, name] = spread / total if total else 1 / len(names)
    return weights


def loops_radius(world: World, names, eps: float) -> dict[tuple[str, int], float]:
    """Eq. 9: shares of the absolute sums."""
    radii = {}
    for group in world.groups:
        sums = {
            place: abs(sum(world.logp(group, place, name) for name in names))
            for place in world.usable(group, names)
        }
        for place, size in sums.items():
            radii[group.group_id, place] = eps * size / sum(sums.values())
    return radii


def loops_clipped(world: World, names, eps: float) -> dict[tuple[str, int, str], float]:
    """Eq. 8: min(max(r, (1 + e) r_1), (1 - e) r_1); log-probs are negative."""
    radii = loops_radius(world, names, eps)
    by_id = {group.group_id: group for group in world.groups}
    clipped = {}
    for (group_id, place), radius in radii.items():
        group = by_id[group_id]
        first = world.logp(group, place, names[0])
        for name in names:
            value = world.logp(group, place, name)
            if name != names[0]:
                value = min(max(value, (1 + radius) * first), (1 - radius) * first)
            clipped[group_id, place, name] = value
    return clipped


def loops_virtual(world: World, names, eps: float) -> dict[tuple[str, int], float]:
    """Proposition 1: 1 / sum_k(weight_k / p_k), in decimal arithmetic that cannot underflow."""
    from decimal import Decimal, getcontext

    getcontext().prec = 50
    weights, clipped = loops_weights(world, names), loops_clipped(world, names, eps)
    virtual = {}
    for group_id, place in {key[:2] for key in clipped}:
        total = sum(
            Decimal(weights[group_id, name]) / Decimal(clipped[group_id, place, name]).exp()
            for name in names
        )
        virtual[group_id, place] = float(-total.ln())
    return virtual


ORDERS = [NAMES, ("qwen", "llama"), ("mistral", "qwen", "llama"), ("mistral",)]


def close(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-9, rel=1e-12), key


@pytest.mark.parametrize("names", ORDERS)
def test_weights_are_those_of_equation_10(world, database, names):
    found = database.query(
        "SELECT group_id, reference, weight FROM weights(refs := $refs)", {"refs": list(names)}
    )
    close({(g, r): w for g, r, w in rows_of(found)}, loops_weights(world, names))


@pytest.mark.parametrize("names", ORDERS)
@pytest.mark.parametrize("eps", [0.0, 0.1, 3])
def test_radius_clip_and_virtual_reference_are_those_of_the_paper(world, database, names, eps):
    given = {"eps": eps, "refs": list(names)}
    by_id = {group.group_id: group for group in world.groups}
    radius = database.query(
        "SELECT group_id, position, radius, response_id FROM radius($eps, refs := $refs)", given
    )
    close({(g, p): r for g, p, r, _ in rows_of(radius)}, loops_radius(world, names, eps))
    assert all(by_id[g].response_ids[p] == key for g, p, _, key in rows_of(radius))
    clipped = rows_of(
        database.query(
            "SELECT group_id, position, reference, clipped, logp, moved "
            "FROM trust_region($eps, refs := $refs)",
            given,
        )
    )
    close({row[:3]: row[3] for row in clipped}, loops_clipped(world, names, eps))
    assert all(moved == (value != logp) for _, _, _, value, logp, moved in clipped)
    virtual = database.query(
        "SELECT group_id, position, logp, reference_1, response_id "
        "FROM virtual_reference($eps, refs := $refs)",
        given,
    )
    expected = loops_virtual(world, names, eps)
    close({(g, p): value for g, p, value, _, _ in rows_of(virtual)}, expected)
    for g, p, _, first, key in rows_of(virtual):
        assert first == world.logp(by_id[g], p, names[0])
        assert key == by_id[g].response_ids[p]


def test_the_default_order_is_by_name_or_as_opened(world, database):
    plain = database.query("SELECT group_id, position, logp FROM virtual_reference(0.1)")
    close({(g, p): v for g, p, v in rows_of(plain)}, loops_virtual(world, NAMES, 0.1))
    order = ("qwen", "mistral")
    with open_sql(world.cache.path, references=order) as opened:
        two = opened.query("SELECT group_id, position, logp FROM virtual_reference()")
    close({(g, p): v for g, p, v in rows_of(two)}, loops_virtual(world, order, 0.1))


def test_extreme_numbers_stay_exact(tmp_path):
    """Log-probs of -10,000, equal ones, spreads of a billionth, weights of zero."""
    cache = Cache(tmp_path)
    group = Group(user_prompt("p"), tuple(Response(str(n), float(n)) for n in range(3)))
    equal = Group(user_prompt("q"), tuple(Response(str(n), float(n)) for n in range(2)))
    cache.save_groups("toy", [group, equal])
    values = {"a": [-10000.0, -10000.000000002, -5000.0], "b": [-7.0, -7.0, -7.0]}
    for name, logps in values.items():
        rows = [row(group, place, logp) for place, logp in enumerate(logps)]
        rows += [row(equal, place, 0.0) for place in range(2)]
        cache.store(name, identity(name)).append(rows)
    with open_sql(tmp_path) as database:
        weights = dict(
            rows_of(
                database.query(
                    "SELECT prompt_id || reference, weight FROM weights(refs := ['a', 'b'])"
                )
            )
        )
        found = rows_of(
            database.query(
                "SELECT position, logp FROM virtual_reference(0.5, refs := ['b', 'a']) "
                "WHERE prompt_id = $id ORDER BY 1",
                {"id": group.prompt_id},
            )
        )
        radii = database.query(
            "SELECT radius FROM radius(0.3) WHERE prompt_id = $id", {"id": equal.prompt_id}
        )
    # b holds all responses equally likely, so a has all the weight; its clipped numbers are left.
    assert weights[group.prompt_id + "a"] == 1.0
    assert weights[group.prompt_id + "b"] == 0.0
    # All sums 0: nothing to share by, so the halves of 0.3; equal references weigh the same.
    assert radii["radius"].to_pylist() == [0.15, 0.15]
    assert weights[equal.prompt_id + "a"] == weights[equal.prompt_id + "b"] == 0.5
    sums = [abs(a - 7.0) for a in values["a"]]
    expected = [-7.0 - 0.5 * size / sum(sums) * 7.0 for size in sums]
    assert [logp for _, logp in found] == pytest.approx(expected, abs=1e-12)


def test_macros_agree_with_the_tensors_that_training_uses(world, database):
    torch = pytest.importorskip("torch")
    from mrpo_tools.maths import metrics, references
    from mrpo_tools.maths.judgements import Judgements
    from mrpo_tools.methods.combination import Combination, combine
    from mrpo_tools.methods.tensors import look_up, reference_accuracies

    tensors = look_up([world.cache.find(name) for name in NAMES], world.groups)
    expected = combine(tensors.logps, tensors.mask, Combination())
    weights = references.confidence_weights(tensors.logps, tensors.mask)
    radius = references.trust_region_radius(tensors.logps, tensors.mask, 0.1)
    rank = {group.group_id: g for g, group in enumerate(world.groups)}
    dropped = sum(tensors.dropped.values())
    assert 0 < dropped < tensors.mask.sum()

    virtual = rows_of(database.query("SELECT group_id, position, logp FROM virtual_reference(0.1)"))
    assert len(virtual) == int(tensors.mask.sum())
    for group_id, place, logp in virtual:
        assert tensors.mask[rank[group_id], place]
        assert logp == pytest.approx(float(expected.logps[rank[group_id], place]), abs=1e-9)
    for group_id, place, value in rows_of(
        database.query("SELECT group_id, position, radius FROM radius(0.1)")
    ):
        assert value == pytest.approx(float(radius[rank[group_id], place]), abs=1e-9)
    for group_id, name, weight in rows_of(
        database.query("SELECT group_id, reference, weight FROM weights()")
    ):
        assert weight == pytest.approx(float(weights[rank[group_id], NAMES.index(name)]), abs=1e-9)
    clipped = references.clip_to_trust_region(tensors.logps, radius)
    changed = (clipped != tensors.logps) & tensors.mask.unsqueeze(-1)
    moved = database.query("SELECT reference, sum(moved::INT) FROM trust_region(0.1) GROUP BY ALL")
    assert dict(rows_of(moved)) == dict(zip(NAMES, changed.sum((0, 1)).tolist(), strict=True))

    # One reference at a time, because a reference's own margin needs no other's number.
    for name in NAMES:
        alone = look_up([world.cache.find(name)], world.groups)
        margins = metrics.margins(alone.logps[..., 0], alone.judged)
        accuracy = metrics.accuracies(alone.logps[..., 0], alone.judged)
        for group_id, margin, share in rows_of(
            database.query("SELECT group_id, margin, accuracy FROM margins($name)", {"name": name})
        ):
            for found, tensor in ((margin, margins), (share, accuracy)):
                value = float(tensor[rank[group_id]])
                assert (found is None) == math.isnan(value)
                assert found is None or found == pytest.approx(value, abs=1e-9)
        averages = database.query(
            "SELECT avg(accuracy), avg(accuracy_per_token), avg(accuracy_per_byte) "
            "FROM margins($name)",
            {"name": name},
        )
        own = reference_accuracies(alone)
        assert list(rows_of(averages)[0]) == pytest.approx(
            [own[kind][0] for kind in ("summed", "per_token", "per_byte")], abs=1e-9
        )

    both = look_up([world.cache.find(name) for name in ("llama", "qwen")],
                   world.groups)  # fmt: skip
    tau = metrics.kendall_tau(
        both.logps[..., 0], Judgements(both.mask, torch.nan_to_num(both.logps[..., 1]), None)
    )
    for group_id, value in rows_of(
        database.query("SELECT group_id, tau FROM agreement('llama', 'qwen')")
    ):
        assert value == pytest.approx(float(tau[rank[group_id]]), abs=1e-9)


def test_macros_agree_on_numbers_of_real_models(cached, some_groups):
    """What three models scored, combined by the tensors of training and by SQL."""
    from mrpo_tools.methods.combination import Combination, combine
    from mrpo_tools.methods.tensors import look_up

    order = ["qwen", "llama", "mistral"]
    tensors = look_up([cached.find(name) for name in order], some_groups)
    expected = combine(tensors.logps, tensors.mask, Combination(epsilon_max=0.05))
    wanted = {
        (group.group_id, place): float(expected.logps[g, place])
        for g, group in enumerate(some_groups)
        for place in range(len(group.responses))
        if tensors.mask[g, place]
    }
    weights = {
        (group.group_id, name): float(expected.weights[g, k])
        for g, group in enumerate(some_groups)
        for k, name in enumerate(order)
    }
    with open_sql(cached.path) as database:
        given = {"refs": order}
        found = database.query(
            "SELECT group_id, position, logp FROM virtual_reference(0.05, refs := $refs)", given
        )
        shares = database.query(
            "SELECT group_id, reference, weight FROM weights(refs := $refs)", given
        )
    close({(g, p): value for g, p, value in rows_of(found)}, wanted)
    close({(g, name): value for g, name, value in rows_of(shares)}, weights)


@pytest.mark.parametrize("kind", ["world", "labelled"])
def test_margins_by_loops(kind, request):
    world = request.getfixturevalue(kind)
    expected = {}
    for group in world.groups:
        for name in NAMES:
            places = world.usable(group, [name])
            if not places:
                continue
            scores = [group.responses[place].score for place in places]
            if kind == "labelled":
                best = [p for p in places if group.responses[p].chosen]
                rest = [p for p in places if not group.responses[p].chosen]
                pairs = [(b, w) for b in best for w in rest]
            else:
                mean = sum(scores) / len(scores)
                best = [p for p in places if group.responses[p].score - mean > 1e-9]
                rest = [p for p in places if p not in best]
                pairs = [
                    (b, w)
                    for b in places
                    for w in places
                    if group.responses[b].score > group.responses[w].score
                ]
            logp = {place: world.logp(group, place, name) for place in places}
            margin = accuracy = None
            if best and rest:
                margin = sum(logp[p] for p in best) / len(best)
                margin -= sum(logp[p] for p in rest) / len(rest)
            if pairs:
                accuracy = sum(logp[b] > logp[w] for b, w in pairs) / len(pairs)
            expected[group.group_id, name] = (len(places), len(pairs), margin, accuracy)
    with open_sql(world.cache.path) as database:
        found = rows_of(
            database.query(
                "SELECT group_id, reference, responses, pairs, margin, accuracy FROM margins()"
            )
        )
    assert {row[:2] for row in found} == expected.keys()
    assert len(found) == len(expected)
    for group_id, name, *values in found:
        assert values == pytest.approx(list(expected[group_id, name]), abs=1e-9, nan_ok=True)


def test_agreement_by_loops(world, database):
    expected = {}
    for group in world.groups:
        places = world.usable(group, ("mistral", "llama"))
        pairs = list(itertools.combinations(places, 2))
        alike = sum(
            (world.logp(group, i, "mistral") > world.logp(group, j, "mistral"))
            == (world.logp(group, i, "llama") > world.logp(group, j, "llama"))
            for i, j in pairs
        )
        if pairs:
            expected[group.group_id] = (len(pairs), alike / len(pairs))
    table = database.query("SELECT group_id, pairs, agreement FROM agreement('mistral', 'llama')")
    assert {row[0]: row[1:] for row in rows_of(table)} == expected
    # Without ties tau-b is the share alike minus the share unlike.
    tau = database.query("SELECT max(abs(tau - (2 * agreement - 1))) FROM agreement()")
    assert tau.column(0)[0].as_py() < 1e-12


def test_groups_that_are_not_scored_completely_are_left_out(tmp_path):
    """Training would refuse them; a macro that showed them would show numbers that change later."""
    cache, groups = Cache(tmp_path), make_groups(10, seed=4)
    cache.save_groups("toy", groups)
    numbers = make_numbers(groups, 0)
    fill(cache, "a", groups, numbers)
    missing = next(group for group in groups if len(group.responses) > 1).response_ids[0]
    fill(cache, "b", groups, {key: one for key, one in numbers.items() if key != missing})
    with open_sql(tmp_path) as database:
        for name, expected in (("a", 10), ("b", 9)):
            found = database.query("FROM weights(refs := [$name])", {"name": name})
            assert len(set(found["group_id"].to_pylist())) == expected
            found = database.query("FROM margins($name)", {"name": name})
            assert found.num_rows == expected
        shown = {
            macro: set(database.query(f"SELECT group_id FROM {macro}()")["group_id"].to_pylist())
            for macro in ("virtual_reference", "trust_region", "radius", "weights", "agreement")
        }
    missed = next(group.group_id for group in groups if missing in group.response_ids)
    expected = {group.group_id for group in groups} - {missed}
    pairs = {group.group_id for group in groups if len(group.responses) > 1} - {missed}
    assert shown.pop("agreement") == pairs
    assert all(found == expected for found in shown.values())


def test_a_querys_own_names_do_not_reach_into_macros(world, database):
    """A common table expression called `logps` is the query's, not the macros'."""
    for name in ("logps", "judged_groups", "stored_judgements", "stored_logps_0", "numbers"):
        query = f"WITH {name} AS (SELECT 1 AS one) SELECT count(*), max(one) FROM weights(), {name}"
        assert rows_of(database.query(query)) == [(3 * len(world.groups), 1)]


def test_an_unknown_reference_is_named_with_the_known_ones(database):
    for call in ("margins('lama')", "weights(refs := ['llama', 'lama'])", "agreement('lama')"):
        with pytest.raises(UsageError, match=r"no reference lama in this cache \(llama, mistral"):
            database.query(f"SELECT * FROM {call}")


# Runs


def make_run(path: Path, **values: object) -> None:
    path.mkdir(parents=True)
    record = {
        "policy": {"model": "models/llama"},
        "references": ["llama@0123456789ab", "qwen@ba9876543210"],
        "dataset": {"source": "toy.jsonl"},
        "objective": "dpo",
    }
    (path / "run.json").write_text(json.dumps(record))
    (path / "recipe.yaml").write_text("loss: mrpo\nseed: 3\nsplit: train\nlora_r: 8\n")
    if values:
        (path / "metrics.json").write_text(json.dumps(values))


def test_runs_and_metrics_are_read_from_directories(world, tmp_path, capsys):
    make_run(tmp_path / "b", train_loss=0.5, report={"weights": [0.25, 0.75], "name": "x"})
    make_run(tmp_path / "a")
    make_run(tmp_path / "sweep" / "dpo" / "seed-0", train_loss=0.25)
    history = [{"step": 10, "loss": 0.75}, {"step": 20, "loss": 0.5, "rewards/margins": 0.125}]
    state = {"global_step": 20, "log_history": history}
    (tmp_path / "b" / "trainer_state.json").write_text(json.dumps(state))
    (tmp_path / "b" / "evaluation").mkdir()
    (tmp_path / "b" / "evaluation" / "test.json").write_text('{"accuracies": 0.75, "ok": true}')
    (tmp_path / "c").mkdir()
    make_run(tmp_path / "d")
    (tmp_path / "d" / "run.json").write_text("{")
    with open_sql(world.cache.path, runs=tmp_path) as database:
        runs = database.query("SELECT * FROM runs ORDER BY run").to_pylist()
        rank = database.query("SELECT run, (recipe->>'lora_r')::INT AS r FROM runs WHERE seed = 3")
        metrics = dict(
            rows_of(
                database.query("SELECT run || ':' || metric, value FROM metrics WHERE step IS NULL")
            )
        )
        log = database.query("SELECT run, step, metric, value FROM metrics WHERE step > 0")
    assert [run["run"] for run in runs] == ["a", "b", "sweep/dpo/seed-0"]
    assert [run["finished"] for run in runs] == [False, True, True]
    assert rows_of(log) == [
        ("b", 10, "loss", 0.75), ("b", 20, "loss", 0.5), ("b", 20, "rewards/margins", 0.125),
    ]  # fmt: skip
    assert runs[1]["loss"] == "mrpo"
    assert runs[1]["objective"] == "dpo"
    assert runs[1]["reference_names"] == ["llama@0123456789ab", "qwen@ba9876543210"]
    assert runs[1]["dataset"] == "toy.jsonl"
    assert rows_of(rank.sort_by("run")) == [("a", 8), ("b", 8), ("sweep/dpo/seed-0", 8)]
    assert metrics == {
        "b:train_loss": 0.5,
        "b:report.weights.0": 0.25,
        "b:report.weights.1": 0.75,
        "b:evaluation.test.accuracies": 0.75,
        "b:evaluation.test.ok": 1.0,
        "sweep/dpo/seed-0:train_loss": 0.25,
    }
    assert f"{tmp_path / 'd'} is left out" in capsys.readouterr().err
    with open_sql(world.cache.path, runs=tmp_path / "b") as database:
        assert database.query("SELECT run FROM runs").column(0).to_pylist() == ["b"]
    with pytest.raises(UsageError, match="no directory"):
        open_sql(world.cache.path, runs=tmp_path / "absent")


ODD_RUNS = {
    "a number for a name": '{"objective": 5}',
    "a text for a list": '{"references": "llama"}',
    "lists of lists": '{"references": [["llama"]]}',
    "a number for a policy": '{"policy": 7}',
    "a list for a model": '{"policy": {"model": []}}',
    "half a letter": '{"objective": "\\ud800"}',
    "no object": "[]",
    "depth": "[" * 100_000,
}
ODD_NUMBERS = {
    "metrics.json": f'{{"train_loss": {"9" * 400}}}',
    "trainer_state.json": '{"log_history": [{"step": "first", "loss": 1}]}',
    "recipe.yaml": f"seed: {2**70}",
    "evaluation/test.json": "7",
}


@pytest.mark.parametrize(
    ("file", "content"),
    [*(("run.json", one) for one in ODD_RUNS.values()), *ODD_NUMBERS.items()],
    ids=[*ODD_RUNS, *ODD_NUMBERS],
)
def test_an_odd_run_is_left_out_and_told(world, tmp_path, capsys, file, content):
    make_run(tmp_path / "good", train_loss=0.5)
    make_run(tmp_path / "odd", train_loss=0.25)
    (tmp_path / "odd" / "evaluation").mkdir()
    (tmp_path / "odd" / file).write_text(content)
    with open_sql(world.cache.path, runs=tmp_path) as database:
        assert database.query("SELECT run FROM runs").column(0).to_pylist() == ["good"]
        assert database.query("SELECT DISTINCT run FROM metrics").column(0).to_pylist() == ["good"]
    err = capsys.readouterr().err
    assert err.startswith(f"warning: {tmp_path / 'odd'} is left out of the views")
    assert err.count("\n") == 1


# Files that are not what they were


def damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "flip":
        content[len(content) // 2] ^= 4
    elif kind == "truncated":
        del content[len(content) // 2 :]
    elif kind == "empty":
        content.clear()
    path.write_bytes(content if kind != "foreign" else b"something else")


@pytest.mark.parametrize("kind", ["flip", "truncated", "empty", "foreign"])
@pytest.mark.parametrize("which", ["part", "groups", "identity"])
def test_a_damaged_file_is_refused_by_name(world, tmp_path, kind, which):
    copy = tmp_path / "cache"
    shutil.copytree(world.cache.path, copy)
    pattern = {"part": "references/m*/part-*", "groups": "groups/*", "identity": "*/q*/identity*"}
    path = next(copy.glob(pattern[which]))
    damage(path, kind)
    with pytest.raises(CacheDamaged, match=re.escape(str(path))) as caught:
        open_sql(copy)
    assert caught.value.exit_code == 3


def test_no_flipped_bit_is_missed(world, tmp_path):
    copy = tmp_path / "cache"
    shutil.copytree(world.cache.path, copy)
    paths = sorted(path for path in copy.rglob("*") if path.is_file())
    rng = random.Random(0)
    for _ in range(60):
        path = rng.choice(paths)
        whole = path.read_bytes()
        broken = bytearray(whole)
        broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        with pytest.raises(CacheDamaged, match=re.escape(str(path))):
            open_sql(copy)
        path.write_bytes(whole)
    open_sql(copy).close()


def test_every_damaged_file_is_named_at_once(world, tmp_path):
    copy = tmp_path / "cache"
    shutil.copytree(world.cache.path, copy)
    paths = sorted(copy.glob("references/llama*/part-*"))[:2]
    paths += [next(copy.glob("references/q*/identity.json")), next(copy.glob("groups/*"))]
    for path in paths:
        damage(path, "flip")
    with pytest.raises(CacheDamaged) as caught:
        open_sql(copy)
    assert all(str(path) in str(caught.value) for path in paths)


def renamed(path: Path, table: pa.Table, metadata: dict[str, str]) -> Path:
    """A file in place of another, under the hash of its own bytes."""
    from mrpo_tools.cache import write_content_addressed

    path.unlink()
    return write_content_addressed(path.parent, "part-", table, metadata)


def test_honest_files_in_the_wrong_place_are_refused(world, tmp_path):
    copy = tmp_path / "cache"
    shutil.copytree(world.cache.path, copy)
    path = next(copy.glob("references/llama*/part-*"))
    table = pq.read_table(path)
    footer = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    path = renamed(path, table, {**footer, "mrpo.format_version": "99"})
    with pytest.raises(CacheStale, match="format 99"):
        open_sql(copy)
    path = renamed(path, table, {**footer, "mrpo.identity": "0" * 64})
    with pytest.raises(CacheDamaged, match="another reference's identity"):
        open_sql(copy)
    path = renamed(path, table, {"mrpo.format_version": ""})
    with pytest.raises(CacheDamaged, match="no format_version"):
        open_sql(copy)
    path = renamed(path, table.drop_columns(["logp"]), footer)
    with pytest.raises(CacheDamaged, match="other columns"):
        open_sql(copy)


def test_a_part_with_more_columns_is_read(world, tmp_path):
    copy = tmp_path / "cache"
    shutil.copytree(world.cache.path, copy)
    path = next(copy.glob("references/llama*/part-*"))
    table = pq.read_table(path)
    footer = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    more = table.append_column("token_logps", pa.array([[-1.0]] * table.num_rows))
    renamed(path, more, footer)
    with open_sql(copy) as database:
        found = database.query("SELECT count(*) FROM logps WHERE reference = 'llama'")
    assert found.column(0)[0].as_py() == len(world.numbers["llama"])


def test_there_is_no_cache(tmp_path):
    with pytest.raises(CacheMissing, match="no cache at"):
        open_sql(tmp_path / "absent")
    Cache(tmp_path).store("m", identity("m"))
    with pytest.raises(CacheMissing, match="'other' has no log-probs"):
        open_sql(tmp_path, references=["other"])


def test_files_may_go_away_while_a_query_runs(world, tmp_path):
    """Compaction deletes what it merged; what was verified stays readable."""
    copy = tmp_path / "cache"
    shutil.copytree(world.cache.path, copy)
    with open_sql(copy) as database:
        shutil.rmtree(copy)
        assert database.query("SELECT * FROM logps").num_rows == 3 * len(world.numbers["qwen"])
        assert database.query("SELECT * FROM weights()").num_rows == 3 * len(world.groups)


def test_a_file_that_goes_away_before_it_is_read_is_listed_again(world, tmp_path, monkeypatch):
    """Parts merged into a new one between listing and reading: the new one is found."""
    copy = tmp_path / "cache"
    shutil.copytree(world.cache.path, copy)
    store = Cache(copy).find("llama")
    parts = store.part_paths()
    tables = [pq.read_table(path) for path in parts]
    original = database_module.rows._open
    merged = []

    def merge_first(path, schema):
        if not merged and path in parts:
            metadata = {
                key.decode(): value.decode() for key, value in tables[0].schema.metadata.items()
            }
            everything = pa.concat_tables([one.replace_schema_metadata(None) for one in tables])
            for other in parts[1:]:
                other.unlink()
            merged.append(renamed(parts[0], everything, metadata))
        return original(path, schema)

    monkeypatch.setattr(database_module.rows, "_open", merge_first)
    with open_sql(copy) as database:
        found = database.query("SELECT count(*) FROM logps WHERE reference = 'llama'")
    assert merged
    assert found.column(0)[0].as_py() == len(world.numbers["llama"])


# Queries


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
    assert database.query("SELECT 1 AS one").to_pylist() == [{"one": 1}]


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


# Saved queries


def test_every_saved_query_answers(database):
    for saved in SAVED:
        assert database.query(saved.sql, saved.params).num_rows > 0, saved.name


def saved_rows(path: Path, name: str, **params: object) -> list[dict]:
    saved = next(one for one in SAVED if one.name == name)
    with open_sql(path) as database:
        return database.query(saved.sql, {**saved.params, **params}).to_pylist()


def test_saved_queries_say_what_they_promise(tmp_path):
    """Two groups of two, two references: `a` ranks both right, `b` only the first."""
    cache = Cache(tmp_path)
    groups = [
        Group(user_prompt(prompt), (Response("good " * size, 1.0), Response("bad", 0.0)))
        for prompt, size in (("first", 1), ("second", 9))
    ]
    cache.save_groups("toy", groups)
    for name, logps in {"a": [-1, -2, -3, -5], "b": [-1, -2, -30, -5]}.items():
        rows = [row(groups[n // 2], n % 2, float(logp)) for n, logp in enumerate(logps)]
        cache.store(name, identity(name)).append(rows)
    best = saved_rows(tmp_path, "best-reference")
    assert [(one["reference"], one["accuracy"], one["pairs"]) for one in best] == [
        ("a", 1.0, 2),
        ("b", 0.5, 2),
    ]
    assert best[1]["margin"] == ((-1 + 2) + (-30 + 5)) / 2
    worst = saved_rows(tmp_path, "disagreements", n=1)
    assert [(one["prompt"], one["agreement"], one["tau"]) for one in worst] == [("second", 0, -1)]
    # Sums of a and b are 2, 4 and 33, 10. Radii at 0.1: 1/30, 1/15 and 33/430, 1/43. Only b's -30
    # lies outside, and moves to -3 * (1 + 33/430).
    clipped = {one["reference"]: one for one in saved_rows(tmp_path, "clipped")}
    assert clipped["a"]["clipped_share"] == 0
    assert clipped["b"]["clipped_share"] == 0.25
    assert clipped["b"]["max_move_nats"] == pytest.approx(30 - 3 * (1 + 33 / 430))
    found = saved_rows(tmp_path, "outliers", n=1)
    odd = {(one["reference"], one["kind"]): one for one in found}
    assert len(odd) == len(found) == 4
    assert odd["a", "longest"]["content"] == ("good " * 9)
    assert odd["a", "oddest"]["nats_per_byte"] == -5 / 3
    assert odd["b", "oddest"]["content"] == "bad"
    scores = {one["reference"]: one for one in saved_rows(tmp_path, "scores")}
    # Scores 1, 0, 1, 0 against -1, -2, -3, -5: covariance 3/8, deviations 1/2 and sqrt(35)/4.
    assert scores["a"]["score_logp"] == pytest.approx(0.375 / (0.5 * math.sqrt(35) / 4))


# Formats


def written(table: pa.Table, format: str) -> bytes:
    sink = io.BytesIO()
    write(table, format, sink)
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
    parsed = list(csv.reader(io.StringIO(text)))
    assert parsed[2][1] == 'a,"b"\n|c'


def test_json_is_strict_and_tells_null_from_nan(odd_table):
    def refuse(word):
        raise AssertionError(word)

    rows = json.loads(written(odd_table, "json"), parse_constant=refuse)
    lines = written(odd_table, "jsonl").decode().splitlines()
    assert [json.loads(line, parse_constant=refuse) for line in lines] == rows
    assert [one["value"] for one in rows] == [1.5, "NaN", "-Infinity"]
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
    table = pa.table(
        {"text": ["x" * 100, "日本" * 40, "\x1b[31mred\x07\u202e", "é"], "n": range(4)}
    )
    lines = written(table, "table").decode().splitlines()
    assert lines[2].startswith("x" * 59 + "…  ")
    assert lines[3].count("日") == 15
    assert lines[4].startswith("\\x1b[31mred\\x07\\u202e ")
    assert not any(ord(char) < 32 or char == "\u202e" for line in lines for char in line)
    # The last column starts in one place of the screen on every line.
    double = [sum(unicodedata.east_asian_width(char) in "WF" for char in line) for line in lines]
    combining = [sum(map(bool, map(unicodedata.combining, line))) for line in lines]
    widths = [
        len(line) + more - less for line, more, less in zip(lines, double, combining, strict=True)
    ]
    assert len(set(widths[:6])) == 1


def test_every_type_of_the_engine_has_a_text(database):
    table = database.query(
        "SELECT sum(range) AS huge, 1.50::DECIMAL(9, 2) AS price, DATE '2024-02-29' AS day, "
        "TIMESTAMP '2024-02-29 12:00:00.5' AS at, TIME '01:02:03' AS time, INTERVAL 3 DAY AS gap, "
        "'ab'::BLOB AS bytes, {'a': [1, NULL], 'b': 'nan'::DOUBLE} AS struct, MAP {'k': 1} AS map, "
        "'x'::ENUM('x', 'y') AS enum, uuid() IS NOT NULL AS id, '{\"a\": 1}'::JSON AS json, "
        "NULL AS nothing FROM range(3)"
    )
    row = json.loads(written(table, "jsonl"))
    assert row["huge"] == 3
    assert row["price"] == 1.5
    assert row["day"] == "2024-02-29"
    assert row["at"] == "2024-02-29T12:00:00.500000"
    assert row["time"] == "01:02:03"
    assert row["bytes"] == "6162"
    assert row["struct"] == {"a": [1, None], "b": "NaN"}
    assert row["map"] == {"k": 1}
    assert row["enum"] == "x"
    assert row["nothing"] is None
    for format in ("table", "csv", "markdown", "json"):
        assert written(table, format)
    with pytest.raises(UsageError, match="parquet cannot hold"):
        written(table, "parquet")


@pytest.mark.parametrize("format", FORMATS)
def test_equal_names_and_no_rows(database, format):
    assert written(database.query("SELECT 1 AS a, 2 AS a, 3 AS a_1"), format)
    both = json.loads(written(database.query("SELECT 1 AS a, 2 AS a"), "jsonl"))
    assert both == {"a": 1, "a_1": 2}
    empty = written(database.query("SELECT * FROM runs WHERE false"), format)
    expected = {"json": b"[\n]\n", "jsonl": b""}
    assert empty == expected.get(format, empty)
    if format == "table":
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


def test_a_full_disk_is_told_as_one(database):
    with pytest.raises(ResourceError, match="No space left") as caught:
        write(database.query("SELECT * FROM range(100000)"), "csv", Path("/dev/full"))
    assert caught.value.exit_code == 4
    assert Path("/dev/full").is_char_device()


# The command


def test_the_command_answers(world, tmp_path):
    found = run_cli("SELECT count(*) AS n FROM logps", "--cache", world.cache.path)
    expected = sum(map(len, world.numbers.values()))
    assert found.stdout.decode().split() == ["n", "───", str(expected), "(1", "row)"]
    assert found.stderr == b""
    assert found.returncode == 0


def test_the_command_reads_files_stdin_and_parameters(world, tmp_path):
    query = "SELECT $text AS text, $number + 1 AS number, $list[2] AS item, $id AS id"
    (tmp_path / "query.sql").write_text(query, encoding="utf-8-sig")
    params = ["text=12 a", "number=0.5", 'list=["x", "y"]', "id=12345678901234567890123456789012"]
    options = ["--cache", world.cache.path, "--format", "jsonl"]
    options += [word for param in params for word in ("--param", param)]
    expected = {
        "text": "12 a",
        "number": 1.5,
        "item": "y",
        "id": "12345678901234567890123456789012",
    }
    for asked, text in ((["-f", tmp_path / "query.sql"], None), (["-"], query.encode())):
        found = run_cli(*asked, *options, input=text)
        assert json.loads(found.stdout) == expected, found.stderr


def test_the_command_uses_the_projects_cache_and_writes_files(world, tmp_path):
    (tmp_path / "mrpo.yaml").write_text(f"cache: {world.cache.path}\n")
    found = run_cli("--saved", "best-reference", "-o", "best.md", cwd=tmp_path)
    assert (found.returncode, found.stdout, found.stderr) == (0, b"", b"")
    assert (tmp_path / "best.md").read_text().startswith("| reference | groups |")
    found = run_cli(
        "FROM virtual_reference($eps)", "--param", "eps=0.2", "--refs", "qwen,llama", "-o",
        "out.parquet", cwd=tmp_path,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    table = pq.read_table(tmp_path / "out.parquet")
    expected = loops_virtual(world, ("qwen", "llama"), 0.2)
    close({(r["group_id"], r["position"]): r["logp"] for r in table.to_pylist()}, expected)


def in_process(capfd, *arguments: object) -> tuple[int, str, str]:
    from mrpo_tools.cli import run

    code = run(["sql", *map(str, arguments)])
    out, err = capfd.readouterr()
    return code, out, err


def test_without_a_query_the_command_lists_everything(world, capfd):
    code, out, _ = in_process(capfd, "--cache", world.cache.path)
    assert code == 0
    for listed in (*VIEWS, *MACROS, *SAVED):
        assert re.search(rf"^  {re.escape(listed.name)}[(:]", out, re.MULTILINE), listed.name
        assert all(column in out for column in getattr(listed, "columns", ()))
    for name in NAMES:
        assert f"{name}@" in out
    assert len(SAVED) == 5


def test_mistakes_end_with_the_promised_exit_code(world, tmp_path, capfd):
    cache = ["--cache", world.cache.path]
    (tmp_path / "latin.sql").write_bytes(b"SELECT '\xe9'")
    cases = [
        (["SELECT * FROM logpz", *cache], 2, "Table with name logpz does not exist"),
        (["SELECT 1", "--saved", "clipped", *cache], 2, "more than one query"),
        (["--saved", "cliped", *cache], 2, "clipped"),
        (["-f", tmp_path / "absent.sql", *cache], 2, "absent.sql"),
        (["-f", tmp_path / "latin.sql", *cache], 2, "latin.sql cannot be read"),
        (["SELECT '\udc80'", *cache], 2, "not Unicode"),
        (["SELECT DATE '-5000-01-01'", *cache], 2, "cast the column"),
        (["SELECT $a", "--param", "a", *cache], 2, "NAME=VALUE"),
        (["SELECT 1", "--format", "xml", *cache], 2, "xml"),
        (["SELECT 1", "--runs", tmp_path / "absent", *cache], 2, "no directory"),
        (["SELECT 1", "-o", world.cache.path / "x.csv", *cache], 2, "inside the cache"),
        (["SELECT 1", "-o", tmp_path / "absent" / "x.csv", *cache], 2, "cannot write"),
        (["SELECT 1", "--memory-limit", "lots", *cache], 2, "no size"),
        (["SELECT 1", "--timeout", "0", *cache], 2, "timeout"),
        (["SELECT 1", "--cache", tmp_path / "absent"], 3, "no cache at"),
        (["SELECT 1", "--refs", "other", *cache], 3, "other"),
        (["SELECT 1", "-o", "/dev/full", *cache], 4, "No space left"),
    ]
    for arguments, code, message in cases:
        found, out, err = in_process(capfd, *arguments)
        assert found == code, (arguments, err)
        assert message in err
        assert out == ""


def test_a_damaged_cache_ends_with_3_and_the_files_name(world, tmp_path, capfd):
    copy = tmp_path / "cache"
    shutil.copytree(world.cache.path, copy)
    path = next(copy.glob("references/qwen*/part-*"))
    damage(path, "flip")
    code, _, err = in_process(capfd, "SELECT 1", "--cache", copy)
    assert code == 3
    assert str(path) in err
    assert "mrpo cache repair" in err


def test_a_reader_that_stops_early_is_no_error(world):
    """`mrpo sql … | head -1`"""
    command = [sys.executable, "-m", "mrpo_tools", "sql", "SELECT * FROM range(1000000)"]
    command += ["--cache", str(world.cache.path), "--format", "csv"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout.readline() == b"range\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode in (0, 1)


def test_the_command_works_without_torch(world, tmp_path):
    """A macro, in a Python in which torch and transformers cannot be imported."""
    program = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from mrpo_tools.cli import run\n"
        "query = 'SELECT count(*) FROM weights()'\n"
        f"cache = {str(world.cache.path)!r}\n"
        "sys.exit(run(['sql', query, '--cache', cache, '--format', 'csv']))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, cwd=ROOT, timeout=60, text=True
    )
    assert found.stdout.split() == ["count_star()", str(3 * len(world.groups))], found.stderr


def test_the_formats_of_the_command_are_the_formats():
    from mrpo_tools.cli import sql as command

    assert tuple(FORMATS) == words.choices(words.ResultFormat)
    assert set(command.SUFFIXES.values()) == set(FORMATS) - {"table"}


# The documentation


def test_the_documentation_is_true(world, tmp_path):
    """Every query of docs/sql.md runs; every view, macro and saved query is in it."""
    text = (ROOT / "docs" / "sql.md").read_text(encoding="utf-8")
    queries = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    assert len(queries) >= 5
    make_run(tmp_path / "a", train_loss=0.5)
    with open_sql(world.cache.path, runs=tmp_path) as database:
        for query in queries:
            database.query(query)
    for listed in (*VIEWS, *MACROS, *SAVED):
        assert f"`{listed.name}" in text, listed.name
    for macro in MACROS:
        assert f"`{macro.name}({macro.arguments})`" in text
    for view in VIEWS:
        assert all(column in text for column in view.columns), view.name


def test_the_documented_python_runs(world, tmp_path, monkeypatch):
    text = (ROOT / "docs" / "sql.md").read_text(encoding="utf-8")
    program = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    (tmp_path / "cache").symlink_to(world.cache.path)
    monkeypatch.chdir(tmp_path)
    exec(program, {})
    assert (tmp_path / "means.csv").read_text().startswith("reference,")


def test_messages_of_a_prompt_are_text(tmp_path):
    """A conversation is shown turn by turn."""
    cache = Cache(tmp_path)
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    cache.save_groups("toy", [Group(turns, (Response("x", 1.0),))])
    with open_sql(tmp_path) as database:
        found = database.query("SELECT prompt, turns FROM groups").to_pylist()
    assert found == [{"prompt": "user: a\n\nassistant: b\n\nuser: c", "turns": 3}]
