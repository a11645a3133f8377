"""A scored log-prob equals an independent computation, whatever the batch it was in."""

from __future__ import annotations

import pytest
import torch
from independent import response_logp
from transformers import AutoModelForCausalLM

from mrpo_tools.batching import Row, attention_mask, batches, collate, cost, plan_rows
from mrpo_tools.maths.logprobs import sequence_logps, token_logps
from mrpo_tools.scorer import ResponseScorer, score, self_check

CPU = torch.device("cpu")
NAMES = ("llama", "mistral", "qwen")


def random_rows(vocabulary: int, seed: int = 0) -> list[Row]:
    """Ragged trees: one to four responses of one to twenty tokens, prompts up to 40, identical
    responses among them; prompts and responses longer than the sliding windows of 8."""
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high + 1, (1,), generator=generator))
        return torch.randint(3, vocabulary, (length,), generator=generator).tolist()

    rows, key = [], 0
    for prompt_length, count in ((1, 2), (5, 1), (12, 4), (40, 3), (9, 4), (20, 2)):
        responses = [ids(1, 20) for _ in range(count)]
        if count == 4:
            responses[1] = responses[0]
            responses[2] = responses[2][:1]
        rows.append(Row(ids(prompt_length, prompt_length), responses, range(key, key + count)))
        key += count
    return rows


def load(path, attention: str = "sdpa"):
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation=attention
    )
    return model.eval()


def all_logps(scorer: ResponseScorer, planned: list[Row], max_tokens: int) -> torch.Tensor:
    total = torch.zeros(sum(len(row.keys) for row in planned), dtype=torch.float64)
    for batch in batches(planned, max_tokens):
        keys = [key for row in batch for key in row.keys]
        total[keys] = torch.tensor(score(scorer, batch, CPU), dtype=torch.float64)
    return total


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("max_tokens", [1, 150, 100_000])
def test_log_probs_equal_one_row_at_a_time(tiny_models, name, attention, share, max_tokens):
    """Trees and plain rows, alone and padded in batches, to 1e-5 nats per token."""
    model = load(tiny_models[name], attention)
    rows = random_rows(model.config.vocab_size)
    planned = plan_rows(rows, share=share, hidden_size=10**6)
    assert any(len(row.keys) > 1 for row in planned) == share
    found = all_logps(ResponseScorer(model), planned, max_tokens)
    with torch.no_grad():
        for row in rows:
            for key, response in zip(row.keys, row.responses, strict=True):
                expected = response_logp(model, row.prompt, response)
                assert abs(found[key] - expected) <= 1e-5 * len(response)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_one_row_at_a_time(tiny_models, name):
    """The gradient of a weighted sum of log-probs flows through the shared prompt."""
    model = load(tiny_models[name])
    rows = random_rows(model.config.vocab_size)
    weights = torch.linspace(-1, 1, sum(len(row.keys) for row in rows), dtype=torch.float64)
    (ResponseScorer(model)(**collate(rows)) * weights).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    expected = sum(
        weights[key] * response_logp(model, row.prompt, response)
        for row in rows
        for key, response in zip(row.keys, row.responses, strict=True)
    )
    expected.backward()
    for name, parameter in model.named_parameters():
        scale = parameter.grad.abs().max().clamp(min=1)
        assert (found[name] - parameter.grad).abs().max() <= 1e-4 * scale, name


def test_a_mask_without_the_window_would_be_wrong(tiny_models):
    """The door the window in the mask holds shut: Mistral forgets its window on a 4-D mask."""
    model = load(tiny_models["mistral"])
    row = random_rows(model.config.vocab_size)[3]
    right = score(ResponseScorer(model), [row], CPU)
    model.config.sliding_window = None
    wrong = score(ResponseScorer(model), [row], CPU)
    worst = max(abs(a - b) for a, b in zip(right, wrong, strict=True))
    assert worst > 0.01


