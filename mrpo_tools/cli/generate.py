"""`mrpo generate`."""

from __future__ import annotations

import contextlib
import itertools
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mrpo_tools import words
from mrpo_tools.cli.completion import runs
from mrpo_tools.cli.help import Command
from mrpo_tools.cli.options import (
    cache_option,
    choice,
    dataset_of,
    dataset_options,
    decorate,
    read_groups,
)

if TYPE_CHECKING:
    from mrpo_tools.config import Project, Reference
    from mrpo_tools.groups import Group
    from mrpo_tools.runs.run import Run
    from mrpo_tools.sampling import Samples, Sampling
    from mrpo_tools.server import Server
    from mrpo_tools.words import AnswersForm

sampling_options = decorate(
    click.option("--n", "--samples", "n", default=1, show_default=True,
                 help="Answers to each prompt."),
    click.option("--temperature", default=0.0, show_default=True,
                 help="0: the likeliest token each time (greedy)."),
    click.option("--top-p", default=1.0, show_default=True,
                 help="Draw from the likeliest tokens that together have this probability."),
    click.option("--top-k", default=0, show_default=True,
                 help="Draw from so many of the likeliest tokens; 0: all."),
    click.option("--max-new-tokens", default=256, show_default=True, help="Of an answer."),
    click.option("--seed", default=0, show_default=True, help="Another one gives other answers."),
)  # fmt: skip
server_options = decorate(
    click.option("--server", "url", metavar="URL",
                 help="Let this OpenAI-compatible server answer: http://HOST:PORT/v1. The key is "
                 "MRPO_SERVER_KEY's or OPENAI_API_KEY's."),
    click.option("--server-model", metavar="NAME",
                 help="As the server calls it.  [default: the only one that it serves]"),
    click.option("--concurrency", default=16, show_default=True, help="Requests at a time."),
    click.option("--timeout", default=600.0, show_default=True, help="Seconds of a request."),
)  # fmt: skip
SECTIONS = {
    "Sampling": ("n", "temperature", "top_p", "top_k", "max_new_tokens", "seed"),
    "A server": ("url", "server_model", "concurrency", "timeout"),
}


@click.command(cls=Command, sections=SECTIONS)
@click.argument("model", metavar="RUN_OR_MODEL", shell_complete=runs)
@sampling_options
@server_options
@dataset_options
@cache_option
@click.option("--split", help="Whose prompts; `all` for everything.  [default: train]")
@click.option("--answers-form", "form", type=choice(words.AnswersForm),
              help="Answer a benchmark's own questions (--dataset FILE) in the form that its judge "
              "reads.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path),
              help="FILE.jsonl (alpaca_eval: FILE.json); stdout by default.")  # fmt: skip
def generate(
    *,
    model: str,
    split: str | None,
    form: AnswersForm | None,
    output: Path | None,
    cache: str | None,
    **options: Any,
) -> None:
    """Sample answers of a run, a reference or a model to a data set's prompts, as data.

    One greedy answer to each prompt by default. Answers are kept, so the same command goes on where
    it was stopped, and a larger --n samples only what is new.

    \b
    Example:
        mrpo generate runs/mrpo --n 5 --temperature 1 -o samples.jsonl
        mrpo generate runs/mrpo --split test -o answers.jsonl
        mrpo generate runs/mrpo --answers-form mt_bench --dataset question.jsonl -o mrpo.jsonl
    """
    from mrpo_tools.config import Project, Reference, load_project
    from mrpo_tools.errors import UsageError
    from mrpo_tools.runs.run import is_run, load_run

    _check_target(output, ".json" if form == "alpaca_eval" else ".jsonl")
    if options["limit"] is not None and options["limit"] < 1:
        raise UsageError(f"--limit {options['limit']}: expected 1 or more")
    project = load_project()
    reference = project.references.get(model) or Reference(model=model)
    run = load_run(Path(model)) if is_run(Path(model)) else None
    if run is not None:
        reference = run.trained_policy
        if project.dataset is None:
            project = Project(dataset=run.record.dataset, cache=project.cache)
    with _home(run, cache, project, output) as home:
        if form is not None:
            _benchmark(model, reference, form, home, output, options)
            return
        samples = _sampled(model, reference, project, split, home, options)
    _report(samples, model, run, output)


