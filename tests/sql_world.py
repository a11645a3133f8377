"""A cache of made-up numbers for the tests of SQL, and what was written into it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mrpo_tools.cache import Cache, LogpRow, WriterRecord
from mrpo_tools.groups import Group, Response, user_prompt
from mrpo_tools.references.identity import Identity
from mrpo_tools.sql import Database

ROOT = Path(__file__).parent.parent
NAMES = ("llama", "mistral", "qwen")


def cache_of(path: Path, groups: list[Group]) -> Cache:
    """A cache that holds groups."""
    cache = Cache(path)
    cache.save_groups("toy", groups)
    return cache


def make_groups(count: int, seed: int = 0, *, labels: bool = False) -> list[Group]:
    """Ragged groups of one to five responses with scores, ties and letters of all kinds."""
    rng = random.Random(seed)
    groups = []
    for index in range(count):
        size = rng.choice([1, 2, 2, 3, 4, 5])
        chosen = rng.randrange(size)
        responses = tuple(
            Response(
                f"answer {place} to {index}: {'🙂 é' * rng.randrange(4)}",
                float(rng.randrange(5)),
                place == chosen if labels else None,
                rng.choice(["gpt", None]),
            )
            for place in range(size)
        )
        prompt = user_prompt(f"What is {seed}.{index}? ✓", None if index % 5 else "Be brief.")
        groups.append(Group(prompt, responses, str(index), rng.choice(["train", "test"])))
    return groups


def row(group: Group, place: int, logp: float | None, status: str = "ok") -> LogpRow:
    """A response's row."""
    content = group.responses[place].content
    keys = group.response_ids[place], group.prompt_id
    sizes = len(content) // 3 + place, len(content.encode())
    cut = status == "truncated"
    status = "ok" if cut else status
    return LogpRow(*keys, logp, *sizes, status, truncated=cut, token_hash="0123456789abcdef")


def identity(name: str, **fields: object) -> Identity:
    """A made-up one."""
    return Identity({"model": f"hub/{name}", "dtype": "float32", "max_length": 64, **fields})


Numbers = dict[str, tuple[float | None, str]]


def make_numbers(groups: list[Group], seed: int, bad: float = 0.0) -> Numbers:
    """A log-prob and a status for each response; a share of them is overlong, nonfinite or, with a
    number, truncated."""
    rng = random.Random(seed)
    kinds = ((None, "overlong"), (None, "nonfinite"), (-50.0, "truncated"))
    return {
        key: rng.choice(kinds) if rng.random() < bad else (-rng.uniform(0.1, 300.0), "ok")
        for group in groups
        for key in group.response_ids
    }


def fill(cache: Cache, name: str, groups: list[Group], numbers: Numbers, **fields: object):
    """Write a reference's rows in three parts through the store."""
    store = cache.store(name, identity(name, **fields))
    by_key = {
        key: row(group, place, *numbers[key])
        for group in groups
        for place, key in enumerate(group.response_ids)
        if key in numbers
    }
    rows = list(by_key.values())
    for third in range(3):
        part = rows[third * len(rows) // 3 : (third + 1) * len(rows) // 3]
        store.append(part, WriterRecord(reference={"model": f"models/{name}"}))
    return store


class World:
    """A cache with what was written into it."""

    def __init__(self, path: Path, *, labels: bool = False) -> None:
        self.groups = make_groups(60, seed=1, labels=labels)
        self.cache = cache_of(path, self.groups)
        self.numbers: dict[str, Numbers] = {}
        for seed, name in enumerate(NAMES):
            self.numbers[name] = make_numbers(self.groups, seed, bad=0.05)
            fill(self.cache, name, self.groups, self.numbers[name])

    def usable(self, group: Group, names) -> list[int]:
        """Places of responses that every reference has a number for."""
        return [
            place
            for place, key in enumerate(group.response_ids)
            if all(self.numbers[name][key][1] == "ok" for name in names)
        ]

    def rows(self, group: Group, names: Sequence[str]) -> list[list[float]]:
        """The numbers of usable responses in nats, as `oracle` takes them: N rows of K."""
        keys = [group.response_ids[place] for place in self.usable(group, names)]
        return [[self.numbers[name][key][0] for name in names] for key in keys]

    def by_response(
        self, names: Sequence[str], of_rows: Callable[[list[list[float]]], Iterable[Any]]
    ) -> dict[tuple[str, int], Any]:
        """What a function of a group's rows says of each usable response."""
        return {
            (group.group_id, place): value
            for group in self.groups
            if (places := self.usable(group, names))
            for place, value in zip(places, of_rows(self.rows(group, names)), strict=True)
        }


def rows_of(table: pa.Table) -> list[tuple]:
    """A table's rows."""
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def close(values: dict, expected: dict) -> None:
    """The same keys, and values equal to 1e-9."""
    assert values == pytest.approx(expected, abs=1e-9, rel=1e-12, nan_ok=True)


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


def ask(database: Database, query: str, **params: object) -> list[tuple]:
    """The rows of a query's result."""
    return rows_of(database.query(query, params))


def one_column(database: Database, query: str, **params: object) -> list:
    """The values of a query's first column."""
    return [values[0] for values in ask(database, query, **params)]
