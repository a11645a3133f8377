"""`overlong: keep_end`: of a long prompt the end is read, and no response is ever cut."""

from __future__ import annotations

import pytest
import torch
from conversations import ALL, ANSWER, HARMLESS, ask, renderer
from independent import response_logp
from stores import write_groups
from tokenizer_families import family
from trained import recipe
from transformers import AutoModelForCausalLM

from mrpo_tools.cache import Cache
from mrpo_tools.config import Reference, parse
from mrpo_tools.errors import CacheStale, UsageError
from mrpo_tools.precomputing.precompute import precompute
from mrpo_tools.references.rendering import Renderer
from mrpo_tools.references.resolved import renderer_of, resolve
from mrpo_tools.training.prepare import prepare
from mrpo_tools.training.train import train

ROOM = 12
"""Tokens of a prompt that are kept; about half of the data's prompts are longer."""
WORDS = {"overlong": "keep_end", "max_prompt_length": ROOM}


@pytest.mark.parametrize("name", ALL)
def test_the_beginning_is_cut_and_a_text_still_begins(name):
    """The last ids of the whole prompt, BOS before them where the text had one; the responses' ids
    as they were, and each the same alone and beside a long one."""
    own = family(name)
    whole = renderer(name).encode(ask(HARMLESS, ANSWER, "No."))
    begins = whole.prompt_ids[:1] if whole.prompt_ids[0] == own.tokenizer.bos_token_id else []
    room = len(whole.prompt_ids) - 3
    cut = Renderer(own.tokenizer, overlong="keep_end", max_prompt_length=room)
    encoded = cut.encode(ask(HARMLESS, ANSWER, "No."))
    assert encoded.prompt_ids == begins + whole.prompt_ids[3 + len(begins) :]
    assert len(encoded.prompt_ids) == room
    assert [each.ids for each in encoded.responses] == [each.ids for each in whole.responses]
    assert [(each.truncated, each.overlong) for each in encoded.responses] == [(True, False)] * 2
    assert all(
        each.token_hash != before.token_hash
        for each, before in zip(encoded.responses, whole.responses, strict=True)
    )
    alone = cut.encode(ask(HARMLESS, "No."))
    assert (alone.prompt_ids, alone.responses) == (encoded.prompt_ids, encoded.responses[1:])
    assert cut.encode_prompt(ask(HARMLESS).prompt) == encoded.prompt_ids


def test_a_prompt_that_fits_is_whole_and_a_long_response_is_overlong():
    """One token of room more: nothing is cut, nothing marked. What does not fit beside the prompt
    that was kept has no number, whatever its siblings do."""
    own, whole = family("qwen"), renderer("qwen").encode(ask(HARMLESS, ANSWER, "No."))
    prompt, long = len(whole.prompt_ids), len(whole.responses[0].ids)

    def encoded(room: int, max_length: int):
        words = {"overlong": "keep_end", "max_prompt_length": room, "max_length": max_length}
        return Renderer(own.tokenizer, **words).encode(ask(HARMLESS, ANSWER, "No."))

    assert encoded(prompt, prompt + long) == whole
    fits, short = encoded(prompt - 1, prompt - 1 + long), encoded(prompt - 1, prompt - 2 + long)
    assert [each.overlong for each in fits.responses] == [False, False]
    assert [each.overlong for each in short.responses] == [True, False]
    assert short.responses[0].ids == whole.responses[0].ids
    with pytest.raises(UsageError, match="max_prompt_length 40 leaves no room for a response"):
        encoded(40, 40)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"overlong": "keep_end"}, "keep_end needs max_prompt_length"),
        ({"max_prompt_length": 40}, "max_prompt_length goes with overlong: keep_end alone"),
        ({"max_prompt_length": 40, "overlong": "truncate"}, "keep_end alone"),
    ],
)
def test_the_two_words_go_together(words, message):
    with pytest.raises(UsageError, match=message):
        parse(Reference, {"model": "somewhere", **words}, "mrpo.yaml")


