"""JSON as the standard has it, and a reason in words where a text is not.

Stricter than `json.loads`: a key that appears twice is refused. Numbers that no double holds
(`1e400`, integers of thousands of digits) become infinite, and `NaN` stays NaN: the check of the
field that holds one refuses it by name, and an unused column may keep it.
"""

from __future__ import annotations

import json
import math

from mrpo_tools.errors import shorten

SPACE = " \t\n\r"
_MAX_DIGITS = 300
_LONGEST_TOKEN = "\\ud83d\\ude00"  # an error this near the end may be a token cut in two
_ENDS = "ends in the middle of a value (is the file cut short?)"
DEEP = "nested too deeply; rows of preference data are a few levels deep"


class JsonError(ValueError):
    """A text is not one JSON value.

    Attributes:
        reason: what is wrong, in words.
        position: the index of the offending character; None where the whole value is meant.
        at_end: the text may be right and only incomplete.
    """

    def __init__(self, reason: str, position: int | None = None, *, at_end: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.position = position
        self.at_end = at_end

    def in_line(self, column: int) -> str:
        """The reason with its place; `column` is that of the position, from 1."""
        return self.reason if self.position is None else f"{self.reason} at column {column}"


class DuplicateKey(JsonError):
    """Well-formed, but an object holds a key twice; the value ends at `end`."""

    end = 0


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MAX_DIGITS else math.copysign(math.inf, digits[0] != "-")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for index, key in enumerate(keys) if key in keys[:index])
        raise DuplicateKey(f"the key {shorten(twice)} appears twice in one object")
    return row


_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_int=_integer)
_LENIENT = json.JSONDecoder(parse_int=_integer)


def skip_space(text: str, position: int) -> int:
    """The first index from `position` on that is no space; the end of the text if all are."""
    while position < len(text) and text[position] in SPACE:
        position += 1
    return position


def decode(text: str, position: int = 0) -> tuple[object, int]:
    """The JSON value that starts at `position`, and the index after it.

    Raises:
        DuplicateKey: an object in it has a key twice.
        JsonError: anything else that is wrong.
    """
    try:
        return _decode(text, position)
    except json.JSONDecodeError as error:
        raise _explained(text, error) from None
    except RecursionError:
        raise JsonError(DEEP) from None


def _decode(text: str, position: int) -> tuple[object, int]:
    try:
        return _STRICT.raw_decode(text, position)
    except DuplicateKey as error:
        error.end = _LENIENT.raw_decode(text, position)[1]
        raise


def parse_line(text: str) -> object:
    """The only JSON value of a line.

    Raises:
        JsonError: the line is not exactly one JSON value.
    """
    value, end = decode(text, skip_space(text, 0))
    rest = skip_space(text, end)
    if rest == len(text):
        return value
    second = "a comma" if text[rest] == "," else "a second value"
    raise JsonError(f"expected one object per line, found {second}", rest)


def _explained(text: str, error: json.JSONDecodeError) -> JsonError:
    """The same error in words that do not depend on the version of Python."""
    position, end = error.pos, len(text.rstrip(SPACE))
    if error.msg.startswith("Unterminated string") or position >= end:
        return JsonError(_ENDS, at_end=True)
    closing = _after_trailing_comma(text, position)
    if closing:
        reason = f"a comma before {closing!r}"
    elif error.msg.startswith("Invalid control character"):
        reason = f"an unescaped control character U+{ord(text[position]):04X}"
    elif error.msg.startswith("Invalid \\"):
        reason = "an invalid escape in a string"
    else:
        reason = f"expected JSON, found {shorten(text[position : position + 40])}"
    return JsonError(reason, position, at_end=position >= end - len(_LONGEST_TOKEN))


def _after_trailing_comma(text: str, position: int) -> str:
    """The bracket that a comma is followed by, if that is what is wrong; else nothing."""
    if text[position] == ",":
        position = skip_space(text, position + 1)
    before = text[:position].rstrip(SPACE)[-1:]
    closing = text[position : position + 1]
    return closing if before == "," and closing in ("}", "]") else ""
