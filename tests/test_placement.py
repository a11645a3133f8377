"""Where a reference goes: tables derived by hand, and shapes of 8 and 70 billion parameters."""

from __future__ import annotations

import itertools
import json
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils.modeling import check_device_map
from families import FAMILIES, configuration
from large_models import LLAMA_8B, LLAMA_70B, hollow, referred
from stores import write_groups
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from mrpo_tools.cache import Cache
from mrpo_tools.cli.precompute import _print_estimates
from mrpo_tools.errors import ResourceError, UsageError
from mrpo_tools.precomputing.estimate import estimate
from mrpo_tools.references.devices import local_processes
from mrpo_tools.references.loading import quiet_libraries
from mrpo_tools.references.resolved import resolve
from mrpo_tools.scorer.across import blocks_of
from mrpo_tools.scorer.loaded import load_reference
from mrpo_tools.scorer.memory import sizes_of
from mrpo_tools.scorer.placement import (
    STEP,
    Block,
    Need,
    Placement,
    bytes_of,
    placement,
    spread,
    too_large,
)
from mrpo_tools.scorer.room import place
from mrpo_tools.scorer.scorer import ResponseScorer

GB = 10**9
CPU = torch.device("cpu")
NEED = Need(
    tuple(Block((f"block {n}",), GB) for n in range(16)),
    ((8192, 3 * GB), (4096, 2 * GB), (2048, GB)),
)
"""16 GB in blocks of 1 GB; beside them a batch takes 3, 2 or 1 GB. A card of F GB has room for
0.95·F less the batch; a large one leaves no more than 3 GB."""


def gb(*sizes: float) -> list[int]:
    return [int(size * GB) for size in sizes]


@pytest.mark.parametrize(
    ("free", "words", "kind", "tokens", "held"),
    [
        # one card: 24 -> 22.8 − 3 = 19.8; 19 -> 18.05 − 3 < 16 ≤ 18.05 − 2; 18 -> 17.1 − 1
        ([24], {}, "one", 8192, {0: 16}),
        ([19], {}, "one", 4096, {0: 16}),
        ([18], {}, "one", 2048, {0: 16}),
        ([19, 80], {}, "one", 4096, {0: 16}),
        # two halves; a third card is left alone
        ([17.8, 17.8], {}, "across", 8192, {0: 8, 1: 8}),
        ([17.8, 17.8, 80], {}, "across", 8192, {0: 8, 1: 8}),
        # 13.91 and 0.8, 14.91 and 1.8, 15.91 and 2.8: 14 and 2 of the last
        ([17.8, 4], {}, "across", 2048, {0: 14, 1: 2}),
        # 6.5 each hold 6: three; the fullest is as empty as can be
        ([10, 10, 10], {}, "across", 8192, {0: 6, 1: 6, 2: 4}),
        # others use the first card
        ([0.5, 30], {}, "across", 8192, {1: 16}),
        ([4, 4], {}, "too large", 2048, {0: 0, 1: 0}),
        # asked: all cards, however few would do
        ([80], {"asked": True}, "one", 8192, {0: 16}),
        ([80, 80], {"asked": True}, "across", 8192, {0: 8, 1: 8}),
        ([80, 80, 80, 80], {"asked": True}, "across", 8192, {0: 4, 1: 4, 2: 4, 3: 4}),
        ([4, 4], {"asked": True}, "too large", 2048, {0: 0, 1: 0}),
        # limits are of weights, and taken as they are said
        ([80, 80], {"asked": True, "limits": {0: 4, 1: 20}}, "across", 8192, {0: 4, 1: 12}),
        ([80, 80], {"asked": True, "limits": {1: 20}}, "across", 8192, {1: 16}),
        ([80, 80], {"asked": True, "limits": {0: 4, 1: 11}}, "too large", 2048, {0: 0, 1: 0}),
        # of 6 GB one is for the layer that visits
        ([80], {"asked": True, "limits": {0: 6, "cpu": 20}}, "across", 8192, {0: 5, "cpu": 11}),
        ([80], {"asked": True, "limits": {0: 20, "cpu": 20}}, "one", 8192, {0: 16}),
        ([80], {"asked": True, "limits": {0: 6, "cpu": 10}}, "too large", 2048, {0: 0}),
        # nothing would compute them
        ([80], {"asked": True, "limits": {0: 1, "cpu": 20}}, "too large", 2048, {0: 0}),
        ([80, 80], {"asked": True, "limits": {0: 1, 1: 6, "cpu": 20}}, "too large", 2048,
         {0: 0, 1: 0}),
        ([80], {"asked": True, "limits": {"cpu": 20}}, "too large", 2048, {0: 0}),
    ],
)  # fmt: skip
def test_where_sixteen_gigabytes_go(free, words: Mapping[str, Any], kind, tokens, held):
    limits = {where: int(size * GB) for where, size in words.get("limits", {}).items()} or None
    placed = placement(NEED, gb(*free), asked=words.get("asked", False), limits=limits)
    assert (placed.kind, placed.batch_tokens) == (kind, tokens)
    assert {share.device: share.weights for share in placed.shares} == {
        device: size * GB for device, size in held.items()
    }
    assert placed.weights == 16 * GB
    assert placed.working == dict(NEED.working)[tokens]
    if kind != "across":
        assert placed.device_map is None
        return
    where = list(placed.device_map.values())
    assert list(placed.device_map) == [f"block {n}" for n in range(16)]
    order = [*sorted(device for device in held if device != "cpu"), "cpu"]
    assert where == sorted(where, key=order.index), "layers follow each other"
    assert {device: where.count(device) for device in held} == held


