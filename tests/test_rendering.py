"""Every family's text becomes the ids that its own tokenizer makes of its own template."""

from __future__ import annotations

import re
from collections import Counter
from datetime import date

import pytest
from chat_templates import CHATML, RAISE_ON_SYSTEM
from conversations import (
    ALL,
    ANSWER,
    ANY_TEXT,
    HARMLESS,
    PLACES,
    PROPERTY,
    ask,
    conversation,
    group_of,
    rendered,
    renderer,
)
from hypothesis import given
from tokenizer_families import family, with_template
from transformers.utils import chat_template_utils

from mrpo_tools.errors import UsageError
from mrpo_tools.references.identity import PINNED_DATE
from mrpo_tools.references.rendering import EncodedResponse, Renderer, token_hash

HARMLESS_TEXTS = (
    HARMLESS,
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))\n",
    "two  three   four    five     spaces,\ttab\r\nline\n\n\n\nparagraph",
    "1234567890 3.14 1,000",
    "naïve café 你好世界 Привет שלום مرحبا नमस्ते",
    "👩‍👩‍👧‍👦 🇩🇪 e\u0301 a\u0308\u0323 \u200b\u200f\u0000\u001b[0m",
    "▁▁ is what ▁ a space looks like",
    "\U000f0000\U000f8001 and \U00100000\U0010fffd and \U0010ffff",
    "  spaces at both ends  ",
    "\n\nlines at both ends\n\n",
    "a < b > c | d >> e << f [x] </ |> <|",
    "x",
    " ",
    "",
)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ALL)
def test_plain_text_has_the_librarys_own_ids(name, place):
    """Prompt: the library's ids of the rendering. Response: those of the whole after them."""
    conversations = [conversation(place, content) for content in HARMLESS_TEXTS]
    compared = [has_the_librarys_ids(name, *turns) for turns in conversations]
    assert sum(compared) > len(HARMLESS_TEXTS) // 2


def has_the_librarys_ids(name: str, messages: list[dict[str, str]], response: str) -> bool:
    """Check the prompt's, and the response's unless a merge crosses the border between them."""
    own = family(name)
    prompt, answer = rendered(own, messages, response)
    encoded = renderer(name).encode(group_of(messages, response))
    prompt_ids, whole = own.library_ids(prompt), own.library_ids(prompt + answer)
    bos = [own.tokenizer.bos_token_id] if name == "hermes" else []
    assert encoded.prompt_ids == bos + prompt_ids, messages
    comparable = whole[: len(prompt_ids)] == prompt_ids
    assert not comparable or encoded.responses[0].ids == whole[len(prompt_ids) :], response
    return comparable


@pytest.mark.parametrize("name", ALL)
@PROPERTY
@given(ANY_TEXT, ANY_TEXT)
def test_any_plain_text_has_the_librarys_own_ids(name, content, response):
    """The same for arbitrary text in which no literal can begin."""
    content, response = (text.translate({60: None, 91: None}) for text in (content, response))
    has_the_librarys_ids(name, [{"role": "user", "content": content}], response)


@pytest.mark.parametrize("name", ALL)
def test_a_response_after_plain_text_gets_no_space(name):
    """`Assistant:` and then `x`: the ids of `x`, not those of ` x`."""
    own = family(name)
    template = (
        "{%- for m in messages -%}{{- m.role + ':' + m.content + '\n' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- 'assistant:' -}}{%- endif -%}"
    )
    encoder = Renderer(with_template(own, template))
    before = encoder.encode(ask(HARMLESS)).prompt_ids
    assert own.text_of(before).endswith(f"user:{HARMLESS}\nassistant:")
    for content in (ANSWER, " " + ANSWER, "  x", "x"):
        ids = encoder.encode(ask(HARMLESS, content)).responses[0].ids
        assert own.text_of(ids[:-1], before="assistant:") == f"{content}\n"
        assert ids[-1] == own.tokenizer.eos_token_id


