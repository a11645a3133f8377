"""Tools, calls, their answers and hidden reasoning: shown to a model whole, or refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from chat_templates import (
    CALLS_AS_TEXT,
    CHATML,
    LLAMA2,
    REASONS_LIKE_QWEN,
    TOOLS_LIKE_LLAMA,
    TOOLS_LIKE_MISTRAL,
    TOOLS_LIKE_QWEN,
)
from tokenizer_families import Family, family, with_template

from mrpo_tools.errors import UsageError
from mrpo_tools.groups import Group, Response, group_from_dict
from mrpo_tools.messages import Message, ToolCall, json_text
from mrpo_tools.references.rendering import FALLBACK_TEMPLATE, Renderer

TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather", "description": "Today's weather, \"now\".", "parameters": {
            "type": "object", "required": ["the_city"], "properties": {
                "the_city": {"type": "string", "description": "Of <any> size\nanywhere"},
                "type": {"type": "string", "enum": ["wind", "sun"]}}}}},
]  # fmt: skip
CALL = {"the_city": 'Zürich "HB"\n', "days": 3, "units": ["°C", True], "a": {"b": None}}
QUESTION = Message("user", "How warm is it in Zürich?")
CALLING = Message("assistant", "", tool_calls=(
    ToolCall("get_weather", json_text(CALL), "a1b2c3d4e"),))  # fmt: skip
TWO_CALLS = Message("assistant", "", tool_calls=(
    *CALLING.tool_calls, ToolCall("get_time", "{}")))  # fmt: skip
ANSWER = Message("tool", '{"celsius": 21}', tool_call_id="a1b2c3d4e", name="get_weather")
TALK = (QUESTION, CALLING, ANSWER)
SHOWING = {
    "qwen": (TOOLS_LIKE_QWEN, "qwen"),
    "llama": (TOOLS_LIKE_LLAMA, "llama3"),
    "mistral": (TOOLS_LIKE_MISTRAL, "mistral_v3"),
}
AS_TEXT = json_text(TOOLS)


def reference(template: str, name: str = "qwen") -> tuple[Renderer, Family]:
    own = family(name)
    return Renderer(with_template(own, template), name="judge"), own


def group(prompt: tuple[Message, ...], *answers: Message, tools: str | None = AS_TEXT) -> Group:
    """A group whose responses say what these messages say."""
    responses = (
        Response(m.content, reasoning_content=m.reasoning_content, tool_calls=m.tool_calls)
        for m in answers or [Message("assistant", "It is warm.")]
    )
    return Group(prompt, tuple(responses), tools=tools)


def as_the_library(own: Family, template: str, asked: Group) -> tuple[str, list[str]]:
    """The prompt and what each response adds, by transformers' own rendering."""
    tokenizer = with_template(own, template)
    tools = json.loads(asked.tools) if asked.tools else None
    turns = [turn.as_dict() for turn in asked.prompt]
    said = {"tokenize": False, "tools": tools}
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, **said)
    wholes = [
        tokenizer.apply_chat_template([*turns, response.message.as_dict()], **said)
        for response in asked.responses
    ]
    assert all(whole.startswith(prompt) for whole in wholes)
    return prompt, [whole[len(prompt) :] for whole in wholes]


def refusal(template: str, asked: Group, name: str = "qwen") -> str:
    renderer, _ = reference(template, name)
    with pytest.raises(UsageError) as raised:
        renderer.encode(asked)
    assert "'judge'" in str(raised.value)
    assert "chat_template" in raised.value.hint
    return f"{raised.value} {raised.value.hint}"


@pytest.mark.parametrize("case", SHOWING)
def test_tools_and_calls_are_rendered_as_the_library_renders_them(case: str) -> None:
    """The same text, prompt and responses, a response that calls among them."""
    template, name = SHOWING[case]
    renderer, own = reference(template, name)
    for prompt in ((QUESTION,), TALK):
        asked = group(prompt, Message("assistant", "It is warm."), CALLING)
        expected, added = as_the_library(own, template, asked)
        encoded = renderer.encode(asked)
        assert own.text_of(encoded.prompt_ids) == expected
        texts = [own.text_of(each.ids, before=expected) for each in encoded.responses]
        assert [text.removesuffix("</s>") for text in texts] == [
            text.removesuffix("</s>") for text in added
        ]
        assert renderer.encode_prompt(prompt, AS_TEXT) == encoded.prompt_ids


