"""Rendering: from a group's text to the ids that one reference's own tokenizer gives it.

The prompt is rendered with the reference's chat template and generation prompt; a response is what
the template adds to it. The two are tokenised separately, so the prompt's ids are the same for all
responses of a group, and a response's log-prob does not depend on its siblings. For the same reason
a long prompt that keeps its end is cut to a length that is fixed, whatever its responses need.

User text never becomes a control token: see `control_tokens`.
"""

from __future__ import annotations

import contextlib
import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mrpo_tools.errors import MrpoError, UsageError
from mrpo_tools.groups import Group
from mrpo_tools.messages import Message
from mrpo_tools.references.chat import Added, Chat
from mrpo_tools.references.control_tokens import ControlSafeEncoder
from mrpo_tools.references.model_files import first_line, is_failure

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
        truncated: its end was cut to fit `max_length`, or the beginning of its prompt was.
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
        max_prompt_length: tokens of a prompt that `keep_end` leaves.
        vocab_size: ids that the model has embeddings for; None where nobody asks a model.
        overlong: `skip` marks a response that does not fit, `truncate` cuts its end. `keep_end`
            cuts the beginning of a prompt that is longer than `max_prompt_length`, whatever the
            template wrote there, but for BOS; a response that does not fit beside it is marked.

    Attributes:
        counts: how often a template trimmed a response, and more (`chat.Chat`).

    Raises:
        UsageError: the tokenizer has no `tokenizers` backend, its template cannot be used, or
            `max_prompt_length` leaves no room for a response.
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
        max_prompt_length: int | None = None,
        overlong: str = "skip",
        vocab_size: int | None = None,
    ) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._prompt_room = _prompt_room(name, overlong, max_prompt_length, max_length)
        self.overlong = overlong
        self.vocab_size = vocab_size
        with self._tokenizing():
            self._encoder = ControlSafeEncoder(tokenizer, added_tokens, name)
        template = tokenizer.chat_template if chat_template is None else chat_template
        if isinstance(template, dict):
            template = template.get("default")
        template = FALLBACK_TEMPLATE if template is None else template
        self._chat = Chat(template, tokenizer.special_tokens_map, self._encoder, name, system)
        self.counts = self._chat.counts
        first = tokenizer("a", add_special_tokens=True)["input_ids"][:1]
        self._bos = first if first and first[0] == tokenizer.bos_token_id else []
        self._eos = tokenizer.eos_token_id

    def encode(self, group: Group) -> EncodedGroup:
        """The ids of a group's prompt and responses.

        Raises:
            UsageError: the template drops or rewrites a message, does not know what it holds, or
                its rendering with a response does not extend its rendering of the prompt.
        """
        answers = [response.message for response in group.responses]
        prompt_text, answered = self._chat.texts(group.prompt, group.tools, answers)
        whole = self._prompt_ids(prompt_text)
        prompt_ids = self._cut_prompt(whole)
        cut = len(prompt_ids) < len(whole)
        ids = [self._response_ids(prompt_text, added) for added in answered]
        responses = [self._fit(prompt_ids, response, cut=cut) for response in ids]
        return EncodedGroup(prompt_ids, responses)

    def encode_prompt(self, prompt: Sequence[Message], tools: str | None = None) -> list[int]:
        """The ids of a prompt, generation prompt included; `tools` as a group has them."""
        prompt_text, _ = self._chat.texts(prompt, tools)
        return self._cut_prompt(self._prompt_ids(prompt_text))

    def _cut_prompt(self, ids: list[int]) -> list[int]:
        """The end of a prompt that is longer than its room; what begins a text stays before it."""
        if self._prompt_room is None or len(ids) <= self._prompt_room:
            return ids
        first = ids[:1] if ids[0] == self.tokenizer.bos_token_id else []
        return [*first, *ids[len(first) - self._prompt_room :]]

    def prompt_text(self, prompt: Sequence[Message]) -> str | None:
        """A text of which the tokenizer as it is, special tokens added, makes the ids of
        `encode_prompt`; None where there is none, as where the prompt names control tokens."""
        rendered = self._encoder.reveal(self._chat.texts(prompt, None)[0])
        ids = self.encode_prompt(prompt)
        bos = self.tokenizer.bos_token or ""
        for text in (rendered, rendered.removeprefix(bos)):
            with self._tokenizing():
                if self.tokenizer(text)["input_ids"] == ids:
                    return text
        return None

    def _prompt_ids(self, prompt_text: str) -> list[int]:
        with self._tokenizing():
            ids = self._encoder.encode(prompt_text)
        return self._embedded(ids if ids[:1] == self._bos else [*self._bos, *ids])

    def _response_ids(self, prompt_text: str, added: Added) -> list[int]:
        with self._tokenizing():
            ids = self._encoder.encode_after(prompt_text, added.text)
        ends = self._encoder.has_control(added.text[added.end :])
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

    def _fit(self, prompt_ids: list[int], ids: list[int], *, cut: bool) -> EncodedResponse:
        room = len(ids) if self.max_length is None else self.max_length - len(prompt_ids)
        if len(ids) <= room:
            return EncodedResponse(ids, token_hash(prompt_ids, ids), truncated=cut)
        if self.overlong == "truncate" and room > 0:
            ids = ids[:room]
            return EncodedResponse(ids, token_hash(prompt_ids, ids), truncated=True)
        return EncodedResponse(ids, token_hash(prompt_ids, ids), overlong=True)


def _prompt_room(
    name: str, overlong: str, max_prompt_length: int | None, max_length: int | None
) -> int | None:
    """Tokens that a prompt may have; None where nothing is cut at its beginning."""
    if overlong != "keep_end" or max_prompt_length is None:
        return None
    if max_length is not None and max_prompt_length >= max_length:
        raise UsageError(
            f"reference {name!r}: max_prompt_length {max_prompt_length:,} leaves no room for a "
            f"response within max_length {max_length:,}",
            "lower max_prompt_length, or raise max_length",
        )
    return max_prompt_length


def token_hash(prompt_ids: Sequence[int], ids: Sequence[int]) -> str:
    """16 hexadecimal digits of the SHA-256 of a prompt's and a response's ids."""
    digest = hashlib.sha256(array("q", [len(prompt_ids), *prompt_ids, *ids]).tobytes())
    return digest.hexdigest()[:16]
