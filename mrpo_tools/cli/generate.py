"""`mrpo generate`."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mrpo_tools.cli.completion import runs
from mrpo_tools.cli.help import Command
from mrpo_tools.cli.options import dataset_of, dataset_options, read_groups

if TYPE_CHECKING:
    from mrpo_tools.groups import Group


@click.command(cls=Command)
@click.argument("model", metavar="RUN_OR_MODEL", shell_complete=runs)
@dataset_options
@click.option("--split", default="test", show_default=True, help="`all` for everything.")
@click.option("--max-new-tokens", default=256, show_default=True, type=int, help="Of an answer.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="JSONL; stdout by default.")
def generate(
    model: str, split: str, max_new_tokens: int, output: Path | None, **options: Any
) -> None:
    """Greedy answers of a run, a reference or a model to a data set's prompts.

    \b
    Example:
        mrpo generate runs/mrpo --split test -o answers.jsonl
    """
    from mrpo_tools.config import Project, Reference, load_project
    from mrpo_tools.errors import UsageError
    from mrpo_tools.groups import in_split
    from mrpo_tools.runs.run import is_run, load_run

    if output is not None and not output.parent.is_dir():
        raise UsageError(f"no directory {output.parent}", f"mkdir -p {output.parent}")
    project = load_project()
    reference = project.references.get(model) or Reference(model=model)
    if is_run(Path(model)):
        run = load_run(Path(model))
        reference = run.trained_policy
        if project.dataset is None:
            project = Project(dataset=run.record.dataset)
    limit = options.pop("limit")
    source = read_groups(dataset_of(project, options))
    prompts = {group.prompt_id: group for group in in_split(source.groups, split)}
    unique = dict(itertools.islice(prompts.items(), limit))
    from mrpo_tools.sampling import generate as verb
    from mrpo_tools.sampling import prompts_of

    answers = verb(reference, prompts_of(list(unique.values())), max_new_tokens)
    text = "".join(map(_line, unique.values(), answers))
    if output:
        output.write_text(text, encoding="utf-8")
        print(f"{len(unique):,} answers in {output}")
    else:
        print(text, end="")
    from mrpo_tools.progress import say

    say(f"next: mrpo merge {model} --output DIR" if is_run(Path(model)) else
        f"next: mrpo evaluate {model}")  # fmt: skip


def _line(group: Group, answer: str) -> str:
    prompt = [turn.as_dict() for turn in group.prompt]
    values = {"prompt_id": group.prompt_id, "prompt": prompt, "answer": answer}
    return json.dumps(values, ensure_ascii=False) + "\n"
