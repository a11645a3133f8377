"""Rendering: from a group's text to the ids that one reference's own tokenizer gives it.

The prompt is rendered with the reference's chat template and generation prompt; a response is what
the template adds to it. The two are tokenised separately, so the prompt's ids are the same for all
responses of a group, and a response's log-prob does not depend on its siblings.

User text never becomes a control token: see `control_tokens`.
"""

from __future__ import annotations

import contextlib
import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from mrpo_tools.errors import MrpoError, UsageError
from mrpo_tools.groups import Group, Message
from mrpo_tools.references.control_tokens import ControlSafeEncoder
from mrpo_tools.references.identity import PINNED_DATE, uses_date
from mrpo_tools.references.model_files import first_line, is_failure
from mrpo_tools.references.template_process import Template, TemplateFailed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FALLBACK_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- {'system': '', 'user': 'Human: ', 'assistant': 'Assistant: '}[message.role] -}}"
    "{{- message.content -}}"
    "{%- if loop.last and message.role == 'assistant' -%}{{- eos_token | default('', true) -}}"
    "{%- else -%}{{- '\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'Assistant: ' -}}{%- endif -%}"
)
"""What a tokenizer without a template gets: `Human: …`, a new line, `Assistant: …`."""


@dataclass(frozen=True)
class EncodedResponse:
    """One response as ids: those that its log-prob sums over, the end of turn among them.

    Attributes:
        ids: the response's tokens.
        token_hash: of the prompt's and the response's ids; equal text, tokenizer and rules give
            an equal hash.
        truncated: its end was cut to fit `max_length`.
        overlong: it does not fit, and has no number.
    """

    ids: Sequence[int]
    token_hash: str
    truncated: bool = False
    overlong: bool = False


@dataclass(frozen=True)
class EncodedGroup:
    """A group as ids of one tokenizer: the prompt once, then each response."""

    prompt_ids: Sequence[int]
    responses: list[EncodedResponse]


class _Conversation(NamedTuple):
    """(role, content) messages, to be rendered with the template's generation prompt or without."""

    messages: Sequence[tuple[str, str]]
    generation: bool = False


