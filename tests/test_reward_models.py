"""Reward models: exact against single rows, whatever the batch; faults of batching are caught."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import scipy.stats
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from mrpo_tools.cache import Cache
from mrpo_tools.config import Reference
from mrpo_tools.demo.tiny_reward import make_reward_model
from mrpo_tools.errors import UsageError
from mrpo_tools.evaluation.judging import Given, judged
from mrpo_tools.groups import Group, Response
from mrpo_tools.references.loading import load_reward_model
from mrpo_tools.references.resolved import renderer_of, resolve
from mrpo_tools.sampling import Answer, Sampling
from mrpo_tools.scoring import ensure_scores, marks_of, with_scores
from mrpo_tools.scoring.lines import Line, lines_of
from mrpo_tools.scoring.pooling import ALONE, LoadedReward, _right_padded, batches, padded, pooled
from mrpo_tools.scoring.reward import RewardModel, reward_model
from mrpo_tools.scoring.rules import Rule

CPU = torch.device("cpu")
RANKED = 0.3
"""Spearman's rho on held-out prompts that the tiny model must reach; it has 0.41."""


def scorer_at(path: Path, **words) -> RewardModel:
    return reward_model("tiny", Reference(model=str(path), **{"dtype": "float32", **words}))


def changed(model: Path, to: Path, **config) -> Path:
    """A copy with other words in config.json."""
    copy = Path(shutil.copytree(model, to))
    values = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**values, **config}))
    return copy


