"""Memory and time before they are needed: few layers tell what all of them take."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Gemma2Config, LlamaConfig, MixtralConfig, Qwen2Config

from mrpo_tools.references.loading import add_lora
from mrpo_tools.scorer.blueprint import Blueprint
from mrpo_tools.scorer.memory import LiveBytes, inputs, step_bytes, weights_of, working_bytes
from mrpo_tools.scorer.scorer import ResponseScorer
from mrpo_tools.scorer.speed import seconds_of, work_of
from mrpo_tools.scorer.trees import Row
from mrpo_tools.training.activations import (
    activations_fit,
    bytes_per_token,
    fits,
    recompute_activations,
)
from mrpo_tools.training.device_memory import Layout, device_memory
from mrpo_tools.training.optimizers import kept_by

CPU = torch.device("cpu")
SIZE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIGS = {
    "llama": lambda: LlamaConfig(**SIZE, num_hidden_layers=7),
    "gemma2": lambda: Gemma2Config(**SIZE, num_hidden_layers=6, head_dim=16, sliding_window=8),
    "qwen2": lambda: Qwen2Config(**SIZE, num_hidden_layers=6, tie_word_embeddings=True,
                                 use_sliding_window=True, sliding_window=8, max_window_layers=2),
}  # fmt: skip
TREES = [Row(range(40), [range(20), range(9)], [0, 1]), Row(range(30), [range(12)], [2])]


def blueprint(config, *, adapter: bool = False, recomputed: bool = False) -> Blueprint:
    """Of float32, as it is trained: all of it, or an adapter."""

    def scorer(model) -> ResponseScorer:
        if adapter:
            model = add_lora(model, r=4, lora_alpha=4, target_modules="all-linear", seed=0)
        made = ResponseScorer(model).train()
        if recomputed:
            recompute_activations(made)
        return made

    return Blueprint(config, torch.float32, CPU, scorer)


def train(scorer: ResponseScorer, micro_batches: int, steps: int = 2) -> None:
    """Some steps of AdamW on real numbers."""
    weights = [weight for weight in scorer.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, fused=True)
    for _ in range(steps):
        for _ in range(micro_batches):
            scorer(*inputs(scorer, scorer.batches(TREES), CPU)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    ("family", "adapter", "recomputed", "micro_batches"),
    [
        ("llama", True, False, 1),
        ("llama", True, True, 3),
        ("llama", False, False, 1),
        ("gemma2", True, False, 3),
        ("qwen2", False, True, 3),
    ],
)
def test_few_layers_tell_what_training_all_of_them_takes(
    family, adapter, recomputed, micro_batches
):
    """The truth is counted on tensors with storage, all layers, two whole steps."""
    model = blueprint(CONFIGS[family](), adapter=adapter, recomputed=recomputed)
    with LiveBytes() as live:
        scorer = model.made(CPU)
        scorer.take(scorer.routes[0])
        train(scorer, micro_batches)
        happened = live.peak
    weights = weights_of(model)
    optimizer = kept_by({}, weights.shapes).bytes
    step, accumulates = step_bytes(model, TREES), micro_batches > 1
    memory = device_memory(weights, step, optimizer, Layout(), accumulates=accumulates)
    assert memory.peak_bytes == pytest.approx(happened, rel=0.05)
    parts = memory.weights_bytes + memory.gradient_bytes + memory.optimizer_bytes
    if micro_batches > 1:
        assert memory.peak_bytes == parts + memory.kept_bytes + memory.working_bytes
    else:
        assert memory.peak_bytes <= parts + memory.kept_bytes + memory.working_bytes


@pytest.mark.parametrize("family", CONFIGS)
def test_few_layers_tell_what_log_probs_take(family):
    model = blueprint(CONFIGS[family]())
    with LiveBytes() as live, torch.no_grad():
        scorer = model.made(CPU)
        scorer.take(scorer.routes[0])
        scorer(*inputs(scorer, [TREES], CPU))
        happened = live.peak
    expected = weights_of(model).total + working_bytes(model, TREES)
    assert expected == pytest.approx(happened, rel=0.02)


def test_the_counter_agrees_with_torchs_own():
    """A forward and a backward pass and a step of AdamW, counted by torch's memory tracker."""
    tracker_module = pytest.importorskip("torch.distributed._tools.mem_tracker")
    model = blueprint(CONFIGS["llama"]())
    peaks = []
    with LiveBytes() as live:
        scorer = model.made(CPU)
        train(scorer, 1, steps=1)
        peaks.append(live.peak)
    tracker = tracker_module.MemTracker()
    with tracker:
        train(model.made(CPU), 1, steps=1)
    peaks.append(tracker.get_tracker_snapshot("peak")[CPU]["Total"])
    assert peaks[0] == pytest.approx(peaks[1], rel=0.01)