class Renderer:
    """Renders and tokenises groups for one reference.

    Args:
        tokenizer: the reference's own, with a `tokenizers` backend.
        name: the reference's name, for messages.
        chat_template: template text in place of the tokenizer's own.
        system: what to do where the template refuses a system message: `fold` it into the first
            user turn, `drop` it, or `error`.
        added_tokens: `plain` encodes literals of added tokens that are not special (`<think>`) as
            text, `keep` as their ids. Runs of white space are vocabulary and always kept.
        max_length: tokens of prompt and response together.
        vocab_size: ids that the model has embeddings for; None where nobody asks a model.
        overlong: `skip` marks a response that does not fit, `truncate` cuts its end.

    Attributes:
        counts: how often a template trimmed a response, or a system message was folded or dropped.

    Raises:
        UsageError: the tokenizer has no `tokenizers` backend, or its template cannot be used.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str = "reference",
        chat_template: str | None = None,
        system: str = "fold",
        added_tokens: str = "plain",
        max_length: int | None = None,
        overlong: str = "skip",
        vocab_size: int | None = None,
    ) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.system = system
        self.max_length = max_length
        self.overlong = overlong
        self.counts: Counter[str] = Counter()
        self.vocab_size = vocab_size
        with self._tokenizing():
            self._encoder = ControlSafeEncoder(tokenizer, added_tokens, name)
        template = tokenizer.chat_template if chat_template is None else chat_template
        if isinstance(template, dict):
            template = template.get("default")
        template = FALLBACK_TEMPLATE if template is None else template
        self._template = _template_of(template, tokenizer.special_tokens_map)
        self._render()  # compiles it
        first = tokenizer("a", add_special_tokens=True)["input_ids"][:1]
        self._bos = first if first and first[0] == tokenizer.bos_token_id else []
        self._eos = tokenizer.eos_token_id
        self._refuses_system = not self._shows("Probe of a system.", "system")
        if self._shows("Probe of an answer.", "assistant") is False:
            raise self._refusal("drops or rewrites the response", "Probe of an answer.")

    def encode(self, group: Group) -> EncodedGroup:
        """The ids of a group's prompt and responses.

        Raises:
            UsageError: the template drops or rewrites a message, or its rendering with a response
                does not extend its rendering of the prompt.
        """
        hide = self._encoder.hide
        messages, begun = self._messages(group.prompt)
        contents = [hide(response.content) for response in group.responses]
        prompt_text, answered = self._rendered(messages, begun, contents)
        prompt_ids = self._prompt_ids(prompt_text)
        texts = zip(answered, contents, strict=True)
        ids = [self._response_ids(prompt_text, full, content) for full, content in texts]
        return EncodedGroup(prompt_ids, [self._fit(prompt_ids, response) for response in ids])

    def encode_prompt(self, prompt: Sequence[Message]) -> list[int]:
        """The ids of a prompt, generation prompt included."""
        messages, begun = self._messages(prompt)
        prompt_text, _ = self._rendered(messages, begun)
        return self._prompt_ids(prompt_text)

    def _messages(self, prompt: Sequence[Message]) -> tuple[list[tuple[str, str]], str]:
        """A prompt's messages, and the beginning of the answer if it ends with one: the generation
        prompt comes before that, and every response continues it."""
        hide = self._encoder.hide
        messages = [(turn.role, hide(turn.content)) for turn in self._accepted(prompt)]
        begun = messages.pop()[1] if messages[-1][0] == "assistant" else ""
        return messages, begun

    def _rendered(
        self, messages: list[tuple[str, str]], begun: str, contents: Sequence[str] = ()
    ) -> tuple[str, list[str | TemplateFailed]]:
        """The text of a prompt, and that of the conversation with each response."""
        answers = [f"{begun}x"] if begun else []  # where the beginning of an answer ends
        answers += [begun + content for content in contents]
        rendered, *answered = self._render(
            _Conversation(messages, generation=True),
            *(_Conversation([*messages, ("assistant", answer)]) for answer in answers),
        )
        prompt_text = self._prompt_text(messages, rendered)
        if begun:
            prompt_text = self._begun_text(prompt_text, answered.pop(0), begun)
        return prompt_text, answered

    def _prompt_ids(self, prompt_text: str) -> list[int]:
        with self._tokenizing():
            ids = self._encoder.encode(prompt_text)
        return self._embedded(ids if ids[:1] == self._bos else [*self._bos, *ids])

    def _prompt_text(self, messages: list[tuple[str, str]], rendered: str | TemplateFailed) -> str:
        text = self._accepted_text(rendered, messages[-1][1])
        position = 0
        for role, content in messages:
            if content.strip() not in text:
                raise self._refusal(f"drops or rewrites a {role} message", content)
            place = text.find(content.strip(), position)  # a system message may come later
            position = place + len(content.strip()) if place >= 0 else position
        return text

    def _begun_text(self, text: str, rendered: str | TemplateFailed, begun: str) -> str:
        """The prompt with the generation prompt, and the beginning of the answer as the template
        writes it; some put a space before an answer."""
        full = self._accepted_text(rendered, begun)
        place = full.find(begun, len(text))
        if place < 0 or not full.startswith(text):
            raise self._refusal("drops or rewrites the beginning of an answer", begun)
        return full[: place + len(begun)]

    def _response_ids(
        self, prompt_text: str, rendered: str | TemplateFailed, content: str
    ) -> list[int]:
        full = self._accepted_text(rendered, content)
        if not full.startswith(prompt_text):
            raise self._refusal("does not extend its own rendering of the prompt", content)
        text = full[len(prompt_text) :]
        written = content if content in text else content.strip()
        if written not in text:
            raise self._refusal("drops or rewrites the response", content)
        self.counts["trimmed"] += written != content
        with self._tokenizing():
            ids = self._encoder.encode_after(prompt_text, text)
        ends = self._encoder.has_control(text[text.index(written) + len(written) :])
        return self._embedded(ids if ends or self._eos is None else [*ids, self._eos])

    def _embedded(self, ids: list[int]) -> list[int]:
        if ids and self.vocab_size is not None and max(ids) >= self.vocab_size:
            raise UsageError(
                f"reference {self.name!r}: its tokenizer gives the id {max(ids):,}, and its model "
                f"has {self.vocab_size:,} embeddings",
                "the tokenizer is another model's: download both again",
            )
        return ids

    @contextlib.contextmanager
    def _tokenizing(self) -> Iterator[None]:
        try:
            yield
        except MrpoError:
            raise
        except BaseException as error:
            if not is_failure(error):
                raise
            raise UsageError(
                f"reference {self.name!r}: its tokenizer fails: {first_line(error)}",
                "download it again",
            ) from None

    def _fit(self, prompt_ids: list[int], ids: list[int]) -> EncodedResponse:
        room = len(ids) if self.max_length is None else self.max_length - len(prompt_ids)
        if len(ids) <= room:
            return EncodedResponse(ids, token_hash(prompt_ids, ids))
        if self.overlong == "truncate" and room > 0:
            cut = ids[:room]
            return EncodedResponse(cut, token_hash(prompt_ids, cut), truncated=True)
        return EncodedResponse(ids, token_hash(prompt_ids, ids), overlong=True)

    def _accepted(self, prompt: Sequence[Message]) -> Sequence[Message]:
        """The prompt as the template accepts it: without a system message it would refuse."""
        if prompt[0].role != "system" or not self._refuses_system:
            return prompt
        if self.system == "error":
            raise UsageError(
                f"reference {self.name!r}: its chat template refuses the system message",
                "set `system: fold` or `system: drop` for this reference",
            )
        self.counts["system_folded" if self.system == "fold" else "system_dropped"] += 1
        rest = prompt[1:]
        if self.system == "drop":
            return rest
        user = next(place for place, turn in enumerate(rest) if turn.role == "user")
        folded = Message("user", f"{prompt[0].content}\n\n{rest[user].content}")
        return (*rest[:user], folded, *rest[user + 1 :])

    def _shows(self, probe: str, role: str) -> bool | None:
        """Whether the template writes a system message, or a response, at all; None: it raises."""
        turns = [("user", "Probe."), ("assistant", probe if role == "assistant" else "Yes.")]
        if role == "system":
            turns = [("system", probe), *turns]
        [text] = self._render(_Conversation(turns))
        return None if isinstance(text, TemplateFailed) else probe in text

    def _render(self, *conversations: _Conversation) -> list[str | TemplateFailed]:
        """The text of each conversation, or how the template refuses it."""
        try:
            return self._template.render(
                [
                    {
                        "messages": [{"role": role, "content": text} for role, text in messages],
                        "add_generation_prompt": generation,
                    }
                    for messages, generation in conversations
                ]
            )
        except TemplateFailed as error:
            raise self._refusal(f"cannot be used ({error})", self._template.source) from None

    def _accepted_text(self, rendered: str | TemplateFailed, content: str) -> str:
        if isinstance(rendered, TemplateFailed):
            raise self._refusal(f"refuses a conversation ({rendered})", content)
        return rendered

    def _refusal(self, what: str, content: str) -> UsageError:
        return UsageError(
            f"reference {self.name!r}: its chat template {what}: "
            f"{self._encoder.reveal(content)[:60]!r}",
            "give another template: `chat_template: FILE.jinja` for this reference",
        )


def token_hash(prompt_ids: Sequence[int], ids: Sequence[int]) -> str:
    """16 hexadecimal digits of the SHA-256 of a prompt's and a response's ids."""
    digest = hashlib.sha256(array("q", [len(prompt_ids), *prompt_ids, *ids]).tobytes())
    return digest.hexdigest()[:16]


def _template_of(source: str, special_tokens: Mapping[str, object]) -> Template:
    """A template; it sees what the library would show it, on the pinned day."""
    variables: dict[str, str | None] = {"tools": None, "documents": None}
    variables |= {key: str(value) for key, value in special_tokens.items()}
    return Template(source, variables, today=PINNED_DATE if uses_date(source) else None)
