"""Prompts and completions out of the shapes that data sets give them.

A prompt is text (one user turn), a list of messages (`role, content` or `from, value`), or the
part that two conversations have in common. (`transcripts` reads those written as one text.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from mrpo_tools.groups import Response, user_prompt
from mrpo_tools.messages import ROLES, Message
from mrpo_tools.sources.adapters.fields import Field, says
from mrpo_tools.sources.adapters.tools import calls_of

Prompt = tuple[Message, ...]

SAID_BESIDES = ("reasoning_content", "tool_calls")
"""Keys that an assistant's message may have beside its text."""
ROLE_NAMES = {role: role for role in ROLES} | {"human": "user", "gpt": "assistant"}
_OF_A_TREE = {"prompter": "user", "assistant": "assistant"}
_OF_A_TOOL = ("tool_call_id", "name")
_ELSEWHERE = {
    "reasoning": "reasoning_content",
    "thinking": "reasoning_content",
    "function_call": "tool_calls",
}
"""Keys that are refused, and the one that is read."""
_NOT_TEXT = ("images", "audio", "videos")
_LETTERS = {"system": "s", "developer": "d", "user": "u", "assistant": "a", "tool": "t"}
_ORDER = re.compile("s?d?u((([ac]t+)*a|([ac]t+)+)u)*([ac]t+)*a?")
"""Of the roles' letters; c is an assistant that calls tools, which answer next."""
_MESSAGES = "a list of messages"
_NOTHING_SHARED = "begins otherwise than 'rejected', expected a common prompt or a column 'prompt'"


def prompt_of(field: Field) -> Prompt:
    """The prompt in a text or a list of messages."""
    if isinstance(field.value, (list, tuple)):
        return ending_with_user(field, messages(field))
    return user_prompt(field.text("text or a list of messages"))


def messages(field: Field) -> Prompt:
    """The messages of a conversation; a blank system message is no message."""
    items = field.items(of=_MESSAGES)
    turns = tuple(turn for item in items if (turn := _message(item)) is not None)
    if isinstance(field.value, (list, tuple)) and not turns:
        field.expected(_MESSAGES)
    return turns


def _message(field: Field) -> Message | None:
    role_key, content_key = ("from", "value") if field.has("from") else ("role", "content")
    spoken = field[role_key]
    role = ROLE_NAMES.get(spoken.value, "") if isinstance(spoken.value, str) else ""
    if not role:
        spoken.expected(f"one of {', '.join(ROLE_NAMES)}")
    answers = _OF_A_TOOL if role == "tool" else ()
    refused = (*_ELSEWHERE, *_NOT_TEXT)
    field.uses(role_key, content_key, *SAID_BESIDES, *refused, *answers)
    content = field[content_key].value
    if role == "system" and isinstance(content, str) and not content.strip():
        return None
    return said_in(field, role, content_key)


def said_in(field: Field, role: str, content_key: str) -> Message:
    """What an object says: its text, and of an assistant its reasoning and calls.

    Pictures and names of old for the same things are refused by name, and so are an assistant's
    things in another's message.
    """
    _refuse_what_is_not_read(field, role)
    assists = role == "assistant"
    calls = calls_of(field["tool_calls"]) if assists and field.has("tool_calls") else ()
    thought = field["reasoning_content"] if assists else None
    content = field[content_key]
    silent = bool(calls) and (not field.has(content_key) or content.value in ("", []))
    answers = {key: field[key].name() for key in _OF_A_TOOL if role == "tool" and field.has(key)}
    return Message(
        role,
        "" if silent else _said(content),
        thought.optional_text() if thought and says(thought.value) else None,
        calls,
        **answers,
    )


def _refuse_what_is_not_read(field: Field, role: str) -> None:
    values = field.value if isinstance(field.value, Mapping) else {}
    for key in sorted(key for key in values if says(values[key])):
        if key in _ELSEWHERE:
            field[key].bad(f"is not read, expected {_ELSEWHERE[key]} in its place")
        elif key in _NOT_TEXT:
            field[key].bad("is no part of the text and would be lost, expected none")
        elif key in SAID_BESIDES and role not in ("assistant", ""):
            field[key].bad(f"is in a message of the {role}, expected it in the assistant's alone")


def answer_of(message: Message) -> Response:
    """An assistant's message as a response that nobody judged yet."""
    return Response(
        message.content,
        reasoning_content=message.reasoning_content,
        tool_calls=message.tool_calls,
    )


def tree_turn(node: Field) -> Message:
    """A message of Open-Assistant's trees: `text` by a `role` of prompter or assistant."""
    spoken = node["role"]
    role = _OF_A_TREE.get(spoken.value, "") if isinstance(spoken.value, str) else ""
    if not role:
        spoken.expected(f"one of {', '.join(_OF_A_TREE)}")
    return Message(role, node["text"].text())


