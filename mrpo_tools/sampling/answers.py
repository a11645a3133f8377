"""What is asked of a sampler, and what it answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

from mrpo_tools.errors import UsageError
from mrpo_tools.groups import Group
from mrpo_tools.messages import Message

Prompt = Sequence[Message]

FinishReason = Literal["stop", "length"]
"""The model ended its answer, or the token limit cut it."""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        n: answers to each prompt.
        temperature: logits are divided by it; 0 takes the likeliest token each time (greedy).
        top_p: only the likeliest tokens that together have this probability are drawn; 1: all.
        top_k: only so many of the likeliest tokens are drawn; 0: all.
        max_new_tokens: of an answer.
        seed: another one gives other answers.

    Raises:
        UsageError: a value that cannot be meant.
    """

    n: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        problems = {
            "n: at least one answer": self.n < 1,
            "temperature: not below 0": not 0 <= self.temperature < float("inf"),
            "top_p: above 0, up to 1": not 0 < self.top_p <= 1,
            "top_k: not below 0": self.top_k < 0,
            "max_new_tokens: at least one": self.max_new_tokens < 1,
            "several greedy answers are one: a temperature above 0": (
                self.temperature == 0 and self.n > 1
            ),
        }
        if wrong := [problem for problem, is_wrong in problems.items() if is_wrong]:
            raise UsageError(f"sampling cannot be done so; {'; '.join(wrong)}")

    @property
    def decoding(self) -> Literal["greedy", "sampled"]:
        """Its name in records."""
        return "sampled" if self.temperature else "greedy"

    @property
    def is_plain(self) -> bool:
        """Whether answers are drawn from the model's own distribution."""
        return self.temperature == 1 and self.top_p == 1 and self.top_k == 0

    def as_dict(self) -> dict[str, int | float]:
        """What determines the answers to a prompt."""
        return {"n": self.n, **self.way}

    @property
    def way(self) -> dict[str, int | float]:
        """What determines an answer of a number; greedy ones depend on their length alone."""
        if self.temperature:
            return {name: value for name, value in asdict(self).items() if name != "n"}
        return {"temperature": 0.0, "max_new_tokens": self.max_new_tokens}


GREEDY = Sampling()


@dataclass(frozen=True)
class Asked:
    """One answer that is asked for: to which prompt, and its number from 0."""

    prompt_id: str
    index: int
    prompt: Prompt


@dataclass(frozen=True)
class Answer:
    """One answer of a model.

    Attributes:
        prompt_id: what it answers.
        index: among the answers to this prompt, from 0.
        content: the text, special tokens left out, without white space around it.
        ids: the tokens that were drawn, in the model's own tokenizer; the one that ended the
            answer is among them, where one did. None of a server's answer: its tokens are not
            taken.
        finish_reason: `stop`, or `length` where the token limit cut it.
    """

    prompt_id: str
    index: int
    content: str
    ids: tuple[int, ...]
    finish_reason: FinishReason


class Engine(Protocol):
    """What answers: a model here, or a server."""

    @property
    def identity(self) -> Mapping[str, object]:
        """What determines its answers, besides how they are drawn."""
        ...

    def draw(self, asked: Sequence[Asked], sampling: Sampling) -> Iterator[list[Answer]]:
        """An answer to each that is asked, in any order, as many at a time as come together."""
        ...


def text_of(decoded: str) -> str:
    """An answer's text: no white space around it, and a replacement character for a null byte,
    which data cannot hold, as for other bytes that are no text."""
    return decoded.replace("\0", "\N{REPLACEMENT CHARACTER}").strip()


def every_asked(prompts: Sequence[Prompt], n: int) -> list[Asked]:
    """The first n answers to each prompt; of equal prompts one counts."""
    by_id = {prompt_id_of(prompt): prompt for prompt in prompts}
    return [Asked(key, index, prompt) for key, prompt in by_id.items() for index in range(n)]


def prompt_id_of(prompt: Prompt) -> str:
    """The key of a prompt, as groups have it."""
    return Group(tuple(prompt), ()).prompt_id
