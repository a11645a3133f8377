"""Rows, stores and commands for the tests of the cache."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mrpo_tools.cache import Cache, LogpRow
from mrpo_tools.cli import run
from mrpo_tools.groups import Group, Response, user_prompt
from mrpo_tools.references.identity import Identity

IDENTITY = Identity({"model": None, "weights": "abc", "max_length": 512})


def row(index: int, logp: float | None = -1.5, status: str = "ok", **other: Any) -> LogpRow:
    """A row of 7 tokens; two responses a prompt."""
    values = {"num_tokens": 7, "num_bytes": 21, "truncated": False, "token_hash": "0" * 16, **other}
    return LogpRow(f"r{index:04}", f"p{index // 2:04}", logp, status=status, **values)


def rows_of(groups: Iterable[Group], overlong: Iterable[int] = ()) -> list[LogpRow]:
    """−1, −2, … nats for the responses of groups, of 3 tokens each; some do not fit."""
    keys = [(key, group.prompt_id) for group in groups for key in group.response_ids]
    return [
        LogpRow(key, prompt, None, 3, 2, "overlong", truncated=False, token_hash="")
        if place in overlong
        else LogpRow(key, prompt, -1.0 - place, 3, 2, "ok", truncated=False, token_hash="")
        for place, (key, prompt) in enumerate(keys)
    ]


def pairs(count: int, split: str | None = None) -> list[Group]:
    """Groups of two responses without judgement."""
    return [
        Group(user_prompt(f"q{n}"), (Response("a"), Response("b")), split=split)
        for n in range(count)
    ]


def said(capsys, *words: str, code: int = 0) -> str:
    """stdout of a command that ends with a code; its stderr after it."""
    capsys.readouterr()
    assert run(list(words)) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.out + captured.err


def write_lines(path: Path, rows: Iterable[Any]) -> Path:
    """JSONL; a text is a line as it is."""
    lines = (line if isinstance(line, str) else json.dumps(line) for line in rows)
    path.write_text("".join(line + "\n" for line in lines))
    return path


def write_groups(path: Path, groups: Iterable[Group], **changes: Any) -> Path:
    """Groups as a data set, with some words of every row changed."""
    return write_lines(path, ({**group.as_dict(), **changes} for group in groups))


def logps_of(cache: Cache, name: str) -> dict[str, float]:
    """The cached log-probs of a reference, by response."""
    table = cache.find(name).table()
    return dict(zip(table["response_id"].to_pylist(), table["logp"].to_pylist(), strict=True))
