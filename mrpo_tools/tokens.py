"""Rendering: from a group's text to the ids that one reference's own tokenizer gives it.

The prompt is rendered with the reference's chat template and generation prompt; a response is what
the template adds to it. The two are tokenised separately, so the prompt's ids are the same for all
responses of a group, and a response's log-prob does not depend on its siblings.

User text never becomes a control token. Literals of control tokens inside content are hidden from
the template behind placeholder characters. In the rendered text the template's own control tokens
get unguessable private names, the placeholders become text again, and a copy of the tokenizer that
knows the control tokens by their private names only encodes the whole. So nothing is split that the
tokenizer would not split itself, and the merges at borders stay its own.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from mrpo_tools.errors import UsageError
from mrpo_tools.groups import Group, Message
from mrpo_tools.identity import PINNED_DATE, uses_date

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

PRIVATE = 0xF0000
PLACEHOLDER = 0x100000
PLACEHOLDERS = "\U00100000-\U0010fffd"
PLACEHOLDER_COUNT = 0xFFFE


@dataclass(frozen=True)
class EncodedResponse:
    """One response as ids: those that are scored, the end of turn among them.

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
    ) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.system = system
        self.max_length = max_length
        self.overlong = overlong
        self.counts: Counter[str] = Counter()
        self._encoder = ControlSafeEncoder(tokenizer, added_tokens, name)
        template = tokenizer.chat_template if chat_template is None else chat_template
        if isinstance(template, dict):
            template = template.get("default")
        template = FALLBACK_TEMPLATE if template is None else template
        self._render = _compile(template, tokenizer.special_tokens_map)
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
        messages = [(turn.role, hide(turn.content)) for turn in self._accepted(group.prompt)]
        prompt_text = self._prompt_text(messages)
        prompt_ids = self._prompt_ids(prompt_text)
        return EncodedGroup(
            prompt_ids,
            [
                self._fit(prompt_ids, self._response_ids(messages, prompt_text, hide(one.content)))
                for one in group.responses
            ],
        )

    def encode_prompt(self, prompt: Sequence[Message]) -> list[int]:
        """The ids of a prompt, generation prompt included."""
        messages = [
            (turn.role, self._encoder.hide(turn.content)) for turn in self._accepted(prompt)
        ]
        return self._prompt_ids(self._prompt_text(messages))

    def _prompt_ids(self, prompt_text: str) -> list[int]:
        ids = self._encoder.encode(prompt_text)
        return ids if ids[:1] == self._bos else [*self._bos, *ids]

    def _prompt_text(self, messages: list[tuple[str, str]]) -> str:
        text = self._render_or_refuse(messages, True)
        position = 0
        for role, content in messages:
            if content.strip() not in text:
                raise self._refusal(f"drops or rewrites a {role} message", content)
            found = text.find(content.strip(), position)  # a system message may come later
            position = found + len(content.strip()) if found >= 0 else position
        return text

    def _response_ids(
        self, messages: list[tuple[str, str]], prompt_text: str, content: str
    ) -> list[int]:
        full = self._render_or_refuse([*messages, ("assistant", content)], False)
        if not full.startswith(prompt_text):
            raise self._refusal("does not extend its own rendering of the prompt", content)
        text = full[len(prompt_text) :]
        kept = content if content in text else content.strip()
        if kept not in text:
            raise self._refusal("drops or rewrites the response", content)
        self.counts["trimmed"] += kept != content
        ids = self._encoder.encode_after(prompt_text, text)
        ends = self._encoder.has_control(text[text.index(kept) + len(kept) :])
        return ids if ends or self._eos is None else [*ids, self._eos]

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
        try:
            return probe in self._render(turns, False)
        except Exception:  # a template may raise anything, refusing is its own affair
            return None

    def _render_or_refuse(self, messages: list[tuple[str, str]], generation: bool) -> str:
        try:
            return self._render(messages, generation)
        except Exception as error:  # whatever a template raises, it refuses this conversation
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise self._refusal(f"refuses a conversation ({reason})", messages[-1][1]) from None

    def _refusal(self, what: str, content: str) -> UsageError:
        return UsageError(
            f"reference {self.name!r}: its chat template {what}: "
            f"{self._encoder.reveal(content)[:60]!r}",
            "give another template: `chat_template: FILE.jinja` for this reference",
        )


