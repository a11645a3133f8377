"""A layer at a time: the numbers of the model in memory in any sweep, or a refusal and why."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from families import CPU, EXACT, FAMILIES, OTHERS, SAMPLES, tiny_model
from independent import response_logp
from pydantic import ValidationError
from small_data import ROOT, run_script
from stores import logps_of
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
)
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from mrpo_tools.cache import Cache
from mrpo_tools.config import Reference
from mrpo_tools.errors import ResourceError, UsageError
from mrpo_tools.groups import user_prompt
from mrpo_tools.precomputing.estimate import estimate
from mrpo_tools.precomputing.precompute import precompute
from mrpo_tools.references.identity import Identity
from mrpo_tools.references.loading import load_reward_model
from mrpo_tools.references.model_files import ModelFiles
from mrpo_tools.references.resolved import ResolvedReference, resolve
from mrpo_tools.sampling import Sampler
from mrpo_tools.scorer.loaded import load_reference
from mrpo_tools.scorer.pace import CHECKS, LEAST, MARGIN, PATIENCE, Pace
from mrpo_tools.scorer.placement import Placement
from mrpo_tools.scorer.room import place
from mrpo_tools.scorer.streamed import StreamedReference
from mrpo_tools.scorer.trees import Row

EVERY_TIME = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "mixtral", "phi3")
MORE = "its layers give more than hidden states"
NUMBERED = "each named by its number"
ALONE = "a layer cannot compute alone"
REFUSED = {
    "big_bird": ALONE, "bloom": MORE, "codegen": MORE, "deepseek_v4": "cannot be loaded",
    "gemma3n_text": ALONE, "glm_moe_dsa": MORE, "gpt_neo": MORE, "gpt_neox_japanese": MORE,
    "gptj": MORE, "hrm_text": NUMBERED, "hy_v4": MORE, "inkling2_text": "lack 1 tensors",
    "longcat_flash": NUMBERED, "megatron-bert": MORE, "modernbert-decoder": "has 0 lists",
    "mpt": MORE, "reformer": ALONE, "rembert": MORE, "roformer": MORE, "xlm": NUMBERED,
    "xlstm": MORE, "zaya": MORE,
}  # fmt: skip
"""Families whose layers cannot compute one by one, and what is said of them."""


def saved(model: Any, folder: Path, dtype: str = "float32", **words: Any) -> ResolvedReference:
    """A model as a reference, from its files."""
    model.save_pretrained(folder)
    reference = Reference(model=str(folder), dtype=dtype, **words)
    return ResolvedReference("it", reference, ModelFiles(folder), dtype, Identity({}), ())


def streamed(resolved: ResolvedReference, **more: Any) -> StreamedReference:
    return StreamedReference(resolved, resolved.dtype, CPU, **more)


def by_key(engine: Any, max_tokens: int = 100) -> dict[int, float]:
    """The log-probs of `OTHERS`, by response."""
    return {
        key: logp
        for batch, logps in engine.computed(engine.batches(OTHERS, max_tokens))
        for key, logp in zip((key for row in batch for key in row.keys), logps, strict=True)
    }


def lengths() -> dict[int, int]:
    return {
        key: len(response)
        for row in OTHERS
        for key, response in zip(row.keys, row.responses, strict=True)
    }


@torch.no_grad()
def truth_of(model: Any) -> dict[int, float]:
    """The same by the model's own logits, one row at a time, sharing no code."""
    return {
        key: float(response_logp(model, row.prompt, response))
        for row in OTHERS
        for key, response in zip(row.keys, row.responses, strict=True)
    }