def test_one_card_is_asked_for_no_more_than_it_takes():
    """A block of 10 GB on cards of 9: nothing is split."""
    need = Need((Block(("a",), 10 * GB), Block(("b",), GB)), ((1024, 0),))
    assert placement(need, gb(9, 9, 9)).kind == "too large"
    placed = placement(need, gb(9, 11))
    assert placed.device_map == {"a": 1, "b": 1} or placed.kind == "too large"
    assert placement(need, gb(11, 9)).device_map == {"a": 0, "b": 1}


def test_spread_is_as_even_as_can_be():
    """Against all ways to cut a line of blocks; sizes are multiples of two steps, so that the best
    level is found exactly."""
    rng = random.Random(0)
    fitted = 0
    for _ in range(300):
        sizes = [2 * STEP * rng.randint(1, 6) for _ in range(rng.randint(1, 7))]
        rooms = [2 * STEP * rng.randint(0, 14) for _ in range(rng.randint(1, 3))]
        best = _best(sizes, rooms)
        places = spread(sizes, rooms)
        assert (places is None) == (best is None), (sizes, rooms)
        if places is not None:
            assert places == sorted(places)
            filled = _filled(sizes, places, len(rooms))
            assert all(used <= room for used, room in zip(filled, rooms, strict=True))
            assert max(filled) == best, (sizes, rooms)
            fitted += 1
    assert 50 < fitted < 290


def _filled(sizes: Sequence[int], places: Sequence[int], count: int) -> list[int]:
    return [
        sum(size for size, own in zip(sizes, places, strict=True) if own == place)
        for place in range(count)
    ]


def _best(sizes: Sequence[int], rooms: Sequence[int]) -> int | None:
    """The least that the fullest place can hold, by trying every way; None if there is none."""
    fullest = []
    for places in itertools.combinations_with_replacement(range(len(rooms)), len(sizes)):
        filled = _filled(sizes, places, len(rooms))
        if all(used <= room for used, room in zip(filled, rooms, strict=True)):
            fullest.append(max(filled))
    return min(fullest, default=None)


@pytest.mark.parametrize(
    ("said", "size"),
    [
        (17, 17), ("40GiB", 40 * 1024**3), ("40GB", 40 * 1000**3), ("1.5MiB", 3 * 2**19),
        ("10KB", 10_000), ("10KiB", 10_240), ("0.5MB", 500_000),
    ],
)  # fmt: skip
def test_sizes_are_read_as_accelerate_reads_them(said, size):
    from accelerate.utils import convert_file_size_to_int

    assert bytes_of(said) == size == convert_file_size_to_int(said)


def test_what_is_said_of_several_devices():
    placed = placement(NEED, gb(17.8, 17.8))
    assert placed.cards == 2
    assert placed.told == (
        "16.0 GB of weights over 2 GPUs, one layer after the other (GPU 0 8.0 of 17.8 GB free, "
        "GPU 1 8.0 of 17.8 GB free); batches of 8,192 tokens"
    )
    limited = placement(NEED, gb(80), asked=True, limits={0: 6 * GB, "cpu": 20 * GB})
    assert limited.cards == 1
    assert "over a GPU and the memory of the machine" in limited.told
    assert "the CPU 11.0 of 20.0 GB free" in limited.told
    assert limited.told.endswith("which is slow")


