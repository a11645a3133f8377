"""`mrpo compare`."""

from __future__ import annotations

from pathlib import Path

import click

from mrpo_tools import words
from mrpo_tools.cli import completion
from mrpo_tools.cli.help import Command
from mrpo_tools.cli.options import choice


@click.command(cls=Command)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN…",
                shell_complete=completion.runs)  # fmt: skip
@click.option("--split", default="test", show_default=True, help="That was evaluated.")
@click.option("--baseline", "baselines", multiple=True, metavar="METHOD",
              help="What the others are compared with. Repeats.  [default: dpo with a single "
              "reference]")  # fmt: skip
@click.option("--format", "form", default="markdown", show_default=True,
              type=choice(words.TableFormat), help="What the table is written as.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
              help="Write to a file instead of stdout.")  # fmt: skip
def compare(
    runs: tuple[Path, ...],
    split: str,
    baselines: tuple[str, ...],
    form: words.TableFormat,
    output: Path | None,
) -> None:
    """Compare evaluated runs: mean ± std over seeds, and differences paired by seed.

    RUN is a run or a directory with runs at any depth. Runs that differ only in their seed are one
    method. The first column, an outcome where there is one, is marked from five seeds on: bold is
    better than every baseline, italics worse, at p < 0.05 by Holm over the methods.

    \b
    Example:
        mrpo compare runs/dpo runs/mrpo
        mrpo compare runs/sweep --format latex -o table.tex
    """
    from mrpo_tools.errors import UsageError
    from mrpo_tools.runs.compare import compare as compared
    from mrpo_tools.runs.formats import render
    from mrpo_tools.runs.read import read_results

    text = render(compared(read_results(runs, split), split, baselines), form)
    if output is None:
        print(text, end="")
    else:
        try:
            output.write_text(text, encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise UsageError(
                f"{output} cannot be written: {error.strerror}",
                "-o takes a file in a directory that is there",
            ) from None
        print(f"wrote {output}")
