"""Noise is told from faults: unbiased differences pass whatever their size, biased ones do not."""

from __future__ import annotations

import math
import random

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from mrpo_tools.maths.noise import Apart, Noise, allowed, beyond, loudest
from mrpo_tools.scorer.head import wide_linear
from mrpo_tools.scorer.loaded import LoadedReference
from mrpo_tools.scorer.scorer import ResponseScorer
from mrpo_tools.scorer.self_check import check_sample, plain_logps, self_check
from mrpo_tools.scorer.trees import Forest, Piece, Row

CPU = torch.device("cpu")
FORMATS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16],
                                  ids=["float32", "bfloat16", "float16"])  # fmt: skip


def test_noise_of_three_tokens():
    """Differences 1, 2, −6: mean −1, mean square 41/3."""
    assert Noise.of([1.0, 2.0, -6.0]) == Noise(rms=math.sqrt(41 / 3), bias=-1.0, tokens=3)
    assert Noise.of([]) == Noise()
    assert loudest([Noise(1.0, 0.5, 3), Noise(2.0, -0.7, 4)]) == Noise(2.0, -0.7, 4)


def test_what_one_response_may_differ_by():
    """1e-5 a token where nothing was measured; ten times rms·√L where it was: 10·0.01·3."""
    assert allowed(9, Noise()) == pytest.approx(9e-5)
    assert allowed(9, Noise(rms=0.01)) == pytest.approx(0.3)


def responses(rng: random.Random, count: int, rms: float, lean: float = 0.0) -> list[Apart]:
    """Sums of L independent differences of this root mean square, plus `lean` a token."""
    lengths = [rng.randint(1, 400) for _ in range(count)]
    return [Apart(rng.gauss(lean * L, rms * math.sqrt(L)), L) for L in lengths]


@pytest.mark.parametrize("count", [1, 4, 32, 1000])
@pytest.mark.parametrize("rms", [1e-3, 0.03, 0.2])
def test_unbiased_noise_passes_and_a_lean_does_not(count, rms):
    """Two noisy numbers are √2 rms apart. A lean of half an rms a token is seen in one response of
    a few hundred tokens, one of a twentieth in a thousand responses."""
    rng, noise = random.Random(count), Noise(rms=rms, tokens=1000)
    for _ in range(50):
        assert beyond(responses(rng, count, rms * math.sqrt(2)), noise) is None
    lean = {1: 1.0, 4: 1.0, 32: 0.2, 1000: 0.05}[count] * rms
    long = [each for each in responses(rng, 3 * count, rms, lean) if each.tokens > 130][:count]
    assert beyond(long, noise) is not None


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_beyond_any_noise(wrong):
    assert beyond([Apart(0.0, 5), Apart(wrong, 5)], Noise(rms=1.0)) is not None


def test_three_reasons():
    noise = Noise(rms=0.01, tokens=100)
    assert "a response of 4 tokens is 0.21 nats apart" in str(beyond([Apart(0.21, 4)], noise))
    apart = [Apart(0.1 * (-1) ** n, 4) for n in range(64)]
    assert "64 responses are 0.05 nats/√token apart" in str(beyond(apart, noise))
    apart = [Apart(0.06, 4) for n in range(64)]
    assert "lean to one side by 0.015" in str(beyond(apart, noise))


# A small Mistral with a window of 8, whose logits have the spread of a trained model's -----------


def windowed(dtype: torch.dtype, seed: int = 0):
    torch.manual_seed(seed)
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, sliding_window=8, initializer_range=0.15,
        )
    )  # fmt: skip
    with torch.no_grad():
        model.lm_head.weight.normal_(0, 4 / 8)  # states of unit rms, 64 wide: logits of spread 4
    return model.to(dtype).eval()


def sample(seed: int = 0, prompts: int = 10, most: int = 30) -> list[Row]:
    rng, rows, key = random.Random(seed), [], 0
    for index in range(prompts):
        ids = [[rng.randrange(3, 300) for _ in range(rng.randint(2, most))]
               for _ in range((1, 2, 4)[index % 3])]  # fmt: skip
        prompt = [1, *(rng.randrange(3, 300) for _ in range(rng.randint(3, 20)))]
        rows.append(Row(prompt, ids, range(key, key + len(ids))))
        key += len(ids)
    return rows


@FORMATS
@pytest.mark.parametrize("seed", range(3))
def test_an_exact_route_is_taken_and_its_noise_recorded(dtype, seed):
    """Noise as rounding makes it: in bfloat16 a hundredth of a nat a token, without direction."""
    checked = self_check(ResponseScorer(windowed(dtype, seed)), sample(seed), CPU)
    assert checked.route.name == "tree", checked.refused
    unit = torch.finfo(dtype).eps
    assert checked.noise.rms <= (8 * unit if dtype != torch.float32 else 1e-5)
    if dtype != torch.float32:
        assert unit / 4 <= checked.noise.rms
        assert abs(checked.noise.bias) <= 5 * checked.noise.rms / math.sqrt(checked.noise.tokens)


class WrongBos(ResponseScorer):
    """Its fast routes begin every prompt with another token."""

    def collate(self, rows):
        if self.route.tiled:
            rows = [Row([2, *row.prompt[1:]], row.responses, row.keys) for row in rows]
        return super().collate(rows)


