"""Answers: exact draws, whatever the batch; only the model's own distribution; kept once."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import scipy.stats
import torch
from transformers import AutoModelForCausalLM

from mrpo_tools.config import Reference
from mrpo_tools.errors import UsageError
from mrpo_tools.references.resolved import renderer_of, resolve
from mrpo_tools.sampling import Sampler, Sampling
from mrpo_tools.sampling.draws import Draws, filtered, row_key
from mrpo_tools.sampling.kept import KeptAnswers

CPU = torch.device("cpu")
SAMPLED = Sampling(3, 1.0, max_new_tokens=8, seed=5)
SURE = 1e-4
"""Seeds are fixed, so a test of chance passes always or never; this says how it was drawn up."""


@pytest.fixture(scope="module")
def llama(tiny_models) -> Sampler:
    return Sampler(resolve("llama", Reference(model=str(tiny_models["llama"]), dtype="float32")))


@pytest.fixture(scope="module")
def prompts(some_groups):
    """Prompts of many lengths, with and without a system message."""
    return [group.prompt for group in some_groups[:10]]


def own_logits(tiny_models, ids: list[list[int]]) -> torch.Tensor:
    """[R, T, V] of the library's model, rows of one length."""
    model = AutoModelForCausalLM.from_pretrained(tiny_models["llama"])
    with torch.no_grad():
        return model(torch.tensor(ids)).logits.double()


def chi_square(counts: torch.Tensor, shares: torch.Tensor) -> float:
    """The p-value of counts under shares; what is expected less than five times is one bin."""
    expected = shares / shares.sum() * counts.sum()
    often = expected >= 5
    observed = [*counts[often].tolist(), float(counts[~often].sum())]
    wanted = [*expected[often].tolist(), float(expected[~often].sum())]
    keep = [place for place, value in enumerate(wanted) if value > 0]
    total = sum(wanted[place] for place in keep)
    return scipy.stats.chisquare(
        [observed[place] for place in keep],
        [wanted[place] * sum(observed) / total for place in keep],
    ).pvalue


def drawn(logits: torch.Tensor, rows: int, sampling: Sampling, steps: int = 1) -> torch.Tensor:
    """[rows, steps] tokens drawn from the same logits."""
    noise = Draws([row_key(3, "prompt", row) for row in range(rows)], sampling, CPU)
    every = logits.float().expand(rows, -1)
    return torch.stack([noise.perturbed(every, step).argmax(-1) for step in range(steps)], 1)


def test_draws_follow_the_softmax_and_places_are_independent():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0, 0.5, 0.5])
    shares = logits.double().softmax(-1)
    tokens = drawn(logits, 20_000, Sampling(1, 1.0), steps=2)
    for step in range(2):
        assert chi_square(tokens[:, step].bincount(minlength=7), shares) > SURE
    together = (tokens[:, 0] * 7 + tokens[:, 1]).bincount(minlength=49)
    assert chi_square(together, torch.outer(shares, shares).flatten()) > SURE
    neighbours = (tokens[:-1, 0] * 7 + tokens[1:, 0])[::2].bincount(minlength=49)
    assert chi_square(neighbours, torch.outer(shares, shares).flatten()) > SURE
    colder = drawn(logits, 20_000, Sampling(1, 0.5))[:, 0].bincount(minlength=7)
    assert chi_square(colder, (2 * logits.double()).softmax(-1)) > SURE
    assert chi_square(colder, shares) < 1e-9  # the test sees another temperature


def test_rare_tokens_are_as_rare_as_they_are():
    """Of 300 tokens one has 4e-4: uniform numbers of few bits would miss or double it."""
    logits = torch.zeros(300)
    logits[7] = -2.2
    counts = drawn(logits, 40_000, Sampling(1, 1.0))[:, 0].bincount(minlength=300)
    assert chi_square(counts, logits.double().softmax(-1)) > SURE


