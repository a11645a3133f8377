"""`mrpo data`: look at preference data before any model loads."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mrpo_tools.cli.options import (
    counted,
    dataset_of,
    dataset_options,
    json_option,
    print_json,
    print_table,
    read_groups,
)

if TYPE_CHECKING:
    from mrpo_tools.groups import Group
    from mrpo_tools.sources import Source


@click.group()
def data() -> None:
    """Look at, check and convert preference data."""


@data.command()
@click.argument("source", required=False)
@dataset_options
@click.option("--rows", default=3, show_default=True, help="Groups to show in full.")
@json_option
def show(source: str | None, rows: int, as_json: bool, **options: Any) -> None:
    """What a data set holds: adapter and why, groups, responses, splits, the first groups.

    SOURCE is the project's data set by default.

    \b
    Example:
        mrpo data show pairs.jsonl
    """
    found = _read(source, options)
    summary = _summary(found)
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
        _print_group(group)


@data.command()
@click.argument("source", required=False)
@dataset_options
def validate(source: str | None, **options: Any) -> None:
    """Check every row; exit 2 with the first twenty problems.

    \b
    Example:
        mrpo data validate pairs.jsonl
    """
    found = _read(source, options)
    print(f"{found.name}: {counted(found.counts)}; no problem found")


@data.command()
@click.argument("source")
@click.argument("target", type=click.Path(path_type=Path))
@dataset_options
def convert(source: str, target: Path, **options: Any) -> None:
    """Write a data set in canonical form, as JSONL, a group at a time.

    \b
    Example:
        mrpo data convert pairs.json canonical.jsonl
    """
    from mrpo_tools.config import Project
    from mrpo_tools.progress import bar_to
    from mrpo_tools.sources import GroupStream, Options

    dataset = dataset_of(Project(), {**options, "dataset": source})
    with bar_to("converting") as report:
        stream = GroupStream(
            dataset.source,
            Options(
                adapter=dataset.adapter,
                mapping=dataset.map or {},
                limit=dataset.limit,
                test_size=dataset.test_size,
                seed=dataset.split_seed,
                score=dataset.score,
                on_progress=report,
            ),
        )
        temporary = target.with_name(f".{target.name}.tmp")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                for group in stream:
                    file.write(json.dumps(group.as_dict(), ensure_ascii=False) + "\n")
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    print(f"wrote {stream.counts['groups']:,} groups to {target}")


def _read(source: str | None, options: dict[str, Any]) -> Source:
    from mrpo_tools.config import load_project

    return read_groups(dataset_of(load_project(), {**options, "dataset": source}))


def _summary(found: Source) -> dict[str, Any]:
    sizes = Counter(len(group.responses) for group in found.groups)
    splits = Counter(str(group.split) for group in found.groups)
    scores = [
        response.score
        for group in found.groups
        for response in group.responses
        if response.score is not None
    ]
    summary: dict[str, Any] = {
        "name": found.name,
        "adapter": found.adapter,
        "because": found.reason,
        **{key.replace("_", " "): count for key, count in found.counts.items() if count},
        "responses per group": {str(n): count for n, count in sorted(sizes.items())},
        "splits": dict(splits),
    }
    if scores:
        summary["scores"] = f"{min(scores):g} to {max(scores):g}"
    return summary


def _print_group(group: Group) -> None:
    print()
    for turn in group.prompt:
        print(f"  {turn.role}: {turn.content}")
    for response in group.responses:
        marks = [
            f"score {response.score:g}" if response.score is not None else "",
            {True: "chosen", False: "rejected", None: ""}[response.chosen],
        ]
        print(f"    [{', '.join(mark for mark in marks if mark)}] {response.content}")
