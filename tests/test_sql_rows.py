"""Files of a cache that are not what they were: refused by name, or read as they were.

Each kind of damage to each kind of file, and flipped bits, are in test_durability.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sql_world import one_column

from mrpo_tools.cache import LOGPS_SCHEMA, Cache, write_content_addressed
from mrpo_tools.errors import CacheDamaged, CacheStale
from mrpo_tools.sql import open_sql
from mrpo_tools.sql.rows import verified

LLAMAS = "SELECT count(*) FROM logps WHERE reference = 'llama'"


@pytest.fixture
def copy(world, tmp_path) -> Path:
    """The cache of `world`, to be damaged."""
    return Path(shutil.copytree(world.cache.path, tmp_path / "cache"))


@pytest.fixture
def part(copy) -> Path:
    """One of llama's parts in it."""
    return next(copy.glob("references/llama*/part-*"))


def read(path: Path) -> tuple[pa.Table, dict[str, str]]:
    """A file's rows and its footer."""
    table = pq.read_table(path)
    footer = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    return table.replace_schema_metadata(None), footer


def replace(path: Path, table: pa.Table, footer: dict[str, str]) -> None:
    """A file in place of another, under the hash of its own bytes."""
    path.unlink()
    write_content_addressed(path.parent, "part-", table, footer)


def test_every_damaged_file_is_named_at_once(copy):
    paths = sorted(copy.glob("references/llama*/part-*"))[:2]
    paths += [next(copy.glob("references/q*/identity.json")), next(copy.glob("groups/*"))]
    for path in paths:
        content = path.read_bytes()
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
    with pytest.raises(CacheDamaged) as caught:
        open_sql(copy)
    assert caught.value.exit_code == 3
    assert all(str(path) in str(caught.value) for path in paths)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mrpo.format_version": "99"}, CacheStale, "format 99"),
        ({"mrpo.identity": "0" * 64}, CacheDamaged, "another reference's identity"),
        ({"mrpo.format_version": ""}, CacheDamaged, "no format_version"),
    ],
)
def test_honest_files_in_the_wrong_place_are_refused(copy, part, change, error, message):
    table, footer = read(part)
    replace(part, table, footer | change)
    with pytest.raises(error, match=message):
        open_sql(copy)


def test_a_part_needs_its_columns_and_may_have_more(copy, part):
    table, footer = read(part)
    tokens = pa.array([[-1.0]] * table.num_rows)
    replace(part, table.append_column("token_logps", tokens), footer)
    with open_sql(copy) as database:
        assert one_column(database, LLAMAS) == [Cache(copy).find("llama").table().num_rows]
    replace(next(copy.glob("references/qwen*/part-*")), table.drop_columns(["logp"]), footer)
    with pytest.raises(CacheDamaged, match="other columns"):
        open_sql(copy)


def test_files_may_go_away_while_a_query_runs(world, copy):
    """Compaction deletes what it merged; what was verified stays readable."""
    with open_sql(copy) as database:
        shutil.rmtree(copy)
        assert database.query("SELECT * FROM logps").num_rows == 3 * len(world.numbers["qwen"])
        assert database.query("SELECT * FROM weights()").num_rows == 3 * len(world.groups)


def test_a_file_that_goes_away_before_it_is_read_is_listed_again(world, copy):
    """Parts merged into a new one between listing and reading: the new one is found."""
    store = Cache(copy).find("llama")
    tables, footers = zip(*map(read, store.part_paths()), strict=True)
    listings: list[list[Path]] = []

    def list_then_merge() -> list[Path]:
        listings.append(store.part_paths())
        if len(listings) == 1:
            for other in listings[0][1:]:
                other.unlink()
            replace(listings[0][0], pa.concat_tables(tables), footers[0])
        return listings[-1]

    files = verified(list_then_merge, LOGPS_SCHEMA)
    assert [len(paths) for paths in listings] == [3, 1]
    assert [file.rows for file in files] == [len(world.numbers["llama"])]