def apart(first: dict[int, float], second: dict[int, float]) -> float:
    """The largest difference, nats a token."""
    return max(abs(first[key] - second[key]) / length for key, length in lengths().items())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in EVERY_TIME else pytest.mark.long)
        for name in FAMILIES
        if name not in REFUSED
    ],
)
def test_numbers_are_those_of_the_model_in_memory(name, tmp_path):
    """To 1e-5 nats a token from the model's own logits; by another route than in memory never."""
    model = tiny_model(name)
    resolved = saved(model, tmp_path)
    engine, whole = streamed(resolved), load_reference(resolved, "float32", CPU)
    routes = [each.self_check(SAMPLES["several"]).route for each in (engine, whole)]
    assert routes[0] == routes[1]
    assert apart(by_key(engine), truth_of(model)) <= EXACT


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("gptj", "hrm_text") else pytest.mark.long)
        for name in REFUSED
    ],
)
def test_other_families_are_refused_with_a_reason(name, tmp_path):
    resolved = saved(tiny_model(name), tmp_path)
    with pytest.raises(UsageError, match=REFUSED[name]):
        streamed(resolved).self_check(SAMPLES["several"])


@pytest.mark.parametrize("name", ["llama", "mixtral", "gemma2"])
@pytest.mark.parametrize(
    ("dtype", "quantization"),
    [("bfloat16", None), ("float16", None), ("float32", "nf4"), ("bfloat16", "nf4")],
)
def test_in_fewer_bits_each_number_is_the_same_to_the_last(name, dtype, quantization, tmp_path):
    """Weights in NF4 are quantised layer by layer as in the whole model, and stay in 4 bits."""
    resolved = saved(tiny_model(name), tmp_path, dtype, quantization=quantization)
    engine, whole = streamed(resolved), load_reference(resolved, dtype, CPU)
    assert engine.self_check(SAMPLES["several"]) == whole.self_check(SAMPLES["several"])
    assert by_key(engine) == by_key(whole)
    made = engine.layered.layer_of(engine.layered.made(1, engine.layered.read(1)))
    kinds = {parameter.dtype for name, parameter in made.named_parameters() if "self_attn" in name}
    assert (torch.uint8 in kinds) == (quantization is not None)


def test_a_swapped_layer_would_show(tmp_path):
    """The check above is not blind: layers in another order are another model."""

    class Swapped(StreamedReference):
        def _load(self, place: int) -> Any:
            return super()._load({1: 2, 2: 1}.get(place, place))

    model = tiny_model("llama")
    engine = Swapped(saved(model, tmp_path), "float32", CPU)
    assert apart(by_key(engine), truth_of(model)) > 1000 * EXACT


@pytest.mark.parametrize("room", [{"cpu": 0}, {"cpu": 20_000}, {"cpu": 1e9}])
def test_hidden_states_may_lie_in_a_file(room, tmp_path):
    resolved = saved(tiny_model("llama"), tmp_path)
    assert by_key(streamed(resolved, room=room)) == by_key(streamed(resolved))


# decoders that are more than layers one after the other


class Planted(LlamaConfig):
    model_type = "planted_llama"


class PlantedLayer(LlamaDecoderLayer):
    """Tells those after it that it was here, if it is asked to."""

    def forward(self, *args: Any, seen: Any = None, **kwargs: Any) -> Any:
        if seen is not None:
            seen[len(seen)] = self
        return super().forward(*args, **kwargs)


