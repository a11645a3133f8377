"""Answers at rest: JSON lines, a file for each model and way of sampling.

A file's name carries the hash of both, so what lies there is never another model's. Beside an
answer stand log-probs of its tokens, by the identity of the model that computed them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mrpo_tools.errors import UsageError
from mrpo_tools.files import make_directory, write_whole
from mrpo_tools.groups import content_id
from mrpo_tools.sampling.answers import Answer, Sampling
from mrpo_tools.sampling.engine import Prompt, Sampler, prompt_id_of

VERSION = 1
"""Of how answers are drawn and kept; another one makes them anew."""


@dataclass(frozen=True)
class Kept:
    """An answer with its log-probs (nats), by the identity of the model."""

    answer: Answer
    logps: dict[str, float]


class KeptAnswers:
    """The answers of one model, drawn in one way, in a directory.

    Args:
        directory: made when there is something to keep.
        sampler: the model; it is loaded only for what is not there.
        sampling: the way.
    """

    def __init__(self, directory: Path, sampler: Sampler, sampling: Sampling) -> None:
        self.sampler, self.sampling = sampler, sampling
        identity = sampler.resolved.identity
        self.identity = content_id(
            {"version": VERSION, "policy": identity.hash, "sampling": sampling.as_dict()}
        )
        self.path = directory / f"{sampling.decoding}-{self.identity[:12]}.jsonl"

    def answers(self, prompts: Sequence[Prompt]) -> list[list[Answer]]:
        """The answers to each prompt; those that are missing are generated and kept.

        Raises:
            ResourceError: out of memory or disk.
            UsageError: the file, the model's files or its template cannot be used.
        """
        kept = self._read()
        absent = [prompt for prompt in prompts if (prompt_id_of(prompt), 0) not in kept]
        if absent:
            for answers in self.sampler.sample(absent, self.sampling):
                kept |= {(each.prompt_id, each.index): Kept(each, {}) for each in answers}
            self._write(kept)
        return [
            [kept[prompt_id_of(prompt), index].answer for index in range(self.sampling.n)]
            for prompt in prompts
        ]

    def logps(self, prompts: Sequence[Prompt], under: Sampler) -> list[list[float]]:
        """Log-probs (nats) of the answers' tokens under a model that reads the same tokens.

        Args:
            prompts: that were answered.
            under: the sampler itself, or another model with its tokenizer and template.

        Raises:
            As `answers`.
        """
        answers = self.answers(prompts)
        kept, model = self._read(), under.resolved.identity.hash
        places = [
            place
            for place, prompt in enumerate(prompts)
            if any(model not in kept[each.prompt_id, each.index].logps for each in answers[place])
        ]
        if places:
            chosen = [answers[place] for place in places]
            logps = iter(under.logps([prompts[place] for place in places], chosen))
            for answer in (each for own in chosen for each in own):
                kept[answer.prompt_id, answer.index].logps[model] = next(logps)
            self._write(kept)
        return [[kept[each.prompt_id, each.index].logps[model] for each in own] for own in answers]

    def _read(self) -> dict[tuple[str, int], Kept]:
        if not self.path.exists():
            return {}
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
            every = [_kept(json.loads(line)) for line in lines]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{self.path} cannot be read: {error}", "remove it; the answers are generated anew"
            ) from None
        return {(each.answer.prompt_id, each.answer.index): each for each in every}

    def _write(self, kept: dict[tuple[str, int], Kept]) -> None:
        make_directory(self.path.parent)
        lines = [
            json.dumps(asdict(kept[key].answer) | {"logps": kept[key].logps}, ensure_ascii=False)
            for key in sorted(kept)
        ]
        write_whole(self.path, "".join(f"{line}\n" for line in lines).encode())


def _kept(row: dict[str, Any]) -> Kept:
    logps = row.pop("logps")
    return Kept(Answer(**{**row, "ids": tuple(row["ids"])}), logps)
