"""What a chat template sees of messages and tools, and what must then stand in its rendering.

A template silently ignores keys that it does not know. So names, keys and texts of tools, calls,
their answers and hidden reasoning stand between marks (`ControlSafeEncoder.mark`), and what does
not show in the rendering, marks and all, was ignored. The words of JSON schema, which templates
compare with, stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mrpo_tools.messages import Message, json_text
from mrpo_tools.references.control_tokens import MARK, ControlSafeEncoder

SCHEMA_WORDS = frozenset((
    "$defs", "$ref", "additionalProperties", "allOf", "anyOf", "array", "boolean", "const",
    "default", "definitions", "description", "enum", "format", "function", "integer", "items",
    "maxItems", "maxLength", "maximum", "minItems", "minLength", "minimum", "name", "not", "null",
    "nullable", "number", "object", "oneOf", "parameters", "pattern", "properties", "required",
    "response", "return", "returns", "strict", "string", "title", "type",
))  # fmt: skip
TOOLS = 0
"""The number of the tools' mark; messages have those after it."""


class CallForm(NamedTuple):
    """How a template wants calls: arguments as JSON text or as an object, and what the content of
    a message is that only calls."""

    text: bool
    silent: str | None


CALL_FORMS = tuple(CallForm(text, silent) for text in (False, True) for silent in ("", None))
"""The usual one first."""


class Evidence(NamedTuple):
    """A marked text that must show; after a key, its numbers and truths too."""

    feature: str
    text: str
    scalars: tuple[object, ...] = ()

    def shows(self, rendered: str) -> bool:
        """Whether a rendering holds it, as it is or as JSON writes it."""
        return any(
            all(str(value) in after or json.dumps(value) in after for value in self.scalars)
            for text in {self.text, written_as_json(self.text)}
            for after in self._what_follows(rendered, text)
        )

    def _what_follows(self, rendered: str, text: str) -> Iterator[str]:
        """From each place of the text to the next mark of its kind."""
        mark = text[:MARK]
        for after in rendered.split(text)[1:]:
            yield after.partition(mark)[0]


@dataclass(frozen=True)
class Turn:
    """A message with literals of control tokens hidden.

    Attributes:
        role: whose it is.
        content: its text.
        more: what else templates may know, by their names.
        evidence: of that, what must show.
    """

    role: str
    content: str
    more: Mapping[str, Any] = field(default_factory=dict)
    evidence: tuple[Evidence, ...] = ()

    def values(self, form: CallForm) -> dict[str, Any]:
        """The message as a template sees it."""
        said: dict[str, Any] = {"role": self.role, "content": self.content, **self.more}
        if "tool_calls" in self.more:
            said["tool_calls"] = [_in_form(call, form) for call in self.more["tool_calls"]]
            said["content"] = self.content or form.silent
        return said


class Tools(NamedTuple):
    """The tools of a prompt as a template sees them, and what must show of them."""

    values: list[Any]
    evidence: tuple[Evidence, ...]


def turn_of(encoder: ControlSafeEncoder, message: Message, number: int) -> Turn:
    """A message as a template sees it; `number` is its place, from 1."""
    if message.role == "tool":
        named = {"tool_call_id": message.tool_call_id, "name": message.name}
        more: dict[str, Any] = {
            key: encoder.hide(value) for key, value in named.items() if value is not None
        }
        return Turn("tool", encoder.mark(message.content, number), more)
    more, evidence = {}, []
    if message.reasoning_content is not None:
        reasoning = encoder.mark(message.reasoning_content, number)
        more["reasoning_content"] = reasoning
        evidence.append(Evidence("reasoning_content", reasoning.strip()))
    if message.tool_calls:
        calls = [call.as_dict() for call in message.tool_calls]
        for call in calls:
            call["function"] = {
                "name": encoder.mark(call["function"]["name"], number),
                "arguments": _marked(encoder, call["function"]["arguments"], number),
            }
            call |= {"id": encoder.hide(call["id"])} if "id" in call else {}
            evidence.append(Evidence("tool_calls", call["function"]["name"]))
            evidence += _evidence("tool_calls", call["function"]["arguments"])
        more["tool_calls"] = calls
    return Turn(message.role, encoder.hide(message.content), more, tuple(evidence))


def offered(encoder: ControlSafeEncoder, tools: str | None) -> Tools | None:
    """The tools of a prompt as a template sees them."""
    if tools is None:
        return None
    words = frozenset(word for word in SCHEMA_WORDS if encoder.may_stand(word))
    values = _marked(encoder, json.loads(tools), TOOLS, words)
    return Tools(values, tuple(_evidence("tools", values, words)))


def written_as_json(text: str) -> str:
    """A text as it stands between the quotes of JSON."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _in_form(call: Mapping[str, Any], form: CallForm) -> Mapping[str, Any]:
    if not form.text:
        return call
    function = call["function"]
    return {**call, "function": {**function, "arguments": json_text(function["arguments"])}}


def _marked(
    encoder: ControlSafeEncoder, value: Any, number: int, words: frozenset[str] = frozenset()
) -> Any:
    """A value with every key and text marked but these words."""
    if isinstance(value, str):
        return value if value in words else encoder.mark(value, number)
    if isinstance(value, dict):
        return {
            _marked(encoder, key, number, words): _marked(encoder, item, number, words)
            for key, item in value.items()
        }
    return (
        [_marked(encoder, item, number, words) for item in value]
        if isinstance(value, list)
        else value
    )


def _evidence(feature: str, value: Any, words: frozenset[str] = frozenset()) -> Iterator[Evidence]:
    """Each marked text in a value, a key with the numbers that belong to it."""
    if isinstance(value, str) and value not in words:
        yield Evidence(feature, value.strip())
    for item in value if isinstance(value, list) else ():
        yield from _evidence(feature, item, words)
    for key, item in value.items() if isinstance(value, dict) else ():
        if key not in words:
            own = item if isinstance(item, list) else [item]
            alone = not any(isinstance(each, (str, list, dict)) for each in own)
            scalars = own if alone else ()
            yield Evidence(feature, key.strip(), tuple(scalars))
        yield from _evidence(feature, item, words)