class PlantedModel(LlamaModel):
    """A Llama whose decoder has a fault of its configuration's choice."""

    config_class = Planted

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(
            PlantedLayer(config, place) for place in range(config.num_hidden_layers)
        )

    def forward(self, input_ids: Any = None, position_ids: Any = None, **kwargs: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPast

        states = self.embed_tokens(input_ids)
        if position_ids is None:
            position_ids = torch.arange(states.shape[1])[None]
        given: dict[str, Any] = {"position_embeddings": self.rotary_emb(states, position_ids)}
        layers = list(self.layers)
        match self.config.fault:
            case "twice":
                layers = [layer for layer in layers for _ in range(2)]
            case "left out":
                layers = layers[:-1]
            case "other order":
                layers = layers[::-1]
            case "handed on":
                given["seen"] = {}
        for layer in layers:
            states = layer(states, **given)
            if self.config.fault == "between":
                states = states * 1.5
        return BaseModelOutputWithPast(last_hidden_state=self.norm(states))


class PlantedLM(LlamaForCausalLM):
    config_class = Planted

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = PlantedModel(config)


AutoConfig.register("planted_llama", Planted)
AutoModelForCausalLM.register(Planted, PlantedLM)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("between", "do not take each other's hidden states as they are"),
        ("twice", "not take each other's|entered"),
        ("left out", "layer 3 is never entered"),
        ("other order", "not take each other's|entered"),
        ("handed on", "hand each other more than hidden states"),
    ],
)
def test_a_decoder_that_does_more_is_refused(fault, reason, tmp_path):
    torch.manual_seed(0)
    config = Planted(vocab_size=200, hidden_size=32, intermediate_size=64, num_hidden_layers=4,
                     num_attention_heads=4, head_dim=8, fault=fault)  # fmt: skip
    resolved = saved(PlantedLM(config), tmp_path, attention="eager")
    with pytest.raises(UsageError, match=f"cannot be computed a layer at a time: .*({reason})"):
        by_key(streamed(resolved))


# phase 1


@pytest.fixture
def llama(references) -> Reference:
    return references["llama"]


def layered(reference: Reference, **words: Any) -> dict[str, Reference]:
    return {"llama": reference.model_copy(update={"stream_layers": True, **words})}


def rows_of(cache: Cache) -> list[dict[str, Any]]:
    return sorted(cache.find("llama").table().to_pylist(), key=lambda row: row["response_id"])


def test_every_sweep_gives_the_same_parts_under_the_same_identity(llama, some_groups, tmp_path):
    """Rows are equal to the last bit, so that a run may go on by the other way."""
    found = []
    ways = [{"stream_layers": False}, *({"sweep_tokens": size} for size in (16, 300, 10**6))]
    for number, words in enumerate(ways):
        cache = Cache(tmp_path / str(number))
        precompute(layered(llama, **words), some_groups, cache, "some")
        found.append((cache.find("llama").identity.hash, rows_of(cache)))
    assert all(each == found[0] for each in found)
    halves = Cache(tmp_path / "halves")
    first, rest = some_groups[:15], some_groups
    precompute(layered(llama, stream_layers=False), first, halves, "some")
    [summary] = precompute(layered(llama), rest, halves, "some")
    assert (summary.reused > 0, rows_of(halves)) == (True, found[0][1])
    [again] = precompute(layered(llama), rest, halves, "some")
    assert again.computed.total() == 0


def test_the_record_says_by_which_way(llama, some_groups, tmp_path):
    cache = Cache(tmp_path)
    precompute(layered(llama), some_groups[:4], cache, "some")
    [part] = (tmp_path).rglob("part-*.parquet")
    assert "cpu, a layer at a time" in part.read_bytes().decode("latin-1")


class Killed(StreamedReference):
    """Ends like a process that is killed, at a reading of the weights."""

    readings, last = 0, 0

    def _load(self, place: int) -> Any:
        self.readings += 1
        if self.readings == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._load(place)


KILL = """
    import sys
    from pathlib import Path

    sys.path.insert(0, {tests!r})
    from test_streamed import Killed

    from mrpo_tools.cache import Cache
    from mrpo_tools.config import Reference
    from mrpo_tools.precomputing.precompute import precompute
    from mrpo_tools.sources import load_groups

    def load(resolved, products, device):
        engine = Killed(resolved, products, device, 64)
        engine.last = {last}
        return engine

    groups = load_groups({data!r}).groups
    words = {{"llama": Reference(model={model!r}, dtype="float32", batch_tokens=64)}}
    precompute(words, groups, Cache(Path({cache!r})), "some", load=load, part_rows=8)
"""


