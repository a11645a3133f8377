"""Presets: the settings of a paper's table, a file a table, a run a cell.

`FILE:ROW/COLUMN` names a cell, `mrpo-table-1:mrpo/l-from-m` say. Its recipe is the file's
`recipe`, then the column's keys, then the row's. `references: 1` in a row keeps that many of the
column's references. The file also names the data sets, the models and their chat templates (files
beside it), so a cell is all that a project and a run need.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field, field_validator

from mrpo_tools.config import (
    Dataset,
    Project,
    Recipe,
    Words,
    find_recipe,
    parse,
    read_yaml,
    shipped_recipes,
)
from mrpo_tools.errors import UsageError, did_you_mean


class Table(Words):
    """A preset file. Data sets are sources, or mappings of `Dataset`; models as in a project.

    Recipe keys and references are validated together, cell by cell.
    """

    paper: str
    datasets: list[Dataset] = Field(min_length=1)
    references: dict[str, object]
    scorers: dict[str, object] = Field(default_factory=dict)
    rounds: dict[str, object] = Field(default_factory=dict)
    recipe: dict[str, object]
    columns: dict[str, dict[str, object]] = Field(min_length=1)
    rows: dict[str, dict[str, object]] = Field(min_length=1)

    @field_validator("datasets", mode="before")
    @classmethod
    def _by_source(cls, values: object) -> object:
        if not isinstance(values, list):
            return values
        return [{"source": value} if isinstance(value, str) else value for value in values]

    @property
    def cells(self) -> list[str]:
        """`ROW/COLUMN` of every cell."""
        return [f"{row}/{column}" for row in self.rows for column in self.columns]


@dataclass(frozen=True)
class Preset:
    """A cell.

    Attributes:
        title: paper, table and cell.
        project: data set and references, as in mrpo.yaml.
        recipe: its set fields are the keys of the file; the others are left to their defaults.
        rounds: what `mrpo round` does between trainings; empty where nothing is sampled.
        templates: chat templates beside the table that the project names; a project needs copies.
    """

    title: str
    project: Project
    recipe: Recipe
    rounds: dict[str, object] = field(default_factory=dict)
    templates: tuple[Path, ...] = ()


def load_table(path: Path, absent: str = "mrpo init --preset FILE:ROW/COLUMN") -> Table:
    """A preset file, validated; `absent` is the hint where there is none."""
    return parse(Table, read_yaml(path, absent), str(path))


def load_preset(word: str, source: str | None = None) -> Preset:
    """The cell that `FILE:ROW/COLUMN` names; a file that mrpo brings along is found by its name.

    Args:
        word: as the user writes it.
        source: which of the table's data sets, or any other; the first when None.

    Raises:
        UsageError: no such file or cell, or keys that mean nothing.
    """
    file, cell = file_and_cell(word)
    path = find_recipe(file, "papers")
    ours = f"those that mrpo brings along: {', '.join(shipped_recipes('papers'))}"
    table = load_table(path, absent=ours)
    row, _, column = cell.partition("/")
    if row not in table.rows or column not in table.columns:
        hint = did_you_mean(cell, table.cells) if cell else None
        reason = f"there is no cell {cell!r}" if cell else "no cell is named"
        raise UsageError(f"{path}: {reason}", hint or f"cells: {', '.join(table.cells)}")
    keys = {**table.recipe, **table.columns[column], **table.rows[row]}
    rounds = {**table.rounds}
    for part in (table.columns[column], table.rows[row]):
        rounds |= _mapping(part.get("rounds"))
    keys.pop("rounds", None)
    refs = _first(keys.get("refs"), keys.pop("references", None))
    recipe = parse(Recipe, {**keys, "refs": refs}, f"{path}:{cell}")
    dataset = next((data for data in table.datasets if source in (None, data.source)), None)
    project = {
        "dataset": dataset.model_dump(exclude_defaults=True) if dataset else source,
        "references": {name: table.references.get(name) for name in recipe.refs},
        "scorers": {name: table.scorers[name] for name in _scorers(recipe) & {*table.scorers}},
    }
    made = parse(Project, project, f"{path}:{cell}")
    named = {reference.chat_template or "" for reference in made.references.values()}
    return Preset(
        title=f"{table.paper}: {cell}",
        project=made,
        recipe=recipe,
        rounds=rounds,
        templates=tuple(file for name in sorted(named) if (file := path.parent / name).is_file()),
    )


def _mapping(value: object) -> dict[str, object]:
    return dict(value) if isinstance(value, dict) else {}


def _scorers(recipe: Recipe) -> set[str]:
    return {name for name in (recipe.score, recipe.held_out_score) if name is not None}


def file_and_cell(word: str) -> tuple[Path, str]:
    """`FILE.yaml:CELL`, or `NAME:CELL`; the ending tells a path with a colon in it."""
    file, ending, cell = word.partition(".yaml:")
    if ending or word.endswith(".yaml"):
        return Path(file + ending.rstrip(":")), cell
    file, _, cell = word.partition(":")
    return Path(f"{file}.yaml"), cell


def _first(refs: object, count: object) -> object:
    """The first `count` of a column's references; all without a count."""
    return refs[:count] if isinstance(refs, list) and isinstance(count, int) else refs or []