class ControlSafeEncoder:
    """Encodes rendered text so that control tokens come from the template alone."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, added_tokens: str, name: str) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UsageError(
                f"reference {name!r}: its tokenizer has no `tokenizers` backend (tokenizer.json)",
                "convert it: AutoTokenizer.from_pretrained(…).save_pretrained(DIR)",
            )
        state = json.loads(backend.to_str())
        special = set(tokenizer.all_special_tokens)
        controls = [
            token
            for token in state["added_tokens"]
            if token["special"]
            or token["content"] in special
            or (added_tokens == "plain" and not _is_space(token["content"]))
        ]
        salt = "".join(chr(PRIVATE + 0x8000 + secrets.randbelow(0x7000)) for _ in range(4))
        self._names = {
            token["content"]: chr(PRIVATE + index) + salt for index, token in enumerate(controls)
        }
        self._ids = {self._names[token["content"]]: token["id"] for token in controls}
        self._hidden: dict[str, str] = {}
        self._border = set("".join(self._names))
        marks = [token["content"] for token in state["added_tokens"]]
        self._mark = _any_of(mark for mark in marks if not _is_space(mark))
        self._literal = _any_of(self._names)
        self._in_content = re.compile(f"{self._literal.pattern}|[{PLACEHOLDERS}]")
        self._private = _any_of(self._ids)
        renamed = _rename(state, self._names)
        self._tokenizer = _load(renamed, self._ids, name)
        bare = _without_prefix_space(renamed)
        self._continuing = self._tokenizer if bare == renamed else _load(bare, self._ids, name)

    def hide(self, content: str) -> str:
        """Content with placeholders for literals of control tokens.

        The first and the last character that is no space are hidden too if they occur in any
        literal: so the template's own text cannot complete one with the content's.
        """
        core = content.strip()
        if not core:
            return content
        start = content.index(core)
        hidden = self._in_content.sub(lambda match: self._placeholder(match[0]), core)
        first, last = self._hide_border(hidden[0]), self._hide_border(hidden[-1])
        hidden = first + hidden[1:-1] + last if len(hidden) > 1 else first
        return content[:start] + hidden + content[start + len(core) :]

    def reveal(self, text: str) -> str:
        """The text behind the placeholders."""
        return text.translate({ord(char): literal for literal, char in self._hidden.items()})

    def has_control(self, rendered: str) -> bool:
        """Whether the template wrote an added token into this part of its rendering."""
        return self._mark.search(rendered) is not None

    def encode(self, rendered: str) -> list[int]:
        """The ids of a rendering that begins a sequence."""
        return self._ids_of(self._named(rendered))

    def encode_after(self, before: str, rendered: str) -> list[int]:
        """The ids of a rendering that continues `before`, without a prefix space of its own."""
        named, context = self._named(rendered), self._named(before)
        anchors = list(self._private.finditer(context))
        tail = context[anchors[-1].start() :] if anchors else ""
        if tail and len(self._ids_of(tail)) == 1:  # a control token, with the space it swallows
            return self._ids_of(tail + named)[1:]
        mark = self._private.search(named)
        cut = mark.start() if mark else len(named)
        continued = self._continuing.encode(named[:cut], add_special_tokens=False).ids
        return [*continued, *self._ids_of(named[cut:])]

    def _ids_of(self, named: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(named, add_special_tokens=False).ids
        return ids

    def _hide_border(self, char: str) -> str:
        return self._placeholder(char) if char in self._border else char

    def _named(self, rendered: str) -> str:
        return self.reveal(self._literal.sub(lambda match: self._names[match[0]], rendered))

    def _placeholder(self, literal: str) -> str:
        if literal not in self._hidden:
            if len(self._hidden) == PLACEHOLDER_COUNT:
                raise UsageError(
                    "the data has more different private-use characters than can be told apart",
                    "remove characters from U+100000 on",
                )
            self._hidden[literal] = chr(PLACEHOLDER + len(self._hidden))
        return self._hidden[literal]


def token_hash(prompt_ids: Sequence[int], ids: Sequence[int]) -> str:
    """16 hexadecimal digits of the SHA-256 of a prompt's and a response's ids."""
    digest = hashlib.sha256(array("q", [len(prompt_ids), *prompt_ids, *ids]).tobytes())
    return digest.hexdigest()[:16]


def _compile(
    template: str, special_tokens: dict[str, Any]
) -> Callable[[list[tuple[str, str]], bool], str]:
    """A function from (role, content) messages and `add_generation_prompt` to text."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    compiled = _compile_jinja_template(template)
    variables: dict[str, Any] = {"tools": None, "documents": None}
    variables |= {key: str(value) for key, value in special_tokens.items()}
    if uses_date(template):
        today = date.fromisoformat(PINNED_DATE)
        variables |= {"strftime_now": today.strftime, "date_string": today.strftime("%d %b %Y")}

    def render(messages: list[tuple[str, str]], generation: bool) -> str:
        turns = [{"role": role, "content": content} for role, content in messages]
        text: str = compiled.render(messages=turns, add_generation_prompt=generation, **variables)
        return text

    return render


