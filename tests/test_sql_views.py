"""The views of `mrpo sql`: what the store holds, every row once."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from sql_world import (
    NAMES,
    ask,
    cache_of,
    fill,
    identity,
    make_groups,
    make_numbers,
    one_column,
    row,
    rows_of,
)

from mrpo_tools.cache import STATUSES, Cache, LogpRow
from mrpo_tools.errors import CacheStale, UsageError
from mrpo_tools.messages import Message
from mrpo_tools.sql import MACROS, VIEWS, open_sql


def test_responses_are_the_groups_responses(world, database):
    expected = [
        (group.group_id, group.prompt_id, group.response_ids[place], "toy", group.split, place,
         response.content, response.score, response.chosen, response.model, None, None)
        for group in world.groups
        for place, response in enumerate(group.responses)
    ]  # fmt: skip
    assert Counter(ask(database, "SELECT * FROM responses")) == Counter(expected)


def test_groups_show_the_prompt_as_text(world, database):
    rows = ask(database, "SELECT group_id, prompt, turns, responses, source_id FROM groups")

    def text(turns: tuple[Message, ...]) -> str:
        talk = "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns)
        return turns[0].content if len(turns) == 1 else talk

    assert sorted(rows) == sorted(
        (group.group_id, text(group.prompt), len(group.prompt), len(group.responses),
         group.source_id)
        for group in world.groups
    )  # fmt: skip


def test_logps_are_the_rows_of_every_reference(world, database):
    status = "CASE WHEN truncated THEN 'truncated' ELSE status END"
    rows = ask(database, f"SELECT reference, response_id, logp, {status} FROM logps")
    assert Counter(rows) == Counter(
        (name, key, *number) for name in NAMES for key, number in world.numbers[name].items()
    )


def test_logps_wide_has_a_column_per_reference(world, database):
    rows = ask(database, "SELECT response_id, llama, mistral, qwen FROM logps_wide")
    assert Counter(rows) == Counter(
        (key, *(world.numbers[name][key][0] for name in NAMES)) for key in world.numbers["llama"]
    )


def test_refs_count_rows_by_status(world, database):
    refs = database.query("SELECT * FROM refs").to_pylist()
    assert [ref["reference"] for ref in refs] == list(NAMES)
    assert any(ref["truncated"] for ref in refs)
    for ref in refs:
        statuses = Counter(status for _, status in world.numbers[ref["name"]].values())
        assert ref["rows"] == statuses.total()
        assert ref["truncated"] == statuses["truncated"]
        statuses["ok"] += statuses["truncated"]
        assert all(ref[status] == statuses[status] for status in STATUSES)
        store = world.cache.find(ref["name"])
        assert (ref["identity"], ref["model"]) == (store.short, f"hub/{ref['name']}")
        assert ref["parts"] == len(store.part_paths()) == 3
        assert ref["bytes"] == sum(path.stat().st_size for path in store.part_paths())
        assert ref["created"] <= ref["updated"]


def test_what_is_listed_is_there(database):
    """What the overview promises is what a query finds, and nothing that the views are made of."""
    for query in ("SHOW TABLES", " show all tables ; "):
        assert one_column(database, query) == sorted(view.name for view in VIEWS)
    for view in VIEWS:
        columns = tuple(database.query(f"SELECT * FROM {view.name} LIMIT 0").schema.names)
        expected = ("response_id", *NAMES) if view.name == "logps_wide" else view.columns
        assert columns == expected, view.name
    for macro in MACROS:
        columns = database.query(f"SELECT * FROM {macro.name}() LIMIT 0").schema.names
        assert tuple(columns) == macro.columns, macro.name


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
    cache = cache_of(tmp_path, groups := make_groups(6))
    fill(cache, "a", groups[:4], make_numbers(groups, 0))
    fill(cache, "b", groups[2:], make_numbers(groups, 1))
    with open_sql(tmp_path) as database:
        counts = ask(database, "SELECT count(*), count(a), count(b) FROM logps_wide")
    sizes = [len(group.responses) for group in groups]
    assert counts == [(sum(sizes), sum(sizes[:4]), sum(sizes[2:]))]


def test_two_identities_of_one_name_are_told_apart(tmp_path):
    cache = cache_of(tmp_path, groups := make_groups(3))
    stores = [fill(cache, "m", groups, make_numbers(groups, n), revision=str(n)) for n in (0, 1)]
    with open_sql(tmp_path) as database:
        labels = one_column(database, "SELECT reference FROM refs")
        assert sorted(labels) == sorted(f"m@{store.short[:4]}" for store in stores)
        columns = database.query("SELECT * FROM logps_wide").schema.names
        assert sorted(columns) == sorted(["response_id", *labels])
        with pytest.raises(UsageError, match="no reference m in this cache"):
            database.query("SELECT * FROM margins('m')")
        short = database.query("FROM margins($name)", {"name": f"m@{stores[0].short[:5]}"})
        assert set(short["reference"].to_pylist()) == {f"m@{stores[0].short[:4]}"}
    with open_sql(tmp_path, references=[f"m@{stores[1].short[:3]}"]) as database:
        assert one_column(database, "SELECT reference FROM refs") == ["m"]
    with pytest.raises(CacheStale, match="2 identities"):
        open_sql(tmp_path, references=["m"])


@pytest.mark.parametrize(
    "names",
    [("Llama", "llama"), ("response_id", "b"), ("it's", 'a"b'), ("a b", "select"), ("é", "x;--")],
)
def test_any_name_is_a_column(tmp_path, names):
    """Also names that differ in case alone, for SQL does not tell such columns apart."""
    cache = cache_of(tmp_path, groups := make_groups(2))
    numbers = {name: make_numbers(groups, seed) for seed, name in enumerate(names)}
    for name in names:
        fill(cache, name, groups, numbers[name])
    with open_sql(tmp_path) as database:
        wide = database.query("SELECT * FROM logps_wide")
        labels = dict(ask(database, "SELECT name, reference FROM refs"))
        for name in names:
            logps = dict(rows_of(wide.select(["response_id", labels[name]])))
            assert logps == {key: number for key, (number, _) in numbers[name].items()}
            assert database.query("FROM weights(refs := [$name])", {"name": name}).num_rows == 2


def test_of_rows_present_twice_the_earliest_part_counts(tmp_path):
    """Also within one part, where the first row counts; the same rows as the store's own table."""
    cache = cache_of(tmp_path, groups := make_groups(5))
    store = cache.store("m", identity("m"))
    every = [(group, place) for group in groups for place in range(len(group.responses))]
    store.append([row(*response, -1.0) for response in every[:4]])
    store.append([row(*response, -2.0) for response in every[2:6]])
    store.append([row(*response, -3.0) for response in [*every[5:], every[7], every[7]]])
    store.append([row(*response, -4.0) for response in every[:3]])
    with open_sql(tmp_path) as database:
        rows = ask(database, "SELECT response_id, logp FROM logps")
        assert one_column(database, "SELECT rows FROM refs") == [len(every)]
    expected = {
        group.response_ids[place]: -1.0 if n < 4 else -2.0 if n < 6 else -3.0
        for n, (group, place) in enumerate(every)
    }
    assert sorted(rows) == sorted(expected.items())
    assert sorted(rows) == sorted(rows_of(store.table().select(["response_id", "logp"])))


