"""A reference's chat template at work: the text of a prompt, and what each response adds to it.

Nothing is taken on trust. Every message, tool, call and reasoning must show in the rendering, a
role must leave a trace, and a rendering with a response must extend that of the prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

from mrpo_tools.errors import UsageError
from mrpo_tools.messages import TEXT_ROLES, Message, ToolCall
from mrpo_tools.references.control_tokens import MARK, ControlSafeEncoder
from mrpo_tools.references.identity import PINNED_DATE, uses_date
from mrpo_tools.references.template_process import Template, TemplateFailed
from mrpo_tools.references.turns import (
    CALL_FORMS,
    CallForm,
    Evidence,
    Tools,
    Turn,
    offered,
    turn_of,
    written_as_json,
)

NOBODY = "nobody"
"""A role that no template knows."""
_PROBE_CALL = ToolCall("probe_a_tool", '{"probed_key":"probed value"}', "probe0123")
_PROBE_OF_CALLS = (
    Message("user", "Probe."),
    Message("assistant", "", tool_calls=(_PROBE_CALL,)),
    Message("tool", "Probed.", tool_call_id="probe0123", name="probe_a_tool"),
)
_WAYS_OUT = {
    "tools": "data without it (drop the column tools)",
    "tool_calls": "data without it (leave such rows out)",
    "reasoning_content": "data without it (drop the key)",
}


class Added(NamedTuple):
    """What a template adds for a response, and the end of the response in it."""

    text: str
    end: int


class _Conversation(NamedTuple):
    """Turns to be rendered with the template's generation prompt or without."""

    turns: Sequence[Turn]
    generation: bool = False
    tools: Tools | None = None


