"""What a shell completes beside commands and options: names. Nothing here imports torch.

click asks these functions; each returns what begins with the text so far, and nothing where a file
of the user's cannot be read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from mrpo_tools import words

if TYPE_CHECKING:
    from mrpo_tools.config import Project

Completions = list[CompletionItem]
Completer = Callable[[click.Context, click.Parameter, str], Completions]

IDENTITY_DIGITS = 12
"""Of the name of a reference's directory in the cache."""
DEPTH = 3
"""So many levels below the directory that is typed, runs are looked for."""
DIRECTORIES = 2000
"""No more of them are looked at: an answer is wanted at once."""


def losses(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> Completions:
    """Names of objectives."""
    return _beginning(incomplete, words.choices(words.Loss))


def references(ctx: click.Context, _param: click.Parameter, incomplete: str) -> Completions:
    """References of the project and of the cache; the last of several with commas between."""
    before, comma, _ = incomplete.rpartition(",")
    taken = before.split(",")
    names = [name for name in _references(ctx.params.get("cache")) if name not in taken]
    return _beginning(incomplete, [f"{before}{comma}{name}" for name in names])


def scorers(ctx: click.Context, _param: click.Parameter, incomplete: str) -> Completions:
    """Scorers of the project and of the cache."""
    project = _project()
    if project is None:
        return []
    known = [*project.scorers, *_cached(ctx.params.get("cache"), project, "scores")]
    return _beginning(incomplete, list(dict.fromkeys(known)))


def _references(cache: str | None) -> list[str]:
    """Names, those of the project first, each once."""
    project = _project()
    if project is None:
        return []
    return list(dict.fromkeys([*project.references, *_cached(cache, project, "references")]))


def _cached(cache: str | None, project: Project, kind: str) -> list[str]:
    """Names in a folder of the cache."""
    folder = Path(cache or project.cache) / kind
    return sorted(path.name[: -IDENTITY_DIGITS - 1] for path in _inside(folder))


def _project() -> Project | None:
    """The project of the working directory; None where its file cannot be read."""
    from mrpo_tools.config import load_project
    from mrpo_tools.errors import UsageError

    with contextlib.suppress(UsageError):
        return load_project()
    return None


def recipe_keys(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> Completions:
    """Keys of a recipe, with what they mean."""
    from mrpo_tools.config import Recipe

    return [
        CompletionItem(key, help=field.description)
        for key, field in Recipe.model_fields.items()
        if key.startswith(incomplete)
    ]


def settings(ctx: click.Context, param: click.Parameter, incomplete: str) -> Completions:
    """`KEY=`, and after it the names that a recipe's key may have."""
    from mrpo_tools.cli.recipe_facts import facts_of
    from mrpo_tools.config import Recipe

    key, equals, _ = incomplete.partition("=")
    if not equals:
        keys = recipe_keys(ctx, param, key)
        return [CompletionItem(f"{item.value}=", help=item.help) for item in keys]
    if key == "loss":
        names: Iterable[object] = words.choices(words.Loss)
    else:
        field = Recipe.model_fields.get(key)
        names = facts_of(field)["choices"] if field else ()
    return _beginning(incomplete, [f"{key}={name}" for name in names])


def recipes(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> Completions:
    """Recipes that come with mrpo; else files."""
    from mrpo_tools.config import shipped_recipes

    return [CompletionItem(incomplete, type="file"), *_beginning(incomplete, shipped_recipes())]


def presets(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> Completions:
    """`TABLE:` of the papers' tables that come with mrpo, then the cells of a table; else files."""
    from mrpo_tools.config import find_recipe, shipped_recipes
    from mrpo_tools.errors import UsageError
    from mrpo_tools.paper_tables import file_and_cell, load_table

    table, colon, _ = incomplete.rpartition(":")
    if colon:
        with contextlib.suppress(UsageError):
            cells = load_table(find_recipe(file_and_cell(incomplete)[0], "papers")).cells
            return _beginning(incomplete, [f"{table}:{cell}" for cell in cells])
        return []
    tables = [f"{name}:" for name in shipped_recipes("papers")]
    return [CompletionItem(incomplete, type="file"), *_beginning(incomplete, tables)]


def files(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> Completions:
    """Files and directories, as the shell knows them."""
    return [CompletionItem(incomplete, type="file")]


def runs(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> Completions:
    """Runs at or below the path typed; else directories."""
    typed = Path(incomplete)
    folder = typed if incomplete.endswith("/") or not incomplete else typed.parent
    found = sorted(str(path) for path in _runs(folder))
    return [CompletionItem(incomplete, type="dir"), *_beginning(incomplete, found)]


def _runs(folder: Path) -> Iterator[Path]:
    """Runs at most `DEPTH` directories below one, the nearest first."""
    from mrpo_tools.runs.run import is_run

    level, left = [folder], DIRECTORIES
    for _ in range(DEPTH):
        inside = [path for parent in level for path in _inside(parent)
                  if path.is_dir() and not path.name.startswith(".")][:left]  # fmt: skip
        left -= len(inside)
        level = [path for path in inside if not is_run(path)]
        yield from (path for path in inside if is_run(path))


def _inside(folder: Path) -> list[Path]:
    """What a directory holds, by name; nothing where it cannot be read."""
    with contextlib.suppress(OSError):
        return sorted(folder.iterdir())
    return []


def _beginning(incomplete: str, names: Iterable[str]) -> Completions:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]
