"""Encoding in which user text never becomes a control token.

Literals of control tokens inside content are hidden from the template behind placeholder
characters. In the rendered text the template's own control tokens get unguessable private names,
the placeholders become text again, and a copy of the tokenizer that knows the control tokens by
their private names only encodes the whole. So nothing is split that the tokenizer would not split
itself, and the merges at borders stay its own.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mrpo_tools.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

State = dict[str, Any]
"""A tokenizer as the JSON of the `tokenizers` library."""
PRIVATE = 0xF0000
PLACEHOLDER = 0x100000
PLACEHOLDERS = "\U00100000-\U0010fffd"
PLACEHOLDER_COUNT = 0xFFFE
SALT = 4
MARK = 1 + SALT
"""Characters of a mark."""


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
        salt, self._mark_salt = _salt(), _salt()
        self._marks = re.compile(f"[{chr(PRIVATE)}-{chr(PRIVATE + 0x7FFF)}]{self._mark_salt}")
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

    def mark(self, content: str, number: int) -> str:
        """Content with placeholders for literals of control tokens, between two marks.

        A mark is unguessable and is taken away again in the end, so what stands between two in a
        rendering is this content and no other, and the template's own text cannot complete a
        literal with it. White space at the ends stays outside.
        """
        core = content.strip()
        mark = chr(PRIVATE + number % 0x8000) + self._mark_salt
        hidden = self._in_content.sub(lambda match: self._placeholder(match[0]), core)
        start = content.index(core)
        return f"{content[:start]}{mark}{hidden}{mark}{content[start + len(core) :]}"

    def may_stand(self, word: str) -> bool:
        """Whether a word can stand unmarked: no literal holds it, or begins or ends with a part."""
        ends = [word[cut:] for cut in range(1, len(word))]
        starts = [word[:cut] for cut in range(1, len(word))]
        return not any(
            word in literal or literal.startswith(tuple(ends)) or literal.endswith(tuple(starts))
            for literal in self._names
        )

    def reveal(self, text: str) -> str:
        """The text behind the placeholders, without marks."""
        text = self._marks.sub("", text)
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


def _salt() -> str:
    return "".join(chr(PRIVATE + 0x8000 + secrets.randbelow(0x7000)) for _ in range(SALT))


def _rename(state: State, names: dict[str, str]) -> State:
    """A tokenizer's state in which control tokens are known by their private names only."""
    model = dict(state["model"])
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(text, text): index for text, index in vocab.items()}
    else:
        model["vocab"] = [[names.get(text, text), weight] for text, weight in vocab]
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
    bare: State = {}
    for key, value in state.items():
        if key in ("normalizer", "pre_tokenizer") and _prepends(value):
            bare[key] = None
        elif key == "prepend_scheme":
            bare[key] = "never"
        elif key == "add_prefix_space":
            bare[key] = False
        else:
            bare[key] = value if key in ("model", "added_tokens") else _without_prefix_space(value)
    return bare


def _prepends(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "Prepend"


def _load(state: State, ids: dict[str, int], name: str) -> Any:
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