@pytest.mark.parametrize("name", ALL)
def test_siblings_and_history_do_not_matter(name):
    """A response's ids and hash are the same alone, among others, and from another renderer."""
    own = family(name)
    contents = [*own.literals, *HARMLESS_TEXTS, ANSWER]
    together = renderer(name).encode(ask(HARMLESS, *contents))
    fresh = Renderer(own.tokenizer, name=name)
    for content, response in zip(contents, together.responses, strict=True):
        alone = fresh.encode(ask(HARMLESS, content))
        assert alone.prompt_ids == together.prompt_ids
        assert alone.responses == [response]
    assert fresh.encode_prompt(ask(HARMLESS).prompt) == together.prompt_ids


@pytest.mark.parametrize("name", ALL)
def test_token_hash_follows_the_ids(name):
    """Equal hashes exactly where prompt and response ids are equal."""
    seen = set()
    for content in (HARMLESS, HARMLESS + " ", "Hello " + HARMLESS):
        encoded = renderer(name).encode(ask(content, *HARMLESS_TEXTS, ANSWER, "<s>"))
        seen |= {(each.token_hash, (*encoded.prompt_ids, "|", *each.ids))
                 for each in encoded.responses}  # fmt: skip
    hashes, ids = zip(*seen, strict=True)
    assert len(seen) == len(set(hashes)) == len(set(ids))


def test_token_hash_knows_where_the_response_begins():
    """A border moved by one token is another hash; ids beyond 16 bits count whole."""
    pairs = [
        ([1, 2], [3]), ([1], [2, 3]), ([1, 2, 3], []), ([1, 2], [3 + 2**16]),
        ([1, 2], [3 + 2**31]), ([1, 2], [3, 0]),
    ]  # fmt: skip
    hashes = [token_hash(*pair) for pair in pairs]
    assert len(set(hashes)) == len(hashes)
    assert token_hash((1, 2), (3,)) == hashes[0]
    assert all(re.fullmatch("[0-9a-f]{16}", digits) for digits in hashes)


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("writes", [True, False])
@pytest.mark.parametrize("name", ["llama2", "llama3", "mistral_v3", "gemma"])
def test_bos_exactly_once(name, writes, adds):
    """Written by the template, added by the tokenizer, or both: once, first, whatever text says."""
    own = family(name)
    bos = own.tokenizer.bos_token
    tokenizer = with_template(own, ("{{- bos_token -}}" if writes else "") + CHATML)
    if not adds:
        tokenizer.backend_tokenizer.post_processor = None
    for content in (HARMLESS, bos, bos + HARMLESS):
        ids = Renderer(tokenizer).encode(ask(content, content)).prompt_ids
        places = [place for place, id_ in enumerate(ids) if id_ == own.tokenizer.bos_token_id]
        assert places == ([0] if writes or adds else [])


