"""`mrpo sweep`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mrpo_tools.cli.completion import recipes, references, settings
from mrpo_tools.cli.help import Command
from mrpo_tools.cli.options import (
    cache_option,
    dataset_of,
    print_table,
    recipe_keys,
    scored_dataset_options,
    set_option,
)
from mrpo_tools.cli.outcomes import rule_options, sampling_of
from mrpo_tools.cli.scorers import pinned_scores, scorer_word

if TYPE_CHECKING:
    from mrpo_tools.config import Project
    from mrpo_tools.sweep.grid import Planned


@click.command(cls=Command)
@click.argument("recipe", type=click.Path(path_type=Path), shell_complete=recipes)
@click.option("--seeds", default="0..2", show_default=True, metavar="0..4",
              help="Each run is trained once with each; both ends count.")  # fmt: skip
@click.option("--grid", multiple=True, metavar="KEY=A,B,…", shell_complete=settings,
              help="Values of a recipe key (YAML). Repeats: every combination.")  # fmt: skip
@set_option
@click.option("--refs", metavar="A,B,…", shell_complete=references,
              help="Reference 1 first.  [default: the recipe's, or the project's]")  # fmt: skip
@click.option("--redraw-split", is_flag=True,
              help="Each seed draws the splits too, where the data names none.")  # fmt: skip
@click.option("--no-baselines", is_flag=True, help="Leave out DPO with each single reference.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True,
              help="Runs at a time, each in a process and on a GPU of its own.")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), default=Path("runs/sweep"),
              show_default=True, metavar="DIR", help="Of the runs and the table.")  # fmt: skip
@click.option("--split", default="test", show_default=True, help="To evaluate on.")
@click.option("--dry-run", is_flag=True, help="List the runs; train nothing.")
@rule_options
@scored_dataset_options
@cache_option
def sweep(
    recipe: Path,
    jobs: int,
    output: Path,
    split: str,
    *,
    dry_run: bool,
    **options: Any,
) -> None:
    """Train and evaluate a grid of recipes over several seeds, and compare them.

    With --rule every run's answers are marked, which is what methods are judged by.

    Resumes by itself: what is done is not done again. Keys that mean nothing for a loss are left
    out of its runs; `dpo` takes reference 1 alone. The table goes to stdout and, in four formats,
    to the sweep's directory.

    \b
    Example:
        mrpo sweep recipe.yaml --seeds 0..4 --grid loss=dpo,mrpo,multi_dpo,mean_ref
        mrpo sweep recipe.yaml --seeds 0..4 --redraw-split --test-size 0.2
        mrpo sweep recipe.yaml --grid loss=mrpo --grid epsilon_max=0,0.01,0.1,1,1e6
        mrpo sweep recipe.yaml --grid learning_rate=1e-4,1e-3 --rule rules:score
        mrpo sweep recipe.yaml --grid "refs=[llama],[llama,mistral]"
    """
    from mrpo_tools.cache import Cache
    from mrpo_tools.config import load_project, pinned

    project = load_project()
    cache = Path(options["cache"] or project.cache)
    score = pinned_scores(scorer_word(options), Cache(cache), project)
    planned = _planned(recipe, project, options, score)
    if dry_run:
        _print_plan(planned)
        return
    from mrpo_tools.runs.formats import render
    from mrpo_tools.sweep.sweep import Work
    from mrpo_tools.sweep.sweep import sweep as workflow

    dataset = pinned(dataset_of(project, options), None)
    work = Work(
        output, dataset=dataset, cache=cache, references=project.references, split=split,
        rules=options["rules"], full_marks=options["full_marks"], sampling=sampling_of(options),
    )  # fmt: skip
    print(render(workflow(planned, work, jobs), "markdown"), end="")


def _print_plan(planned: Sequence[Planned]) -> None:
    print_table(
        ("run", "loss", "references"),
        [(run.name, run.recipe.loss, ", ".join(run.recipe.refs) or "–") for run in planned],
    )


def _planned(
    recipe: Path, project: Project, options: dict[str, Any], score: str | None
) -> list[Planned]:
    """The runs that the recipe, the grid and the seeds mean, by a scorer's scores if any."""
    from mrpo_tools.config import load_recipe
    from mrpo_tools.sweep.grid import parse_grid, parse_seeds, plan

    words = load_recipe(recipe) | recipe_keys(options["settings"])
    if score is not None:
        words["score"] = score
    if options["refs"] is not None:
        words["refs"] = [name for name in options["refs"].split(",") if name]
    elif not words.get("refs"):
        words["refs"] = list(project.references)
    return plan(
        words,
        parse_grid(options["grid"]),
        parse_seeds(options["seeds"]),
        baselines=not options["no_baselines"],
        redraw_split=options["redraw_split"],
    )
