"""What is said in a conversation: turns with their text, calls of tools, and hidden reasoning.

A template writes a call's arguments and a prompt's tools in their own order of keys, so they are
kept as JSON text; canonical JSON sorts keys, and ids are made of that text (`id_form`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")
TEXT_ROLES = ("system", "user", "assistant")
"""Those that every form of data and every template knows."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an assistant's message makes.

    Attributes:
        name: of the function.
        arguments: JSON text of an object, as `json_text` writes it.
        id: by which the tool's answer names it.
    """

    name: str
    arguments: str
    id: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """As chat templates have it, the arguments an object."""
        named = {} if self.id is None else {"id": self.id}
        function = {"name": self.name, "arguments": json.loads(self.arguments)}
        return {**named, "type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: system, developer, user, assistant or tool.
        content: its text; empty where an assistant only calls tools.
        reasoning_content: what an assistant thinks before it speaks.
        tool_calls: that an assistant makes.
        tool_call_id: the call that a tool answers.
        name: of the tool that answers.
    """

    role: str
    content: str
    reasoning_content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it is a role and a text that everybody knows, and nothing else."""
        return self.role in TEXT_ROLES and self.as_dict().keys() == {"role", "content"}

    @property
    def written(self) -> str:
        """All of it as one text, for people and for lengths."""
        calls = (json_text(call.as_dict()["function"]) for call in self.tool_calls)
        return "\n".join(filter(None, [self.reasoning_content, self.content, *calls]))

    def as_dict(self) -> dict[str, Any]:
        """As chat templates and JSON have it, without what is absent."""
        values: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning_content is not None:
            values["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            values["tool_calls"] = [call.as_dict() for call in self.tool_calls]
        if self.tool_call_id is not None:
            values["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            values["name"] = self.name
        return values

    def id_form(self) -> dict[str, Any]:
        """What ids are made of: `as_dict` with arguments as JSON text."""
        values = self.as_dict()
        for place, call in enumerate(self.tool_calls):
            values["tool_calls"][place]["function"]["arguments"] = call.arguments
        return values


def json_text(value: object) -> str:
    """JSON in the value's own order of keys, without spaces.

    Raises:
        ValueError: NaN or an infinite number.
        TypeError: a value that JSON does not have.
    """
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def message_from_dict(turn: Mapping[str, Any]) -> Message:
    """A message from its own canonical form, as `Message.as_dict` writes it (not validated)."""
    return Message(
        turn["role"],
        turn["content"],
        turn.get("reasoning_content"),
        tuple(map(call_from_dict, turn.get("tool_calls") or ())),
        turn.get("tool_call_id"),
        turn.get("name"),
    )


def call_from_dict(call: Mapping[str, Any]) -> ToolCall:
    """A call from its canonical form."""
    function = call["function"]
    return ToolCall(function["name"], json_text(function["arguments"]), call.get("id"))
