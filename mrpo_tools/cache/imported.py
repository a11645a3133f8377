"""Log-probs that another program computed, as a reference of their own."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import pyarrow as pa
import pyarrow.parquet as pq

from mrpo_tools.cache.parts import LogpRow
from mrpo_tools.cache.records import ImportedFile, WriterRecord
from mrpo_tools.cache.reference import ReferenceStore
from mrpo_tools.cache.store import Cache
from mrpo_tools.errors import DataError, UsageError
from mrpo_tools.groups import Group, Response, user_prompt
from mrpo_tools.messages import json_text, message_from_dict
from mrpo_tools.references.identity import imported_identity
from mrpo_tools.sources.readers.strict_json import JsonError, parse_line

NO_OBJECT = ""
"""The key under which a line that is no object has its reason."""
MOST_TOKENS = 2**31 - 1
"""What a part's column holds."""


class Number(NamedTuple):
    """A log-prob of another program: nats of the whole response, and its tokens."""

    logp: float
    tokens: int


@dataclass(frozen=True)
class Imported:
    """What an import did.

    Attributes:
        store: where the numbers are.
        rows: written now.
        reused: in the cache already, with the same numbers.
        ignored: rows of the file for responses that the data does not have.
    """

    store: ReferenceStore
    rows: int
    reused: int
    ignored: int


def import_logps(
    cache: Cache,
    name: str,
    groups: Sequence[Group],
    path: Path,
    *,
    origin: str,
    dataset: str,
    model: str | None = None,
) -> Imported:
    """Keep log-probs that another program computed, as a reference of their own.

    The origin is their identity: they never mix with numbers computed here, and a second import
    under the same origin must agree with the first.

    Args:
        cache: created if it is not there.
        name: of the reference.
        groups: the data; every response needs a row.
        path: JSONL, or Parquet: `response_id` (or `prompt` and `response`), then `logp` (nats, of
            the whole response) with `num_tokens`, or `token_logps`.
        origin: in words, e.g. `vLLM 0.11, Llama-3.1-70B, bf16`.
        dataset: its short name.
        model: what computed them, for people.

    Raises:
        DataError: a row that is no log-prob, or a response without a row; all of them together.
        UsageError: no origin, or a file that cannot be read.
    """
    if not origin.strip():
        raise UsageError("an origin says who computed the numbers", '--origin "vLLM 0.11, bf16"')
    wanted = {
        key: (group, response)
        for group in groups
        for key, response in zip(group.response_ids, group.responses, strict=True)
    }
    store = cache.store(name, imported_identity(origin, model))
    numbers, ignored = _read(path, wanted)
    _check_agreement(store, numbers, origin)
    present = store.keys()
    fresh = [_logp_row(key, *wanted[key], numbers[key]) for key in wanted if key not in present]
    if fresh:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        store.append(fresh, WriterRecord(imported=ImportedFile(origin, path.name, digest)))
    cache.save_groups(dataset, groups)
    return Imported(store, len(fresh), len(wanted) - len(fresh), ignored)


def _read(
    path: Path, wanted: Mapping[str, tuple[Group, Response]]
) -> tuple[dict[str, Number], int]:
    """The number of each response; also how many rows are of no response of the data."""
    numbers: dict[str, Number] = {}
    problems: list[str] = []
    ignored = 0
    for place, row in _rows(path):
        try:
            key, number = _response_id(row), _number(row)
            if numbers.get(key, number) != number:
                raise ValueError("logp: another row gives this response another number")
        except ValueError as error:
            problems.append(f"{path}:{place}: {error}")
            continue
        ignored += key not in wanted
        numbers[key] = number
    absent = [key for key in wanted if key not in numbers]
    if absent and not problems:
        problems = [f"{path}: no row for response {key}" for key in absent]
    if problems:
        raise DataError(
            f"{path} cannot be imported: {len(problems):,} problems; {len(wanted) - len(absent):,} "
            f"of {len(wanted):,} responses have a row",
            problems,
            "nothing was written; compute what is missing and import again",
        )
    return numbers, ignored


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line or row, its values) of a file."""
    try:
        if path.suffix.lower() == ".parquet":
            yield from enumerate(pq.read_table(path, use_threads=False).to_pylist(), 1)
            return
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _object(line.rstrip("\n"))
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        hint = "give a JSONL or Parquet file"
        raise UsageError(f"{path} cannot be read: {error}", hint) from None


def _object(line: str) -> Mapping[str, Any]:
    try:
        values = parse_line(line)
    except JsonError as error:
        return {NO_OBJECT: error.in_line((error.position or 0) + 1)}
    return values if isinstance(values, dict) else {NO_OBJECT: "an object is needed"}


def _response_id(row: Mapping[str, Any]) -> str:
    if NO_OBJECT in row:
        raise ValueError(row[NO_OBJECT])
    if isinstance(row.get("response_id"), str):
        return str(row["response_id"])
    prompt, response = row.get("prompt"), row.get("response")
    if isinstance(response, str) and isinstance(prompt, str | list):
        try:
            turns = (
                user_prompt(prompt)
                if isinstance(prompt, str)
                else tuple(map(message_from_dict, prompt))
            )
            tools = json_text(row["tools"]) if row.get("tools") else None
            return Group(turns, (Response(response),), tools=tools).response_ids[0]
        except (KeyError, TypeError):
            raise ValueError("prompt: a text or a list of messages is needed") from None
        except UnicodeEncodeError:
            raise ValueError("prompt and response: half a surrogate pair is no text") from None
    raise ValueError("response_id: it is needed, or prompt and response")


def _number(row: Mapping[str, Any]) -> Number:
    tokens = row.get("token_logps")
    if tokens is not None:
        if not isinstance(tokens, list) or not tokens or not all(map(_is_logp, tokens)):
            raise ValueError("token_logps: a list of finite numbers, none above 0, is needed")
        total = sum(map(float, tokens))
        if not math.isfinite(total):
            raise ValueError("token_logps: their sum is not finite")
        return Number(math.fsum(tokens), len(tokens))
    logp, count = row.get("logp"), row.get("num_tokens")
    if not _is_logp(logp):
        raise ValueError(f"logp: a finite number, not above 0, is needed, found {logp!r:.40}")
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST_TOKENS:
        raise ValueError(
            f"num_tokens: a whole number from 1 to {MOST_TOKENS:,} is needed, found {count!r:.40}"
        )
    return Number(float(logp), count)


def _is_logp(value: object) -> TypeGuard[float]:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return -sys.float_info.max <= value <= 0


def _check_agreement(store: ReferenceStore, numbers: Mapping[str, Number], origin: str) -> None:
    table = store.table()
    columns: Iterable[list[Any]] = (
        table[name].to_pylist() for name in ("response_id", "logp", "num_tokens")
    )
    differing = [
        f"response {key}: {logp} of {count} tokens is cached, not {tuple(numbers[key])}"
        for key, logp, count in zip(*columns, strict=True)
        if key in numbers and numbers[key] != (logp, count)
    ]
    if differing:
        raise DataError(
            f"other numbers were imported into {store} before", differing,
            f"if they are of another model or run, say so: --origin {origin + ', again'!r}",
        )  # fmt: skip


def _logp_row(key: str, group: Group, response: Response, number: Number) -> LogpRow:
    return LogpRow(
        response_id=key,
        prompt_id=group.prompt_id,
        logp=number.logp,
        num_tokens=number.tokens,
        num_bytes=len(response.message.written.encode()),
        status="ok",
        truncated=False,
        token_hash="",
    )
