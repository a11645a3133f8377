"""Two answers to a prompt in one order, as a question with a key; and what a judge is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mrpo_tools.groups import Group, Response, content_id
from mrpo_tools.messages import Message


@dataclass(frozen=True)
class Question:
    """Which of two answers is better.

    Attributes:
        verdict_id: of the prompt, both answers in this order, and the repeat.
        prompt_id: see `Group`.
        first_id: response id of the answer shown first.
        second_id: of the other.
        repeat: 0, or the number of a question that is asked once more.
        texts: what a template is filled with.
    """

    verdict_id: str
    prompt_id: str
    first_id: str
    second_id: str
    repeat: int
    texts: Mapping[str, str]


def question(prompt: Group, first: Response, second: Response, repeat: int = 0) -> Question:
    """The question of two answers, shown in this order.

    Args:
        prompt: its responses do not count.
        first: shown first.
        second: shown second.
        repeat: see `Question`.
    """
    shown = replace(prompt, responses=(first, second))
    ids = shown.response_ids
    asked = {"prompt": shown.prompt_id, "first": ids[0], "second": ids[1], "repeat": repeat}
    texts = {
        "prompt": prompt_text(prompt),
        "first": answer_text(first.message),
        "second": answer_text(second.message),
    }
    return Question(content_id(asked), shown.prompt_id, ids[0], ids[1], repeat, texts)


def prompt_text(group: Group) -> str:
    """A prompt as a judge reads it: one user turn as it is, several with their roles."""
    tools = [f"tools: {group.tools}"] if group.tools else []
    if len(group.prompt) == 1 and group.prompt[0].role == "user":
        return "\n\n".join([*tools, answer_text(group.prompt[0])])
    turns = [f"{turn.role}: {answer_text(turn)}" for turn in group.prompt]
    return "\n\n".join([*tools, *turns])


def answer_text(message: Message) -> str:
    """A turn without what was thought before it."""
    return replace(message, reasoning_content=None).written


def both_orders(
    prompt: Group, one: Response, other: Response, repeat: int = 0
) -> Sequence[Question]:
    """The question with `one` shown first, and with `other` shown first."""
    return question(prompt, one, other, repeat), question(prompt, other, one, repeat)