def _benchmark(
    model: str,
    reference: Reference,
    form: AnswersForm,
    home: Path,
    output: Path | None,
    options: dict[str, Any],
) -> None:
    """Answers to a benchmark's questions, in its form."""
    from mrpo_tools.errors import UsageError
    from mrpo_tools.progress import is_first_process, say
    from mrpo_tools.sampling.questions import answer, read_questions, rows_of, write_answered

    if options["dataset"] is None:
        raise UsageError(f"--answers-form {form} answers the benchmark's questions",
                         "--dataset FILE")  # fmt: skip
    if options["n"] != 1:
        raise UsageError(f"--answers-form {form} has one answer to a question", "leave --n out")
    questions = read_questions(options["dataset"], form, options["limit"])
    sampling, server = sampling_of(options), server_of(options)
    from mrpo_tools.sampling import sample_groups

    answered = answer(
        questions,
        lambda groups: (
            sample_groups(reference, groups, sampling, home, server=server, name=model).answered
        ),
    )
    if not is_first_process():
        return
    amiss = [response.status for each in answered for response in each.responses]
    for status in dict.fromkeys(status for status in amiss if status):
        say(f"note: {amiss.count(status):,} answers are {status}")
    if output is None:
        for row in rows_of(answered, form, model):
            print(json.dumps(row, ensure_ascii=False))
    else:
        write_answered(output, answered, form, model)
        print(f"{len(amiss):,} answers to {len(questions):,} questions of {form} in {output}")


def _check_target(output: Path | None, suffix: str) -> None:
    from mrpo_tools.errors import UsageError

    if output is None:
        return
    if not output.parent.is_dir():
        raise UsageError(f"no directory {output.parent}", f"mkdir -p {output.parent}")
    if output.suffix != suffix:
        form = "JSON lines" if suffix == ".jsonl" else "a JSON list"
        raise UsageError(
            f"{output}: answers are written as {form}", f"-o {output.with_suffix(suffix)}"
        )


@contextlib.contextmanager
def _home(
    run: Run | None, cache: str | None, project: Project, output: Path | None
) -> Iterator[Path]:
    """Where answers are kept: a run's in the run, others' in the cache; without it beside FILE."""
    from mrpo_tools.errors import UsageError
    from mrpo_tools.evaluation.outcomes import ANSWERS
    from mrpo_tools.progress import rank_and_count, say_once
    from mrpo_tools.runs.outcomes import OUTCOMES

    if run is not None:
        yield run.path / OUTCOMES / ANSWERS
    elif cache is not None or Path(project.cache).is_dir():
        yield Path(cache or project.cache) / ANSWERS
    elif output is not None:
        yield output.with_name(f"{output.name}.{ANSWERS}")
    elif rank_and_count() != (0, 1):
        raise UsageError("several processes need a place for their answers", "-o FILE.jsonl")
    else:
        say_once("note: answers are kept nowhere: there is no cache and no FILE (-o, --cache)")
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


def _sampled(
    model: str,
    reference: Reference,
    project: Project,
    split: str | None,
    home: Path,
    options: dict[str, Any],
) -> Samples:
    """The answers to the prompts that are asked for."""
    limit = options.pop("limit")
    groups = _asked(read_groups(dataset_of(project, options)).groups, split, limit)
    from mrpo_tools.sampling import sample_groups

    sampling, server = sampling_of(options), server_of(options)
    return sample_groups(reference, groups, sampling, home, server=server, name=model)


def sampling_of(options: dict[str, Any]) -> Sampling:
    """How `sampling_options` have answers drawn."""
    from mrpo_tools.sampling import Sampling

    names = ("n", "temperature", "top_p", "top_k", "max_new_tokens", "seed")
    return Sampling(**{name: options[name] for name in names})


def _asked(groups: Sequence[Group], split: str | None, limit: int | None) -> list[Group]:
    """A group of each prompt of a split. Unless told otherwise, of what may be trained on."""
    from mrpo_tools.groups import in_split, one_a_prompt
    from mrpo_tools.progress import say_once

    asked = one_a_prompt(in_split(groups, split or "train"))
    if split is None and len({group.split for group in groups}) > 1:
        say_once("sampling the prompts of split train; --split test, or all, for others")
    return list(itertools.islice(asked, limit))


def server_of(options: dict[str, Any]) -> Server | None:
    """The server of `server_options`; None where none is named."""
    from mrpo_tools.server import Server

    if options["url"] is None:
        return None
    return Server(
        options["url"],
        options["server_model"],
        concurrency=options["concurrency"],
        timeout=options["timeout"],
    )


def _report(samples: Samples, model: str, run: Run | None, output: Path | None) -> None:
    """The file and what is in it; without one, the rows on stdout."""
    from mrpo_tools.progress import is_first_process, say

    if not is_first_process():
        return
    counts = samples.counts
    several = counts.total() - counts["prompts_with_one_response"] > len(samples.answered)
    if not several:
        del counts["prompts_with_one_response"]
    said = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in counts.items() if n)
    every = sum(len(group.responses) for group in samples.answered)
    if output:
        samples.write(output)
        print(f"{every:,} answers to {len(samples.answered):,} prompts in {output}: {said}")
    else:
        for row in samples.rows():
            print(json.dumps(row, ensure_ascii=False))
        say(said)
    if several:
        say(f"next: mrpo data show {output or 'FILE'}")
    else:
        say(f"next: mrpo merge {model} --output DIR" if run else f"next: mrpo evaluate {model}")