@pytest.mark.parametrize(
    ("free", "processes", "words"),
    [
        ([4], 1, "more than a GPU can give (4.0 GB free)"),
        ([4, 4], 1, "more than 2 GPUs together can give (4.0, 4.0 GB free)"),
        ([4], 8, "each of 8 processes has one, and a process that is started without torchrun"),
    ],
)
def test_what_is_said_of_a_model_that_is_too_large(free, processes, words):
    error = too_large("big", replace(placement(NEED, gb(*free)), processes=processes))
    assert isinstance(error, ResourceError)
    assert error.exit_code == 4
    assert "'big' takes 16.0 GB of weights and 1.0 GB for a batch of 2,048 tokens" in str(error)
    assert words in str(error)
    for way in ("nf4", "device_map: auto", "--stream-layers", "docs/large_references.md"):
        assert way in error.hint


# Blocks of models


SAMPLED = sorted(FAMILIES)[::12]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in SAMPLED else pytest.mark.long) for name in FAMILIES],
)
def test_blocks_are_all_of_a_model_and_what_accelerate_takes(name):
    """Every tensor has one place, no layer two, and accelerate's own check finds none missing."""
    quiet_libraries()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(configuration(name)).eval()
    blocks = blocks_of(model, sizes_of(ResponseScorer(model)))
    names = [name for block in blocks for name in block.names]
    assert len(names) == len(set(names))
    with warnings.catch_warnings(action="ignore"):  # it says so of parameters beside layers
        check_device_map(model, dict.fromkeys(names, 0))
    held: dict[int, int] = {}
    for tensor, full, block in _placed(model, blocks):
        assert held.setdefault(id(tensor), block) == block, f"{full} is tied to another block's"
    every = {id(tensor): tensor for _, tensor in _tensors(model)}
    assert held.keys() == every.keys()
    assert sum(block.size for block in blocks) == sum(t.nbytes for t in every.values())
    layers = [m for m in model.modules() if type(m).__name__ in (model._no_split_modules or ())]
    for layer in layers:
        assert len({held[id(tensor)] for tensor in layer.state_dict(keep_vars=True).values()}) <= 1


def _tensors(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]


def _placed(model, blocks):
    owners = {name: n for n, block in enumerate(blocks) for name in block.names}
    for full, tensor in _tensors(model):
        parts = full.split(".")
        own = [owners[p] for n in range(len(parts), 0, -1) if (p := ".".join(parts[:n])) in owners]
        assert len(own) == 1, full
        yield tensor, full, own[0]


def test_tied_embeddings_lie_with_the_head():
    config = configuration("qwen2")
    config.tie_word_embeddings = True
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    first, *others = blocks_of(model, sizes_of(ResponseScorer(model)))
    assert first.names == ("model.embed_tokens", "model.rotary_emb", "lm_head")
    assert [block.names for block in others] == [
        *((f"model.layers.{n}",) for n in range(4)), ("model.norm",),
    ]  # fmt: skip


# References


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("large")
    return {"8B": hollow(root / "8B", LLAMA_8B), "70B": hollow(root / "70B", LLAMA_70B)}


def placed(resolved: Any, *cards: float, processes: int = 1, cpu: float = 24) -> Placement:
    """Where it goes on a machine with GPUs that have so many GB free, or with none."""
    devices = [torch.device("cuda", n) for n in range(len(cards))]

    def free(device: torch.device) -> int:
        return int((cpu if device.type == "cpu" else cards[device.index]) * GB)

    return place(
        resolved, resolved.products, CPU, cards=devices, free=free, processes=processes
    )  # fmt: skip


def parameters(config: Any) -> dict[str, int]:
    """By hand, of a Llama: the ends, and a layer."""
    wide, narrow = config.hidden_size, config.hidden_size * config.num_key_value_heads
    narrow //= config.num_attention_heads
    layer = 2 * wide * wide + 2 * wide * narrow + 3 * wide * config.intermediate_size
    return {"end": config.vocab_size * wide, "layer": layer, "norms": 2 * wide}


