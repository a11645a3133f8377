"""`mrpo round`: round after round, and the table over them.

What is done is what the files say, so an experiment that was stopped goes on where it stopped, and
one that is finished is a table again in a second. More rounds may be asked for later.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from mrpo_tools.errors import UsageError
from mrpo_tools.files import save_json, write_whole
from mrpo_tools.progress import is_first_process, say_once
from mrpo_tools.rounds.plan import KEY, RoundRecipe, load_round_recipe
from mrpo_tools.rounds.record import RoundRecord, read_round, round_directory
from mrpo_tools.rounds.step import RUN, Rounds, make_round
from mrpo_tools.rounds.table import as_markdown

RECIPE = "recipe.yaml"
TABLE, NUMBERS = "table.md", "rounds.json"


def run_rounds(rounds: Rounds, count: int) -> list[RoundRecord]:
    """Make every round that is not there, and write the table.

    Args:
        rounds: what they share.
        count: rounds in all.

    Returns:
        Each round's record; `table.md` and `rounds.json` in the directory hold the same.

    Raises:
        UsageError: the directory holds rounds of another recipe.
        MrpoError: what a verb raises; everything before it is kept.
    """
    _open(rounds)
    records = []
    for number in range(1, count + 1):
        if read_round(rounds.output, number) is None:
            say_once(f"round {number} of {count}: {rounds.name(number - 1)} answers")
        records.append(make_round(rounds, number))
        if is_first_process():
            _tabulate(rounds.output, records)
    return records


def runs_of(output: Path, count: int) -> list[Path]:
    """The runs of the rounds, which compare, report and evaluate read."""
    return [round_directory(output, number) / RUN for number in range(1, count + 1)]


def _open(rounds: Rounds) -> None:
    """Write down the recipe, or see that it is the one that is there.

    Raises:
        UsageError: another recipe, another first policy, or something else is there.
    """
    file = rounds.output / RECIPE
    now = _as_yaml(rounds)
    if file.exists():
        before = yaml.safe_load(file.read_text(encoding="utf-8"))
        after = yaml.safe_load(now)
        differing = [
            f"{key} was {before.get(key)!r}, is now {after.get(key)!r}"
            for key in sorted({*before, *after})
            if before.get(key) != after.get(key)
        ]
        if differing:
            raise UsageError(
                f"{rounds.output} holds rounds of another recipe: {'; '.join(differing)}",
                "choose another --output",
            )
        return
    if rounds.output.is_dir() and any(rounds.output.iterdir()):
        raise UsageError(f"{rounds.output} is not empty and holds no rounds", "--output NEW")
    if is_first_process():
        rounds.output.mkdir(parents=True, exist_ok=True)
        write_whole(file, now.encode())


def _as_yaml(rounds: Rounds) -> str:
    """The recipe with every key of the plan, and the first policy by name."""
    plan = rounds.recipe.plan.model_copy(update={"policy": rounds.base})
    words = {**rounds.recipe.train, KEY: plan.model_dump(mode="json")}
    return yaml.safe_dump(words, sort_keys=False, allow_unicode=True)


def _tabulate(output: Path, records: Sequence[RoundRecord]) -> None:
    write_whole(output / TABLE, as_markdown(records).encode())
    save_json(output / NUMBERS, {"rounds": [record.as_json() for record in records]})


__all__ = ["RoundRecipe", "Rounds", "load_round_recipe", "run_rounds", "runs_of"]
