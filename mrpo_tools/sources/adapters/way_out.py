"""What to do where no adapter fits: the row that is wanted, and a line that makes it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from mrpo_tools.errors import UsageError, shorten
from mrpo_tools.sources.adapters.adapter import PROMPT

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
    prompt, *responses = _texts(rows, columns)
    pair = f"{_mapped(prompt)}chosen=BETTER,rejected=WORSE"
    verdict = f"{_mapped(prompt)}a=FIRST,b=SECOND,winner=VERDICT"
    return UsageError(
        f"{source}: no adapter fits the columns {shown}; a row must become\n  {WANTED}",
        f"name the columns: {pair}, or {verdict}; or convert the rows, with their own scores:\n"
        f"  {converter(source, prompt, responses)} > groups.jsonl",
    )


def _mapped(prompt: str) -> str:
    """The beginning of a `--map`, where the prompt's column can stand in one."""
    if prompt == "prompt":
        return "--map "
    plain = prompt.isprintable() and "," not in prompt
    assignment = shlex.quote(f"prompt={prompt}") if plain else "prompt=PROMPT"
    return f"--map {assignment} --map " if assignment[0] == "'" else f"--map {assignment},"


def converter(source: str, prompt: str, responses: Sequence[str]) -> str:
    """A command that prints canonical rows. It does not guess which response is the better one:
    where the scores stand must be written into it."""
    parts = [
        f'{{"content": r[{_quoted(column)}], "score": float(r[{_quoted(f"SCORE OF {column}")}])}}'
        for column in responses[:_MOST_RESPONSES]
    ]
    row = f'{{"prompt": r[{_quoted(prompt)}], "responses": [{", ".join(parts)}]}}'
    code = (
        "import json; from mrpo_tools.sources import read_rows; "
        f"[print(json.dumps({row})) for r in read_rows({_quoted(source)})]"
    )
    return f"python -c {shlex.quote(code)}"


def _quoted(text: str) -> str:
    """A text as Python has it between double quotes, which a shell's single quotes leave alone."""
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _texts(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    """The columns that hold text or messages: the likeliest prompt first, then the responses."""
    texts = [column for column in columns if any(PROMPT.fits(row.get(column)) for row in rows)]
    prompt = next((column for column in _ASKED if column in texts), (texts or ["PROMPT"])[0])
    others = [column for column in texts if column != prompt]
    return [prompt, *(others if len(others) > 1 else ["FIRST", "SECOND"])]
