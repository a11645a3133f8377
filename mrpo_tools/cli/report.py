"""`mrpo report`."""

from __future__ import annotations

from pathlib import Path

import click

from mrpo_tools.cli import completion
from mrpo_tools.cli.help import Command


@click.command(cls=Command)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN…",
                shell_complete=completion.runs)  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), default=Path("report"),
              show_default=True, metavar="DIR", help="Where the page is written.")  # fmt: skip
@click.option("--split", default="test", show_default=True, help="That was evaluated.")
@click.option("--baseline", "baselines", multiple=True, metavar="METHOD",
              help="What the others are compared with. Repeats.  [default: dpo with a single "
              "reference]")  # fmt: skip
def report(runs: tuple[Path, ...], output: Path, split: str, baselines: tuple[str, ...]) -> None:
    """Write a page about runs: tables, pictures, costs and differences.

    RUN is a run or a directory with runs at any depth. The page, report.html, is one file that
    loads nothing; the pictures are beside it as PNG, and report.md is the same in Markdown.

    \b
    Example:
        mrpo report runs
        mrpo report runs/sweep --output report
    """
    from mrpo_tools.report.write import report as verb

    for path in verb(runs, output, split, baselines):
        print(f"wrote {path}")
