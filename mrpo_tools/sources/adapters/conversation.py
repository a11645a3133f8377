"""Prompts and completions out of the shapes that data sets give them.

A prompt is text (one user turn), a list of messages (`role, content` or `from, value`), or the
part that two conversations have in common. (`transcripts` reads those written as one text.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mrpo_tools.groups import ROLES, Message, user_prompt
from mrpo_tools.sources.adapters.fields import Field, says

Prompt = tuple[Message, ...]

ROLE_NAMES = {role: role for role in ROLES} | {"human": "user", "gpt": "assistant"}
_OF_A_TREE = {"prompter": "user", "assistant": "assistant"}
_NOT_RENDERED = {
    "tool_calls", "tool_call_id", "function_call", "reasoning_content", "reasoning", "thinking",
    "images", "audio", "videos",
}  # fmt: skip
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
    _refuse_what_is_not_text(field)
    field.uses(role_key, content_key, *_NOT_RENDERED)
    spoken = field[role_key]
    role = ROLE_NAMES.get(spoken.value, "") if isinstance(spoken.value, str) else ""
    if not role:
        spoken.expected(f"one of {', '.join(ROLE_NAMES)}")
    content = field[content_key]
    if role == "system" and isinstance(content.value, str) and not content.value.strip():
        return None
    return Message(role, _said(content))


def _refuse_what_is_not_text(field: Field) -> None:
    """Calls of tools, hidden reasoning and pictures are refused by name."""
    if isinstance(field.value, Mapping):
        for key in sorted(_NOT_RENDERED & field.value.keys()):
            if says(field.value[key]):
                field[key].bad("is no part of the text and would be lost, expected none")


def tree_turn(node: Field) -> Message:
    """A message of Open-Assistant's trees: `text` by a `role` of prompter or assistant."""
    spoken = node["role"]
    role = _OF_A_TREE.get(spoken.value, "") if isinstance(spoken.value, str) else ""
    if not role:
        spoken.expected(f"one of {', '.join(_OF_A_TREE)}")
    return Message(role, node["text"].text())


def refuse_tools(row: Field) -> None:
    """Tools that a prompt offers would change how every model reads it."""
    if isinstance(row.value, Mapping) and says(row.value.get("tools")):
        row["tools"].bad("cannot be shown to a model and would be lost, expected none")


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
    """The same turns, after a check of their order: [system] user (assistant user)*.

    The last may be the assistant's: the beginning of every response, which each of them continues.
    """
    roles = [turn.role for turn in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    expected = ["user", "assistant"] * len(roles)
    if not roles or "" in roles:
        return turns  # noted already
    if spoken != expected[: len(spoken)]:
        field.bad(f"the roles are {_list(roles)}; expected [system] user assistant user …")
    elif not spoken:
        field.bad(f"the last message is the {roles[-1]}'s; expected the user's")
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


def completion_of(field: Field, prompt: Prompt = ()) -> str:
    """The response in a text, a message, or a list that ends with it.

    A list holds the response alone, or the whole conversation: then it must begin with `prompt`.
    """
    match field.value:
        case list() | tuple():
            turns = messages(field)
        case Mapping():
            turns = tuple(turn for turn in [_message(field)] if turn)
        case _:
            return field.text("text, a message or a list of messages")
    if len(turns) > 1 and turns[: len(prompt)] == prompt:
        turns = turns[len(prompt) :]
    return _only_answer(field, turns)


def _only_answer(field: Field, turns: Prompt) -> str:
    if len(turns) == 1 and turns[0].role in ("assistant", ""):
        return turns[0].content
    roles = _list([turn.role for turn in turns]) or "no message"
    field.bad(f"the response is {roles}; expected one assistant message after the prompt")
    return ""


def common_turns(
    chosen: Field, rejected: Field, left: Prompt, right: Prompt
) -> tuple[Prompt, str, str]:
    """The turns that two conversations share, and the one answer that follows in each."""
    if not (left and right):
        return (), "", ""  # noted already
    shared = _shared(left[:-1], right[:-1])
    if not shared:
        chosen.bad(_NOTHING_SHARED)
        return (), "", ""
    prompt = ending_with_user(chosen, left[:shared])
    return prompt, _only_answer(chosen, left[shared:]), _only_answer(rejected, right[shared:])


def _shared(left: Sequence[object], right: Sequence[object]) -> int:
    """How many first elements two sequences have in common."""
    pairs = zip(left, right, strict=False)
    shortest = min(len(left), len(right))
    return next((index for index, (a, b) in enumerate(pairs) if a != b), shortest)


def common_text(chosen: Field, rejected: Field) -> tuple[Prompt, str, str]:
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
    return user_prompt(shared), left[len(shared) :], right[len(shared) :]
