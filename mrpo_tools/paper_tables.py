"""Presets: the settings of a paper's table, a file a table, a run a cell.

`FILE.yaml:ROW/COLUMN` names a cell. Its recipe is the file's `recipe`, then the column's keys, then
the row's. `references: 1` in a row keeps that many of the column's references. The file also names
the data sets and the models, so a cell is all that a project and a run need.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from mrpo_tools.config import Dataset, Project, Recipe, Words, parse, read_yaml
from mrpo_tools.errors import UsageError, did_you_mean


class Table(Words):
    """A preset file. Data sets are sources, or mappings of `Dataset`; models as in a project."""

    paper: str
    datasets: list[Dataset] = Field(min_length=1)
    references: dict[str, Any]
    recipe: dict[str, Any]
    columns: dict[str, dict[str, Any]] = Field(min_length=1)
    rows: dict[str, dict[str, Any]] = Field(min_length=1)

    @field_validator("datasets", mode="before")
    @classmethod
    def _by_source(cls, values: object) -> object:
        if not isinstance(values, list):
            return values
        return [{"source": one} if isinstance(one, str) else one for one in values]

    @property
    def cells(self) -> list[str]:
        return [f"{row}/{column}" for row in self.rows for column in self.columns]


@dataclass(frozen=True)
class Preset:
    """A cell.

    Attributes:
        title: paper, table and cell.
        project: data set and references, as in mrpo.yaml.
        recipe: the keys of the recipe, validated.
    """

    title: str
    project: Project
    recipe: dict[str, Any]


def load_table(path: Path) -> Table:
    """A preset file, validated."""
    return parse(Table, read_yaml(path), str(path))


def load_preset(word: str, source: str | None = None) -> Preset:
    """The cell that `FILE.yaml:ROW/COLUMN` names.

    Args:
        word: as the user writes it.
        source: which of the table's data sets, or any other; the first when None.

    Raises:
        UsageError: no such file or cell, or keys that mean nothing.
    """
    file, _, cell = word.partition(".yaml:")
    path = Path(file if word.endswith(".yaml") else f"{file}.yaml")
    table = load_table(path)
    row, _, column = cell.partition("/")
    if row not in table.rows or column not in table.columns:
        hint = did_you_mean(cell, table.cells) if cell else None
        found = f"there is no cell {cell!r}" if cell else "no cell is named"
        raise UsageError(f"{path}: {found}", hint or f"cells: {', '.join(table.cells)}")
    values = {**table.recipe, **table.columns[column], **table.rows[row]}
    refs = values.get("refs", [])[: values.pop("references", None)]
    values["refs"] = refs
    recipe = parse(Recipe, values, f"{path}:{cell}")
    dataset = next((one for one in table.datasets if source in (None, one.source)), None)
    project = {
        "dataset": dataset.model_dump(exclude_defaults=True) if dataset else source,
        "references": {name: table.references.get(name) for name in refs},
    }
    return Preset(
        f"{table.paper}: {cell}",
        parse(Project, project, f"{path}:{cell}"),
        {key: getattr(recipe, key) for key in values},
    )