def by_transformers(path: Path, groups: list[Group]) -> list[float]:
    """Every response's score by transformers alone: its own template, one row at a time."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    scores = []
    for group in groups:
        for response in group.responses:
            turns = [turn.as_dict() for turn in group.prompt]
            turns.append({"role": "assistant", "content": response.content})
            text = tokenizer.apply_chat_template(turns, tokenize=False)
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                scores.append(float(model(input_ids=ids).logits[0, 0]))
    return scores


@pytest.fixture(scope="module")
def rows(tiny_reward, some_groups) -> list[list[int]]:
    return [list(line.ids) for line in lines_of(scorer_at(tiny_reward).resolved, some_groups[:6])]


@pytest.fixture(scope="module")
def model(tiny_reward):
    words = Reference(model=str(tiny_reward), dtype="float32")
    return load_reward_model(resolve("tiny", words).files, words, "float32", CPU)


def test_it_ranks_answers_to_unseen_prompts(tiny_reward, demo_groups):
    test = [group for group in demo_groups if group.split == "test"][:80]
    marks = marks_of(scorer_at(tiny_reward), test)
    true = [response.score for group in test for response in group.responses]
    got = [mark for own in marks for mark in own]
    assert scipy.stats.spearmanr(got, true).statistic > RANKED


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen"])
def test_scores_are_those_of_transformers_one_row_at_a_time(kind, tmp_path, some_groups):
    """BOS once, the end of turn as the template writes it, whatever is in the batch."""
    groups = [group for group in some_groups if group.prompt[0].role != "system"][:12]
    path = make_reward_model(tmp_path / "model", groups[:4], epochs=1, tokenizer=kind)
    cache = Cache(tmp_path / "cache")
    summary = ensure_scores(scorer_at(path, batch_tokens=300), groups, cache)
    assert summary.warnings == ()
    [record] = summary.store.recorded()
    assert record.route == "pooled"
    keys = [key for group in groups for key in group.response_ids]
    expected = by_transformers(path, groups)
    assert summary.store.scores_of(keys).score == pytest.approx(expected, abs=1e-5)
    assert len(set(map(len, (group.prompt[0].content for group in groups)))) > 1


def left_padded(model, rows, device):
    """As generation pads, positions and pooling not told: the classic."""
    width, padding = max(map(len, rows)), model.config.pad_token_id or 0
    ids = torch.tensor([[*[padding] * (width - len(row)), *row] for row in rows])
    return model.score(model.model(input_ids=ids).last_hidden_state[:, -1])[:, 0].double()


def last_of_the_batch(model, rows, device):
    """Pools the last position, padding or not."""
    ids, seen = _right_padded(rows, 0, device)
    hidden = model.model(input_ids=ids, attention_mask=seen).last_hidden_state
    return model.score(hidden[:, -1])[:, 0].double()


def first_token(model, rows, device):
    """Pools as BERT does."""
    ids, seen = _right_padded(rows, 0, device)
    return model.score(model.model(input_ids=ids, attention_mask=seen)[0][:, 0])[:, 0].double()


def shuffled(model, rows, device):
    return pooled(model, rows, device).roll(1)


def not_a_number(model, rows, device):
    return pooled(model, rows, device) * torch.nan


@pytest.mark.parametrize(
    "fault", [left_padded, last_of_the_batch, first_token, shuffled, not_a_number]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_planted_fault_is_caught_and_said(tiny_reward, rows, fault, dtype):
    words = Reference(model=str(tiny_reward), dtype=dtype)
    model = load_reward_model(resolve("tiny", words).files, words, dtype, CPU)
    loaded = LoadedReward(model, CPU, {"planted": fault})
    checked = loaded.self_check(rows)
    assert checked.route == ALONE
    assert "from the same row alone" in checked.refused["planted"]
    assert "one at a time" in checked.slower
    singly = [loaded.score_alone(row) for row in rows]
    assert loaded.scores(rows) == singly
    right = LoadedReward(model, CPU).self_check(rows)
    assert right.route == "pooled"
    assert right.slower is None


def test_without_a_padding_token_rows_are_still_batched(tiny_reward, rows, tmp_path, some_groups):
    """The model itself refuses such a batch; alone it scores the last token."""
    path = changed(tiny_reward, tmp_path / "model", pad_token_id=None)
    scorer = scorer_at(path)
    model = load_reward_model(scorer.resolved.files, scorer.resolved.reference, "float32", CPU)
    loaded = LoadedReward(model, CPU)
    assert loaded.self_check(rows).route == "pooled"
    assert (
        "names no padding token"
        in LoadedReward(model, CPU, {"padded": padded}).self_check(rows).refused["padded"]
    )
    expected = by_transformers(path, some_groups[20:23])
    got = [mark for own in marks_of(scorer, some_groups[20:23]) for mark in own]
    assert got == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("token", ["eos", "a word"])
def test_a_padding_token_that_stands_in_the_text(tiny_reward, tmp_path, some_groups, token):
    """A row alone is then scored at an earlier token; so it is in a batch."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_reward)
    groups = some_groups[20:23]
    last = next(lines_of(scorer_at(tiny_reward).resolved, groups)).ids[-2]
    padding = tokenizer.eos_token_id if token == "eos" else last
    path = changed(tiny_reward, tmp_path / "model", pad_token_id=padding)
    got = [mark for own in marks_of(scorer_at(path), groups) for mark in own]
    assert got == pytest.approx(by_transformers(path, groups), abs=1e-5)
    if token == "eos":
        elsewhere = changed(tiny_reward, tmp_path / "other", pad_token_id=None)
        assert got != pytest.approx(by_transformers(elsewhere, groups), abs=1e-3)


def test_the_head_computes_in_float32(tiny_reward, rows, model):
    """Scores of a bfloat16 model are its hidden states times the head in float32: not rounded to
    the grid of bfloat16, on which a score of 20 moves by eighths."""
    words = Reference(model=str(tiny_reward), dtype="bfloat16")
    narrow = load_reward_model(resolve("tiny", words).files, words, "bfloat16", CPU)
    assert narrow.model.embed_tokens.weight.dtype == torch.bfloat16
    scores = [LoadedReward(narrow, CPU).score_alone(row) for row in rows]
    assert any(score != float(torch.tensor(score).bfloat16()) for score in scores)
    hidden = narrow.model(input_ids=torch.tensor([rows[0]])).last_hidden_state[0].double()
    padding = narrow.config.pad_token_id
    place = max(place for place, token in enumerate(rows[0]) if token != padding)
    by_hand = hidden[place] @ narrow.score.weight.double()[0]
    assert scores[0] == pytest.approx(float(by_hand.detach()), abs=1e-5)
    wide = [LoadedReward(model, CPU).score_alone(row) for row in rows]
    assert scores == pytest.approx(wide, abs=0.1)  # bfloat16's own noise


