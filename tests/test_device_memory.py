"""Memory of one device of several, by wrapping and by optimizer, against what really is alive."""

from __future__ import annotations

import dataclasses
import importlib
import json

import pytest
import torch
from torch import distributed
from transformers import Trainer, TrainingArguments

from mrpo_tools.errors import UsageError
from mrpo_tools.scorer.memory import StepBytes, Unit, Weights
from mrpo_tools.training.device_memory import Layout, device_memory, layout_of
from mrpo_tools.training.optimizers import kept_by

NEAR = 0.15


@pytest.fixture
def bench(monkeypatch):
    """`bench/device_memory.py`."""
    from test_docs import ROOT

    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("device_memory")


@pytest.mark.parametrize("case", ["QLoRA, checkpointing", "LoRA, checkpointing 8", "full 8"])
def test_the_step_of_a_llama_of_8b_shapes_is_foretold(bench, case):
    """Two layers of the 32, at full width: the real forward and backward passes, the optimizer and
    `fully_shard`, on tensors without storage."""
    work, _, processes = case.partition(" 8")
    found = next(
        place
        for place, (name, _, optimizer, layout) in enumerate(bench.CASES)
        if (name, optimizer) == (work, "adamw_torch") and (layout.processes == 8) == (" 8" in case)
    )
    with bench.cuda_route():
        row = bench.measured(found, layers=2)
    assert abs(row["apart"]) < NEAR, row
    assert row["processes"] == (8 if " 8" in case else 1), processes


def test_the_committed_table_is_of_all_layers_and_near(bench):
    from test_docs import ROOT, measured

    rows = measured("device_memory.json")["rows"]
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert {row["layers"] for row in rows} == {32}
    assert "fsdp2" in {row["wrapping"] for row in rows}
    assert {row["work"].split(",")[0] for row in rows} >= {"LoRA", "full"}
    for row in rows:
        assert abs(row["peak_bytes"] / row["happened"] - 1) < NEAR, row
        assert bench.line(row) in page


def test_processes_that_really_trained_were_foretold(bench):
    """Two of them, under DDP and DeepSpeed; its bucket, which is larger than all else, left out."""
    from test_docs import ROOT, measured

    wrapped = importlib.import_module("wrapped_memory")
    rows = measured("wrapped_memory.json")["rows"]
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    seen = {(row["wrapping"], row["adapter"]) for row in rows}
    assert seen == {(name, each) for name in ("ddp", "zero2", "zero3") for each in (True, False)}
    for row in rows:
        rest = row["happened"] - (row["wrapping"] != "ddp") * 2_000_000_000
        assert abs(row["peak_bytes"] - row["happened"]) < NEAR * rest, row
        assert wrapped.line(row) in page


@pytest.mark.parametrize("adapter", [True, False])
def test_ddp_keeps_gradients_twice(bench, adapter):
    """torch's own DDP around a policy of 42 million real numbers, for two steps; in a group of one,
    whose buckets are those of more."""
    wrapped = importlib.import_module("wrapped_memory")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        row = wrapped.measured(Layout(2, "ddp"), adapter=adapter)
    finally:
        distributed.destroy_process_group()
    assert row["peak_bytes"] == pytest.approx(row["happened"], rel=0.01)


NAMES = (
    "adamw_torch", "adamw_torch_fused", "adamw_bnb_8bit", "adamw_8bit", "lion_32bit",
    "lion_8bit", "rmsprop", "rmsprop_bnb",
    "rmsprop_bnb_8bit", "ademamix", "ademamix_8bit", "adagrad", "adafactor", "sgd",
)  # fmt: skip


@pytest.mark.parametrize("name", [*NAMES, "sgd momentum=0.9", "rmsprop momentum=0.9,centered=true"])
def test_an_optimizer_keeps_what_is_foretold(name, tmp_path):
    """The Trainer's own optimizer after a step on real numbers: a matrix, a small one, a vector."""
    name, _, words = name.partition(" ")
    arguments = TrainingArguments(str(tmp_path), optim=name, optim_args=words or None, use_cpu=True)
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(arguments)
    shapes = ((128, 96), (16, 32), (5000,), (64,))
    trained = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    optimizer = kind(trained, **settings)
    for weights in trained:
        weights.grad = torch.randn_like(weights)
    optimizer.step()
    states = [
        value
        for kept in optimizer.state.values()
        for value in kept.values()
        if torch.is_tensor(value) and value.numel() > 1
    ]
    tables = {state.data_ptr(): state.nbytes for state in states}  # levels are shared
    foretold = kept_by({"optim": name, "optim_args": words}, trained)
    assert foretold.known
    assert not foretold.paged
    assert foretold.bytes == pytest.approx(sum(tables.values()), rel=0.05, abs=4096)


def test_a_paged_optimizer_keeps_as_much_as_another():
    """Its states want a GPU to be made."""
    trained = [torch.empty(128, 96, device="meta"), torch.empty(64, device="meta")]
    for name in ("adamw_8bit", "lion_8bit", "lion_32bit", "ademamix_8bit"):
        plain = kept_by({"optim": name}, trained)
        assert kept_by({"optim": f"paged_{name}"}, trained) == plain._replace(paged=True)
    whole = kept_by({"optim": "paged_adamw_32bit"}, trained)
    assert whole == (2 * 4 * (128 * 96 + 64), True, True)