@pytest.mark.parametrize(
    ("size", "words", "cards", "kind", "used"),
    [
        # 8.03 billion parameters: 16.1 GB, 32.1 in float32; 5.6 in NF4 with ends of 2.1
        ("8B", {}, [25.3], "one", 1),
        ("8B", {}, [84.5, 84.5], "one", 1),
        ("8B", {}, [12, 12], "across", 2),
        ("8B", {"quantization": "nf4"}, [12], "one", 1),
        ("8B", {"device_map": "auto"}, [84.5, 84.5], "across", 2),
        ("8B", {"device_map": "auto", "max_memory": {0: "4GB", 1: "40GB"}}, [84.5, 84.5],
         "across", 2),
        ("8B", {"dtype": "float32"}, [25.3, 25.3], "across", 2),
        # 70.55 billion: 141.1 GB; 39.3 in NF4 with ends of 4.2
        ("70B", {}, [84.5, 84.5], "across", 2),
        ("70B", {}, [84.5] * 8, "across", 2),
        ("70B", {"device_map": "auto"}, [84.5] * 8, "across", 8),
        ("70B", {}, [147.4], "one", 1),
        ("70B", {}, [147.1], "layers", 1),
        ("70B", {}, [84.5], "layers", 1),
        ("70B", {}, [25.3] * 4, "layers", 4),
        ("70B", {}, [25.3] * 8, "across", 7),
        ("70B", {"quantization": "nf4"}, [84.5], "one", 1),
        ("70B", {"quantization": "nf4"}, [25.3] * 4, "across", 2),
        ("70B", {"stream_layers": True}, [84.5, 84.5], "layers", 0),
        ("70B", {"stream_layers": False}, [84.5], "too large", 1),
        ("70B", {"device_map": "auto"}, [25.3] * 4, "too large", 4),
        # no GPU: 24 GB of the machine
        ("8B", {}, [], "one", 0),
        ("8B", {"dtype": "float32"}, [], "layers", 0),
        ("8B", {"dtype": "float32", "stream_layers": False}, [], "too large", 0),
        ("8B", {"dtype": "float32", "quantization": "nf4"}, [], "one", 0),
        ("70B", {}, [], "layers", 0),
        ("8B", {"device_map": "auto"}, [], "one", 0),
        ("8B", {"device_map": "auto", "max_memory": {"cpu": "10GB"}}, [], "too large", 0),
    ],
)  # fmt: skip
def test_where_a_reference_goes(large, size, words, cards, kind, used):
    """By the sizes above and a batch of 3.3 GB at most in float32 (self-check: 2,048 tokens × 12
    bytes × 128,256)."""
    found = placed(referred(large[size], **words), *cards)
    assert (found.kind, found.cards) == (kind, used), found


def test_blocks_have_the_bytes_of_their_parameters(large):
    """By hand: 2 bytes a parameter, layers of 0.86 billion."""
    found = placed(referred(large["70B"]), 84.5, 84.5)
    sizes, layers = parameters(LLAMA_70B), LLAMA_70B.num_hidden_layers
    every = 2 * sizes["end"] + layers * (sizes["layer"] + sizes["norms"]) + LLAMA_70B.hidden_size
    assert found.weights == pytest.approx(2 * every, rel=1e-6)  # but for rotary frequencies
    assert every == pytest.approx(70.55e9, rel=1e-3)
    halves = [share.weights for share in found.shares]
    assert sum(halves) == found.weights
    assert abs(halves[0] - halves[1]) <= 4 * sizes["layer"], "as even as layers are"
    assert found.device_map["model.embed_tokens"] == found.device_map["model.rotary_emb"] == 0
    assert found.device_map["lm_head"] == found.device_map["model.norm"] == 1
    assert len(found.device_map) == layers + 4


def test_quantised_layers_are_small_and_ends_are_not(large):
    """Half a byte, a byte in 64 and four in 64·256 for each weight of a layer's matrices."""
    found = placed(referred(large["70B"], quantization="nf4"), 84.5)
    sizes, layers = parameters(LLAMA_70B), LLAMA_70B.num_hidden_layers
    each = 1 / 2 + 1 / 64 + 4 / (64 * 256)
    expected = 4 * sizes["end"] + layers * sizes["layer"] * each
    assert found.weights == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("batch_tokens", [64, 4096])
def test_a_batch_that_is_said_is_not_made_smaller(large, batch_tokens):
    found = placed(referred(large["8B"], batch_tokens=batch_tokens), 84.5)
    assert (found.kind, found.batch_tokens) == ("one", batch_tokens)