def test_batches_keep_to_their_tokens():
    lines = [Line(str(n), "p", range(n), False, False) for n in (5, 1, 9, 30, 2)]
    cut = list(batches(lines, 20))
    assert [[len(line.ids) for line in batch] for batch in cut] == [[30], [9, 5], [2, 1]]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, "has 3 labels"),
    ],
)
def test_what_is_no_reward_model_is_refused(tiny_reward, tmp_path, some_groups, config, says):
    path = changed(tiny_reward, tmp_path / "model", **config)
    with pytest.raises(UsageError, match=says):
        marks_of(scorer_at(path), some_groups[:1])


def test_a_language_model_is_refused(tiny_models, tmp_path, some_groups):
    """It has no trained head: its scores would be random numbers."""
    with pytest.raises(UsageError, match="has 2 labels"):
        marks_of(scorer_at(tiny_models["llama"]), some_groups[:1])
    path = changed(tiny_models["llama"], tmp_path / "one", id2label={"0": "reward"})
    with pytest.raises(UsageError, match=r"lack 1 tensors .* score.weight first"):
        marks_of(scorer_at(path), some_groups[:1])


CUSTOM = """
import torch
from transformers import LlamaForSequenceClassification


class MyReward(LlamaForSequenceClassification):
    def __init__(self, config):
        super().__init__(config)
        self.score = torch.nn.Sequential(self.score, torch.nn.Tanh())
"""


def test_a_custom_head_takes_trust(tiny_reward, tmp_path, some_groups):
    """Its own forward pass is batched, as its head is none that we know."""
    auto = {"AutoModelForSequenceClassification": "custom.MyReward"}
    path = changed(tiny_reward, tmp_path / "model", pad_token_id=0, auto_map=auto)
    (path / "custom.py").write_text(CUSTOM)
    tensors = load_file(path / "model.safetensors")
    tensors["score.0.weight"] = tensors.pop("score.weight")
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"score\.weight first"):
        marks_of(scorer_at(path), some_groups[:2])
    cache, groups = Cache(tmp_path / "cache"), some_groups[:2]
    summary = ensure_scores(scorer_at(path, trust_remote_code=True), groups, cache)
    [record] = summary.store.recorded()
    assert record.route == "padded"
    assert "no linear head" in record.refused["pooled"]
    plain = [mark for own in marks_of(scorer_at(tiny_reward), groups) for mark in own]
    keys = [key for group in groups for key in group.response_ids]
    expected = [float(torch.tensor(mark).tanh()) for mark in plain]
    assert summary.store.scores_of(keys).score == pytest.approx(expected, abs=1e-5)


def test_nan_and_overlong_get_no_score_and_are_left_out(tiny_reward, tmp_path, some_groups):
    path = changed(tiny_reward, tmp_path / "model")
    tensors = load_file(path / "model.safetensors")
    tensors["score.weight"][0, 3] = torch.nan
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    cache, groups = Cache(tmp_path / "cache"), some_groups[:4]
    count = sum(len(group.responses) for group in groups)
    broken = ensure_scores(scorer_at(path), groups, cache)
    assert broken.computed == {"nonfinite": count}
    assert with_scores(groups, broken.store) == ([], {"no score: nonfinite": count})
    long = replace(groups[0], responses=(*groups[0].responses, Response("word " * 300)))
    summary = ensure_scores(scorer_at(tiny_reward, max_length=200), [long], cache)
    assert summary.computed == {"ok": len(groups[0].responses), "overlong": 1}
    assert "do not fit max_length" in summary.warnings[0]
    [kept], left_out = with_scores([long], summary.store)
    assert [each.content for each in kept.responses] == [r.content for r in groups[0].responses]
    assert left_out == {"no score: overlong": 1}
    assert ensure_scores(scorer_at(tiny_reward, max_length=8), [long], cache).computed == {
        "overlong": len(long.responses)
    }
    cut = ensure_scores(scorer_at(tiny_reward, max_length=200, overlong="truncate"), [long], cache)
    assert cut.computed == {"ok": len(long.responses)}
    assert sum(cut.store.table()["truncated"].to_pylist()) == 1