def test_top_k_and_top_p_by_hand():
    """Shares 0.5, 0.3, 0.15, 0.05: 0.8 takes two, 0.81 three; of equal ones all stay."""
    logits = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()

    def left(sampling: Sampling) -> list[int]:
        return filtered(logits, sampling)[0].isfinite().nonzero().flatten().tolist()

    assert left(Sampling(1, 1.0)) == [0, 1, 2, 3]
    assert left(Sampling(1, 1.0, top_k=2)) == [1, 3]
    assert left(Sampling(1, 1.0, top_p=0.79)) == [1, 3]
    assert left(Sampling(1, 1.0, top_p=0.81)) == [0, 1, 3]
    assert left(Sampling(1, 1.0, top_p=0.01)) == [1]
    equal = filtered(torch.zeros(1, 4), Sampling(1, 1.0, top_k=2))
    assert equal.isfinite().all()


@pytest.mark.parametrize(
    "words", [{"n": 0}, {"n": 2}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1},
              {"max_new_tokens": 0}, {"temperature": float("nan")}],
)  # fmt: skip
def test_ways_that_cannot_be_meant(words):
    with pytest.raises(UsageError, match="sampling cannot be done so"):
        Sampling(**words)


def test_first_tokens_follow_the_models_own_softmax(llama, tiny_models, prompts):
    prompt = prompts[0]
    ids = renderer_of(llama.resolved).encode_prompt(prompt)
    shares = own_logits(tiny_models, [ids])[0, -1].softmax(-1)
    [answers] = llama.sample([prompt], Sampling(4000, 1.0, max_new_tokens=1))
    counts = torch.tensor([answer.ids[0] for answer in answers]).bincount(minlength=len(shares))
    assert chi_square(counts, shares) > SURE
    other = own_logits(tiny_models, [ids[:-1]])[0, -1].softmax(-1)
    assert chi_square(counts, other) < 1e-9  # the test sees another place


def test_an_answer_depends_on_nothing_else_that_is_asked(llama, prompts):
    together = llama.sample(prompts, SAMPLED)
    one_by_one = Sampler(llama.resolved, batch_tokens=1)
    assert one_by_one.sample(prompts, SAMPLED) == together
    assert llama.sample(prompts[3:5], replace(SAMPLED, n=2)) == [own[:2] for own in together[3:5]]
    greedy = Sampling(max_new_tokens=8)
    assert one_by_one.sample(prompts, greedy) == llama.sample(prompts, greedy)
    every = [answer.ids for own in together for answer in own]
    assert len(set(every)) == len(every)
    assert llama.sample(prompts, replace(SAMPLED, seed=6)) != together


def test_greedy_answers_take_the_likeliest_token_each_time(llama, tiny_models, prompts):
    """By the library's own model, a token at a time and without a cache."""
    ids = renderer_of(llama.resolved).encode_prompt(prompts[1])
    [[answer]] = llama.sample([prompts[1]], Sampling(max_new_tokens=6))
    for token in answer.ids:
        assert token == int(own_logits(tiny_models, [ids])[0, -1].argmax())
        ids = [*ids, token]


def test_log_probs_are_of_the_very_tokens(llama, tiny_models, prompts):
    answers = llama.sample(prompts[:4], SAMPLED)
    computed = llama.logps(prompts[:4], answers)
    expected = []
    for prompt, own in zip(prompts, answers, strict=False):
        prompt_ids = renderer_of(llama.resolved).encode_prompt(prompt)
        for answer in own:
            logits = own_logits(tiny_models, [[*prompt_ids, *answer.ids]])[0]
            lines = logits[len(prompt_ids) - 1 : -1].log_softmax(-1)
            expected.append(float(lines.gather(-1, torch.tensor(answer.ids)[:, None]).sum()))
    assert computed == pytest.approx(expected, abs=1e-4)
    assert llama.sample(prompts[:4], SAMPLED) == answers  # after the scorer took its own attention