def test_rows_with_other_ids_are_told_apart_too(tmp_path):
    """Ids that are no 32 hexadecimal digits take the slow road to the same end."""
    store = Cache(tmp_path).store("m", identity("m"))
    for logp, keys in ((-1.0, ["a", "bb", "a"]), (-2.0, ["bb", "c"]), (-3.0, [])):
        store.append([LogpRow(key, "p", logp, 1, 1, "ok", False, "") for key in keys])
    with open_sql(tmp_path) as database:
        rows = ask(database, "SELECT response_id, logp FROM logps ORDER BY 1")
    assert rows == [("a", -1.0), ("bb", -1.0), ("c", -2.0)]


def test_of_groups_saved_twice_the_latest_file_counts(tmp_path):
    cache, groups = Cache(tmp_path), make_groups(8)
    saved = [
        cache.save_groups(dataset, groups[start:stop])
        for dataset, start, stop in (("old", 0, 3), ("middle", 2, 8), ("new", 1, 4))
    ]
    for age, path in enumerate(reversed(saved)):
        os.utime(path, (1e9 - age, 1e9 - age))
    expected = {group.group_id: "middle" for group in groups}
    expected |= {groups[0].group_id: "old"} | {group.group_id: "new" for group in groups[1:4]}
    with open_sql(tmp_path) as database:
        for view in ("groups", "responses"):
            rows = ask(database, f"SELECT DISTINCT group_id, dataset FROM {view}")
            assert sorted(rows) == sorted(expected.items())


def test_a_group_twice_in_one_file_is_one_group(tmp_path):
    groups = make_groups(3)
    cache = cache_of(tmp_path, [*groups, groups[1]])
    numbers = make_numbers(groups, 0)
    fill(cache, "m", groups, numbers)
    with open_sql(tmp_path) as database:
        assert database.query("SELECT * FROM groups").num_rows == 3
        assert database.query("SELECT * FROM weights()").num_rows == 3
        assert database.query("SELECT * FROM responses").num_rows == len(numbers)
