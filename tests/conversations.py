"""Conversations with a text in one place, and how the library renders them."""

from __future__ import annotations

from functools import cache

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from tokenizer_families import MAKERS, Family, family

from mrpo_tools.groups import Group, Response
from mrpo_tools.messages import Message
from mrpo_tools.references.rendering import Renderer

ALL = tuple(MAKERS)
PLACES = ("system", "user", "assistant", "response")
LOSSLESS = tuple(name for name in ALL if name != "phi3")  # its marks swallow white space
HARMLESS = "What is the weather like?"
ANSWER = "It is warm and dry."
PROPERTY = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[
    HealthCheck.too_slow, HealthCheck.filter_too_much])  # fmt: skip
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@cache
def renderer(name: str, **options: str) -> Renderer:
    return Renderer(family(name).tokenizer, name=name, **options)


def group_of(messages: list[dict[str, str]], *responses: str) -> Group:
    return Group(
        tuple(Message(turn["role"], turn["content"]) for turn in messages),
        tuple(Response(content) for content in responses),
    )


def ask(content: str, *responses: str) -> Group:
    """A group of one user turn."""
    return group_of([{"role": "user", "content": content}], *responses)


def conversation(place: str, content: str) -> tuple[list[dict[str, str]], str]:
    """A conversation and a response, with `content` in one place and harmless text elsewhere."""
    turns = {
        "system": [("system", content), ("user", HARMLESS)],
        "user": [("user", content)],
        "assistant": [("user", HARMLESS), ("assistant", content), ("user", "Go on.")],
        "response": [("system", "Be kind."), ("user", HARMLESS)],
    }[place]
    messages = [{"role": role, "content": text} for role, text in turns]
    return messages, content if place == "response" else ANSWER


def rendered(own: Family, messages: list[dict[str, str]], response: str) -> tuple[str, str]:
    """(prompt, what the response adds to it) as the library's template renders them.

    A system message is folded where the family refuses it.
    """
    if messages[0]["role"] == "system" and not own.system:
        text = f"{messages[0]['content']}\n\n{messages[1]['content']}"
        messages = [{"role": "user", "content": text}, *messages[2:]]
    prompt = own.render(messages, True)
    full = own.render([*messages, {"role": "assistant", "content": response}], False)
    assert full.startswith(prompt)
    return prompt, full[len(prompt) :]
