"""A cache of made-up numbers for the tests of SQL, and what was written into it."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pyarrow as pa
import pytest

from mrpo_tools.cache import Cache, LogpRow, WriterRecord
from mrpo_tools.groups import Group, Response, user_prompt
from mrpo_tools.references.identity import Identity
from mrpo_tools.sql import Database

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
    """A response's row."""
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
    """A made-up one."""
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
        """A usable number, in nats."""
        value = self.numbers[name][group.response_ids[place]][0]
        assert value is not None
        return value


def rows_of(table: pa.Table) -> list[tuple]:
    """A table's rows."""
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


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


def close(found: dict, expected: dict) -> None:
    """The same keys, and values equal to 1e-9."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-9, rel=1e-12), key


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
