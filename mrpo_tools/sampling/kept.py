"""Answers at rest: JSON lines, a directory for each model and way of sampling.

A directory's name carries the hash of both, so what lies there is never another model's; how many
answers were asked for is no part of it. Every process that samples adds to a file of its own, a
batch at a time and durably, so a kill loses the batch at hand. Lines hold an answer, or log-probs
of answers' tokens by the identity of the model that computed them. Of an answer that two processes
drew at once, the one that was on the disk first counts.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mrpo_tools.errors import UsageError
from mrpo_tools.files import AppendedFile, save_json, whole_lines
from mrpo_tools.groups import content_id
from mrpo_tools.progress import bar
from mrpo_tools.sampling.answers import Answer, Engine, Prompt, Sampling, every_asked, prompt_id_of
from mrpo_tools.sampling.engine import Sampler

VERSION = 2
"""Of how answers are drawn and kept; another one makes them anew."""
ABOUT = "sampler.json"
"""What a directory's answers were sampled by, for people."""

Key = tuple[str, int]


@dataclass
class Kept:
    """An answer with its log-probs (nats), by the identity of the model."""

    answer: Answer
    at: int
    logps: dict[str, float] = field(default_factory=dict)


class KeptAnswers:
    """The answers of one model, drawn in one way, in a directory.

    Args:
        directory: made when there is something to keep.
        engine: the model; it is loaded only for what is not there.
        sampling: the way.

    Attributes:
        about: what determines an answer of a number.
        path: where they are.
    """

    def __init__(self, directory: Path, engine: Engine, sampling: Sampling) -> None:
        self.engine, self.sampling = engine, sampling
        self.about = {"version": VERSION, **engine.identity, **sampling.way}
        self.identity = content_id(self.about)
        self.path = directory / f"{sampling.decoding}-{self.identity[:12]}"

    def answers(self, prompts: Sequence[Prompt]) -> list[list[Answer]]:
        """The answers to each prompt; those that are missing are generated and kept.

        Raises:
            ResourceError: out of memory or disk.
            ServerError: see `server.together`; what was answered is kept.
            UsageError: the files, the model's files or its template cannot be used.
        """
        self.complete(prompts)
        return self.read(prompts)

    def read(self, prompts: Sequence[Prompt]) -> list[list[Answer]]:
        """The answers to each prompt, which are there.

        Raises:
            UsageError: a file cannot be read.
        """
        kept = self._read()
        numbers = range(self.sampling.n)
        return [[kept[prompt_id_of(prompt), n].answer for n in numbers] for prompt in prompts]

    def complete(self, prompts: Sequence[Prompt]) -> int:
        """Generate the answers that are missing; returns how many these were.

        Raises:
            As `answers`.
        """
        kept = self._read()
        asked = [
            each
            for each in every_asked(prompts, self.sampling.n)
            if (each.prompt_id, each.index) not in kept
        ]
        with self._appending() as file, bar("generating", len(asked), "answers") as advance:
            for batch in self.engine.draw(asked, self.sampling) if asked else ():
                at = time.time_ns()
                file.append(_line(asdict(answer) | {"at": at}) for answer in batch)
                advance(len(batch))
        return len(asked)

    def logps(self, prompts: Sequence[Prompt], under: Sampler) -> list[list[float]]:
        """Log-probs (nats) of the answers' tokens under a model that reads the same tokens.

        Args:
            prompts: that were answered by a model here, whose tokens are known.
            under: the sampler itself, or another model with its tokenizer and template.

        Raises:
            As `answers`.
        """
        answers = self.answers(prompts)
        kept, model = self._read(), under.resolved.identity.hash
        places = [
            place
            for place, own in enumerate(answers)
            if any(model not in kept[each.prompt_id, each.index].logps for each in own)
        ]
        if places:
            chosen = [answers[place] for place in places]
            logps = iter(under.logps([prompts[place] for place in places], chosen))
            new = [(each.prompt_id, each.index, next(logps)) for own in chosen for each in own]
            with self._appending() as file:
                file.append(
                    _line({"prompt_id": prompt, "index": index, "logps": {model: logp}})
                    for prompt, index, logp in new
                )
            for prompt, index, logp in new:
                kept[prompt, index].logps[model] = logp
        return [[kept[each.prompt_id, each.index].logps[model] for each in own] for own in answers]

    @contextlib.contextmanager
    def _appending(self) -> Iterator[AppendedFile]:
        """A file of this process's own; the directory says whose answers these are."""
        file = AppendedFile(self.path)
        try:
            yield file
        finally:
            file.close()
        if self.path.is_dir() and not (self.path / ABOUT).exists():
            save_json(self.path / ABOUT, self.about)

    def _read(self) -> dict[Key, Kept]:
        kept: dict[Key, Kept] = {}
        logps: list[tuple[Key, dict[str, float]]] = []
        for path in sorted(self.path.glob("*.jsonl")):
            try:
                rows = [_row(json.loads(line)) for line in whole_lines(path)]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UsageError(
                    f"{path} cannot be read: {error}",
                    "remove it; the answers are generated anew",
                ) from None
            for key, row in rows:
                if not isinstance(row, Kept):
                    logps.append((key, row))
                elif key not in kept or row.at < kept[key].at:
                    kept[key] = row
        for key, own in logps:
            if key in kept:
                kept[key].logps.update(own)
        return kept


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False)


def _row(row: dict[str, Any]) -> tuple[Key, Kept | dict[str, float]]:
    """The key of a line, and its answer or its log-probs."""
    if "logps" in row:
        return (row["prompt_id"], row["index"]), {k: float(v) for k, v in row["logps"].items()}
    at = int(row.pop("at"))
    answer = Answer(**{**row, "ids": tuple(row["ids"])})
    return (answer.prompt_id, answer.index), Kept(answer, at)
