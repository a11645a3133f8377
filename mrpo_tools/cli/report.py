"""`mrpo report`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN…")
@click.option("--output", type=click.Path(path_type=Path), default=Path("report"),
              show_default=True, metavar="DIR")  # fmt: skip
@click.option("--split", default="test", show_default=True)
@click.option("--baseline", "baselines", multiple=True, metavar="METHOD",
              help="Repeats.  [default: dpo with a single reference]")  # fmt: skip
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
