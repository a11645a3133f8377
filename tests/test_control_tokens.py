"""No text becomes a control token, and text around a literal stays text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from types import SimpleNamespace
from unicodedata import normalize

import pytest
from chat_templates import CHATML
from conversations import (
    ALL,
    ANSWER,
    ANY_TEXT,
    HARMLESS,
    LOSSLESS,
    PLACES,
    PROPERTY,
    ask,
    conversation,
    group_of,
    rendered,
    renderer,
)
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_families import Family, family, with_template
from tokenizers import AddedToken

from mrpo_tools.errors import UsageError
from mrpo_tools.references.rendering import Renderer


def dangerous(own: Family) -> Iterator[str]:
    """Texts with a literal whole, glued, doubled, cut at either end, among private characters."""
    for literal in own.literals:
        yield from (literal, f"{literal} so", f"so {literal} so", f"so {literal}", f"so{literal}so")
        yield from (literal * 2, f"{literal} {literal}", f"<{literal}>", f"  {literal}\n")
        for other in own.literals:
            yield from (literal + other, f"so {other}{literal}so")
        for cut in range(1, len(literal)):
            yield from (f"so {literal[:cut]}", f"{literal[cut:]} so", literal[cut:] + literal[:cut])
        yield f"\U000f0000{literal}\U000f0001\U00100000{literal}\U00100001"
        yield f"{literal[:-1]}\U00100000{literal[-1]}"


def text_and_controls(
    own: Family, messages: list[dict[str, str]], response: str
) -> tuple[list[str], list[str], list[list[str]]]:
    """The texts of prompt and response: of their ids, and of the library; their control tokens."""
    prompt, answer = rendered(own, messages, response)
    encoded = renderer(own.name).encode(group_of(messages, response))
    lists = (encoded.prompt_ids, encoded.responses[0].ids)
    bos = "<s>" if own.name == "hermes" else ""
    texts = [own.text_of(lists[0]), own.text_of(lists[1], before=prompt)]
    return texts, [bos + prompt, answer], [own.controls(ids) for ids in lists]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ALL)
def test_text_never_becomes_a_control_token(name, place):
    """Each literal, anywhere in a content: same control tokens as a harmless one, exact text where
    marks do not swallow white space."""
    own = family(name)
    *_, harmless = text_and_controls(own, conversation(place, HARMLESS)[0], ANSWER)
    for content in dangerous(own):
        texts, expected, controls = text_and_controls(own, *conversation(place, content))
        assert texts == expected or name not in LOSSLESS, content
        assert controls == harmless, content


@pytest.mark.parametrize("name", ALL)
def test_literals_are_tokenised_as_if_there_were_no_control_tokens(name):
    """Text around a literal merges as text does: each segment has the ids of the bare model."""
    own = family(name)
    for content in dangerous(own):
        ids = renderer(name).encode(ask(content, ANSWER)).prompt_ids
        for segment in own.segments(ids):
            text = own.text_of(segment, before=own.special[0])
            assert segment == own.plain_ids(text), (content, text)


@pytest.mark.parametrize("name", LOSSLESS)
@PROPERTY
@given(st.data())
def test_any_text_comes_back(name, data):
    """Arbitrary text among pieces of literals: exact text (up to NFC and `▁`), same controls."""
    own = family(name)
    pieces = {literal[a:b] for literal in own.literals for a in (0, 1, 2) for b in (-2, -1, None)}
    text = st.one_of(ANY_TEXT, st.sampled_from(own.literals), st.sampled_from(sorted(pieces)))
    contents = st.lists(text, max_size=6).map("".join)
    messages = [{"role": "user", "content": data.draw(contents)}]
    texts, expected, controls = text_and_controls(own, messages, data.draw(contents))
    assert list(map(plain, texts)) == list(map(plain, expected))
    *_, harmless = text_and_controls(own, [{"role": "user", "content": HARMLESS}], ANSWER)
    assert controls == harmless


def plain(text: str) -> str:
    """Without what tokenizers do not tell apart: compositions, `▁` and a space."""
    return normalize("NFC", text.replace("▁", " "))


@pytest.mark.parametrize("last", [0x10F000, 0x10FFFD])
@pytest.mark.parametrize("name", ["llama2", "qwen"])
def test_private_characters_are_text(name, last):
    """Thousands of them in one content and literals after; refused in words where they run out."""
    own = family(name)
    fresh = Renderer(own.tokenizer, name=name)
    many = "".join(map(chr, range(0x100000, last + 1)))
    for content in (many, " ".join(own.literals)):
        prompt, answer = rendered(own, [{"role": "user", "content": content}], content)
        try:
            found = fresh.encode(ask(content, content))
        except UsageError:
            if last < 0x10FFFD:
                raise
            continue
        assert own.text_of(found.prompt_ids) == prompt
        assert own.text_of(found.responses[0].ids, before=prompt) == answer


BETWEEN = (
    "{%- for m in messages -%}"
    "{{- 'START' + m.role + ':HEAD' -}}{{- CONTENT -}}{{- 'TAILEND' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'STARTassistant:HEAD' -}}{%- endif -%}"
)


@pytest.mark.parametrize("trims", [False, True])
@pytest.mark.parametrize("name", ["qwen", "mistral_v3"])
def test_the_template_does_not_complete_a_literal(name, trims):
    """Text between a literal's parts: a beginning, an end or a middle of it stays text."""
    own = family(name)
    start, end = own.special[-3:-1]
    for literal in own.literals:
        for i, j in combinations(range(len(literal) + 1), 2):
            parts = {"START": start, "END": end, "HEAD": literal[:i], "TAIL": literal[j:]}
            template = BETWEEN.replace("CONTENT", "m.content | trim" if trims else "m.content")
            for word, text in parts.items():
                template = template.replace(word, text)
            content = f" {literal[i:j]}\n" if trims else literal[i:j]
            found = Renderer(with_template(own, template)).encode(ask(content, content))
            bos = ["<s>"] if name == "mistral_v3" else []
            assert own.controls(found.prompt_ids) == [*bos, start, end, start], (literal, i, j)
            assert own.controls(found.responses[0].ids) == [end], (literal, i, j)