def test_where_answers_end(llama, prompts):
    """An answer that stopped has its end among its ids and not in its text; one that was cut has
    all its tokens and no end."""
    answers = [each for own in llama.sample(prompts, Sampling(60, 1.0, max_new_tokens=12))
               for each in own]  # fmt: skip
    tokenizer = renderer_of(llama.resolved).tokenizer
    stopped = [answer for answer in answers if answer.finish_reason == "stop"]
    assert 0 < len(stopped) < len(answers)
    for answer in answers:
        ends = [place for place, token in enumerate(answer.ids) if token == tokenizer.eos_token_id]
        if answer.finish_reason == "stop":
            assert ends == [len(answer.ids) - 1]
            assert tokenizer.eos_token not in answer.content
        else:
            assert ends == []
            assert len(answer.ids) == 12


def test_what_a_models_files_say_of_sampling_is_not_its_distribution(llama, model, prompts):
    """Penalties and temperatures of `generation_config.json` change nothing."""
    before = llama.sample(prompts[:3], SAMPLED), llama.sample(prompts[:3])
    file = model / "generation_config.json"
    words = json.loads(file.read_text())
    words |= {"repetition_penalty": 9.0, "do_sample": True, "temperature": 0.01, "top_k": 1}
    file.write_text(json.dumps(words))
    changed = Sampler(resolve("llama", Reference(model=str(model), dtype="float32")))
    assert (changed.sample(prompts[:3], SAMPLED), changed.sample(prompts[:3])) == before


def test_answers_are_kept_and_only_what_is_missing_is_generated(model, prompts, tmp_path):
    """The model is gone when the answers are asked for again; more prompts need it."""
    resolved = resolve("llama", Reference(model=str(model), dtype="float32"))
    kept = KeptAnswers(tmp_path / "kept", Sampler(resolved), SAMPLED)
    answers = kept.answers(prompts[:4])
    logps = kept.logps(prompts[:4], kept.engine)
    shutil.rmtree(model)
    again = KeptAnswers(tmp_path / "kept", Sampler(resolved), SAMPLED)
    assert again.path == kept.path
    assert again.answers(prompts[1:4]) == answers[1:4]
    assert again.logps(prompts[:4], again.engine) == logps
    with pytest.raises(UsageError):
        again.answers(prompts[:5])
    other = KeptAnswers(tmp_path / "kept", Sampler(resolved), replace(SAMPLED, seed=6))
    assert other.path != kept.path


def test_a_damaged_file_of_answers(llama, prompts, tmp_path):
    kept = KeptAnswers(tmp_path, llama, SAMPLED)
    kept.path.mkdir()
    damaged = kept.path / "any.jsonl"
    damaged.write_text('{"prompt_id": "x"}\n')
    with pytest.raises(UsageError, match=r"any.jsonl cannot be read") as error:
        kept.answers(prompts[:1])
    assert "remove it" in str(error.value.hint)
    assert damaged.exists()


def test_a_torn_last_line_is_no_line_and_the_first_of_two_answers_counts(llama, prompts, tmp_path):
    kept = KeptAnswers(tmp_path, llama, SAMPLED)
    [[first, second, third]] = kept.answers(prompts[:1])
    [file] = kept.path.glob("*.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    later = json.loads(lines[0]) | {"content": "later", "at": 2**63}
    (kept.path / "0.jsonl").write_text(json.dumps(later) + "\n")  # of a name that sorts first
    file.write_text("".join(lines)[:-9])
    last = json.loads(lines[-1])["index"]
    assert kept.complete(prompts[:1]) == 1
    assert kept.answers(prompts[:1]) == [[first, second, third]]
    new = [path for path in kept.path.glob("*.jsonl") if path not in (file, kept.path / "0.jsonl")]
    assert [json.loads(path.read_text())["index"] for path in new] == [last]