def test_a_killed_run_goes_on_with_what_it_has(llama, some_groups, tmp_path):
    """SIGKILL in the middle of sweeps: parts stay, the rest is computed, and the rows are those of
    a run in memory."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(group.as_dict()) + "\n" for group in some_groups))
    cache = Cache(tmp_path / "killed")
    kept = [0]
    for last in (16, 17):
        script = KILL.format(tests=str(ROOT / "tests"), last=last, data=str(data),
                             model=llama.model, cache=str(cache.path))  # fmt: skip
        with pytest.raises(AssertionError):
            run_script(script)
        kept.append(len(logps_of(cache, "llama")))
    assert kept == sorted(set(kept)), kept
    [summary] = precompute(layered(llama), some_groups, cache, "some")
    assert summary.reused == kept[-1]
    whole = Cache(tmp_path / "whole")
    precompute({"llama": llama}, some_groups, whole, "some")
    assert logps_of(cache, "llama") == pytest.approx(logps_of(whole, "llama"), abs=1e-5)
    assert cache.find("llama").identity == whole.find("llama").identity


class Broken(StreamedReference):
    """Its files change in the middle of a run."""

    readings = 0

    def _load(self, place: int) -> Any:
        self.readings += 1
        if self.readings == 20:
            self.change()
        return super()._load(place)

    def change(self) -> None:
        [shard] = self.layered.resolved.files.model.glob("*.safetensors")
        self.damage(shard)

    damage: Any = None


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        (lambda shard: os.truncate(shard, shard.stat().st_size // 2), UsageError,
         r"model.safetensors ends inside tensor model.layers.\d+"),
        (lambda shard: shard.unlink(), ResourceError, "cannot be read: No such file"),
        (lambda shard: (shard.unlink(), shard.mkdir()), ResourceError,
         "cannot be read: Is a directory"),
    ],
)  # fmt: skip
def test_a_file_that_breaks_in_the_middle_costs_nothing_that_is_kept(
    damage, kind, words, model, some_groups, tmp_path
):
    reference = Reference(model=str(model), dtype="float32", batch_tokens=64, stream_layers=True)
    cache = Cache(tmp_path / "cache")

    def load(resolved: Any, products: str, device: Any) -> Any:
        broken = type("Broken", (Broken,), {"damage": staticmethod(damage)})
        return broken(resolved, products, device, 64)

    whole = (model / "model.safetensors").read_bytes()
    with pytest.raises(kind, match=words):
        precompute({"llama": reference}, some_groups, cache, "some", load=load, part_rows=8)
    kept = len(logps_of(cache, "llama"))
    assert kept > 0
    path = model / "model.safetensors"
    if path.is_dir():
        path.rmdir()
    path.write_bytes(whole)
    [summary] = precompute({"llama": reference}, some_groups, cache, "some")
    assert summary.reused == kept
    assert len(logps_of(cache, "llama")) == sum(len(group.responses) for group in some_groups)


# memory

LARGE = """
    import resource
    import sys

    import psutil
    import torch

    from mrpo_tools.cli import run

    tiny, large, data, cache, left, *words = sys.argv[1:]
    torch.set_num_threads(1)
    line = ["precompute", "--dtype", "float32", "--dataset", data, "--cache"]
    for place, more in enumerate(([], ["--stream-layers"])):  # what every run takes is there then
        assert run([*line, f"{cache}{place}", "--ref", f"large={tiny}", *more]) == 0
    limit = psutil.Process().memory_info().data + int(left)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    print("exit code", run([*line, cache, "--ref", f"large={large}", *words]))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory, tiny_models) -> Path:
    """A Llama of 134 MB in 32 layers, and a tenth of that at its ends."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("large")
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["llama"])
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=256, intermediate_size=1024,
                         num_hidden_layers=32, num_attention_heads=8,
                         max_position_embeddings=512)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def attempt(large, tiny_models, some_groups, tmp_path):
    """`mrpo precompute` in a process that may take so many bytes more than one does anyway."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(group.as_dict()) + "\n" for group in some_groups[:8]))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                   "MALLOC_ARENA_MAX": "1"}  # fmt: skip

    def run(cache: Path, left: int, *words: str) -> Any:
        command = [sys.executable, "-c", textwrap.dedent(LARGE), tiny_models["llama"], large, data,
                   cache, str(left), *words]  # fmt: skip
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.mark.skipif(sys.platform != "linux", reason="limits of data are Linux's")
def test_a_model_of_four_times_the_memory(large, attempt, some_groups, tmp_path):
    """It is streamed by itself, and says so; in memory it is refused before it is tried."""
    left = (large / "model.safetensors").stat().st_size // 4
    refused = attempt(tmp_path / "a", left, "--no-stream-layers")
    assert "exit code 4" in refused.stdout, refused.stderr
    assert "than this machine can give" in refused.stderr
    passed = attempt(tmp_path / "b", left)
    assert "exit code 0" in passed.stdout, passed.stderr
    assert "it is computed a layer at a time" in passed.stderr
    assert re.search(r"about \d+ passes over the weights \([\d.,]+ [MG]B read\)", passed.stderr)
    whole, layers = Cache(tmp_path / "c"), Cache(tmp_path / "b")
    reference = Reference(model=str(large), dtype="float32")
    precompute({"large": reference}, some_groups[:8], whole, "some")
    assert whole.find("large").identity == layers.find("large").identity
    first, second = (logps_of(cache, "large") for cache in (whole, layers))
    assert first == pytest.approx(second, abs=1e-4)
    assert len(first) == sum(len(group.responses) for group in some_groups[:8])


