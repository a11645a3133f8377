"""`mrpo merge`."""

from __future__ import annotations

from pathlib import Path

import click

from mrpo_tools import words
from mrpo_tools.cli.completion import runs
from mrpo_tools.cli.help import Command
from mrpo_tools.cli.options import choice


@click.command(cls=Command)
@click.argument("model", metavar="RUN_OR_MODEL", shell_complete=runs)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="DIR",
              help="Where the model is written.")  # fmt: skip
@click.option("--dtype", type=choice(words.Dtype),
              help="Of the merged weights.  [default: the base model's]")  # fmt: skip
def merge(model: str, output: Path, dtype: str | None) -> None:
    """Merge the LoRA adapter of a run, or of a directory, into its base model.

    \b
    Example:
        mrpo merge runs/mrpo --output models/aligned
    """
    from mrpo_tools.config import Reference
    from mrpo_tools.runs.run import is_run, load_run

    path = Path(model)
    reference = load_run(path).trained_policy if is_run(path) else Reference(model=model)
    if dtype is not None:
        reference = Reference.model_validate({**reference.model_dump(), "dtype": dtype})
    from mrpo_tools.references.merge import merge as verb

    print(f"wrote {verb(reference, output)}")