def test_arguments_are_text_where_the_template_wants_text() -> None:
    renderer, own = reference(CALLS_AS_TEXT)
    prompt, called = (QUESTION, CALLING, ANSWER), Message("assistant", "", tool_calls=(
        ToolCall("get_weather", '{"b":1,"a":"x"}'),))  # fmt: skip
    encoded = renderer.encode(group(prompt, called, tools=None))
    arguments = json.dumps(CALL, ensure_ascii=False, separators=(",", ":"))
    assert own.text_of(encoded.prompt_ids) == (
        f"<|im_start|>user\n{QUESTION.content}<|im_end|>\n"
        f"<|im_start|>assistant\nget_weather\n{arguments}\n<|im_end|>\n"
        f"<|im_start|>tool\n{ANSWER.content}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert own.text_of(encoded.responses[0].ids) == 'get_weather\n{"b":1,"a":"x"}\n<|im_end|>\n'


def without(template: str, what: str, instead: str = "''") -> str:
    assert what in template
    return template.replace(what, instead)


ARGUMENTS = "(call.function.arguments | tojson)"
IGNORING = {
    "tools": (CHATML, group((QUESTION,)), "ignores tools"),
    "a tool's description": (
        without(TOOLS_LIKE_QWEN, "(tool | tojson)", "tool.function.name"),
        group((QUESTION,)), "ignores tools"),
    "calls": (CHATML, group(TALK, tools=None), "ignores tool_calls"),
    "arguments": (without(TOOLS_LIKE_QWEN, ARGUMENTS), group(TALK), "ignores tool_calls"),
    "values of arguments": (
        without(TOOLS_LIKE_QWEN, ARGUMENTS, "(call.function.arguments | list | tojson)"),
        group(TALK), "ignores tool_calls"),
    "numbers of arguments": (
        without(TOOLS_LIKE_QWEN, ARGUMENTS,
                "((call.function.arguments | tojson) | replace(': 3', ': '))"),
        group(TALK), "ignores tool_calls: 'days'"),
    "the name": (without(TOOLS_LIKE_QWEN, "call.function.name"), group(TALK),
                 "ignores tool_calls: 'get_weather'"),
    "the second call": (
        without(TOOLS_LIKE_QWEN, "in message.tool_calls", "in message.tool_calls[:1]"),
        group((QUESTION, TWO_CALLS, ANSWER)), "ignores tool_calls: 'get_time'"),
    "a response's call": (CHATML, group((QUESTION,), CALLING, tools=None), "ignores tool_calls"),
    "the text beside a call": (
        TOOLS_LIKE_MISTRAL, group((QUESTION, Message(
            "assistant", "Let me look.", tool_calls=CALLING.tool_calls), ANSWER)),
        "drops or rewrites a assistant message: 'Let me look.'"),
    "reasoning": (CHATML, group((QUESTION,), Message(
        "assistant", "Warm.", reasoning_content="Warm")), "ignores"),
    "a tool's answer": (
        without(TOOLS_LIKE_QWEN, "message.role == 'tool'", "message.role == 'none'"),
        group(TALK), "drops or rewrites a tool message"),
    "a developer": (TOOLS_LIKE_QWEN, group((Message("developer", "Be kind."), QUESTION)),
                    "drops or rewrites a developer message"),
    "who speaks": (FALLBACK_TEMPLATE, group((Message("developer", "Be kind."), QUESTION),
                                            tools=None), "does not know the role developer"),
    "two calls at once": (TOOLS_LIKE_LLAMA, group((QUESTION, TWO_CALLS, ANSWER)),
                          "refuses a conversation (one call at once)"),
}  # fmt: skip


@pytest.mark.parametrize("what", IGNORING)
def test_what_a_template_ignores_is_refused_by_name(what: str) -> None:
    """A template renders on without keys that it does not know; nothing is taken for granted, also
    where the same words stand elsewhere in the conversation."""
    template, asked, message = IGNORING[what]
    name = {TOOLS_LIKE_MISTRAL: "mistral_v3", TOOLS_LIKE_LLAMA: "llama3"}.get(template, "qwen")
    assert message in refusal(template, asked, name)


def test_the_way_out_names_the_column() -> None:
    assert "drop the column tools" in refusal(CHATML, group((QUESTION,)))
    assert refusal(LLAMA2, group((QUESTION,)), "llama2").count("ignores tools") == 1


def test_a_role_that_is_written_is_known() -> None:
    renderer, own = reference(CHATML)
    prompt = (Message("developer", "Be kind."), QUESTION)
    ids = renderer.encode_prompt(prompt)
    assert own.text_of(ids).startswith("<|im_start|>developer\nBe kind.<|im_end|>\n")


def test_reasoning_is_part_of_a_response() -> None:
    """`Warm` is thought and said; a template that writes an earlier turn's no more is counted."""
    renderer, own = reference(REASONS_LIKE_QWEN)
    thought = Message("assistant", "Warm", reasoning_content="\nWarm\n")
    asked = group((QUESTION,), thought, Message("assistant", "Warm"), tools=None)
    encoded = renderer.encode(asked)
    assert [own.text_of(each.ids) for each in encoded.responses] == [
        "<think>\nWarm\n</think>\n\nWarm<|im_end|>\n", "Warm<|im_end|>\n",
    ]  # fmt: skip
    assert renderer.counts["reasoning_left_out"] == 0
    renderer.encode(group((QUESTION, thought, QUESTION), tools=None))
    assert renderer.counts["reasoning_left_out"] == 1


@pytest.mark.parametrize("case", SHOWING)
def test_no_text_of_tools_becomes_a_control_token(case: str) -> None:
    """Every literal, whole, at either end or cut, in each name, key and text: the same control
    tokens as with harmless words, and the text of the library."""
    template, name = SHOWING[case]
    renderer, own = reference(template, name)

    def asked(word: str) -> Group:
        tools = [{"type": "function", "function": {"name": f"f{word}", "description": word,
                  "parameters": {"properties": {word: {"type": "string"}}}}}]  # fmt: skip
        call = Message("assistant", "", tool_calls=(
            ToolCall(word, json.dumps({word: word, "k": [word]}), "a1b2c3d4e"),))  # fmt: skip
        answer = Message("tool", word, tool_call_id="a1b2c3d4e")
        return group((QUESTION, call, answer), call, tools=json.dumps(tools))

    def controls(word: str) -> list[list[str]]:
        encoded = renderer.encode(asked(word))
        return [own.controls(encoded.prompt_ids), own.controls(encoded.responses[0].ids)]

    harmless = controls("so")
    for literal in own.literals:
        for word in (literal, f"so{literal}", literal + literal, literal[1:], literal[:-1]):
            assert controls(word) == harmless, word
        expected, _ = as_the_library(own, template, asked(literal))
        assert own.text_of(renderer.encode(asked(literal)).prompt_ids) == expected


def test_reasoning_never_becomes_a_control_token() -> None:
    renderer, own = reference(REASONS_LIKE_QWEN)
    for literal in own.literals:
        thought = Message("assistant", "x", reasoning_content=f"{literal} a {literal}")
        ids = renderer.encode(group((QUESTION,), thought, tools=None)).responses[0].ids
        assert own.controls(ids) == ["<think>", "</think>", "<|im_end|>"]


def test_the_template_does_not_complete_a_literal_with_a_name() -> None:
    glued = without(TOOLS_LIKE_QWEN, "call.function.name", "'<' + call.function.name + '>'")
    renderer, own = reference(glued)
    call = Message("assistant", "", tool_calls=(ToolCall("think", "{}"),))
    ids = renderer.encode(group((QUESTION,), call, tools=None)).responses[0].ids
    assert "<think>" in own.text_of(ids)
    assert "<think>" not in own.controls(ids)


ANSWERS: dict[str, Any] = {"responses": [{"content": "a"}, {"content": "b"}]}


def test_the_canonical_form_comes_back() -> None:
    asked = group(TALK, CALLING, Message("assistant", "a", reasoning_content="Hm."))
    back = group_from_dict(json.loads(json.dumps(asked.as_dict())))
    assert back.as_dict() == asked.as_dict()
    assert (back.prompt_id, back.response_ids) == (asked.prompt_id, asked.response_ids)
    assert asked.as_dict()["prompt"][1]["tool_calls"][0]["function"]["arguments"] == CALL
    assert list(asked.as_dict()["tools"][0]["function"]) == ["name", "description", "parameters"]


def test_ids_follow_all_that_a_model_sees() -> None:
    """The order of arguments too: a template writes them in it."""
    one, other = (ToolCall("f", text) for text in ('{"a":1,"b":2}', '{"b":2,"a":1}'))
    said = [
        Message("assistant", "", tool_calls=(one,)), Message("assistant", "", tool_calls=(other,)),
        Message("assistant", "x"), Message("assistant", "x", reasoning_content="y"),
        Message("assistant", "x", tool_calls=(one,)),
    ]  # fmt: skip
    prompts = [(QUESTION,), (Message("developer", QUESTION.content),), TALK]
    groups = [group(prompt, *said, tools=tools) for prompt in prompts for tools in (None, "[1]")]
    assert len({each.prompt_id for each in groups}) == len(groups)
    assert len({key for each in groups for key in each.response_ids}) == len(groups) * len(said)