def test_two_layers_are_in_memory_and_no_third(tmp_path):
    """Nothing waits for the collector of cycles."""
    weights: list[weakref.ref[Any]] = []
    most = 0

    class Watched(StreamedReference):
        def _load(self, place: int) -> Any:
            nonlocal most
            made = super()._load(place)
            weights.append(weakref.ref(self.layered.layer_of(made).mlp.up_proj.weight))
            most = max(most, sum(weight() is not None for weight in weights))
            return made

    engine = Watched(saved(tiny_model("llama"), tmp_path), "float32", CPU, 16)
    gc.collect()
    gc.disable()
    try:
        by_key(engine)
    finally:
        gc.enable()
    assert (most, len(weights) >= 12) == (2, True)


def test_batches_are_as_large_as_there_is_room(large):
    """Beside the ends and some layers: 2,048 tokens in 100 MB, a quarter in none; where the whole
    model would fit, nothing is reckoned."""
    resolved = resolve("large", Reference(model=str(large), dtype="float32", stream_layers=True))
    found = [
        place(resolved, "float32", CPU, cards=[], free=lambda _, free=free: free)
        for free in (10**9, 10**8, 10**6)
    ]
    assert {each.kind for each in found} == {"layers"}
    assert [each.batch_tokens for each in found] == [None, 2048, 512]
    engine = StreamedReference(resolved, "float32", CPU, batch_tokens=512)
    trees = [Row([1] * 100, [[2] * 100], [key]) for key in range(20)]
    assert max(sum(map(len, batch)) for batch in engine.batches(trees, None)) <= 512
    assert max(sum(map(len, batch)) for batch in engine.batches(trees, 1000)) > 512


# plans


def test_a_pace_by_hand():
    """100 bytes in 2 s and 1000 tokens in 4 s: 50 bytes/s, 4 ms a token. 4000 bytes of layers take
    80 s, in which 20,000 tokens are computed."""
    pace = Pace(4000)
    assert pace.tokens == LEAST
    pace.has_read(60, 1.0)
    pace.has_read(40, 1.0)
    pace.has_computed(500, 9.0)
    pace.has_computed(1000, 4.0)
    assert pace.read_seconds == pytest.approx(80)
    assert pace.break_even == pytest.approx(20_000)
    assert pace.tokens == round(MARGIN * 20_000)
    plan = pace.plan(100_000)  # of 40,000: two and a half, a reading for each
    assert (plan.sweeps, plan.passes, plan.bytes_read) == (3, 3 + CHECKS, 4000 * (3 + CHECKS))
    assert plan.seconds == pytest.approx(CHECKS * 80 + 100_000 * 0.004)
    assert pace.plan(100_000, 20).seconds == pytest.approx(CHECKS * 80 + 20 * 80)  # the disk's
    assert Pace(4000, 16).tokens == 16
    slow = Pace(4000)
    slow.has_read(100, 2.0)
    slow.has_computed(1000, 80.0)  # 12.5 tokens/s: a sweep of twice the break-even takes 160 s
    assert slow.tokens == max(LEAST, round(min(2 * 1000, max(1000, PATIENCE * 12.5))))


