"""The data that was computed: of a data set the latest file counts, alone, for every reader."""

from __future__ import annotations

import os

import pytest
from stores import pairs, rows_of

from mrpo_tools.cache import Cache, datasets, upkeep
from mrpo_tools.cache.coverage import coverage
from mrpo_tools.cache.pairs import export_pairs
from mrpo_tools.evaluation.rank import cached_groups
from mrpo_tools.groups import Group, Response, user_prompt
from mrpo_tools.sql import open_sql


def saved_groups(cache: Cache, column: str) -> list[str]:
    """A column of the view `groups`, sorted."""
    cache.references_path.mkdir(exist_ok=True)
    with open_sql(cache.path) as database:
        return sorted(database.query(f"SELECT {column} FROM groups")[column].to_pylist())


@pytest.mark.parametrize("compacted", [False, True])
def test_a_corrected_label_takes_the_wrong_one_away(cache, store, compacted):
    """In ranking, export, status and SQL alike, though the group's id is another one."""

    def pair(n: int, *labels: bool) -> Group:
        responses = (Response(text, chosen=label) for text, label in zip("ab", labels, strict=True))
        return Group(user_prompt(f"q{n}"), tuple(responses))

    wrong = [pair(0, True, False), pair(1, True, False)]
    right = [wrong[0], pair(1, False, True)]
    store.append(rows_of(right))
    cache.save_groups("some", wrong)
    cache.save_groups("some", right)
    if compacted:
        assert upkeep.compact(cache)[-1] == upkeep.Merged("groups", 2, 1, 2)
    assert cached_groups(cache, "all") == right
    assert export_pairs(cache, store).table["chosen"].to_pylist() == ["a", "b"]
    assert sum(cell.responses for cell in coverage(cache)) == 4
    assert saved_groups(cache, "group_id") == sorted(group.group_id for group in right)
    with open_sql(cache.path) as database:
        margins = database.query("SELECT margin FROM margins()")["margin"].to_pylist()
    assert sorted(margins) == [-1.0, 1.0]


def test_overlapping_data_sets_keep_all_their_groups(cache, store):
    """Named, each is whole; together a group counts once, as the latest data set has it."""
    groups = [Group(user_prompt(f"q{n}"), (Response("a", 1.0), Response("b", 2.0)), split="train")
              for n in range(4)]  # fmt: skip
    store.append(rows_of(groups))
    cache.save_groups("small", groups[:2])
    cache.save_groups("large", [group.with_split("test") for group in groups])
    assert upkeep.compact(cache)[-1] == upkeep.Merged("groups", 2, 2, 0)
    assert [group.split for group in cached_groups(cache, "all", "small")] == ["train"] * 2
    assert export_pairs(cache, store, "small").table.num_rows == 2
    assert export_pairs(cache, store).table.num_rows == 4
    assert [(cell.dataset, cell.split, cell.ok) for cell in coverage(cache)] == [
        ("large", "test", 8), ("small", "train", 4),
    ]  # fmt: skip
    assert saved_groups(cache, "dataset") == ["large"] * 4
    with open_sql(cache.path) as database:
        assert database.query("SELECT * FROM margins()").num_rows == 4
        named = "SELECT * FROM margins() JOIN datasets USING (group_id) WHERE datasets.dataset = $d"
        assert database.query(named, {"d": "small"}).num_rows == 2
        assert database.query(named, {"d": "large"}).num_rows == 4


def test_fewer_groups_than_before_are_told(cache, capsys):
    groups = pairs(3)
    cache.save_groups("some", groups)
    assert capsys.readouterr().err == ""
    cache.save_groups("some", groups[:2])
    assert "data set 'some' of the cache is 2 groups now; the 3 saved" in capsys.readouterr().err
    assert len(cached_groups(cache, "all")) == 2
    cache.save_groups("some", groups)
    assert (len(cached_groups(cache, "all")), capsys.readouterr().err) == (3, "")


def test_of_files_of_one_moment_the_same_one_counts_everywhere(cache):
    """Of two files of the same time every reader, and compaction, takes the same one."""
    groups = pairs(3)
    path = cache.save_groups("some", groups)
    saved = datasets.load(path)
    datasets.write(cache.groups_path, saved.table.slice(1), saved.created, "other")
    assert len(list(cache.groups_path.iterdir())) == 2
    before = cached_groups(cache, "all")
    assert saved_groups(cache, "group_id") == sorted(group.group_id for group in before)
    upkeep.compact(cache)
    assert cached_groups(cache, "all") == before


def test_the_latest_data_is_told_by_its_footer(cache):
    """Copies and backups change a file's time, and clocks go back; what was saved last stays so."""
    groups = pairs(1)
    first = cache.save_groups("some", groups)
    second = cache.save_groups("some", [groups[0].with_split("test")])
    third = Cache(cache.path, clock=lambda: 0.0).save_groups("some", groups)
    assert len({first, second, third}) == 3
    os.utime(second, (2e9, 2e9))
    assert cache.groups_table()["split"].to_pylist() == [None]
    cache.references_path.mkdir()
    with open_sql(cache.path) as database:
        assert database.query("SELECT split FROM groups").to_pylist() == [{"split": None}]
