"""Tools that a prompt offers, and the calls that messages make, as objects or as JSON text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mrpo_tools.messages import ToolCall, json_text
from mrpo_tools.sources.adapters.fields import Field, says
from mrpo_tools.sources.readers.rows import MAX_TEXT_CHARS

_NOT_TEXT = re.compile("[\ud800-\udfff]" + r"|(?<!\\)(?:\\\\)*\\u0000")
_OBJECT = "an object, or JSON text of one"


def tools_of(field: Field) -> str | None:
    """JSON text of the list of tools in a row's column, None where it holds nothing.

    The list or each tool may be JSON text. A tool is whatever object the templates take; the usual
    is `{type: function, function: {name, description, parameters}}`.
    """
    if not says(field.value):
        return None
    tools = [_object(tool) for tool in field.decoded("a list of tools").items(of="a list of tools")]
    return _text(field, tools) if tools else None


def calls_of(field: Field) -> tuple[ToolCall, ...]:
    """The calls of a message: `[{id?, type?, function: {name, arguments}}]` or `[{name, …}]`."""
    if not says(field.value):
        return ()
    calls = field.decoded("a list of calls").items(of="a list of calls")
    return tuple(map(_call, calls))


def _call(field: Field) -> ToolCall:
    call = field.decoded(_OBJECT)
    if call.has("type") and call["type"].value != "function":
        call["type"].expected("function, the only type of call that is read")
    call.uses("id", "type", "function", "name", "arguments")
    function = call["function"] if call.has("function") else call
    if call.has("function"):
        function.uses("name", "arguments")
    arguments = function["arguments"]
    values = _object(arguments) if says(arguments.value) else {}
    name = call["id"].name() if call.has("id") else None
    return ToolCall(function["name"].text(), _text(arguments, values), name)


def _object(field: Field) -> Mapping[str, Any]:
    """An object; JSON text of one becomes one."""
    found = field.decoded(_OBJECT)
    if isinstance(found.value, Mapping):
        return found.value
    found.expected(_OBJECT)
    return {}


def _text(field: Field, value: object) -> str:
    """JSON text of a value, checked as text is."""
    try:
        text = json_text(value)
    except (TypeError, ValueError, RecursionError) as error:
        field.bad(f"cannot be JSON ({error}), expected {_OBJECT}")
        return "{}"
    if len(text) > MAX_TEXT_CHARS:
        field.bad(f"found {len(text):,} characters, expected at most {MAX_TEXT_CHARS:,}")
    elif unfit := _NOT_TEXT.search(text):
        field.bad(f"found {unfit[0]!a} in a text, expected text without any")
    return text
