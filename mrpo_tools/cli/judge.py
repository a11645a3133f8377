"""`mrpo judge`: whose answers to the same prompts are better, by a model that is asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mrpo_tools.cli.completion import files, runs
from mrpo_tools.cli.help import Command
from mrpo_tools.cli.options import (
    cache_option,
    dataset_of,
    decorate,
    json_option,
    print_json,
    read_groups,
)

if TYPE_CHECKING:
    from mrpo_tools.cache import Cache
    from mrpo_tools.config import Project
    from mrpo_tools.evaluation.contest import Bout
    from mrpo_tools.evaluation.contestants import Entered
    from mrpo_tools.judging import Judge
    from mrpo_tools.judging.purse import Prices

_judge_options = decorate(
    click.option("--judge", "judges", multiple=True, required=True, metavar="URL#MODEL",
                 help="A chat endpoint: http://HOST:PORT/v1#MODEL. Twice for two judges and their "
                 "agreement. The key is MRPO_SERVER_KEY's or OPENAI_API_KEY's."),
    click.option("--template", metavar="NAME|FILE", default="pairwise", show_default=True,
                 help="What is asked: pairwise, alpaca_eval, arena_hard, mrpo, or your file."),
    click.option("--max-tokens", default=1024, show_default=True, type=click.IntRange(1),
                 help="Of a judge's reply."),
    click.option("--repeats", default=30, show_default=True, type=click.IntRange(0),
                 help="Questions of each two that are asked once more."),
    click.option("--concurrency", default=16, show_default=True, type=click.IntRange(1),
                 help="Requests at a time."),
    click.option("--timeout", default=600.0, show_default=True, help="Seconds of a request."),
)  # fmt: skip
_cost_options = decorate(
    click.option("--dry-run", is_flag=True, help="Count calls, tokens and price; ask nothing."),
    click.option("--budget", metavar="N|MONEY",
                 help="600 calls, or 2.50usd by the prices; what is there then is reported."),
    click.option("--price-in", type=click.FloatRange(0), help="Of a million tokens that are read."),
    click.option("--price-out", type=click.FloatRange(0),
                 help="Of a million tokens that are written."),
)  # fmt: skip
_prompt_options = decorate(
    click.option("--dataset", metavar="SOURCE", shell_complete=files,
                 help="Whose prompts.  [default: those of the answer files, else the project's]"),
    click.option("--data-adapter", metavar="NAME", help="How to read the data's columns."),
    click.option("--test-size", type=float, help="Share of prompts held out as split `test`."),
    click.option("--split-seed", type=int, help="Which prompts those are."),
    click.option("--split", help="Of the data; `all` for everything.  [default: test; of files, "
                 "all]"),
    click.option("--limit", default=300, show_default=True, type=click.IntRange(1),
                 help="The first N prompts that all contestants answered."),
    click.option("--max-new-tokens", default=256, show_default=True, type=click.IntRange(1),
                 help="Of an answer of a run or model."),
)  # fmt: skip
SECTIONS = {
    "The judge": ("judges", "template", "max_tokens", "repeats", "concurrency", "timeout"),
    "What it costs": ("dry_run", "budget", "price_in", "price_out"),
    "The prompts": (
        "dataset", "data_adapter", "test_size", "split_seed", "split", "limit", "max_new_tokens",
    ),
}  # fmt: skip


@click.command(cls=Command, sections=SECTIONS)
@click.argument("contestants", metavar="A B [C]…", nargs=-1, required=True, shell_complete=runs)
@_judge_options
@_cost_options
@_prompt_options
@cache_option
@json_option
def judge(*, contestants: tuple[str, ...], judges: tuple[str, ...], **options: Any) -> None:
    """Who answers better: a model is shown two answers in both orders, and says which.

    Contestants are runs, models, or files of answers (`mrpo generate`; FILE#MODEL where a file has
    answers of several models). A win takes both orders; where they contradict each other it is a
    tie, and a flip. Verdicts are kept in the cache, so nothing is paid twice and the same command
    goes on.

    \b
    Example:
        mrpo judge runs/mrpo runs/dpo --judge http://localhost:8000/v1#llama-70b
        mrpo judge mrpo.jsonl dpo.jsonl --judge https://api.openai.com/v1#gpt-4o --dry-run
    """
    from mrpo_tools.cache import Cache
    from mrpo_tools.config import load_project
    from mrpo_tools.errors import UsageError
    from mrpo_tools.evaluation.contest import bouts_of
    from mrpo_tools.judging import judge_of
    from mrpo_tools.judging.purse import budget_of

    if len(contestants) < 2:
        raise UsageError("two contestants or more are compared", "mrpo judge A B --judge URL#MODEL")
    prices = _prices(options["price_in"], options["price_out"])
    budget = budget_of(options["budget"], prices)
    words = {name: options[name] for name in ("max_tokens", "concurrency", "timeout")}
    asked = [judge_of(word, options["template"], **words) for word in judges]
    if len({each.identity.hash for each in asked}) < len(asked):
        raise UsageError("one judge is named twice", "another model, or --judge once")
    project = load_project()
    cache = Cache(options["cache"] or project.cache)
    entry = _entered(contestants, project, cache, options)
    bouts = bouts_of(entry, options["repeats"])
    if options["dry_run"]:
        _print_costs(asked, bouts, cache, prices, as_json=options["as_json"])
        return
    from mrpo_tools.cli.judged import report
    from mrpo_tools.judging.ensure import ensure_verdicts

    questions = [each for bout in bouts for each in bout.questions]
    said = []
    for each in asked:
        said.append(ensure_verdicts(each, questions, cache, budget, prices))
        budget = said[-1].purse.left
    report(entry, bouts, said, as_json=options["as_json"])
    from mrpo_tools.evaluation.win_rates import keep_win_rates
    from mrpo_tools.progress import say_once

    for file in keep_win_rates(contestants, entry, bouts, said):
        say_once(f"win rates are in {file}")


def _prices(read: float | None, written: float | None) -> Prices | None:
    from mrpo_tools.errors import UsageError
    from mrpo_tools.judging.purse import Prices

    if read is None and written is None:
        return None
    if read is None or written is None:
        raise UsageError("a price has two sides", "--price-in and --price-out")
    return Prices(read, written)


def _entered(
    words: Sequence[str], project: Project, cache: Cache, options: dict[str, Any]
) -> Entered:
    """The contestants' answers; what some of them lack goes to stderr."""
    from mrpo_tools.config import Project
    from mrpo_tools.evaluation.contestants import contestant_of, entered, lacks
    from mrpo_tools.progress import say_once
    from mrpo_tools.runs.run import is_run, load_run

    contestants = [contestant_of(word, project, cache.path) for word in words]
    of_files = any(each.answered is not None for each in contestants)
    own = next((load_run(Path(word)) for word in words if is_run(Path(word))), None)
    if project.dataset is None and own is not None:
        project = Project(dataset=own.record.dataset, cache=project.cache)
    limit = options.pop("limit")
    wanted = options["dataset"] is not None or not of_files
    groups = read_groups(dataset_of(project, options)).groups if wanted else None
    sample = not options["dry_run"]
    length = options["max_new_tokens"]
    entry = entered(contestants, groups, options["split"], limit, length, sample=sample)
    for line in lacks(entry):
        say_once(f"warning: {line}")
    return entry


def _print_costs(
    judges: Sequence[Judge],
    bouts: Sequence[Bout],
    cache: Cache,
    prices: Prices | None,
    *,
    as_json: bool,
) -> None:
    from dataclasses import asdict

    from mrpo_tools.cli.options import print_records
    from mrpo_tools.judging.ensure import cost_of, missing_verdicts

    rows = []
    for each in judges:
        questions = [asked for bout in bouts for asked in bout.questions]
        _, missing, _ = missing_verdicts(each, questions, cache)
        there = len({asked.verdict_id for asked in questions}) - len(missing)
        names = {"judge": each.name, "prompts": len(bouts[0].prompts), "reused": there}
        rows.append({**names, **asdict(cost_of(each, missing, prices))})
    if as_json:
        print_json(rows)
        return
    print_records(rows)
    print("tokens are estimated: 4 bytes each, and replies of 150; nothing was asked")
