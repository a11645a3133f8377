"""What to do where no adapter fits: the row that is wanted, and a line that makes it."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mrpo_tools.errors import UsageError, shorten
from mrpo_tools.sources.adapters.adapter import MESSAGES, PROMPT

WANTED = (
    '{"prompt": "…", "responses": [{"content": "…", "score": 1}, {"content": "…", "score": 0}]}'
)
_ASKED = ("prompt", "instruction", "question", "query", "input", "context", "history")
_COLUMNS_SHOWN = 12
_MOST_RESPONSES = 4


def nothing_fits(source: str, rows: Sequence[Mapping[str, Any]]) -> UsageError:
    """The error that shows the canonical row, and how these columns become one."""
    columns = list(dict.fromkeys(str(column) for row in rows for column in row))
    shown = ", ".join(shorten(column) for column in columns[:_COLUMNS_SHOWN]) or "(none)"
    prompt, *responses = likely_columns(rows)
    asked = {} if prompt == "prompt" else {"prompt": prompt}
    pair = _map(asked | {"chosen": "BETTER", "rejected": "WORSE"})
    verdict = _map(asked | dict(zip("ab", responses, strict=False)) | {"winner": "VERDICT"})
    return UsageError(
        f"{source}: no adapter fits the columns {shown}; a row must become\n  {WANTED}",
        f"name the columns: {pair}, or {verdict}; or convert the rows, with their own scores:\n"
        f"  {converter(source, prompt, responses)} > groups.jsonl",
    )


def _map(names: Mapping[str, str]) -> str:
    """`--map` of these names; one that cannot stand there becomes a word to be replaced."""
    plain = {
        name: column if column.isprintable() and "," not in column else name.upper()
        for name, column in names.items()
    }
    return "--map " + shlex.quote(",".join(f"{name}={column}" for name, column in plain.items()))


def converter(source: str, prompt: str, responses: Sequence[str]) -> str:
    """A command that prints canonical rows. It does not guess which response is the better one:
    where the scores stand must be written into it."""
    parts = [
        f'{{"content": {_of_row(column)}, "score": float(r[{_quoted(f"SCORE OF {column}")}])}}'
        for column in responses[:_MOST_RESPONSES]
    ]
    row = f'{{"prompt": {_of_row(prompt)}, "responses": [{", ".join(parts)}]}}'
    code = (
        "import json; from mrpo_tools.sources import read_rows; "
        f"[print(json.dumps({row})) for r in read_rows({_quoted(source)})]"
    )
    return f"python -c {shlex.quote(code)}"


def _of_row(column: str) -> str:
    return "r" + "".join(f"[{_quoted(step)}]" for step in column.split("."))


def _quoted(text: str) -> str:
    """A text as Python has it between double quotes, which a shell's single quotes leave alone."""
    return json.dumps(text, ensure_ascii=not text.isprintable())


def likely_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns that hold text or messages: the likeliest prompt, then two or more responses.

    A prompt is what is called so, the longest text of it where it is an object. Responses are
    those whose names differ in the last character alone, else all other texts.
    """
    sizes: dict[str, int] = {}
    for row in rows:
        for column, value in _texts(row):
            sizes[column] = max(sizes.get(column, 0), len(str(value)))
    heads = {column: column.partition(".")[0] for column in sizes}
    talks = [column for row in rows for column in sizes if MESSAGES.fits(row.get(column))]
    named = [name for name in _ASKED if name in heads.values()]
    asked = next(iter([*named, *talks, *sizes]), "PROMPT")
    prompts = [column for column in sizes if heads[column] == asked] or [asked]
    prompt = max(prompts, key=lambda column: sizes.get(column, 0))
    others = [column for column in sizes if heads[column] == column != prompt]
    alike = Counter(column[:-1] for column in others)
    responses = [column for column in others if alike[column[:-1]] > 1] or others
    return [prompt, *(responses if len(responses) > 1 else ["FIRST", "SECOND"])]


def _texts(row: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The texts and messages of a row, and those in its objects, by their paths."""
    texts: list[tuple[str, Any]] = []
    for key, value in row.items():
        inside = value.items() if isinstance(value, Mapping) else ()
        texts += [(f"{key}.{name}", text) for name, text in inside if PROMPT.fits(text)]
        if PROMPT.fits(value):
            texts.append((str(key), value))
    return texts