def test_a_sweep_has_its_tokens_or_a_batch_more():
    batches = [[Row([1] * 6, [[1] * 4], [0])]] * 10
    sizes = [len(sweep) for sweep in Pace(1, 25).sweeps(iter(batches))]
    assert sizes == [3, 3, 3, 1]


def test_a_dry_run_tells_the_passes_that_are_made(llama, some_groups, tmp_path):
    """Of sweeps of a given size; the memory is that of the ends and of layers, not of the model."""
    [words] = layered(llama, sweep_tokens=300, batch_tokens=64).values()
    resolved, cache = resolve("llama", words), Cache(tmp_path)
    found = estimate(resolved, some_groups, cache)
    assert found.sweeps is not None
    sweeps: list[int] = []

    class Counted(StreamedReference):
        def run(self, passes: Any) -> Any:
            sweeps.extend([len(passes)] if passes else [])
            return super().run(passes)

    def load(resolved: Any, products: str, device: Any) -> Any:
        return Counted(resolved, products, device, 300)

    precompute({"llama": words}, some_groups, cache, "some", load=load)
    assert len(sweeps) == found.sweeps.passes - 1  # in 16 bits the self-check makes one more
    whole = estimate(resolve("llama", llama), some_groups, Cache(tmp_path / "other"))
    assert whole.sweeps is None
    assert found.sweeps.bytes_read % found.sweeps.passes == 0


def test_a_dry_run_plans_the_batches_that_fit(llama, some_groups, tmp_path):
    """All tokens are one batch, and so one sweep, until less room cuts them."""
    resolved = resolve("llama", layered(llama, sweep_tokens=300)["llama"])
    found = [
        estimate(resolved, some_groups, Cache(tmp_path), find=lambda *_, p=placed: p).sweeps
        for placed in (Placement("layers"), Placement("layers", 64))
    ]
    assert [each and each.sweeps > 1 for each in found] == [False, True]


def test_a_dry_run_of_a_large_model_has_not_its_memory(large, tmp_path, some_groups):
    words = Reference(model=str(large), dtype="float32", stream_layers=True, sweep_tokens=64)
    found = estimate(resolve("large", words), some_groups, Cache(tmp_path))
    size = (large / "model.safetensors").stat().st_size
    assert size / 32 * 3 < found.weights_bytes < size / 4
    assert found.sweeps is not None
    assert found.sweeps.bytes_read > 0.9 * size * found.sweeps.passes


# where it does not go


def test_what_is_no_reference_is_refused(llama, tmp_path):
    words = llama.model_copy(update={"stream_layers": True})
    with pytest.raises(UsageError, match=r"stream_layers is for references, and .* reward"):
        load_reward_model(ModelFiles(Path(llama.model)), words, "float32", CPU)
    with pytest.raises(UsageError, match="time here, which gives log-probs of responses alone"):
        Sampler(resolve("llama", words)).sample([user_prompt("a question")])
    with pytest.raises(ValidationError, match="device_map and stream_layers are two ways"):
        Reference(model="m", device_map="auto", stream_layers=True)


def test_an_adapter_is_refused_with_the_command(llama, tmp_path, some_groups):
    (tmp_path / "adapter_config.json").write_text("{}")
    resolved = resolve("llama", llama)
    files = ModelFiles(resolved.files.model, adapter=tmp_path)
    with pytest.raises(UsageError, match="it has an adapter") as refused:
        StreamedReference(dataclasses.replace(resolved, files=files), "float32", CPU)
    assert "mrpo merge" in refused.value.hint
