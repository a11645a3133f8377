"""The noun that flows through the project: a prompt with its responses, and their ids.

A *group* is a prompt (a list of chat messages) with N responses; a preference pair is N = 2. Ids
are the first 32 hexadecimal digits of a SHA-256 over canonical JSON, so they depend on content
alone and survive shuffling, filtering, new splits and new responses:

* `prompt_id` of the prompt's messages (splits are keyed by it: no prompt is in two splits),
* `response_id` of the prompt's messages and the content (log-probs are keyed by it),
* `group_id` of the prompt and its responses with scores and labels, in any order.

Tools that a prompt offers, a response's calls and its hidden reasoning are of the ids where they
are there, so the ids of mere text are those of mere text.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from mrpo_tools.errors import UsageError
from mrpo_tools.groups.facts import Facts, Places, hash_keys, order_of
from mrpo_tools.messages import Message, ToolCall, call_from_dict, json_text, message_from_dict
from mrpo_tools.words import Status

ID_DIGITS = 32


@dataclass(frozen=True)
class Response:
    """One completion of a prompt.

    Attributes:
        content: the text, exactly as log-probs are computed of it; empty where it only calls tools.
        score: quality, higher is better; None where the data has none.
        chosen: an explicit label of the data; None where the data has none.
        model: who wrote it, if the data says.
        reasoning_content: what was thought before it, part of what log-probs are computed of.
        tool_calls: that it makes, part of it too.
        finish_reason: of a sampled answer: `stop`, or `length` where the token limit cut it.
        status: what is amiss with a sampled answer; None where nothing is.
    """

    content: str
    score: float | None = None
    chosen: bool | None = None
    model: str | None = None
    reasoning_content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    status: Status | None = None

    @property
    def message(self) -> Message:
        """What is said, without judgements: two responses that say the same have equal ones."""
        return Message("assistant", self.content, self.reasoning_content, self.tool_calls)

    def as_dict(self) -> dict[str, Any]:
        """The canonical form, without what is absent."""
        said = self.message.as_dict()
        content = {"content": said.pop("content")}
        names = ("score", "chosen", "model", "finish_reason", "status")
        about = {name: getattr(self, name) for name in names}
        del said["role"]
        return {**content, **{k: v for k, v in about.items() if v is not None}, **said}


@dataclass(frozen=True)
class Group:
    """A prompt with its responses.

    Attributes:
        prompt: the messages before the response. The last one is the user's, or the beginning of
            the answer, which every response continues.
        responses: N distinct responses, in the order of the data.
        source_id: the row's own name in the data, for people; it is no key.
        split: `train`, `test`, … or None where the data names none.
        tools: JSON text of the list of tools that the prompt offers, as `json_text` writes it.
    """

    prompt: tuple[Message, ...]
    responses: tuple[Response, ...]
    source_id: str | None = None
    split: str | None = None
    tools: str | None = None

    @cached_property
    def prompt_id(self) -> str:
        """Of the prompt's messages, and of its tools where it has any."""
        messages = [message.id_form() for message in self.prompt]
        return content_id({"prompt": messages, "tools": self.tools} if self.tools else messages)

    @cached_property
    def response_ids(self) -> tuple[str, ...]:
        """One for each response, of the prompt and of what it says."""
        offered = {"tools": self.tools} if self.tools else {}
        asked = {"prompt": [message.id_form() for message in self.prompt], **offered}
        said = [response.message.id_form() for response in self.responses]
        for answer in said:
            del answer["role"]
        return tuple(content_id({**asked, **answer}) for answer in said)

    @cached_property
    def group_id(self) -> str:
        """Of the prompt and the responses with scores and labels, in any order."""
        judged = sorted(
            [response_id, response.score, response.chosen]
            for response_id, response in zip(self.response_ids, self.responses, strict=True)
        )
        return content_id({"prompt_id": self.prompt_id, "responses": judged})

    @property
    def has_scores(self) -> bool:
        """Whether every response has a score."""
        return all(response.score is not None for response in self.responses)

    @property
    def has_labels(self) -> bool:
        """Whether its responses are labelled chosen or rejected; samples beside a labelled pair
        need not be."""
        return any(response.chosen is not None for response in self.responses)

    @property
    def is_plain(self) -> bool:
        """Whether it is text alone: no tools, calls, hidden reasoning, nor roles of these."""
        turns = (*self.prompt, *(response.message for response in self.responses))
        return not self.tools and all(turn.is_plain for turn in turns)

    def as_dict(self) -> dict[str, Any]:
        """The canonical form: a JSON object without absent fields."""
        row: dict[str, Any] = {
            "prompt": [message.as_dict() for message in self.prompt],
            "responses": [response.as_dict() for response in self.responses],
        }
        if self.tools is not None:
            row["tools"] = json.loads(self.tools)
        if self.source_id is not None:
            row["id"] = self.source_id
        if self.split is not None:
            row["split"] = self.split
        return row

    def with_split(self, split: str | None) -> Group:
        """The same group in another split."""
        return replace(self, split=split)