def test_the_counter_lets_go_of_what_is_freed():
    with LiveBytes() as live:
        first = torch.zeros(100)
        seen = first[10:].view(9, 10)
        assert live.live == live.peak == 400  # a view has no bytes of its own
        del first
        assert live.live == 400
        del seen
        assert (live.live, live.peak) == (0, 400)
        assert live.begin() == live.peak == 0


def test_kinds_of_layers_are_told_apart():
    """Gemma 2 has two kinds, one after the other; two layers of each stand for all."""
    model = blueprint(CONFIGS["gemma2"]())
    assert len(set(model.kinds)) == 2
    assert model.sample() == [0, 1, 2, 3]
    shallow = model.of_layers([1, 3, 5])
    assert shallow.layers == 3
    assert shallow.text.layer_types == ["full_attention"] * 3
    assert model.layers == 6  # untouched


@pytest.mark.parametrize("branches", [1, 2])
def test_memory_grows_with_length_and_not_with_its_square(branches):
    """Ten times the length takes ten times the bytes in plain rows: no [heads, L, L] is held. A
    branch's mask is [L, prompt + L], once for all heads."""
    model = blueprint(CONFIGS["llama"]())
    short, long = (
        working_bytes(model, [Row(range(9 * size), [range(size)] * branches, range(branches))])
        for size in (40, 400)
    )
    assert 5 * short < long < (12 if branches == 1 else 20) * short


def test_nf4_weights_are_counted_as_they_lie_in_memory():
    """Against bitsandbytes: half a byte a weight, and its two levels of scales."""
    functional = pytest.importorskip("bitsandbytes").functional
    config = LlamaConfig(
        vocab_size=64, hidden_size=512, intermediate_size=2048, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4,
    )  # fmt: skip
    model = replace(blueprint(config, adapter=True), dtype=torch.bfloat16, scorer=_frozen)
    matrix = torch.randn(512, 2048)
    packed, state = functional.quantize_4bit(matrix, quant_type="nf4", compress_statistics=True)
    scales = state.absmax.nbytes + state.state2.absmax.nbytes
    each = (packed.nbytes + scales) / matrix.numel()
    matrices = 2 * (4 * 512 * 512 + 3 * 512 * 2048)
    widths = {quantized: weights_of(model, quantized=quantized) for quantized in (False, True)}
    saved = widths[False].total - widths[True].total
    assert saved == pytest.approx(matrices * (2 - each), rel=0.002)
    assert widths[True].largest == 2 * 512 * 2048


def _frozen(model) -> ResponseScorer:
    return ResponseScorer(model.requires_grad_(False))


def test_auto_is_foretold_as_training_decides_it():
    """What is kept, by the dry run, is what the loaded policy measures on a middle row."""
    model = blueprint(CONFIGS["llama"](), adapter=True)
    scorer = model.made(CPU)
    scorer.take(scorer.routes[0])
    measured = bytes_per_token(scorer, TREES[0]) * len(TREES[0])
    kept = step_bytes(model, TREES[:1]).kept
    assert kept == pytest.approx(measured, rel=0.15)
    weights = weights_of(model)
    assert weights.trained == sum(p.nbytes for p in scorer.parameters() if p.requires_grad)
    for free in (0.5 * kept, 5 * kept + 10 * weights.trained):
        foretold = fits(kept, weights.shapes, free, {})
        assert foretold == activations_fit(scorer, TREES[:1], 1, free, {})