def test_an_adapter_takes_room(large, tmp_path):
    """Twice its file of a gigabyte, of the 95 % of a card that are used."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    with (adapter / "adapter_model.safetensors").open("wb") as file:
        file.truncate(GB)
    bare = placed(referred(large["8B"]), 84.5)
    least = (bare.weights + bare.working) / 0.95 / GB  # below 60 GB
    assert not _is_one(large, least - 0.1, {})
    assert _is_one(large, least + 0.1, {})
    assert not _is_one(large, least + 2.0, {"adapter": str(adapter)})
    assert _is_one(large, least + 2.2, {"adapter": str(adapter)})


def _is_one(large, free: float, words: Mapping[str, Any]) -> bool:
    return placed(referred(large["8B"], **words), free).kind == "one"


def test_several_processes_have_a_card_each(large):
    """None of them takes a layer at a time by itself: one alone might have all GPUs."""
    found = placed(referred(large["70B"]), 84.5, 84.5, processes=2)
    assert (found.kind, found.cards, found.processes) == ("too large", 1, 2)
    assert placed(referred(large["8B"]), 84.5, 84.5, processes=2).kind == "one"
    words = {"stream_layers": True}
    assert placed(referred(large["70B"], **words), 84.5, 84.5, processes=2).kind == "layers"
    with pytest.raises(UsageError, match="2 processes of this machine have one each") as error:
        placed(referred(large["8B"], device_map="auto"), 84.5, 84.5, processes=2)
    assert "CUDA_VISIBLE_DEVICES" in error.value.hint


@pytest.mark.parametrize(
    ("cards", "words"), [([84.5] * 2, "names GPU 2, and 2 are seen"), ([], "and none is seen")]
)
def test_a_limit_of_an_absent_gpu_is_refused(large, cards, words):
    limited = referred(large["8B"], device_map="auto", max_memory={2: "40GB"})
    with pytest.raises(UsageError, match=words):
        placed(limited, *cards)


def test_a_server_is_asked_for_nothing(large):
    served = referred(large["70B"], server="http://127.0.0.1:9/v1", dtype="bfloat16")
    assert placed(served, 84.5).kind == "server"


def test_a_family_that_cannot_be_imagined_goes_where_it_went(tmp_path):
    """Alone it is tried on one device; its layers cannot be spread."""
    unknown = hollow(tmp_path / "unknown", LLAMA_8B)
    config = json.loads((unknown / "config.json").read_text())
    (unknown / "config.json").write_text(json.dumps({**config, "model_type": "unheard-of"}))
    assert placed(referred(unknown), 12, 12) == Placement("one")
    with pytest.raises(UsageError, match="the layers of 'big' cannot be told apart"):
        placed(referred(unknown, device_map="auto"), 12, 12)


def test_experts_that_cannot_be_imagined_have_weights_all_the_same(tmp_path):
    """In float32 torch cannot say what their grouped products would be; 940 GB are too large for
    24 for all that."""
    experts = Qwen3MoeConfig(
        vocab_size=151936, hidden_size=4096, num_hidden_layers=94, num_attention_heads=64,
        num_key_value_heads=4, head_dim=128, num_experts=128, num_experts_per_tok=8,
        moe_intermediate_size=1536,
    )  # fmt: skip
    large = hollow(tmp_path / "experts", experts)
    found = placed(referred(large, dtype="float32"))
    assert found.kind == "layers"
    assert found.weights == pytest.approx(4 * 235.1e9, rel=1e-3)
    # layers of 5.0 GB, 15 of them in 84.5 − 3 − 3.7 GB: seven cards for 94
    assert placed(referred(large), *[84.5] * 8).cards == 7
    small = placed(referred(large, quantization="nf4"), *[84.5] * 8)
    assert small.weights > 450 * GB, "experts that are one tensor stay as they are"


def test_a_tiny_model_goes_where_there_is_room(references):
    """On the CPU the free memory is asked once, and only of this machine."""
    resolved = resolve("llama", references["llama"])
    assert placed(resolved).kind == "one"
    assert placed(resolved, 80, 80).kind == "one"
    assert placed(resolved, cpu=0.0).kind == "layers"
    assert placed(resolved, 0.0, 0.0).kind == "layers"


@pytest.mark.parametrize(
    ("found", "error", "words"),
    [
        (Placement("too large"), ResourceError, "more than this machine can give"),
        (Placement("layers"), UsageError, "read a layer at a time here"),
        (Placement("server"), UsageError, "behind a server"),
    ],
)
def test_what_is_never_loaded_whole_is_refused(references, found, error, words):
    """Sampling and benchmarks ask for a whole model."""
    with pytest.raises(error, match=words):
        load_reference(resolve("llama", references["llama"]), "float32", CPU, found)


# The command


def on_cards(*cards: float) -> Any:
    """`place` on a machine that has them."""
    return lambda resolved, _products, _device: placed(resolved, *cards)


@pytest.mark.parametrize(
    ("cards", "words", "expected"),
    [
        ([10.0], {}, "GPU 0 0.0 of 10.0 GB free"),
        ([], {}, None),
        ([0.0, 10.0], {}, "over a GPU, one layer after the other (GPU 1 0.0 of 10.0 GB free)"),
        ([0.0, 0.0], {"stream_layers": False}, "more than 2 GPUs together can give (0.0, 0.0 GB"),
        ([0.0, 0.0], {}, "a layer at a time: about "),
    ],
)
def test_a_dry_run_says_what_each_gpu_would_hold(
    references, some_groups, tmp_path, capsys, cards, words, expected
):
    resolved = resolve("llama", references["llama"].model_copy(update=words))
    found = estimate(resolved, some_groups[:2], Cache(tmp_path), find=on_cards(*cards))
    assert expected is None if found.where is None else expected in found.where
    _print_estimates([found], as_json=False)
    printed = capsys.readouterr().out
    assert (expected or "GPU") in printed if expected else "GPU" not in printed
    _print_estimates([found], as_json=True)
    assert json.loads(capsys.readouterr().out)[0]["where"] == found.where


@pytest.mark.parametrize(
    ("words", "options", "expected"),
    [
        ("max_memory: {0: 40GiB}", "", "max_memory goes with device_map: auto alone"),
        ("device_map: auto, stream_layers: true", "", "are two ways: one of them"),
        ("stream_layers: true", "--device-map auto", "are two ways: one of them"),
        ("device_map: auto, server: http://127.0.0.1:9, dtype: bfloat16", "",
         "device_map is of weights that are loaded here"),
        ("device_map: auto, max_memory: {0: lots}", "", "max_memory"),
        ("device_map: auto, max_memory: {disk: 40GiB}", "", "max_memory"),
        ("device_map: auto, max_memory: {}", "", "max_memory"),
        ("device_map: balanced", "", "device_map"),
        ("device_map: auto, max_memory: {1: 40GiB}", "",
         "max_memory of 'llama' names GPU 1, and none is seen"),
    ],
)  # fmt: skip
def test_words_that_cannot_be_are_refused_before_anything_is_written(
    here, mrpo, references, some_groups, words, options, expected
):
    write_groups(here / "data.jsonl", some_groups[:2])
    model = references["llama"].model
    (here / "mrpo.yaml").write_text(f"references: {{llama: {{model: {model}, {words}}}}}")
    for dry in ("--dry-run", ""):
        err = mrpo(f"precompute --ref llama --dataset data.jsonl {options} {dry}", 2).err
        assert expected in err
        assert "Traceback" not in err
        assert not list(here.rglob("part-*"))


def test_a_device_map_changes_no_identity(here, mrpo, references, some_groups):
    """Numbers that were computed without it are not computed again; on a CPU there is one device,
    and enough of its memory."""
    write_groups(here / "data.jsonl", some_groups[:3])
    model = references["llama"].model
    line = f"precompute --ref llama={model} --dtype float32 --dataset data.jsonl --json"
    [before] = json.loads(mrpo(line).out)
    (here / "mrpo.yaml").write_text(
        f"references: {{llama: {{model: {model}, dtype: float32, device_map: auto, "
        "max_memory: {cpu: 1GiB}}}"
    )
    [after] = json.loads(mrpo("precompute --ref llama --dataset data.jsonl --json").out)
    assert (after["identity"], after["scored"]) == (before["identity"], 0)
    assert after["reused"] == before["scored"] > 0


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({}, 1),
        ({"RANK": "1", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, 4),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, 1),
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, 4),
        ({"RANK": "1", "WORLD_SIZE": "4"}, 1),  # one process a machine
        ({"RANK": "0", "LOCAL_RANK": "0"}, 1),
    ],
)
def test_processes_of_one_machine(environment, count):
    """Of two machines with a process each, each may take all GPUs of its own."""
    assert local_processes(environment) == count