class GroupTable(Sequence[Group]):
    """Groups that are made when they are asked for; facts of all of them are there before."""

    @property
    @abstractmethod
    def facts(self) -> Facts:
        """Of all groups."""

    @abstractmethod
    def take(self, places: Places) -> Sequence[Group]:
        """The groups at these places."""


def facts_of(groups: Sequence[Group]) -> Facts:
    """Facts of groups, by columns where they have any."""
    return groups.facts if isinstance(groups, GroupTable) else Facts(groups)


def taken(groups: Sequence[Group], places: Places) -> Sequence[Group]:
    """The groups at some places, in the order of these."""
    if isinstance(groups, GroupTable):
        return groups.take(places)
    return [groups[place] for place in places.tolist()]


def canonical_json(value: object) -> str:
    """One spelling for one value: sorted keys, no spaces, text as it is, no NaN."""
    return json.dumps(
        value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False
    )


def content_id(value: object) -> str:
    """The first 32 hexadecimal digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:ID_DIGITS]


def user_prompt(text: str, system: str | None = None) -> tuple[Message, ...]:
    """A prompt of one user turn, after a system message if there is a non-empty one."""
    head = (Message("system", system),) if system else ()
    return (*head, Message("user", text))


def split_of(prompt_id: str, test_size: float, seed: int = 0) -> str:
    """`test` for a share `test_size` of all prompts, else `train`.

    The prompt's id and the seed alone decide, so a prompt keeps its split whatever else is in the
    data, and all groups of one prompt land in the same split.
    """
    return "test" if lot_of(prompt_id, seed) < test_size * 2**64 else "train"


def lot_of(prompt_id: str, seed: int | str) -> int:
    """A number below 2^64 drawn by a prompt's id and the seed; low ones go to `test` first."""
    digest = hashlib.sha256(f"{seed}:{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def hash_groups(groups: Sequence[Group], *, in_order: bool = True) -> str:
    """SHA-256 of the groups' ids: which data it was, whatever it is called.

    Args:
        groups: any number.
        in_order: False makes it that of the sorted ids, whatever the order of the groups.
    """
    keys = facts_of(groups).group_keys
    return hash_keys(keys if in_order else keys[order_of(keys)])


def kinds_of_judgement(groups: Sequence[Group]) -> tuple[bool, bool]:
    """Whether every group has scores, and whether every group has labels; those that have neither
    say nothing and are not asked."""
    facts = facts_of(groups)
    scores, labels = facts.has_scores, facts.has_labels
    judged = scores | labels
    return bool(scores[judged].all()), bool(labels[judged].all())


def one_a_prompt(groups: Iterable[Group]) -> list[Group]:
    """The first group of each prompt."""
    unique: dict[str, Group] = {}
    for group in groups:
        unique.setdefault(group.prompt_id, group)
    return list(unique.values())


def in_split(groups: Sequence[Group], split: str | None) -> Sequence[Group]:
    """The groups of a split; all of them when `split` is None or `all`.

    Raises:
        UsageError: no group is in it; names the splits there are.
    """
    every = split in (None, "all")
    if every and len(groups):
        return groups
    splits = facts_of(groups).splits
    members = np.flatnonzero(splits == split)
    if not len(members):
        counts = Counter(name or "no split" for name in splits.tolist())
        names = ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))
        raise UsageError(
            f"no group is in split {split!r} (there are: {names or 'no groups'})",
            "choose one of these, or hold some out: --test-size 0.1",
        )
    return taken(groups, members)


def merge_duplicates(responses: Sequence[Response]) -> tuple[tuple[Response, ...], int]:
    """Merge responses that say the same; also the number that was merged away.

    Scores of duplicates are averaged. Labels must agree: a text that is chosen and rejected in one
    group says nothing.

    Raises:
        ValueError: the same text is both chosen and rejected.
    """
    by_message: dict[Message, list[Response]] = {}
    for response in responses:
        by_message.setdefault(response.message, []).append(response)
    merged = []
    for same in by_message.values():
        if len({response.chosen for response in same}) > 1:
            raise ValueError("the same text is both chosen and rejected")
        scores = [response.score for response in same if response.score is not None]
        merged.append(replace(same[0], score=sum(scores) / len(scores) if scores else None))
    return tuple(merged), len(responses) - len(merged)


def group_from_dict(row: Mapping[str, Any]) -> Group:
    """A group from its own canonical form, as `Group.as_dict` writes it (not validated)."""
    prompt, tools = row["prompt"], row.get("tools")
    return Group(
        prompt=user_prompt(prompt)
        if isinstance(prompt, str)
        else tuple(map(message_from_dict, prompt)),
        responses=tuple(
            Response(
                content=response["content"],
                score=None if response.get("score") is None else float(response["score"]),
                chosen=response.get("chosen"),
                model=response.get("model"),
                reasoning_content=response.get("reasoning_content"),
                tool_calls=tuple(map(call_from_dict, response.get("tool_calls") or ())),
                finish_reason=response.get("finish_reason"),
                status=response.get("status"),
            )
            for response in row["responses"]
        ),
        source_id=row.get("id"),
        split=row.get("split"),
        tools=json_text(tools) if tools else None,
    )
