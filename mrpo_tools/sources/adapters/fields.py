"""Every check of a single value, in one place.

A `Field` is a value of a row together with its path (`responses[1].score`). A check that fails
notes the problem and returns something harmless, so an adapter reads straight on, and a bad row
shows all its problems at once.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from typing import Any, TypeVar

from mrpo_tools.errors import shorten
from mrpo_tools.sources.readers.rows import MAX_TEXT_CHARS, Cell, Problem
from mrpo_tools.sources.readers.strict_json import JsonError, parse_line

Name = TypeVar("Name", bound=str)

MAX_SCORE = 1e30  # squares and exponents of larger numbers leave float32
MAX_ITEMS = 4096
_MISSING = object()
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")
_PLACE = re.compile(r"\[\d+\]")
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}


class Field:
    """One value of a row, its path, and the list that collects what is wrong with it.

    `read` gathers the keys that were asked for, where somebody wants to know; `unread` counts the
    keys of objects inside that nobody asks for, by their paths.
    """

    __slots__ = ("path", "problems", "read", "unread", "value", "where")

    def __init__(
        self,
        value: object,
        path: str,
        where: str,
        problems: list[Problem],
        unread: Counter[str] | None = None,
        read: set[str] | None = None,
    ) -> None:
        self.value = value
        self.path = path
        self.where = where
        self.problems = problems
        self.unread = unread
        self.read = read

    def bad(self, reason: str) -> None:
        """Note what is wrong with the value."""
        self.problems.append(Problem(self.where, self.path or "row", reason))

    def expected(self, what: str) -> None:
        """Note that the value, or its absence, is not what is expected."""
        state = "missing" if self.value is _MISSING else f"found {in_words(self.value)}"
        self.bad(f"{state}, expected {what}")

    def __getitem__(self, key: str) -> Field:
        path = f"{self.path}.{key}" if self.path else key
        if self.read is not None:
            self.read.add(key)
        if isinstance(self.value, Mapping):
            value = self.value.get(key, _MISSING)
            return Field(value, path, self.where, self.problems, self.unread)
        self.expected("an object")
        self.problems = []  # said once
        return Field(_MISSING, path, self.where, self.problems)

    def has(self, *keys: str) -> bool:
        """Whether all these are there; null means absent, as tables cannot leave a cell out."""
        row: Mapping[str, Any] = self.value if isinstance(self.value, Mapping) else {}
        return all(row.get(key) is not None for key in keys)

    def uses(self, *keys: str) -> None:
        """Count an object's other keys as not used, where they hold anything."""
        if self.unread is not None and isinstance(self.value, Mapping):
            others = [key for key in self.value.keys() - keys if says(self.value[key])]
            if others:
                path = _PLACE.sub("[]", self.path)
                self.unread.update(f"{path}.{key}" for key in others)

    def reads(self, *keys: str) -> None:
        """Count keys of a row as read that are there for people."""
        if self.read is not None:
            self.read.update(keys)

    def forgive(self, key: str, values: Container[object]) -> None:
        """Count a key as read where its text is one of those that were read elsewhere."""
        value = self.value.get(key) if isinstance(self.value, Mapping) else None
        if self.read is not None and isinstance(value, str) and value in values:
            self.read.add(key)

    def items(self, exactly: int | None = None, of: str = "a list") -> list[Field]:
        """The elements of a list; of the wished number of them whatever happens."""
        value = self.value if isinstance(self.value, (list, tuple)) else None
        if value is None or (exactly is not None and len(value) != exactly):
            self.expected(of)
            return [Field(None, self.path, self.where, []) for _ in range(exactly or 0)]
        if len(value) > MAX_ITEMS:
            self.bad(f"found a list of {len(value):,}, expected at most {MAX_ITEMS:,}")
            return []
        return [
            Field(item, f"{self.path}[{index}]", self.where, self.problems, self.unread)
            for index, item in enumerate(value)
        ]

    def decoded(self, of: str) -> Field:
        """The JSON value that a text holds; anything but text as it is."""
        if not isinstance(self.value, str):
            return self
        try:
            value = parse_line(self.value)
        except JsonError as error:
            self.bad(f"not JSON: {error.reason}; expected {of}")
            return Field(_MISSING, self.path, self.where, [])
        return Field(value, self.path, self.where, self.problems, self.unread)

    def text(self, of: str = "text") -> str:
        """A text that says something: not empty, not only spaces, encodable."""
        value = self.value
        if not isinstance(value, str):
            self.expected(of)
        elif not value.strip():
            self.bad(f"found {'only spaces' if value else 'empty text'}, expected {of}")
        elif len(value) > MAX_TEXT_CHARS:
            self.bad(f"found {len(value):,} characters, expected at most {MAX_TEXT_CHARS:,}")
        elif unfit := _unfit(value):
            place = f"at character {unfit.start() + 1}"
            self.bad(f"found {_character(unfit[0])} {place}, expected text without any")
        else:
            return str(value)
        return ""

    def optional_text(self) -> str | None:
        """A text, or None where it is missing, null or blank."""
        blank = isinstance(self.value, str) and not self.value.strip()
        return None if blank or self.value in (None, _MISSING) else self.text()

    def number(self, low: float = -MAX_SCORE, high: float = MAX_SCORE) -> float:
        """A finite number from `low` to `high`, as a double."""
        value = as_number(self.value)
        if value is None:
            self.expected("a number")
        elif not abs(value) <= MAX_SCORE:
            self.expected(f"a finite number of at most {MAX_SCORE:g}")
        elif not low <= value <= high:
            self.expected(f"a number from {low:g} to {high:g}")
        else:
            return float(value) + 0.0  # no negative zero
        return 0.0

    def one_of(self, names: Sequence[Name]) -> Name | None:
        """One of some names."""
        name = next((name for name in names if name == self.value), None)
        if name is None:
            self.expected(f"one of {', '.join(names)}")
        return name

    def boolean(self) -> bool:
        """True or false, or 1 or 0 for them, not "yes"."""
        truth = as_truth(self.value)
        if truth is None:
            self.expected("true or false")
        return truth is True

    def name(self) -> str:
        """A text or an integer that names something."""
        if isinstance(self.value, int) and not isinstance(self.value, bool):
            return str(self.value)
        return self.text("text or an integer")


