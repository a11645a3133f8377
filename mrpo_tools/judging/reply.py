"""A judge's answer: the label in its JSON object, or in something near one.

What is mended: text and code fences around the object, commas too many, quotes of Python, line
breaks inside strings, a brace that is missing. What is not guessed: labels that contradict each
other, or none, are unusable.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from mrpo_tools.cache.parts import CUT, REFUSED, UNUSABLE
from mrpo_tools.judging.template import Template
from mrpo_tools.server import ChatReply

FIELD = "verdict"
"""Of the object."""
_THOUGHT = re.compile(r"\A\s*(?:<think>)?(.*?)</think>", re.DOTALL)
_TRAILING = re.compile(r",\s*(?=[}\]])")
_IN_TEXT = re.compile(rf"[\"']?{FIELD}[\"']?\s*[:=]\s*([\"'\w][^,}}\n]*)", re.IGNORECASE)
_BRACKETS = re.compile(r"\[\[([^\[\]]+)\]\]")


class Said(NamedTuple):
    """What a judge said: a number where a label or rating can be read, and why there is none."""

    status: str
    number: float | None
    label: str | None
    reasoning: str | None


def read_reply(reply: ChatReply, template: Template) -> Said:
    """What a reply means.

    Args:
        reply: of the server.
        template: whose labels may stand in it.
    """
    if reply.finish_reason == "refused":
        return Said(REFUSED, None, None, reply.reasoning or reply.text or None)
    if reply.finish_reason == "length":
        return Said(CUT, None, None, reply.text or reply.reasoning)
    thought = _THOUGHT.match(reply.text)
    text = reply.text[thought.end() :] if thought else reply.text
    found, reasons = [], [reply.reasoning, thought[1].strip() if thought else None]
    for value in _objects(text):
        fields = {str(name).strip().lower(): each for name, each in value.items()}
        if FIELD in fields:
            found.append(_label(fields[FIELD], template))
            reasons.append(_text(fields.get("reasoning")))
    if not found:
        words = _BRACKETS.findall(text) or _IN_TEXT.findall(text) or [text]
        found = [_label(word, template) for word in words]
        reasons.append(text.strip())
    reasoning = "\n".join(filter(None, reasons)) or None
    if len(set(found)) != 1 or found[0] is None:
        return Said(UNUSABLE, None, None, reply.text or reasoning)
    label, number = found[0]
    return Said("ok", number, label, reasoning)


def _label(value: object, template: Template) -> tuple[str, float] | None:
    """A label as the template writes it, with its number; None for anything else."""
    word = str(value).strip().strip("\"'`*.[]() ")
    if template.ratings is not None:
        return _rating(word, *template.ratings)
    if word in template.labels:
        return word, template.labels[word]
    near = [label for label in template.labels if label.casefold() == word.casefold()]
    return (near[0], template.labels[near[0]]) if len(near) == 1 else None


def _rating(word: str, low: int, high: int) -> tuple[str, float] | None:
    number = re.fullmatch(rf"(-?\d+(?:\.\d+)?)(?:\s*/\s*{high})?", word)
    if number is None or not low <= float(number[1]) <= high:
        return None
    return number[1], float(number[1])


def _objects(text: str) -> Iterator[dict[object, object]]:
    """The JSON objects in a text, mended where that makes them one."""
    place = 0
    while (start := text.find("{", place)) >= 0:
        end = _end(text, start)
        value = _mended(text[start:end])
        if value is not None:
            yield value
        place = end if value is not None else start + 1


def _end(text: str, start: int) -> int:
    """Behind the brace that closes the one at `start`; the end of the text where none does."""
    depth, quoted, escaped = 0, False, False
    for place in range(start, len(text)):
        sign = text[place]
        if quoted:
            quoted, escaped = escaped or sign != '"', not escaped and sign == "\\"
        elif sign == '"':
            quoted = True
        else:
            depth += (sign == "{") - (sign == "}")
            if depth == 0:
                return place + 1
    return len(text)


def _mended(text: str) -> dict[object, object] | None:
    tidy = _TRAILING.sub("", text.strip().removesuffix("```").strip())
    for attempt in (text, tidy, f"{tidy}}}"):
        try:
            value = json.loads(attempt, strict=False, object_pairs_hook=_unique)
        except ValueError:
            continue
        return value if isinstance(value, dict) else None
    try:
        value = ast.literal_eval(tidy)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object; of a name that stands twice with different values none counts."""
    fields = dict(pairs)
    for name, value in pairs:
        if fields[name] != value:
            fields[name] = math.nan
    return fields


def _text(value: object) -> str | None:
    return value.strip() if isinstance(value, str) else None
