"""Who is compared: runs, models and files of answers, brought to the same prompts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mrpo_tools.config import Project, Reference, loaded_here
from mrpo_tools.errors import DataError, UsageError
from mrpo_tools.evaluation.outcomes import ANSWERS
from mrpo_tools.groups import Group, Response, group_from_dict, in_split, one_a_prompt
from mrpo_tools.references.resolved import resolve
from mrpo_tools.runs.outcomes import OUTCOMES
from mrpo_tools.runs.run import is_run, load_run
from mrpo_tools.sampling import Sampler, Sampling, prompts_of, sample_groups
from mrpo_tools.sampling.kept import KeptAnswers

BYTES_A_TOKEN = 4
"""Of an answer that is not there yet, in an estimate."""


@dataclass(frozen=True)
class Contestant:
    """Who answers.

    Attributes:
        name: as tables show it.
        answered: a group of one response for each prompt, of a file; None where a model answers.
        model: that answers.
        home: where its answers are kept.
    """

    name: str
    answered: tuple[Group, ...] | None = None
    model: Reference | None = None
    home: Path | None = None


@dataclass(frozen=True)
class Entered:
    """Contestants and their answers to the same prompts.

    Attributes:
        names: C of them.
        prompts: P groups, whose responses do not count.
        answers: C lists of P.
        lacking: by contestant, prompts that others have and it does not.
    """

    names: list[str]
    prompts: list[Group]
    answers: list[list[Response]]
    lacking: dict[str, int]


def contestant_of(word: str, project: Project, cache: Path) -> Contestant:
    """The run, answer file (`FILE`, or `FILE#MODEL`) or model that a word means.

    Raises:
        UsageError: the file cannot be used.
    """
    path, _, model = word.partition("#")
    if Path(path).is_file():
        return Contestant(word, tuple(read_answered(Path(path), model or None)))
    if is_run(Path(word)):
        run = load_run(Path(word))
        return Contestant(word, None, run.trained_policy, run.path / OUTCOMES / ANSWERS)
    reference = project.references.get(word) or Reference(model=word)
    return Contestant(word, None, reference, cache / ANSWERS)


def read_answered(path: Path, model: str | None = None) -> list[Group]:
    """A group of one response for each prompt of a file in the canonical form.

    Of several answers to a prompt the first counts.

    Args:
        path: JSON lines, as `mrpo generate` writes them.
        model: whose answers count; None where all are of one.

    Raises:
        DataError: lines that are no prompt with responses.
        UsageError: answers of several models, and none is named.
    """
    problems, groups = [], []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            groups.append(_group(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(f"{path.name}:{number}: {error!r:.80}")
    if problems or not groups:
        raise DataError(
            f"{path} holds no answers: JSON lines of `prompt` and `responses` are needed",
            problems,
            "mrpo generate RUN_OR_MODEL -o FILE.jsonl writes them",
        )
    models = {each.model or "" for group in groups for each in group.responses}
    if model is None and len(models) > 1:
        raise UsageError(
            f"{path} holds answers of several models: {', '.join(sorted(models))}",
            f"name one: {path}#{max(models)}",
        )
    own = [_only(group, model) for group in groups]
    chosen = one_a_prompt(group for group in own if group.responses)
    if not chosen:
        raise UsageError(f"{path} has no answers of model {model!r} (it has: {', '.join(models)})")
    return chosen


def _group(row: Any) -> Group:
    group = group_from_dict(row)
    texts = [*(turn.content for turn in group.prompt), *(each.content for each in group.responses)]
    if not group.prompt or not all(isinstance(text, str) for text in texts):
        raise TypeError("a prompt or a response is no text")
    return group


def _only(group: Group, model: str | None) -> Group:
    own = [each for each in group.responses if model is None or each.model == model]
    return replace(group, responses=tuple(own[:1]))


def entered(
    contestants: Sequence[Contestant],
    groups: Sequence[Group] | None,
    split: str | None,
    limit: int | None,
    max_new_tokens: int,
    *,
    sample: bool = True,
) -> Entered:
    """Every contestant's answers to the prompts that all have; models answer any.

    Args:
        contestants: two or more.
        groups: whose prompts are meant; None for those of the files.
        split: of them; None for `test` of groups, and for all of files.
        limit: the first prompts only, so many.
        max_new_tokens: of an answer that a model gives.
        sample: False puts a text of that length in place of answers that are not there yet.

    Raises:
        UsageError: no prompt is common to all, or nothing says which prompts are meant.
        As `sampling.sample_groups`.
    """
    files = [each for each in contestants if each.answered is not None]
    if groups is None and not files:
        raise UsageError("nothing says which prompts are answered", "--dataset SOURCE")
    every = one_a_prompt(
        in_split(groups, split or "test")
        if groups is not None
        else in_split([group for each in files for group in each.answered or ()], split)
    )
    have = [{group.prompt_id for group in each.answered or ()} for each in files]
    asked = [group for group in every if all(group.prompt_id in own for own in have)][:limit]
    lacking = {
        each.name: sum(group.prompt_id not in own for group in every)
        for each, own in zip(files, have, strict=True)
    }
    if not asked:
        raise UsageError("no prompt has an answer of every contestant", "mrpo generate … -o FILE")
    answers = [_answers(each, asked, max_new_tokens, sample=sample) for each in contestants]
    return Entered(_names(contestants), asked, answers, lacking)


def _names(contestants: Sequence[Contestant]) -> list[str]:
    """Last parts of paths where they tell the contestants apart, else what was typed."""
    short = [Path(each.name).name for each in contestants]
    names = short if len(set(short)) == len(short) else [each.name for each in contestants]
    if len(set(names)) < len(names):
        raise UsageError("a contestant is named twice", "mrpo judge A B")
    return names


def _answers(
    contestant: Contestant, asked: Sequence[Group], max_new_tokens: int, *, sample: bool
) -> list[Response]:
    if contestant.answered is not None:
        by_prompt = {group.prompt_id: group.responses[0] for group in contestant.answered}
        return [by_prompt[group.prompt_id] for group in asked]
    if contestant.model is None or contestant.home is None:
        raise ValueError("a contestant without answers and without a model")
    sampling = Sampling(max_new_tokens=max_new_tokens)
    if sample:
        samples = sample_groups(contestant.model, asked, sampling, contestant.home)
        return [group.responses[0] for group in samples.answered]
    sampler = Sampler(resolve("model", loaded_here(contestant.model)))
    kept = KeptAnswers(contestant.home, sampler, sampling)
    try:
        return [Response(each[0].content) for each in kept.read(prompts_of(asked))]
    except KeyError:
        length = BYTES_A_TOKEN * max_new_tokens
        return [Response(f"{contestant.name} ".ljust(length, ".")) for _ in asked]


def lacks(entry: Entered) -> Iterable[str]:
    """What to say of prompts that some contestant did not answer."""
    return [
        f"{count:,} prompts have no answer by {name}, and take no part"
        for name, count in entry.lacking.items()
        if count
    ]
