"""Groups in the forms that other tools read.

The canonical form keeps everything. The other forms are pairs, so a group of more responses must
be taken apart, as `pairing` does it. Rows are JSON objects: what the other tool publishes.

Tools, calls and hidden reasoning go to JSONL in the canonical form and TRL's alone: arguments have
many shapes, and the columns of a table one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mrpo_tools.errors import UsageError, shorten
from mrpo_tools.groups import Group, Response
from mrpo_tools.messages import Message
from mrpo_tools.pairing import Pair, pairs_of
from mrpo_tools.words import DataForm, DeterministicPairing

JsonRow = Mapping[str, Any]
Kind = str | list[Any] | Mapping[str, Any]
"""A column's type: Arrow's name of it, [a kind] for a list, {field: kind} for an object."""


@dataclass(frozen=True)
class Form:
    """A form to convert to.

    Attributes:
        about: one line for people.
        rows: a group and a pairing to its rows.
        adapter: which of our own adapters reads the form back.
        columns: what a table of it has.
        structured: whether a row can hold more than text: tools, calls, hidden reasoning.
    """

    about: str
    rows: Callable[[Group, DeterministicPairing], Iterator[JsonRow]]
    adapter: str
    columns: Mapping[str, Kind]
    structured: bool = False

    def check(self, group: Group, suffix: str) -> None:
        """See that a group can be written.

        Raises:
            UsageError: it holds more than text, and the form or the kind of file does not.
        """
        if group.is_plain or (self.structured and suffix == ".jsonl"):
            return
        words = "parquet" if self.structured else self.about
        raise UsageError(
            f"{words} cannot hold the tools, calls, reasoning or roles of the group "
            f"{group.source_id or shorten(group.prompt[-1].written)}",
            "write JSONL in a form that can: --to canonical, or --to trl",
        )


def _canonical(group: Group, _pairing: DeterministicPairing) -> Iterator[JsonRow]:
    yield group.as_dict()


def _trl(group: Group, pairing: DeterministicPairing) -> Iterator[JsonRow]:
    """TRL: a prompt and two answers, all as lists of messages."""
    group = _whole_answers(group)
    prompt = [turn.as_dict() for turn in group.prompt]
    for pair in pairs_of(group, pairing):
        chosen, rejected = ([_answer(response)] for response in pair)
        row = {"prompt": prompt, "chosen": chosen, "rejected": rejected, **_about(group, pair)}
        yield {**row, "tools": json.loads(group.tools)} if group.tools else row


def _openrlhf(group: Group, pairing: DeterministicPairing) -> Iterator[JsonRow]:
    """OpenRLHF: two whole conversations."""
    group = _whole_answers(group)
    prompt = [turn.as_dict() for turn in group.prompt]
    for pair in pairs_of(group, pairing):
        chosen, rejected = ([*prompt, _answer(response)] for response in pair)
        yield {"chosen": chosen, "rejected": rejected, **_about(group, pair)}


def _llama_factory(group: Group, pairing: DeterministicPairing) -> Iterator[JsonRow]:
    """LLaMA-Factory: sharegpt ranking, the system message in a column of its own."""
    group = _whole_answers(group)
    system = [turn.content for turn in group.prompt if turn.role == "system"]
    turns = [_turn(turn) for turn in group.prompt if turn.role != "system"]
    for pair in pairs_of(group, pairing):
        chosen, rejected = (_turn(response.message) for response in pair)
        yield {
            "conversations": turns,
            "system": "".join(system),
            "chosen": chosen,
            "rejected": rejected,
            **_about(group, pair),
        }


def _whole_answers(group: Group) -> Group:
    """The group with the beginning of the answer in its responses, as the other tools have it."""
    if group.prompt[-1].role != "assistant":
        return group
    *prompt, begun = group.prompt
    responses = (replace(r, content=begun.content + r.content) for r in group.responses)
    return replace(group, prompt=tuple(prompt), responses=tuple(responses))


def _answer(response: Response) -> dict[str, Any]:
    return response.message.as_dict()


def _turn(message: Message) -> dict[str, str]:
    name = {"user": "human", "assistant": "gpt"}[message.role]
    return {"from": name, "value": message.content}


def _about(group: Group, pair: Pair) -> JsonRow:
    """What else is known of a pair; the same columns in every row of a data set."""
    about: dict[str, float | str | None] = {}
    if group.has_scores:
        about |= {"score_chosen": pair[0].score, "score_rejected": pair[1].score}
    if group.split is not None:
        about["split"] = group.split
    return about


_MESSAGE = {"role": "string", "content": "string"}
_TURN = {"from": "string", "value": "string"}
_RESPONSE = {
    "content": "string", "score": "double", "chosen": "bool", "model": "string",
    "finish_reason": "string", "status": "string",
}  # fmt: skip
_ABOUT = {"score_chosen": "double", "score_rejected": "double", "split": "string"}

FORMS: dict[DataForm, Form] = {
    "canonical": Form(
        "prompts with all their responses",
        _canonical,
        "canonical",
        {"prompt": [_MESSAGE], "responses": [_RESPONSE], "id": "string", "split": "string"},
        structured=True,
    ),
    "trl": Form(
        "TRL's pairs of messages",
        _trl,
        "conversational",
        {"prompt": [_MESSAGE], "chosen": [_MESSAGE], "rejected": [_MESSAGE], **_ABOUT},
        structured=True,
    ),
    "llama-factory": Form(
        "LLaMA-Factory's sharegpt ranking",
        _llama_factory,
        "sharegpt",
        {
            "conversations": [_TURN],
            "system": "string",
            "chosen": _TURN,
            "rejected": _TURN,
            **_ABOUT,
        },
    ),
    "openrlhf": Form(
        "OpenRLHF's pairs of conversations",
        _openrlhf,
        "conversational-implicit",
        {"chosen": [_MESSAGE], "rejected": [_MESSAGE], **_ABOUT},
    ),
}