@pytest.mark.parametrize(
    ("optim", "bytes_a_number"),
    [(None, 4 + 8), ("sgd", 4), ("adagrad", 4 + 4), ("adamw_8bit", 4 + 2), ("lion_8bit", 4 + 1)],
)
def test_auto_counts_the_optimizer_of_the_recipe(optim, bytes_a_number):
    """Activations may take 70 % of what gradients and the optimizer's states leave; the scales of
    8 bits are less than 7 % of them here."""
    scorer = blueprint(CONFIGS["llama"]()).made(CPU)
    scorer.take(scorer.routes[0])
    trainer = {} if optim is None else {"optim": optim}
    kept = bytes_per_token(scorer, TREES[0]) * len(TREES[0])
    count = sum(weights.numel() for weights in scorer.parameters())
    least = kept / 0.7 + bytes_a_number * count
    assert activations_fit(scorer, TREES[:1], 1, 1.2 * least, trainer)
    assert not activations_fit(scorer, TREES[:1], 1, 0.97 * least, trainer)


def test_operations_are_those_that_torch_counts():
    """Linear layers for every token, the head for targets alone; attention's own left out."""
    scorer = blueprint(CONFIGS["llama"]()).made(CPU)
    scorer.take(scorer.routes[0])
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        scorer(*inputs(scorer, [TREES], CPU))
    by_operation = counted.get_flop_counts()["Global"]
    linear = sum(count for name, count in by_operation.items() if "attention" not in str(name))
    work = work_of(scorer)
    assert work.a_token * 111 + work.a_target * 41 == pytest.approx(linear, rel=0.01)


def test_a_token_meets_the_experts_that_it_is_sent_to():
    """Two of eight: attention 2·64² + 2·64·32, a router of 8·64, an expert of 3·64·176."""
    config = MixtralConfig(**SIZE, num_hidden_layers=3, num_local_experts=8, num_experts_per_tok=2)
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 8 * 64 + 2 * 3 * 64 * 176
    work = work_of(blueprint(config).made(torch.device("meta")))
    assert work.a_token == pytest.approx(2 * 3 * layer, rel=0.01)


def test_attention_is_counted_by_pairs():
    """A plain row of L sees L²/2 pairs; a branch its prompt and itself."""
    config = CONFIGS["llama"]()
    work = work_of(blueprint(config).made(CPU))
    assert work.a_pair == 4 * 64 * 7
    plain, tree = Row(range(30), [range(10)], [0]), Row(range(30), [range(10), range(4)], [0, 1])
    linear = work._replace(a_pair=0.0)
    assert work.of([plain]) - linear.of([plain]) == pytest.approx(work.a_pair * 40**2 / 2)
    pairs = 30**2 / 2 + 10 * (30 + 10) + 4 * (30 + 4)
    assert work.of([tree]) - linear.of([tree]) == pytest.approx(work.a_pair * pairs)


def test_time_is_reckoned_from_a_few_batches():
    """Long rows cost more for each token, and each third of the batches has its own speed."""
    batches = [[Row(range(size), [range(8)], [0])] for size in (90,) * 10 + (50,) * 10 + (20,) * 10]
    measured, clock = [], [0.0]

    def compute(scorer, rows) -> None:
        measured.append(len(rows[0]))
        clock[0] += len(rows[0]) ** 2 * scorer.config.num_hidden_layers

    model = blueprint(CONFIGS["llama"]())
    happens = 7 * sum(len(batch[0]) ** 2 for batch in batches)
    seconds = seconds_of(model, batches, compute, budget=1e6, clock=lambda: clock[0])
    assert measured == [28, 28, 98, 58, 28]  # the smallest says what can be afforded
    assert seconds == pytest.approx(happens, rel=1e-6)
    seconds = seconds_of(model, batches, compute, budget=5e4, clock=lambda: clock[0])
    assert seconds == pytest.approx(happens, rel=0.2)  # with one layer, beside the same head


def test_no_time_is_spent_on_what_is_too_large_to_measure():
    def compute(scorer, rows) -> None:
        raise AssertionError("nothing is computed")

    model = blueprint(CONFIGS["llama"]())
    assert seconds_of(model, [TREES], compute, budget=0.0) > 0  # nor is a model made
    assert seconds_of(model, [], compute) == 0