def test_an_unknown_optimizer_is_counted_as_adamw():
    trained = [torch.empty(10, 10, device="meta")]
    assert kept_by({"optim": "grokadamw"}, trained) == (800, False, False)


def test_what_is_divided_by_the_processes():
    """By hand: 80 bytes of weights, 40 of them trained, two layers of 30 and 20 beside them.
    DeepSpeed's bucket is of 500 million float32 gradients, whatever the policy."""
    shapes = (torch.empty(10, device="meta"),)
    weights = Weights(80, 40, 0, Unit(30, 15), Unit(20, 10), 4, shapes, tensor=12)
    step = StepBytes(kept=100, peak=150, head=50, layer=40)
    memory = {
        wrapping: device_memory(weights, step, 80, Layout(4, wrapping), accumulates=True)
        for wrapping in ("ddp", "fsdp2", "zero2", "zero3")
    }
    parts = {
        name: (each.weights_bytes, each.gradient_bytes, each.optimizer_bytes)
        for name, each in memory.items()
    }
    assert parts["ddp"] == (80, 80, 80)
    assert parts["fsdp2"] == (20, 10, 20)
    bucket = 2_000_000_000
    assert parts["zero2"] == (80, 10 + bucket, (80 + 40) // 4), "and float32 copies"
    assert parts["zero3"] == (20, 10 + bucket, (80 + 40) // 4)
    assert memory["ddp"].peak_bytes == 240 + 150
    in_a_layer = 20 + 2 * 30 + 2 * 15 + (10 - 4) + 100 + 40
    assert memory["fsdp2"].peak_bytes == 50 + max(in_a_layer, 20 + 30 + 100 + 50)
    assert memory["fsdp2"].gathered_bytes == 20 + 2 * 30
    assert memory["zero2"].peak_bytes == 80 + 10 + bucket + 30 + (100 + 40), "the head is done"
    assert memory["zero3"].gathered_bytes == 80, "so few are all gathered, and received beside it"
    assert memory["zero3"].peak_bytes == 20 + 10 + bucket + 30 + 80 + (80 + 100)


def test_zero3_of_a_large_policy():
    """In GB: 100 of weights, of which 80 are trained, 8 of them no layer's, the largest tensor 4.
    It gathers 10^9 float32 numbers beside the root and fetches a tensor; the policy is whole when
    it is loaded."""
    gb = 10**9
    shapes = (torch.empty(20 * gb, device="meta"),)
    unit = Unit(gb, gb)
    weights = Weights(100 * gb, 80 * gb, 0, unit, Unit(8 * gb, 8 * gb), 0, shapes, tensor=4 * gb)
    step = StepBytes(kept=50 * gb, peak=53 * gb, head=gb, layer=gb)
    layout = Layout(10, "zero3")
    memory = device_memory(weights, step, 160 * gb, layout, accumulates=True)
    parts = 10 + (8 + 2) + (16 + 8)
    assert memory.gathered_bytes == (8 + 4) * gb
    assert memory.peak_bytes == (parts + 12 + 50 + 4) * gb
    many = device_memory(weights, step._replace(kept=0, peak=0), 160 * gb, Layout(1000, "zero3"),
                         accumulates=True)  # fmt: skip
    assert many.peak_bytes == 100 * gb


@pytest.mark.parametrize(
    ("asked", "environment", "trainer", "expected"),
    [
        ((None, None), {}, {}, Layout()),
        ((8, None), {}, {}, Layout(8, "ddp")),
        ((8, "zero2"), {}, {"fsdp": "full_shard"}, Layout(8, "zero2")),
        ((8, None), {}, {"fsdp": "full_shard"}, Layout(8, "fsdp2")),
        ((None, None), {}, {"deepspeed": {"zero_optimization": {"stage": 3}}}, Layout()),
        ((2, None), {}, {"deepspeed": {"zero_optimization": {"stage": 3}}}, Layout(2, "zero3")),
        ((None, None), {"RANK": "0", "WORLD_SIZE": "4"}, {}, Layout(4, "ddp")),
        ((None, None), {"RANK": "0", "WORLD_SIZE": "4", "ACCELERATE_USE_FSDP": "true"}, {},
         Layout(4, "fsdp2")),
        ((None, None), {"RANK": "0", "WORLD_SIZE": "4", "ACCELERATE_USE_DEEPSPEED": "true",
                        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, {}, Layout(4, "zero2")),
    ],
)  # fmt: skip
def test_the_layout_is_that_which_is_asked_for(asked, environment, trainer, expected):
    assert layout_of(trainer, *asked, environment) == expected


def test_the_stage_stands_in_deepspeeds_file(tmp_path):
    file = tmp_path / "zero3.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    environment = {
        "RANK": "0", "WORLD_SIZE": "2", "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file),
    }  # fmt: skip
    assert layout_of({}, None, None, environment) == Layout(2, "zero3")
    assert layout_of({"deepspeed": str(file)}, 2, None, {}) == Layout(2, "zero3")


def test_a_wrapping_of_one_process_is_refused():
    with pytest.raises(UsageError, match="zero3 is of several processes, and there is one"):
        layout_of({}, None, "zero3", {})


def test_the_parts_have_names():
    """What the dry run prints is what a step is made of."""
    from mrpo_tools.cli.train import PARTS
    from mrpo_tools.training.device_memory import StepMemory

    names = {field.name for field in dataclasses.fields(StepMemory)}
    assert set(PARTS) == names - {"working_bytes"}