def _said(content: Field) -> str:
    """The text of a message: text, or the joined texts of a list of `{type: text}` parts."""
    parts = content.value
    if not (isinstance(parts, (list, tuple)) and parts and isinstance(parts[0], Mapping)):
        return content.text()
    texts = [
        part["text"].text() if part["type"].value == "text" else _refuse_part(part)
        for part in content.items()
    ]
    return "".join(texts)


def _refuse_part(part: Field) -> str:
    part["type"].expected("text, the only kind of content that is read")
    return ""


def ending_with_user(field: Field, turns: Prompt) -> Prompt:
    """The same turns, after a check of their order: [system] [developer] user (assistant user)*,
    where tools may answer after an assistant's turn, and must where it calls them.

    The last may be the assistant's: the beginning of every response, which each of them continues.
    """
    roles = [turn.role for turn in turns]
    if not roles or "" in roles:
        return turns  # noted already
    letters = "".join("c" if turn.tool_calls else _LETTERS[turn.role] for turn in turns)
    last = turns[-1]
    if letters[-1] == "c":
        field.bad("the last message calls tools, expected their answers after it")
    elif last.role == "assistant" and last.reasoning_content is not None:
        field.bad("the beginning of an answer has reasoning_content, expected text alone")
    elif letters in ("s", "d", "sd"):
        field.bad(f"the last message is the {roles[-1]}'s; expected the user's")
    elif not _ORDER.fullmatch(letters):
        tools = " (tools after the assistant's calls)" if {"c", "t"} & set(letters) else ""
        field.bad(f"the roles are {_list(roles)}; expected [system] user assistant user …{tools}")
    return turns


def alpaca_prompt(row: Field) -> Prompt:
    """`instruction, input?, history?`; the input follows on the next line, as LLaMA-Factory joins
    them."""
    asked = "\n".join(filter(None, [row["instruction"].text(), row["input"].optional_text()]))
    prompt = user_prompt(asked)
    if not row.has("history"):
        return prompt
    past = [turn.items(2, of="[question, answer]") for turn in row["history"].items()]
    turns = [
        Message(role, said.text())
        for turn in past
        for role, said in zip(("user", "assistant"), turn, strict=True)
    ]
    return (*turns, *prompt)


def with_system(row: Field, prompt: Prompt) -> Prompt:
    """The prompt after the system message of the row's own column, where there is one."""
    system = row["system"].optional_text()
    if not system or not prompt:
        return prompt
    if prompt[0].role != "system":
        return (Message("system", system), *prompt)
    if prompt[0].content != system:
        row["system"].bad("differs from the system message of the prompt, expected one of them")
    return prompt


def _list(roles: list[str]) -> str:
    return " ".join(roles[:8]) + (" …" if len(roles) > 8 else "")


def completion_of(field: Field, prompt: Prompt = ()) -> Response:
    """The response in a text, a message, or a list that ends with it, not judged yet.

    A list holds the response alone, or the whole conversation: then it must begin with `prompt`.
    """
    match field.value:
        case list() | tuple():
            turns = messages(field)
        case Mapping():
            turns = tuple(turn for turn in [_message(field)] if turn)
        case _:
            return Response(field.text("text, a message or a list of messages"))
    if len(turns) > 1 and turns[: len(prompt)] == prompt:
        turns = turns[len(prompt) :]
    return _only_answer(field, turns)


def _only_answer(field: Field, turns: Prompt) -> Response:
    if len(turns) == 1 and turns[0].role in ("assistant", ""):
        return answer_of(turns[0])
    roles = _list([turn.role for turn in turns]) or "no message"
    field.bad(f"the response is {roles}; expected one assistant message after the prompt")
    return Response("")


def common_turns(
    chosen: Field, rejected: Field, left: Prompt, right: Prompt
) -> tuple[Prompt, Response, Response]:
    """The turns that two conversations share, and the one answer that follows in each."""
    if not (left and right):
        return (), Response(""), Response("")  # noted already
    shared = _shared(left[:-1], right[:-1])
    if not shared:
        chosen.bad(_NOTHING_SHARED)
        return (), Response(""), Response("")
    prompt = ending_with_user(chosen, left[:shared])
    return prompt, _only_answer(chosen, left[shared:]), _only_answer(rejected, right[shared:])


def _shared(left: Sequence[object], right: Sequence[object]) -> int:
    """How many first elements two sequences have in common."""
    pairs = zip(left, right, strict=False)
    shortest = min(len(left), len(right))
    return next((index for index, (a, b) in enumerate(pairs) if a != b), shortest)


def common_text(chosen: Field, rejected: Field) -> tuple[Prompt, Response, Response]:
    """The words that two texts begin with as the prompt, and what follows in each.

    As in TRL the space before the answers belongs to the answers; other than there the cut never
    falls inside a word.
    """
    left, right = chosen.text(), rejected.text()
    shared = left[: _shared(left, right)]
    if left != shared and right != shared:
        shared = shared[: max(shared.rfind(" "), shared.rfind("\n"), 0)]
    if not shared.strip():
        chosen.bad(_NOTHING_SHARED)
    rest = len(shared)
    return user_prompt(shared), Response(left[rest:]), Response(right[rest:])