@pytest.mark.parametrize("name", ["qwen", "mistral_v3"])
def test_neighbouring_contents_do_not_make_a_literal(name):
    """A literal cut into two or three contents that a template writes side by side."""
    own = family(name)
    tokenizer = with_template(own, "{%- for m in messages -%}{{- m.content -}}{%- endfor -%}")
    for literal in own.literals:
        for i in range(1, len(literal) - 1):
            parts = {"system": literal[:i], "user": literal[i:-1]}
            messages = [{"role": role, "content": text} for role, text in parts.items()]
            encoded = Renderer(tokenizer).encode(group_of(messages, literal[-1]))
            assert len(own.controls(encoded.prompt_ids)) == (name == "mistral_v3")
            assert own.controls(encoded.responses[0].ids) == [tokenizer.eos_token]


@pytest.mark.parametrize("flags", [{"normalized": True}, {"single_word": True}])
def test_a_control_token_glued_to_text_never_becomes_garbage(flags):
    """Tokens that match only after a space or between words, written elsewhere by the template.

    With `normalized` and a normalizer that begins segments with `▁`, the library knows `▁<tool>`
    only. Whatever the glued literal becomes, it is the same in every renderer and no bytes of
    names that are nobody's text.
    """
    own = family("llama2")
    glued = "{%- for m in messages -%}{{- 'so<tool>so' + m.content + '</s>' -}}{%- endfor -%}"
    tokenizer = with_template(own, glued)
    tokenizer.add_tokens([AddedToken("<tool>", special=False, **flags)])
    first, second = (Renderer(tokenizer).encode(ask(HARMLESS, ANSWER)) for _ in range(2))
    assert first == second
    text = own.text_of([id_ for id_ in first.prompt_ids if id_ < len(own.tokenizer)])
    assert not any(ord(char) >= 0xF0000 for char in text)
    assert HARMLESS in text


@pytest.mark.parametrize("name", ["qwen", "gemma"])
def test_added_tokens_keep(name):
    """`keep` gives added tokens their ids and still keeps special ones from text."""
    own = family(name)
    content = "so " + " so ".join(own.literals) + " so"
    kept = renderer(name, added_tokens="keep").encode(ask(content, content))
    plain = renderer(name).encode(ask(content, content))
    for found, count in ((kept, 1), (plain, 0)):
        for ids in (found.prompt_ids, found.responses[0].ids):
            controls = Counter(own.controls(ids))
            assert {controls[literal] for literal in own.added} == {count}
    for literal in own.special:
        counted = [own.controls(ids).count(literal) for ids in (kept.prompt_ids, plain.prompt_ids)]
        assert counted[0] == counted[1]


def test_a_named_special_token_is_special_whatever_its_flag():
    """EOS that the tokenizer added without `special` is no control token in text either."""
    own = family("qwen")
    tokenizer = with_template(own, CHATML, eos_token="</think>")
    found = Renderer(tokenizer, added_tokens="keep").encode(ask("a </think> b", "c </think> d"))
    assert "</think>" not in own.controls([*found.prompt_ids, *found.responses[0].ids])
    other = Renderer(tokenizer, added_tokens="keep").encode(ask("a <think> b", "c"))
    assert "<think>" in own.controls(other.prompt_ids)


@pytest.mark.parametrize("added_tokens", ["plain", "keep"])
def test_runs_of_white_space_are_vocabulary(added_tokens):
    """Added tokens that are runs of spaces (`▁▁▁` in this vocabulary) or new lines always act."""
    own = family("gemma")
    ids = renderer("gemma", added_tokens=added_tokens).encode(
        ask("a\n   \nb\n\n\nc <h1> d\n  \ne", "f\n\ng\n    \nh")
    )
    prompt = own.tokenizer.convert_ids_to_tokens(ids.prompt_ids)
    response = own.tokenizer.convert_ids_to_tokens(ids.responses[0].ids)
    assert {"▁▁▁", "\n\n\n", "▁▁"} <= set(prompt)
    assert {"\n\n", "▁▁▁▁"} <= set(response)


def test_keep_does_not_add_an_end_of_turn_to_the_templates_own():
    """A mark that ends turns ends them, though it is an added token without being special."""
    own = family("qwen")
    template = CHATML.replace("<|im_end|>", "</think>")
    for added_tokens in ("plain", "keep"):
        encoder = Renderer(with_template(own, template), added_tokens=added_tokens)
        ids = encoder.encode(ask(HARMLESS, ANSWER)).responses[0].ids
        assert own.controls(ids) == ["</think>"], added_tokens


def test_a_tokenizer_without_a_backend_is_refused():
    """Rendering needs the `tokenizers` library underneath; the message says how to get it."""
    with pytest.raises(UsageError, match=r"'old'.*backend") as raised:
        Renderer(SimpleNamespace(all_special_tokens=[]), name="old")
    assert "save_pretrained" in raised.value.hint


@pytest.mark.parametrize("name", ALL)
def test_no_control_token_is_forgotten(name):
    """The literals that the tests use are all special and added tokens that the tokenizer has."""
    own = family(name)
    every = {str(token) for token in own.tokenizer.added_tokens_decoder.values()}
    assert {*own.literals, *own.spaces} == every | set(own.tokenizer.all_special_tokens)
