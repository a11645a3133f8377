"""`mrpo data`: look at preference data before any model loads."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import click

from mrpo_tools.cli.options import json_option, print_json, print_table


@click.group()
def data() -> None:
    """Look at, check and convert preference data."""


@data.command()
@click.argument("source")
@click.option("--data-adapter", metavar="NAME")
@click.option("--rows", default=3, show_default=True, help="Groups to show in full.")
@json_option
def show(source: str, data_adapter: str | None, rows: int, as_json: bool) -> None:
    """What a data set holds: adapter and why, groups, responses, splits, the first groups.

    \b
    Example:
        mrpo data show pairs.jsonl
    """
    from mrpo_tools.sources import load_groups

    found = load_groups(source, adapter=data_adapter)
    sizes = Counter(len(group.responses) for group in found.groups)
    splits = Counter(str(group.split) for group in found.groups)
    summary: dict[str, Any] = {
        "name": found.name,
        "adapter": found.adapter,
        "because": found.reason,
        **{key: count for key, count in found.counts.items() if count},
        "responses per group": {str(n): count for n, count in sorted(sizes.items())},
        "splits": dict(splits),
    }
    if as_json:
        print_json({**summary, "first": [group.as_dict() for group in found.groups[:rows]]})
        return
    print_table(
        ("what", "found"),
        [
            (key, ", ".join(f"{k}: {v:,}" for k, v in value.items()))
            if isinstance(value, dict)
            else (key, str(value))
            for key, value in summary.items()
        ],
    )
    for group in found.groups[:rows]:
        print()
        for turn in group.prompt:
            print(f"  {turn.role}: {turn.content}")
        for response in group.responses:
            marks = [
                f"score {response.score:g}" if response.score is not None else "",
                {True: "chosen", False: "rejected", None: ""}[response.chosen],
            ]
            print(f"    [{', '.join(mark for mark in marks if mark)}] {response.content}")


@data.command()
@click.argument("source")
@click.option("--data-adapter", metavar="NAME")
def validate(source: str, data_adapter: str | None) -> None:
    """Check every row; exit 2 with the first twenty problems.

    \b
    Example:
        mrpo data validate pairs.jsonl
    """
    from mrpo_tools.sources import load_groups

    found = load_groups(source, adapter=data_adapter)
    print(f"{found.name}: {len(found.groups):,} groups, no problem found")


@data.command()
@click.argument("source")
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--data-adapter", metavar="NAME")
def convert(source: str, target: Path, data_adapter: str | None) -> None:
    """Write a data set in canonical form, as JSONL.

    \b
    Example:
        mrpo data convert pairs.json canonical.jsonl
    """
    from mrpo_tools.sources import load_groups

    found = load_groups(source, adapter=data_adapter)
    with target.open("w", encoding="utf-8") as file:
        for group in found.groups:
            file.write(json.dumps(group.as_dict(), ensure_ascii=False) + "\n")
    print(f"wrote {len(found.groups):,} groups to {target}")
