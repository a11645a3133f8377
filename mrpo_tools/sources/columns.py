"""`--map prompt=question,chosen=output.best`: the data's columns under the names adapters know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mrpo_tools.errors import UsageError, did_you_mean
from mrpo_tools.sources.readers.rows import Problem, Row

_ABSENT = object()
_DEEPEST_LISTED = 3


class Columns:
    """Renames the columns of rows, and names them back in problems.

    A column with dots reaches into objects and lists: `input.messages`, `summaries.0.text`.
    """

    def __init__(self, mapping: Mapping[str, str], head: list[Row | Problem]) -> None:
        self._mapping = dict(mapping)
        rows = [item.value for item in head if isinstance(item, Row)]
        objects = [value for value in rows if isinstance(value, Mapping)]
        for name, column in self._mapping.items():
            if objects and all(_value(row, column) is _ABSENT for row in objects):
                known = {path for row in objects for path in _paths(row)}
                raise UsageError(
                    f"--map {name}={column}: there is no column {column!r}",
                    did_you_mean(column, known),
                )

    def objects(self, head: list[Row | Problem]) -> list[Mapping[str, Any]]:
        """The rows that are objects, renamed: what an adapter is chosen by."""
        values = (self.renamed(item.value) for item in head if isinstance(item, Row))
        return [value for value in values if isinstance(value, Mapping)]

    def renamed(self, row: object) -> object:
        """A row under the names that adapters know; anything but an object as it is."""
        if not self._mapping or not isinstance(row, Mapping):
            return row
        named = {name: _value(row, column) for name, column in self._mapping.items()}
        others: Any = row
        for column in self._mapping.values():
            others = _without(others, _steps(row, column))
        return {**others, **{key: value for key, value in named.items() if value is not _ABSENT}}

    def original(self, problem: Problem) -> Problem:
        """The problem under the column name that stands in the file."""
        return replace(problem, field=self.name_of(problem.field))

    def name_of(self, field: str) -> str:
        """A field's path as it stands in the file: `chosen[0].role` may be `best[0].role`."""
        head = field.partition(".")[0].partition("[")[0]
        return self._mapping.get(head, head) + field[len(head) :]


def _steps(row: Mapping[str, Any], column: str) -> Sequence[str]:
    """The keys of a column: its name, or what stands between its dots."""
    return [column] if column in row else column.split(".")


def _value(row: Mapping[str, Any], column: str) -> Any:
    value: Any = row
    for step in _steps(row, column):
        value = _inside(value, step)
    return value


def _inside(value: Any, step: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(step, _ABSENT)
    if isinstance(value, (list, tuple)) and step.isdecimal() and int(step) < len(value):
        return value[int(step)]
    return _ABSENT


def _without(value: Any, steps: Sequence[str]) -> Any:
    """A copy without what the steps lead to, and without the objects that this leaves empty."""
    if not isinstance(value, Mapping) or steps[0] not in value:
        return value
    others = {key: value[key] for key in value if key != steps[0]}
    if len(steps) > 1:
        rest = _without(value[steps[0]], steps[1:])
        if rest or not isinstance(rest, Mapping):
            others[steps[0]] = rest
    return others


def _paths(row: Mapping[str, Any], prefix: str = "", depth: int = 1) -> list[str]:
    """The columns of a row, and those inside its objects."""
    paths = [f"{prefix}{key}" for key in row]
    if depth < _DEEPEST_LISTED:
        for key, value in row.items():
            if isinstance(value, Mapping):
                paths += _paths(value, f"{prefix}{key}.", depth + 1)
    return paths
