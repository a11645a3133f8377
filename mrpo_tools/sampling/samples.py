"""Sampled answers as data: groups in the canonical form, each answer with its status.

Three things may be amiss with an answer (`words.Status`): the token limit cut it, it says nothing,
or it says what an earlier finished answer to its prompt says. Such answers stand in the file and
are left out where it is read as data, unless they are kept.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from mrpo_tools.config import Reference, loaded_here
from mrpo_tools.errors import disk_error
from mrpo_tools.files import whole_file
from mrpo_tools.groups import Group, Response, merge_duplicates, one_a_prompt
from mrpo_tools.progress import rank_and_count
from mrpo_tools.references.devices import wait_for_everyone
from mrpo_tools.references.resolved import resolve, resolve_reader
from mrpo_tools.sampling.answers import Answer, Engine, Sampling
from mrpo_tools.sampling.engine import Sampler, prompts_of
from mrpo_tools.sampling.kept import KeptAnswers
from mrpo_tools.sampling.served import ServedSampler
from mrpo_tools.server import Client, Server
from mrpo_tools.words import KeptStatus, Status

PATIENCE = timedelta(days=14)
"""Processes wait for the slowest so long."""


@dataclass(frozen=True)
class Samples:
    """Every answer that was sampled to some prompts.

    Attributes:
        answered: a group for each prompt, with its source's name and split; its responses are all
            n answers in the order of their numbers, repeats too.
        sampler: what determines them: model, engine, temperature, …
        generated: how many were not there before, by this process.
    """

    answered: list[Group]
    sampler: dict[str, object]
    generated: int

    @property
    def counts(self) -> Counter[str]:
        """How many answers there are of each status, `ok` where nothing is amiss, and
        `prompts_with_one_response`: prompts with fewer than two that are left."""
        every = (response for group in self.answered for response in group.responses)
        counts = Counter[str](response.status or "ok" for response in every)
        counts["prompts_with_one_response"] = len(self.answered) - len(self.groups())
        return counts

    def groups(self, keep: Collection[KeptStatus] = ()) -> list[Group]:
        """The groups to train on, as `load_groups` reads them from the file: distinct answers,
        without those that something is amiss with; prompts with fewer than two left out.

        Args:
            keep: statuses that take part all the same.
        """
        groups = []
        for group in self.answered:
            usable = [each for each in group.responses if not each.status or each.status in keep]
            distinct, _ = merge_duplicates(usable)
            if len(distinct) > 1:
                groups.append(replace(group, responses=distinct))
        return groups

    def rows(self) -> Iterator[dict[str, Any]]:
        """The canonical form, every answer with its status, and the sampler beside it."""
        for group in self.answered:
            yield group.as_dict() | {"sampler": self.sampler}

    def write(self, path: Path) -> None:
        """Write the rows as JSON lines; the file appears whole.

        Raises:
            ResourceError: the disk is full, or refuses.
        """
        try:
            with whole_file(path) as file:
                for row in self.rows():
                    file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        except OSError as error:
            raise disk_error(path, error) from None


def sample_groups(
    reference: Reference,
    groups: Sequence[Group],
    sampling: Sampling,
    home: Path,
    *,
    server: Server | None = None,
    name: str | None = None,
) -> Samples:
    """Sample answers to the prompts of groups; what was sampled before is not sampled again.

    Under torchrun, accelerate or srun each process answers its part of the prompts, and all return
    the same.

    Args:
        reference: the model; where a server has its weights, its tokenizer and template.
        groups: their prompts, names and splits count; of those with one prompt, the first.
        sampling: how answers are drawn.
        home: where answers are kept, beside others.
        server: that runs the model; None runs it here.
        name: what the answers' `model` says; None takes the reference's.

    Raises:
        ResourceError: out of memory or disk.
        ServerError: the server does not answer, or not as it was asked; what it answered is kept.
        UsageError: the model's files or its template cannot be used, or a prompt offers tools.
    """
    asked = one_a_prompt(groups)
    prompts = prompts_of(asked)
    if server is None:
        sampler = Sampler(resolve("model", loaded_here(reference)))
        kept, generated = _completed(sampler, asked, sampling, home)
        sampler.release()
    else:
        with Client(server) as client:
            served = ServedSampler(resolve_reader("model", reference), client)
            kept, generated = _completed(served, asked, sampling, home)
    wait_for_everyone(PATIENCE)
    word = name or reference.model
    answered = [
        replace(group, responses=responses_of(answers, word))
        for group, answers in zip(asked, kept.read(prompts), strict=True)
    ]
    return Samples(answered, {"model": word, **kept.about}, generated)


def _completed(
    engine: Engine, asked: Sequence[Group], sampling: Sampling, home: Path
) -> tuple[KeptAnswers, int]:
    """This process's part of the answers, kept, and how many were generated."""
    rank, count = rank_and_count()
    kept = KeptAnswers(home, engine, sampling)
    return kept, kept.complete(prompts_of(asked[rank::count]))


def responses_of(answers: Sequence[Answer], model: str) -> tuple[Response, ...]:
    """The answers to one prompt as responses, each with its status."""
    finished: set[str] = set()
    responses = []
    for answer in answers:
        status = status_of(answer, finished)
        finished |= set() if status else {answer.content}
        responses.append(
            Response(answer.content, model=model, finish_reason=answer.finish_reason, status=status)
        )
    return tuple(responses)


def status_of(answer: Answer, finished: Collection[str]) -> Status | None:
    """What is amiss with an answer.

    Args:
        answer: any.
        finished: the texts of earlier answers to its prompt with which nothing is.
    """
    if not answer.content:
        return "empty"
    if answer.finish_reason == "length":
        return "truncated"
    return "duplicate" if answer.content in finished else None
