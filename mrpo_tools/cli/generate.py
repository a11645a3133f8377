"""`mrpo generate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from mrpo_tools.cli.options import dataset_of, dataset_options, read_groups


@click.command()
@click.argument("model")
@dataset_options
@click.option("--split", default="test", show_default=True, help="`all` for everything.")
@click.option("--max-new-tokens", default=256, show_default=True, type=int)
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
    source = read_groups(dataset_of(project, options))
    unique = {group.prompt_id: group for group in in_split(source.groups, split)}
    from mrpo_tools.sampling import generate as verb

    answers = verb(reference, [group.prompt for group in unique.values()], max_new_tokens)
    lines = (
        json.dumps(
            {
                "prompt_id": key,
                "prompt": [turn.as_dict() for turn in group.prompt],
                "answer": answer,
            },
            ensure_ascii=False,
        )
        for (key, group), answer in zip(unique.items(), answers, strict=True)
    )
    text = "".join(f"{line}\n" for line in lines)
    if output:
        output.write_text(text, encoding="utf-8")
        print(f"{len(unique):,} answers in {output}")
    else:
        print(text, end="")
