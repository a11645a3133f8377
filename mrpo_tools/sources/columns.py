"""`--map prompt=question`: the data's columns under the names that adapters know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mrpo_tools.errors import UsageError, did_you_mean
from mrpo_tools.sources.readers.rows import Problem, Row


class Columns:
    """Renames the columns of rows, and names them back in problems."""

    def __init__(self, mapping: Mapping[str, str], head: list[Row | Problem]) -> None:
        self._mapping = dict(mapping)
        rows = [item.value for item in head if isinstance(item, Row)]
        columns = {str(key) for value in rows if isinstance(value, Mapping) for key in value}
        for name, column in self._mapping.items():
            if columns and column not in columns:
                raise UsageError(
                    f"--map {name}={column}: there is no column {column!r}",
                    did_you_mean(column, columns),
                )

    def objects(self, head: list[Row | Problem]) -> list[Mapping[str, Any]]:
        """The rows that are objects, renamed: what an adapter is chosen by."""
        values = (self.renamed(item.value) for item in head if isinstance(item, Row))
        return [value for value in values if isinstance(value, Mapping)]

    def renamed(self, row: object) -> object:
        """A row under the names that adapters know; anything but an object as it is."""
        if not self._mapping or not isinstance(row, Mapping):
            return row
        others = {key: row[key] for key in row if key not in self._mapping.values()}
        named = {name: row[column] for name, column in self._mapping.items() if column in row}
        return others | named

    def original(self, problem: Problem) -> Problem:
        """The problem under the column name that stands in the file."""
        head = problem.field.partition(".")[0].partition("[")[0]
        if head not in self._mapping:
            return problem
        return replace(problem, field=self._mapping[head] + problem.field[len(head) :])