class Warm(ResponseScorer):
    """Its fast routes have a temperature of 1.1."""

    def _head(self, states):
        return super()._head(states) / 1.1


class Leaking(ResponseScorer):
    """Its packed lines are one sequence: a tree sees the ones before it."""

    def collate(self, rows):
        batch = super().collate(rows)
        if batch["forest"] is not None:
            batch["forest"] = Forest((Piece(0, batch["input_ids"].shape[1], 0, 0),))
        return batch


class Boundless(ResponseScorer):
    """Its packed lines have no window."""

    def take(self, route):
        super().take(route)
        self.config.sliding_window = None if route.packed else 8


@FORMATS
@pytest.mark.parametrize("fault", [WrongBos, Warm, Leaking, Boundless])
def test_a_biased_route_is_refused(dtype, fault):
    checked = self_check(fault(windowed(dtype)), sample(), CPU)
    assert not checked.route.packed
    assert checked.route.tiled == (fault in (Leaking, Boundless))
    assert "nats" in checked.refused["tree"]
    assert "faster ones cannot be used: tree (" in str(checked.slower)


@FORMATS
@pytest.mark.parametrize("fault", [WrongBos, Warm, Leaking, Boundless])
def test_a_cache_of_biased_numbers_disagrees_with_the_model(dtype, fault):
    """What `verify --rescore` and step 0 ask: 32 sums of the cache against the model's own, under
    the noise that an honest writer recorded."""
    rows = sample(1, prompts=14)
    honest = ResponseScorer(windowed(dtype))
    noise = self_check(honest, sample(2), CPU).noise
    false = fault(windowed(dtype))
    false.take(honest.route)

    def apart(scorer: ResponseScorer) -> list[Apart]:
        reference, pairs = LoadedReference(scorer, CPU), []
        for batch in scorer.batches(rows, 400):
            sums = iter(reference.logps(batch))
            for row in batch:
                [plain] = plain_logps(honest, [row], CPU)
                pairs += [Apart(next(sums) - own, len(ids))
                          for own, ids in zip(plain, row.responses, strict=True)]  # fmt: skip
        return pairs

    assert beyond(apart(honest), noise) is None
    assert beyond(apart(false), noise) is not None


def test_the_sample_has_short_and_long_several_and_single_and_one_beyond_the_window():
    """Sizes 1 to 40, odd ones with one response: evenly spread below 30, and 31 for the window."""
    chosen = check_sample(
        range(1, 41), size=float, responses=lambda n: 1 if n % 2 else 2, count=4, quick=30,
        window=30,
    )  # fmt: skip
    assert chosen == [2, 12, 20, 30, 1, 29, 31]
    assert check_sample([50], size=float, responses=lambda _: 1, count=4, quick=30) == [50]


@torch.no_grad()
def test_logits_are_float32_from_16_bit_weights():
    """The head's sums stay wide, in the model's own `forward` too: logits of 16 bits would be
    0.01 nats off and more. The expectation is made in float64 from the same hidden states."""
    model, rows = windowed(torch.bfloat16), sample()
    weight, expected, narrow = model.lm_head.weight.double(), [], []
    for row in rows:
        states = model.model(torch.tensor([[*row.prompt, *row.responses[0]]])).last_hidden_state[0]
        for dtype, sums in ((torch.float64, expected), (torch.bfloat16, narrow)):
            logits = (states.double() @ weight.T).to(dtype).double()[len(row.prompt) - 1 : -1]
            targets = torch.tensor(row.responses[0])[:, None]
            sums.append(float(logits.log_softmax(-1).gather(1, targets).sum()))
    scorer = ResponseScorer(model)
    for row, wide, rounded in zip(rows, expected, narrow, strict=True):
        alone = Row(row.prompt, row.responses[:1], [0])
        assert abs(plain_logps(scorer, [alone], CPU)[0][0] - wide) <= 1e-5 * len(row.responses[0])
        assert rounded != pytest.approx(wide, abs=1e-4)


def test_wide_logits_have_the_gradients_of_narrow_ones():
    """Of states and weights, to rounding: against float64 products of the same 16-bit numbers."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(16, 40, bias=True, dtype=torch.bfloat16)
    states = torch.randn(2, 5, 16, dtype=torch.bfloat16, requires_grad=True)
    coefficients = torch.randn(2, 5, 40)
    logits = wide_linear(layer, states)
    assert logits.dtype == torch.float32
    (logits * coefficients).sum().backward()
    exact = torch.nn.functional.linear(states.double(), layer.weight.double(), layer.bias.double())
    assert (logits - exact).abs().max() < 1e-5
    for gradient, right in (
        (states.grad, coefficients.double() @ layer.weight.double()),
        (layer.weight.grad, torch.einsum("abv,abd->vd", coefficients.double(), states.double())),
        (layer.bias.grad, coefficients.double().sum((0, 1))),
    ):
        assert (gradient - right).abs().max() <= 2**-8 * right.abs().max()


@FORMATS
@pytest.mark.parametrize("count", [1, 2])
def test_a_sample_of_one_token_is_enough_to_go_on(dtype, count):
    """Data of a single prompt with one-token answers: no spread, and no false alarm."""
    rows = [Row([1, 5, 9, 200, 31], [[7], [8]][:count], range(count))]
    for seed in range(5):
        assert self_check(ResponseScorer(windowed(dtype, seed)), rows, CPU).route.name == "tree"
