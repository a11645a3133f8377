"""`mrpo round`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mrpo_tools.cli.completion import recipes
from mrpo_tools.cli.generate import server_of, server_options
from mrpo_tools.cli.help import Command
from mrpo_tools.cli.options import (
    cache_option,
    dataset_of,
    dataset_options,
    json_option,
    print_json,
    print_table,
    read_groups,
    recipe_keys,
    set_option,
)

if TYPE_CHECKING:
    from mrpo_tools.cache import Cache
    from mrpo_tools.config import Project
    from mrpo_tools.rounds.plan import RoundRecipe
    from mrpo_tools.rounds.step import Rounds
    from mrpo_tools.scoring import Scorer

SECTIONS = {"A server": ("url", "server_model", "concurrency", "timeout")}


@click.command(cls=Command, sections=SECTIONS)
@click.argument("recipe", type=click.Path(path_type=Path), shell_complete=recipes)
@click.option("--rounds", "count", type=click.IntRange(1),
              help="In all; more may be asked for later.  [default: the recipe's]")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), default=Path("rounds"),
              show_default=True, metavar="DIR",
              help="A directory a round, and the table.")  # fmt: skip
@set_option
@click.option("--split", default="train", show_default=True, help="Whose prompts are answered.")
@click.option("--eval-split", default="test", show_default=True, help="That measures a round.")
@click.option("--dry-run", is_flag=True, help="Say what each round does; do nothing.")
@server_options
@dataset_options
@cache_option
@json_option
def round(
    *,
    recipe: Path,
    count: int | None,
    output: Path,
    settings: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Sample from the policy, score, compute what references miss, train, measure; again.

    RECIPE is an ordinary recipe with `score`, and `rounds:` beside it. The first policy is
    reference 1; with `history` in `references` the policies of earlier rounds are references too.
    Resumes by itself, at any step: the same command goes on where it stopped.

    \b
    Example:
        mrpo round recipe.yaml --rounds 3 --output rounds/mpo
        mrpo round papers/mpo-table-3 --dry-run
        mrpo report rounds/mpo
    """
    from mrpo_tools.config import load_project
    from mrpo_tools.rounds.plan import load_round_recipe

    project = load_project()
    loaded = load_round_recipe(recipe, recipe_keys(settings))
    rounds = _rounds(loaded, project, output, options)
    count = count or loaded.plan.count
    if dry_run:
        _print_plan(rounds, count)
        return
    from mrpo_tools.progress import is_first_process
    from mrpo_tools.rounds.rounds import run_rounds, runs_of
    from mrpo_tools.rounds.table import REMARKS, cost_rows, outcome_rows

    records = run_rounds(rounds, count)
    if not is_first_process():
        return
    if as_json:
        print_json({"rounds": [record.as_json() for record in records]})
        return
    print_table(*outcome_rows(records))
    print(REMARKS)
    print()
    print_table(*cost_rows(records))
    print(f"next: mrpo report {' '.join(map(str, runs_of(output, count)))}")


def _rounds(loaded: RoundRecipe, project: Project, output: Path, options: dict[str, Any]) -> Rounds:
    """What the rounds share."""
    from mrpo_tools.cache import Cache
    from mrpo_tools.config import find_reference
    from mrpo_tools.errors import UsageError

    base = loaded.plan.policy or next(iter(project.references), None)
    if base is None:
        raise UsageError(
            "no reference is named, and the first policy is one",
            "`references:` in mrpo.yaml, or rounds.policy",
        )
    models = {base: find_reference(base, project), **project.references}
    cache = Cache(options["cache"] or project.cache)
    scorers = _scorers(loaded, project, cache)
    source = read_groups(dataset_of(project, options))
    from mrpo_tools.rounds.step import Rounds

    return Rounds(
        output=output,
        recipe=loaded,
        base=base,
        models=models,
        groups=source.groups,
        split=options["split"],
        eval_split=options["eval_split"],
        cache=cache,
        scorers=scorers,
        server=server_of(options),
    )


def _scorers(loaded: RoundRecipe, project: Project, cache: Cache) -> list[Scorer]:
    """The scorer that is trained on, and the held-out one."""
    from mrpo_tools.scoring.named import scorer_named
    from mrpo_tools.scoring.rules import load_rule

    words = [loaded.train.get(key) for key in ("score", "held_out_score")]
    return [
        load_rule(word) if ":" in word else scorer_named(word, project.scorers, cache)
        for word in words
        if word
    ]


def _print_plan(rounds: Rounds, count: int) -> None:
    from mrpo_tools.groups import in_split, one_a_prompt
    from mrpo_tools.rounds.mixing import asked_in

    plan = rounds.recipe.plan
    prompts = one_a_prompt(in_split(rounds.groups, rounds.split))
    rows = []
    for number in range(1, count + 1):
        asked = len(asked_in(prompts, number, plan.prompts, plan.seed))
        names = rounds.recipe.references(rounds.base, rounds.earlier(number))
        last = rounds.name(number - 1)
        start = last if plan.start == "last" else rounds.base
        rows.append((number, last, asked, asked * plan.n, start, ",".join(names)))
    print_table(("round", "answers by", "prompts", "answers", "starts from", "references"), rows)
    scorers = ", ".join(scorer.name for scorer in rounds.scorers)
    held_out = len(one_a_prompt(in_split(rounds.groups, rounds.eval_split)))
    print(f"scored by {scorers}; measured on {held_out:,} prompts of split {rounds.eval_split}")
    print("next: mrpo precompute --dry-run and mrpo train --dry-run say hours and memory")