class Chat:
    """A chat template with the rules by which one reference's text is rendered.

    Args:
        source: the template.
        special_tokens: literals that the template may name.
        encoder: hides literals of control tokens in text.
        name: the reference's name, for messages.
        system: `fold`, `drop` or `error`, where the template refuses a system message.

    Attributes:
        counts: how often a response was trimmed, a system message folded or dropped, or the
            reasoning of an earlier turn left out by a template that shows the last one's.

    Raises:
        UsageError: the template cannot be used.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, object],
        encoder: ControlSafeEncoder,
        name: str,
        system: str,
    ) -> None:
        self.name = name
        self.counts: Counter[str] = Counter()
        self._system = system
        self._encoder = encoder
        self._template = _template_of(source, special_tokens)
        self._known = {*TEXT_ROLES}
        self._render()  # compiles it
        self._refuses_system = not self._shows("Probe of a system.", "system")
        if self._shows("Probe of an answer.", "assistant") is False:
            raise self._refusal("drops or rewrites the response", "Probe of an answer.")

    def texts(
        self, prompt: Sequence[Message], tools: str | None, answers: Sequence[Message] = ()
    ) -> tuple[str, list[Added]]:
        """The text of a prompt, generation prompt included, and what each answer adds.

        Raises:
            UsageError: the template drops or rewrites any of it, or its rendering with a response
                does not extend its rendering of the prompt.
        """
        turns = [
            turn_of(self._encoder, turn, n) for n, turn in enumerate(self._accepted(prompt), 1)
        ]
        begun = turns.pop().content if turns[-1].role == "assistant" else ""
        shown = offered(self._encoder, tools)
        last = [turn_of(self._encoder, answer, len(prompt) + 1) for answer in answers]
        wholes = [Turn("assistant", f"{begun}x")] if begun else []  # where the beginning ends
        wholes += [replace(turn, content=begun + turn.content) for turn in last]
        rendered, *answered = self._render(
            _Conversation(turns, generation=True, tools=shown),
            *(_Conversation([*turns, whole], tools=shown) for whole in wholes),
        )
        text = self._prompt_text(turns, shown, rendered)
        if begun:
            text = self._begun_text(text, answered.pop(0), begun)
        pairs = zip(answered, last, strict=True)
        return text, [self._added(text, full, answer) for full, answer in pairs]

    def _prompt_text(
        self, turns: Sequence[Turn], tools: Tools | None, rendered: str | TemplateFailed
    ) -> str:
        text = self._accepted_text(rendered, turns[-1].content)
        position = 0
        for turn in turns:
            content = _found(turn, text)
            if content is None:
                raise self._refusal(f"drops or rewrites a {turn.role} message", turn.content)
            place = text.find(content, position)  # a system message may come later
            position = place + len(content) if place >= 0 else position
        self._check_roles(turns, tools, text)
        self._check([*(tools.evidence if tools else ()), *_of_turns(turns)], text, earlier=True)
        return text

    def _check_roles(self, turns: Sequence[Turn], tools: Tools | None, text: str) -> None:
        """Refuse a role that leaves no trace: what it says would be anybody's."""
        for role in {turn.role for turn in turns} - self._known:
            others = [replace(turn, role=NOBODY) if turn.role == role else turn for turn in turns]
            [other] = self._render(_Conversation(others, generation=True, tools=tools))
            if other == text:
                said = next(turn.content for turn in turns if turn.role == role)
                raise self._refusal(f"does not know the role {role}", said)
            self._known.add(role)

    def _check(self, evidence: Iterable[Evidence], text: str, *, earlier: bool = False) -> None:
        for each in evidence:
            if each.shows(text):
                continue
            if earlier and each.feature == "reasoning_content" and self._shows_reasoning:
                self.counts["reasoning_left_out"] += 1
                continue
            raise self._refusal(f"ignores {each.feature}", each.text, _WAYS_OUT[each.feature])

    def _begun_text(self, text: str, rendered: str | TemplateFailed, begun: str) -> str:
        """The prompt with the generation prompt, and the beginning of the answer as the template
        writes it; some put a space before an answer."""
        full = self._accepted_text(rendered, begun)
        place = full.find(begun, len(text))
        if place < 0 or not full.startswith(text):
            raise self._refusal("drops or rewrites the beginning of an answer", begun)
        return full[: place + len(begun)]

    def _added(self, prompt_text: str, rendered: str | TemplateFailed, answer: Turn) -> Added:
        content = answer.content
        full = self._accepted_text(rendered, content)
        if not full.startswith(prompt_text):
            raise self._refusal("does not extend its own rendering of the prompt", content)
        text = full[len(prompt_text) :]
        written = content if content in text else content.strip()
        if written not in text:
            raise self._refusal("drops or rewrites the response", content)
        self._check(answer.evidence, text)
        self.counts["trimmed"] += written != content
        ends = [text.index(written) + len(written)]
        ends += [text.rfind(each.text[:MARK]) + MARK for each in answer.evidence]
        return Added(text, max(ends))

    def _accepted(self, prompt: Sequence[Message]) -> Sequence[Message]:
        """The prompt as the template accepts it: without a system message it would refuse."""
        if prompt[0].role != "system" or not self._refuses_system:
            return prompt
        if self._system == "error":
            raise UsageError(
                f"reference {self.name!r}: its chat template refuses the system message",
                "set `system: fold` or `system: drop` for this reference",
            )
        self.counts["system_folded" if self._system == "fold" else "system_dropped"] += 1
        rest = prompt[1:]
        if self._system == "drop":
            return rest
        user = next(place for place, turn in enumerate(rest) if turn.role == "user")
        folded = Message("user", f"{prompt[0].content}\n\n{rest[user].content}")
        return (*rest[:user], folded, *rest[user + 1 :])

    def _shows(self, probe: str, role: str) -> bool | None:
        """Whether the template writes a system message, or a response, at all; None: it raises."""
        turns = [
            Turn("user", "Probe."),
            Turn("assistant", probe if role == "assistant" else "Yes."),
        ]
        if role == "system":
            turns = [Turn("system", probe), *turns]
        [text] = self._render(_Conversation(turns))
        return None if isinstance(text, TemplateFailed) else probe in text

    @cached_property
    def _shows_reasoning(self) -> bool:
        """Whether the template writes the reasoning of the last message, if not of earlier ones."""
        message = Message("assistant", "Probe of an answer.", reasoning_content="Probe it.")
        turn = turn_of(self._encoder, message, 2)
        [text] = self._render(_Conversation([Turn("user", "Probe."), turn]))
        return isinstance(text, str) and all(each.shows(text) for each in turn.evidence)

    @cached_property
    def _call_form(self) -> CallForm:
        """The first form of calls that the template writes out."""
        turns = _turns(self._encoder, _PROBE_OF_CALLS)
        for form in CALL_FORMS:
            [text] = self._in_form(form, _Conversation(turns, generation=True))
            if isinstance(text, str) and all(each.shows(text) for each in _of_turns(turns)):
                return form
        return CALL_FORMS[0]

    def _render(self, *conversations: _Conversation) -> list[str | TemplateFailed]:
        """The text of each conversation, or how the template refuses it."""
        calls = any("tool_calls" in turn.more for each in conversations for turn in each.turns)
        return self._in_form(self._call_form if calls else CALL_FORMS[0], *conversations)

    def _in_form(self, form: CallForm, *conversations: _Conversation) -> list[str | TemplateFailed]:
        try:
            return self._template.render(
                [
                    {
                        "messages": [turn.values(form) for turn in turns],
                        "add_generation_prompt": generation,
                        **({"tools": tools.values} if tools else {}),
                    }
                    for turns, generation, tools in conversations
                ]
            )
        except TemplateFailed as error:
            raise self._refusal(f"cannot be used ({error})", self._template.source) from None

    def _accepted_text(self, rendered: str | TemplateFailed, content: str) -> str:
        if isinstance(rendered, TemplateFailed):
            raise self._refusal(f"refuses a conversation ({rendered})", content)
        return rendered

    def _refusal(self, what: str, content: str, instead: str = "") -> UsageError:
        return UsageError(
            f"reference {self.name!r}: its chat template {what}: "
            f"{self._encoder.reveal(content)[:60]!r}",
            "give another template: `chat_template: FILE.jinja` for this reference"
            + (f"; or {instead}" if instead else ""),
        )


def _turns(encoder: ControlSafeEncoder, prompt: Sequence[Message]) -> list[Turn]:
    return [turn_of(encoder, message, number) for number, message in enumerate(prompt, 1)]


def _of_turns(turns: Sequence[Turn]) -> list[Evidence]:
    return [each for turn in turns for each in turn.evidence]


def _found(turn: Turn, text: str) -> str | None:
    """A turn's content as it stands in a text; that of a tool may be written as JSON."""
    content = turn.content.strip()
    forms = (content, written_as_json(content)) if turn.role == "tool" else (content,)
    return next((form for form in forms if form in text), None)


def _template_of(source: str, special_tokens: Mapping[str, object]) -> Template:
    """A template; it sees what the library would show it, on the pinned day."""
    variables: dict[str, str | None] = {"tools": None, "documents": None}
    variables |= {key: str(value) for key, value in special_tokens.items()}
    return Template(source, variables, today=PINNED_DATE if uses_date(source) else None)