@pytest.fixture(scope="module")
def cut(references, some_groups, tmp_path_factory):
    """llama that reads the ends of prompts, its cache, and what precompute said."""
    own = {"llama": references["llama"].model_copy(update=WORDS)}
    cache = Cache(tmp_path_factory.mktemp("cut") / "cache")
    (summary,) = precompute(own, some_groups, cache, "some")
    return own, cache, summary


def prompts_cut(references, groups) -> list[bool]:
    """Which groups have a prompt longer than the room, by the tokens of the whole prompt."""
    plain = renderer_of(resolve("llama", references["llama"]))
    return [len(plain.encode_prompt(group.prompt, group.tools)) > ROOM for group in groups]


def test_the_number_is_of_the_whole_response_after_the_end(cut, references, some_groups):
    """Against the model itself on the ids, cut here by hand; marked exactly where a prompt was."""
    own, _, summary = cut
    long = prompts_cut(references, some_groups)
    assert 0 < sum(long) < len(long), "the room separates them"
    rows = {row["response_id"]: row for row in summary.store.table().to_pylist()}
    plain = renderer_of(resolve("llama", references["llama"]))
    model = AutoModelForCausalLM.from_pretrained(own["llama"].model, dtype=torch.float32).eval()
    for group, is_long in list(zip(some_groups, long, strict=True))[:12]:
        encoded = plain.encode(group)
        bos, ids = encoded.prompt_ids[:1], encoded.prompt_ids[1:]
        assert bos == [plain.tokenizer.bos_token_id]
        ids = bos + (ids[-(ROOM - 1) :] if is_long else ids)
        for key, response in zip(group.response_ids, encoded.responses, strict=True):
            assert rows[key]["truncated"] == is_long
            assert rows[key]["num_tokens"] == len(response.ids)
            with torch.no_grad():
                expected = float(response_logp(model, ids, response.ids))
            assert rows[key]["logp"] == pytest.approx(expected, abs=1e-5 * len(response.ids))
    marked = sum(row["truncated"] for row in rows.values())
    assert f"llama: {marked:,} responses have a prompt that was cut" in summary.warnings[0]


def test_the_policy_reads_the_same_end(cut, references, some_groups, tmp_path, capsys):
    """At step 0 it is its reference; the cut ones are in where `truncated: keep` says so, left out
    and counted where it does not; a policy that reads whole prompts cannot be compared."""
    own, cache, _ = cut
    words = {"loss": "dpo", "refs": ["llama"], "max_steps": 1}
    result = train(recipe(**words, truncated="keep"), some_groups, cache, own, tmp_path / "kept")
    assert result.metrics.step0_difference_nats_per_token < 1e-5
    assert result.metrics.groups == len(some_groups)
    both = zip(some_groups, prompts_cut(references, some_groups), strict=True)
    long = [len(group.responses) for group, is_long in both if is_long]
    result = train(recipe(**words), some_groups, cache, own, tmp_path / "dropped")
    assert result.metrics.groups == len(some_groups) - len(long)
    assert result.metrics.dropped_responses == {"truncated": sum(long)}
    assert "truncated (truncated: keep takes them)" in capsys.readouterr().err
    both = {**own, "whole": references["llama"]}
    with pytest.raises(CacheStale, match=r"\(max_prompt_length None, overlong skip\) than for"):
        prepare(recipe(**words, truncated="keep", policy="whole"), some_groups, cache, both)


def test_on_the_command_line(here, mrpo, tiny_models, some_groups):
    write_groups(here / "data.jsonl", some_groups[:4])
    line = (
        f"precompute --ref llama={tiny_models['llama']} --dataset data.jsonl --cache c --overlong"
    )
    assert "needs max_prompt_length" in mrpo(f"{line} keep_end", 2).err
    assert "prompt that was cut" in mrpo(f"{line} keep_end --max-prompt-length {ROOM}").err