def test_what_changes_a_score_is_another_identity(tiny_reward, tmp_path):
    base = scorer_at(tiny_reward).stored_identity
    (tmp_path / "t.jinja").write_text("{{ messages[-1].content }}")
    others = [
        {"dtype": "bfloat16"}, {"max_length": 64}, {"overlong": "truncate"},
        {"quantization": "nf4"}, {"chat_template": str(tmp_path / "t.jinja")},
    ]  # fmt: skip
    for words in others:
        assert scorer_at(tiny_reward, **words).stored_identity.hash != base.hash
    same = scorer_at(tiny_reward, batch_tokens=64, attention="eager")
    assert same.stored_identity == base
    moved = scorer_at(changed(tiny_reward, tmp_path / "moved"))
    assert moved.stored_identity == base
    assert base.fields["scorer"] == "reward"
    for words in ({"adapter": "x"}, {"autocast": "bfloat16"}):
        with pytest.raises(UsageError, match="no adapter and no autocast"):
            scorer_at(tiny_reward, **words)


def test_prompt_and_response_are_rendered_as_references_are(tiny_reward, some_groups):
    scorer = scorer_at(tiny_reward)
    encoded = renderer_of(scorer.resolved).encode(some_groups[0])
    lines = list(lines_of(scorer.resolved, some_groups[:1]))
    assert [list(line.ids) for line in lines] == [
        [*encoded.prompt_ids, *response.ids] for response in encoded.responses
    ]


def test_outcomes_by_a_reward_model_and_a_held_out_rule(tiny_reward, tmp_path, some_groups):
    """Means of what transformers gives, repeats and an empty answer among them; nothing is scored
    twice, and the rule stands beside, as held out."""
    asked = [group for group in some_groups if group.prompt[0].role != "system"][:3]
    texts = [["It is 4.", "It is 4.", ""], ["a b", "b a", "c"], ["x", "y", "It is z."]]
    answers = [
        [Answer(group.prompt_id, n, text, (1, 2), "stop") for n, text in enumerate(own)]
        for group, own in zip(asked, texts, strict=True)
    ]
    given = Given(Sampling(3, 1.0), answers)
    scorer, cache = scorer_at(tiny_reward), Cache(tmp_path / "cache")
    length = Rule("rules:length", lambda _, answer: float(len(answer)), "one")
    record, rows = judged(asked, [scorer], [given], [given], cache=cache, held_out=[length])
    led, beside = record.outcomes
    groups = [
        replace(group, responses=tuple(map(Response, own)))
        for group, own in zip(asked, texts, strict=True)
    ]
    by_hand = by_transformers(tiny_reward, groups)
    assert led.mean == pytest.approx(sum(by_hand) / 9, abs=1e-5)
    assert (led.kind, led.scorer, led.held_out, led.gain) == ("reward", "tiny", False, 0.0)
    assert led.identity == scorer.identity
    assert beside.held_out
    assert beside.mean == pytest.approx(sum(len(text) for own in texts for text in own) / 9)
    assert [each.score for each in rows[0].answers[3:]] == pytest.approx(by_hand[:3], abs=1e-5)
    [store] = cache.scorers()
    assert store.table().num_rows == 8
    parts = store.part_paths()
    judged(asked, [scorer], [given], cache=cache)
    assert store.part_paths() == parts
    plain = judged(asked, [length], [given])[0].outcomes[0].model_dump()
    assert not {"kind", "held_out"} & plain.keys()  # as rules' outcomes always were