def says(value: object) -> bool:
    """Whether a value holds anything: not null, no empty text, list or object."""
    return value is not None and value not in ("", "[]", "{}") and value not in ([], (), {})


def as_number(value: object) -> int | float | None:
    """A number, or the one that an untyped cell stands for; None for anything else."""
    if isinstance(value, Cell):
        try:
            return None if "_" in value else float(value)
        except ValueError:
            return None
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def as_truth(value: object) -> bool | None:
    """True, false, 1 or 0, or an untyped cell of these; None for anything else."""
    if isinstance(value, Cell):
        return _TRUTHS.get(value.strip().lower())
    return bool(value) if isinstance(value, (bool, int, float)) and value in (0, 1) else None


def in_words(value: object) -> str:
    """A value in words, short enough for a line."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return _number(value)
        case str():
            return f"the text {shorten(value)}"
        case list() | tuple():
            return f"a list of {len(value):,}"
        case Mapping():
            return "an object"
        case bytes():
            return f"{len(value):,} bytes"
        case _:
            return f"a {type(value).__name__}"


def _number(value: float) -> str:
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    if isinstance(value, float) and math.isinf(value):
        return "an infinite number"
    return f"the number {value:g}" if abs(value) < 1e300 else "a huge number"


def _unfit(text: str) -> re.Match[str] | None:
    """The first character that no tokenizer should see."""
    plain = text.isascii() and "\0" not in text  # the usual case, forty times faster
    return None if plain else _NOT_TEXT.search(text)


def _character(character: str) -> str:
    return "a NUL" if character == "\0" else f"half a surrogate pair (U+{ord(character):04X})"