def _rename(state: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """A tokenizer's state in which control tokens are known by their private names only."""
    model = dict(state["model"])
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(text, text): index for text, index in vocab.items()}
    else:
        model["vocab"] = [[names.get(text, text), score] for text, score in vocab]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if model.get("merges"):
        model["merges"] = [
            pair
            for pair in model["merges"]
            if not names.keys() & {*_parts(pair), "".join(_parts(pair))}
        ]
    exact = {"normalized": False, "single_word": False}  # a private name is found wherever it is
    added = [
        {**token, **exact, "content": names[token["content"]]}
        if token["content"] in names
        else token
        for token in state["added_tokens"]
    ]
    unused = {"post_processor": None, "truncation": None, "padding": None}
    return {**state, **unused, "model": model, "added_tokens": added}


def _parts(pair: str | list[str]) -> list[str]:
    return pair.split(" ") if isinstance(pair, str) else pair


def _without_prefix_space(state: Any) -> Any:
    """A tokenizer's state that puts no space before a text that continues another."""
    if isinstance(state, list):
        return [_without_prefix_space(part) for part in state if not _prepends(part)]
    if not isinstance(state, dict):
        return state
    kept: dict[str, Any] = {}
    for key, value in state.items():
        if key in ("normalizer", "pre_tokenizer") and _prepends(value):
            kept[key] = None
        elif key == "prepend_scheme":
            kept[key] = "never"
        elif key == "add_prefix_space":
            kept[key] = False
        else:
            kept[key] = value if key in ("model", "added_tokens") else _without_prefix_space(value)
    return kept


def _prepends(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "Prepend"


def _load(state: dict[str, Any], ids: dict[str, int], name: str) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(json.dumps(state))
    if any(tokenizer.token_to_id(private) != index for private, index in ids.items()):
        raise UsageError(f"reference {name!r}: its tokenizer's added tokens cannot be renamed")
    return tokenizer


def _any_of(literals: Iterable[str]) -> re.Pattern[str]:
    """A pattern for any of some literals, the longest first; it matches nothing for none."""
    escaped = "|".join(map(re.escape, sorted(literals, key=len, reverse=True)))
    return re.compile(escaped or r"(?!)")


def _is_space(literal: str) -> bool:
    """A run of white space, also as sentencepiece spells it: vocabulary, not control."""
    return literal.replace("▁", " ").isspace()