@pytest.mark.parametrize("name", ALL)
def test_the_end_of_turn_is_scored_once(name):
    """The template's own end, or one EOS where it writes none, or no end of its own in text."""
    own = family(name)
    ends = {"llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "phi3": "<|end|>"}
    written = own.controls(renderer(name).encode(ask(HARMLESS, ANSWER)).responses[0].ids)
    assert written == [ends.get(name, own.tokenizer.eos_token)]
    endless = Renderer(with_template(own, CHATML.replace("<|im_end|>", "")))
    for content in (ANSWER, own.tokenizer.eos_token, f"{ANSWER}{own.tokenizer.eos_token}", ""):
        ids = endless.encode(ask(HARMLESS, content)).responses[0].ids
        assert ids[-1] == own.tokenizer.eos_token_id
        assert ids.count(own.tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("name", ALL)
def test_fallback_template(name):
    """No template: `Human: …`, a new line, `Assistant: …` and EOS, system first."""
    own = family(name)
    encoder = Renderer(with_template(own, None))
    bos = "" if name in ("qwen", "phi3") else own.tokenizer.bos_token
    for system in ("", "Be kind."):
        messages = [{"role": "system", "content": system}] if system else []
        messages += conversation("assistant", ANSWER)[0]
        found = encoder.encode(group_of(messages, "So I will."))
        head = f"{system}\n" if system else ""
        prompt = f"{head}Human: {HARMLESS}\nAssistant: {ANSWER}\nHuman: Go on.\nAssistant: "
        assert own.text_of(found.prompt_ids[:1]) == bos or not bos
        assert own.text_of(found.prompt_ids[bool(bos) :]) == prompt
        answer = own.text_of(found.responses[0].ids, before=prompt)
        assert answer == "So I will." + own.tokenizer.eos_token


@pytest.mark.parametrize("name", ["mistral_v1", "gemma"])
def test_system_fold_and_drop(name):
    """A refused system message goes into the first user turn or away, and is counted."""
    own = family(name)
    turns = conversation("assistant", "Once upon a time.")[0]
    messages = [{"role": "system", "content": "Be kind."}, *turns]
    folded = [{"role": "user", "content": f"Be kind.\n\n{HARMLESS}"}, *turns[1:]]
    for system, expected, count in (("fold", folded, "folded"), ("drop", turns, "dropped")):
        encoder = Renderer(own.tokenizer, name=name, system=system)
        found = encoder.encode(group_of(messages, ANSWER, "No."))
        assert found.prompt_ids == own.library_ids(own.render(expected, True))
        assert encoder.counts == Counter({f"system_{count}": 1, "trimmed": 0})
        encoder.encode(ask(HARMLESS, ANSWER))
        assert encoder.counts[f"system_{count}"] == 1


@pytest.mark.parametrize("name", ["mistral_v1", "gemma"])
def test_system_error_names_the_reference(name):
    """`error` refuses, says for whom, and how to go on; without a system message all is well."""
    encoder = Renderer(family(name).tokenizer, name="judge", system="error")
    with pytest.raises(UsageError, match=r"'judge'.*system") as raised:
        encoder.encode(group_of(conversation("system", "Be kind.")[0], ANSWER))
    assert "fold" in raised.value.hint
    assert encoder.encode(ask(HARMLESS, ANSWER)).prompt_ids


@pytest.mark.parametrize("name", ["llama2", "llama3", "mistral_v3", "qwen"])
@pytest.mark.parametrize("system", ["fold", "drop", "error"])
def test_an_accepted_system_message_stays(name, system):
    """The rule is for templates that refuse; others get the system message as it is."""
    own = family(name)
    messages = conversation("system", "Be kind.")[0]
    encoder = Renderer(own.tokenizer, system=system)
    ids = encoder.encode(group_of(messages, ANSWER)).prompt_ids
    assert own.text_of(ids) == own.render(messages, True)
    assert not +encoder.counts


def test_a_silently_dropped_system_message_is_folded():
    """A template that leaves the system message out refuses it without saying so."""
    template = CHATML.replace("{{-", "{%- if message['role'] != 'system' -%}{{-", 1)
    template = template.replace("{%- endfor -%}", "{%- endif -%}{%- endfor -%}")
    encoder = Renderer(with_template(family("qwen"), template))
    ids = encoder.encode(group_of(conversation("system", "Be kind.")[0], ANSWER)).prompt_ids
    assert f"user\nBe kind.\n\n{HARMLESS}" in family("qwen").text_of(ids)
    assert encoder.counts["system_folded"] == 1


def test_system_is_folded_into_a_user_turn_only():
    """A conversation that the assistant opens: its greeting does not become the user's words."""
    own = family("qwen")
    encoder = Renderer(with_template(own, RAISE_ON_SYSTEM + CHATML))
    greeting = [("system", "Be kind."), ("assistant", "Welcome!"), ("user", HARMLESS)]
    messages = [{"role": role, "content": text} for role, text in greeting]
    text = own.text_of(encoder.encode(group_of(messages, ANSWER)).prompt_ids)
    assert "<|im_start|>assistant\nWelcome!<|im_end|>" in text
    assert f"<|im_start|>user\nBe kind.\n\n{HARMLESS}<|im_end|>" in text


def test_a_system_message_may_move_to_the_last_user_turn():
    """A template that writes it before the last question drops and rewrites nothing."""
    own = family("qwen")
    template = (
        "{%- set users = messages | selectattr('role', 'equalto', 'user') | list -%}"
        "{%- for m in messages if m.role != 'system' -%}{{- '<|im_start|>' + m.role + '\n' -}}"
        "{%- if m == users[-1] and messages[0].role == 'system' -%}"
        "{{- messages[0].content + '\n\n' -}}{%- endif -%}"
        "{{- m.content + '<|im_end|>' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
    )
    messages = conversation("assistant", "Once upon a time.")[0]
    messages = [{"role": "system", "content": "Be kind."}, *messages]
    ids = Renderer(with_template(own, template)).encode(group_of(messages, ANSWER)).prompt_ids
    assert "<|im_start|>user\nBe kind.\n\nGo on.<|im_end|>" in own.text_of(ids)


@pytest.mark.parametrize("asks", ["strftime_now('%d %b %Y')", "date_string", "llama3"])
def test_the_date_is_pinned(monkeypatch, asks):
    """A template that asks for today's date gets the pinned day, whatever day it is."""

    class Tomorrow:
        @staticmethod
        def now():
            return date(2031, 12, 3)

    own = family("llama3")
    template = None if asks == "llama3" else "{{- " + asks + " -}}" + CHATML
    first = Renderer(own.tokenizer, chat_template=template).encode(ask(HARMLESS, ANSWER))
    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    later = Renderer(own.tokenizer, chat_template=template).encode(ask(HARMLESS, ANSWER))
    assert first == later
    pinned = date.fromisoformat(PINNED_DATE).strftime("%d %b %Y")
    assert pinned in own.text_of(later.prompt_ids)
    assert "2031" not in own.text_of(later.prompt_ids)


def test_templates_see_what_the_library_shows_them():
    """`tools` and `documents` are there and None, as in the library's own rendering."""
    own = family("qwen")
    template = (
        "{%- if tools is not none -%}{{- 'TOOLS' -}}{%- endif -%}"
        "{%- if documents is not none -%}{{- 'DOCUMENTS' -}}{%- endif -%}"
    )
    tokenizer = with_template(own, template + CHATML)
    messages = [{"role": "user", "content": HARMLESS}]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    found = Renderer(tokenizer).encode(group_of(messages, ANSWER))
    assert own.text_of(found.prompt_ids) == expected


OF_OTHERS = "(message['content'] if message['role'] != '{}' else {})"
"""A template that writes the content of all roles but one as it is."""


def spoiled(role: str, written: str) -> str:
    """A template that writes something else in place of one role's content."""
    return CHATML.replace("message['content']", OF_OTHERS.format(role, written))


DROPS = spoiled("assistant", "''")
REFUSED = {
    "drops the response": (DROPS, "response"),
    "rewrites the response": (spoiled("assistant", "message['content'] | upper"), "response"),
    "cuts the response": (spoiled("assistant", "message['content'][:9]"), "response"),
    "drops the question": (spoiled("user", "'question'"), "user"),
    "another generation prompt": (CHATML.replace("assistant\\n'", "assistant '"), "extend"),
    "counts its messages": ("{{- messages | length -}}" + CHATML, "extend"),
    "raises": ("{{- raise_exception('not today') -}}" + CHATML, "not today"),
    "breaks": ("{{- messages[7]['content'] + 1 -}}" + CHATML, "refuses"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_template_that_cannot_be_used_is_refused(case):
    """Drops, rewrites, does not extend its prompt, raises: the reference is named, with a hint."""
    template, word = REFUSED[case]
    tokenizer = with_template(family("qwen"), template)
    for content in (ANSWER, "im_end", "end", "\n", "|"):  # letters of the template's marks too
        with pytest.raises(UsageError, match=f"'judge'.*{word}") as raised:
            Renderer(tokenizer, name="judge").encode(ask(HARMLESS, content))
        assert "chat_template" in raised.value.hint


@pytest.mark.parametrize("name", ["llama2", "llama3", "gemma"])
def test_trimmed_responses_are_counted(name):
    """A template that trims is used as it is, and every trimmed response is counted."""
    own = family(name)
    encoder = Renderer(own.tokenizer, name=name)
    contents = ("\ta", "b", "c\n", "\n d\n", "e f")
    found = encoder.encode(ask(" " + HARMLESS + "\n", *contents))
    assert encoder.counts["trimmed"] == 3
    trimmed = encoder.encode(ask(HARMLESS, *(content.strip() for content in contents)))
    assert found == trimmed
    assert encoder.counts["trimmed"] == 3


@pytest.mark.parametrize("name", ["qwen", "mistral_v1", "mistral_v3"])
def test_white_space_that_the_template_keeps_is_scored(name):
    """No trimming of our own: spaces at a response's ends change its ids and are not counted."""
    encoder = Renderer(family(name).tokenizer, name=name)
    responses = encoder.encode(ask(HARMLESS, "a", " a", "a ", "a\n", "  a")).responses
    assert len({response.token_hash for response in responses}) == 5
    assert encoder.counts["trimmed"] == 0


@pytest.mark.parametrize("name", ALL)
def test_max_length(name):
    """A response that fits exactly is whole; one token less: overlong, or cut and flagged."""
    own = family(name)
    whole = renderer(name).encode(ask(HARMLESS, ANSWER, "No."))
    length = len(whole.prompt_ids) + len(whole.responses[0].ids)

    def encoded(max_length: int, overlong: str):
        short = Renderer(own.tokenizer, max_length=max_length, overlong=overlong)
        return short.encode(ask(HARMLESS, ANSWER, "No.")).responses

    for overlong in ("skip", "truncate"):
        assert encoded(length, overlong) == whole.responses
    assert [response.overlong for response in encoded(length - 1, "skip")] == [True, False]
    ids = whole.responses[0].ids[:-1]
    cut = EncodedResponse(ids, token_hash(whole.prompt_ids, ids), truncated=True)
    assert encoded(length - 1, "truncate") == [cut, whole.responses[1]]
    for room, overlong in ((0, "skip"), (0, "truncate"), (-3, "truncate")):
        full = encoded(len(whole.prompt_ids) + room, overlong)
        assert [(each.overlong, each.truncated) for each in full] == [(True, False)] * 2
    single = encoded(len(whole.prompt_ids) + 1, "truncate")
    assert [len(response.ids) for response in single] == [1, 1]


def test_an_override_takes_the_place_of_the_own_template():
    """The given template renders, the tokenizer's own does not; `default` of several is taken."""
    own = family("qwen")
    other = CHATML.replace("\\n'", "\\n\\n'")
    assert other != CHATML
    expected = Renderer(with_template(own, other)).encode(ask(HARMLESS, ANSWER))
    assert Renderer(own.tokenizer, chat_template=other).encode(ask(HARMLESS, ANSWER)) == expected
    several = with_template(own, None)
    several.chat_template = {"default": other, "rag": CHATML}
    assert Renderer(several).encode(ask(HARMLESS, ANSWER)) == expected

    with pytest.raises(UsageError, match="judge"):  # an empty one drops everything and says so
        Renderer(own.tokenizer, name="judge", chat_template="").encode(ask(HARMLESS, ANSWER))


@pytest.mark.parametrize("name", ALL)
def test_a_response_continues_the_answer_that_the_prompt_begins(name):
    """As the template's own rendering of the whole answer: no end of turn inside it, and the prompt
    holds the beginning."""
    own = family(name)
    asked = [{"role": "user", "content": HARMLESS}]
    begun = {"role": "assistant", "content": "Sure, here"}
    encoded = renderer(name).encode(group_of([*asked, begun], " it is"))
    before = own.text_of(renderer(name).encode(ask(HARMLESS)).prompt_ids)
    added = own.text_of(encoded.prompt_ids).removeprefix(before)
    assert added.lstrip() == "Sure, here", "a space may stand before an answer"
    whole = renderer(name).encode(ask(HARMLESS, "Sure, here it is"))
    text = own.text_of([*encoded.prompt_ids, *encoded.responses[0].ids])
    assert text == own.text_of([*whole.prompt_ids, *whole.responses[0].ids])
    assert len(own.controls(encoded.prompt_ids)) == len(own.controls(whole.prompt_ids))
    assert renderer(name).encode_prompt(group_of([*asked, begun]).prompt) == encoded.prompt_ids