def test_the_self_check_falls_back_and_says_so(tiny_models):
    """A decoder that ignores 4-D masks makes shared prompts wrong; plain rows are chosen."""
    model = load(tiny_models["llama"])
    scorer = ResponseScorer(model)
    rows = random_rows(model.config.vocab_size)
    assert self_check(scorer, rows, CPU) <= 1e-5
    assert scorer.share_prompts
    assert scorer.tiled_head
    whole = model.model.forward

    def without_branches(attention_mask=None, **rest):
        known = attention_mask is not None and attention_mask.dim() == 2
        return whole(attention_mask=attention_mask if known else None, **rest)

    model.model.forward = without_branches
    assert self_check(scorer, rows, CPU) <= 1e-5
    assert not scorer.share_prompts
    assert scorer.tiled_head


def test_the_self_check_finds_a_scaled_head(tiny_models):
    """A family that scales its logits in a way the tiled head does not know: the model's own
    logits are used."""
    model = load(tiny_models["llama"])
    scorer = ResponseScorer(model)
    whole = model.forward

    def scaled(**arguments):
        output = whole(**arguments)
        output.logits = output.logits * 0.5
        return output

    model.forward = scaled
    assert self_check(scorer, random_rows(model.config.vocab_size), CPU) <= 1e-5
    assert not scorer.tiled_head


def test_token_log_probs_do_not_depend_on_the_tile():
    """One tile, many tiles and the gradient through them agree with a plain log-softmax."""
    torch.manual_seed(0)
    hidden = torch.randn(11, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(30, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 30, (11,))
    expected = (hidden @ weight.T).log_softmax(-1)[torch.arange(11), targets]
    wanted = torch.autograd.grad(expected.sin().sum(), (hidden, weight))
    for tile in (1, 4, 100):
        found = token_logps(hidden, targets, lambda states: states @ weight.T, tile)
        torch.testing.assert_close(found, expected)
        got = torch.autograd.grad(found.sin().sum(), (hidden, weight))
        torch.testing.assert_close(got, wanted)


def test_sums_are_float64():
    """Ten million tokens of −1e-4 nats: float32 would lose them."""
    logps = torch.full((1_000_000,), -1e-4)
    total = sequence_logps(logps, torch.zeros(1_000_000, dtype=torch.long), 2)
    assert total.dtype == torch.float64
    assert total[0].item() == pytest.approx(-100.0, rel=1e-6)
    assert total[1].item() == 0.0


def test_the_mask_by_hand():
    """Prompt of two, responses of one and two, one padding token; window of two."""
    segments = torch.tensor([[0, 0, 1, 2, 2, -1]])
    positions = torch.tensor([[0, 1, 2, 2, 3, 0]])
    seen = attention_mask(segments, positions)[0, 0].int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    near = attention_mask(segments, positions, window=2)[0, 0].int().tolist()
    assert near[4] == [0, 0, 0, 1, 1, 0]
    assert near[3] == [0, 1, 0, 1, 0, 0]


def test_the_plan_shares_only_where_it_pays():
    """A long prompt is shared; long responses after a short prompt are not, in a narrow model."""
    long_prompt = Row([1] * 100, [[1] * 10, [1] * 10], [0, 1])
    long_responses = Row([1] * 4, [[1] * 500, [1] * 500], [0, 1])
    planned = plan_rows([long_prompt, long_responses], hidden_size=64)
    assert [len(row.keys) for row in planned] == [1, 1, 2]
    assert [len(row) for row in planned] == sorted((len(row) for row in planned), reverse=True)
    assert cost([long_prompt], 64) < cost(plan_rows([long_prompt], share=False), 64)


def test_batches_respect_the_budget_with_padding():
    rows = [Row([1] * n, [[1]], [n]) for n in (30, 20, 10, 10, 9)]
    packed = batches(rows, 62)
    assert [[len(row) for row in batch] for batch in packed] == [[31, 21], [11, 11, 10]]
