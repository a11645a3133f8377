"""`mrpo losses`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from mrpo_tools.cli import completion
from mrpo_tools.cli.help import Command
from mrpo_tools.cli.options import json_option, print_json, print_table

if TYPE_CHECKING:
    from mrpo_tools.methods.method import Description


@click.command(cls=Command)
@click.argument("name", required=False, shell_complete=completion.losses)
@json_option
def losses(*, name: str | None, as_json: bool) -> None:
    """List the objectives, or explain one: formula, paper, defaults and a recipe line.

    \b
    Example:
        mrpo losses
        mrpo losses mrpo
    """
    from mrpo_tools.methods.method import describe, find_loss

    if name is not None:
        row = describe(find_loss(name))
        if as_json:
            print_json(asdict(row))
            return
        print(f"{row.name}: {row.formula}")
        print(f"source:   {row.source}")
        print(f"needs:    {row.needs}")
        print(f"defaults: {_defaults(row) or 'none'}")
        print(f"recipe:   {row.recipe}")
        return
    from mrpo_tools.methods.method import LOSSES

    rows = [describe(name) for name in LOSSES]
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    print_table(
        ("name", "needs", "source", "defaults"),
        [(row.name, row.needs, row.source, _defaults(row)) for row in rows],
    )


def _defaults(row: Description) -> str:
    return ", ".join(f"{key} {value}" for key, value in row.defaults.items())
