"""A reference whose layers lie on several devices gives the numbers of the whole one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from families import EXACT, FAMILIES, OTHERS, SAMPLES
from independent import response_logp
from peft import LoraConfig, get_peft_model
from stores import write_groups
from transformers import AutoModelForCausalLM

from mrpo_tools.cache import Cache
from mrpo_tools.errors import UsageError
from mrpo_tools.precomputing.precompute import precompute
from mrpo_tools.precomputing.rescore import rescore
from mrpo_tools.references.loading import load_model
from mrpo_tools.references.resolved import resolve
from mrpo_tools.scorer.across import blocks_of, devices_of
from mrpo_tools.scorer.loaded import LoadedReference, load_reference
from mrpo_tools.scorer.memory import sizes_of
from mrpo_tools.scorer.placement import Placement, Share
from mrpo_tools.scorer.scorer import ROUTES, ResponseScorer, response_logps

CPU = torch.device("cpu")
SAME = 1e-6
"""nats a token between the same operations on the same device, wherever weights wait."""
HERE = Path(__file__).parent

# Weights that wait on disk: accelerate's hooks on the CPU


def offloaded(
    resolved: Any, folder: Path, change: Callable[[Any], None] | None = None
) -> LoadedReference:
    """Every other block on disk, the head among them."""
    model = load_model(resolved.files, resolved.reference, "float32", CPU)
    if change is not None:
        change(model)
    blocks = blocks_of(model, sizes_of(ResponseScorer(model)))
    places = {
        name: "disk" if (len(blocks) - n) % 2 else "cpu"
        for n, block in enumerate(blocks)
        for name in block.names
    }
    dispatch_model(model, places, offload_dir=str(folder))
    model.hf_device_map = places
    return LoadedReference(ResponseScorer(model), CPU)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen"])
def test_weights_on_disk_give_the_numbers_of_the_whole(references, name, tmp_path):
    """Every route, against one row at a time of the model in memory."""
    resolved = resolve(name, references[name])
    whole = load_model(resolved.files, resolved.reference, "float32", CPU)
    plain = ResponseScorer(load_model(resolved.files, resolved.reference, "float32", CPU))
    there = offloaded(resolved, tmp_path)
    on_disk = [w for w in there.scorer.parameters() if w.device.type == "meta"]
    assert 0 < len(on_disk) < len(list(there.scorer.parameters()))
    assert devices_of(there.scorer.causal_lm) == (CPU,)
    assert there.useful_flops(10, 5) == plain.useful_flops(10, 5)
    with torch.no_grad():
        truth = {
            key: float(response_logp(whole, tree.prompt, response))
            for tree in OTHERS
            for key, response in zip(tree.keys, tree.responses, strict=True)
        }
    lengths = {
        key: len(ids) for tree in OTHERS for key, ids in zip(tree.keys, tree.responses, strict=True)
    }
    for route in ROUTES:
        plain.take(route)
        there.scorer.take(route)
        for batch in plain.batches(OTHERS, 300):
            keys = [key for row in batch for key in row.keys]
            logps = zip(
                keys, response_logps(plain, batch, CPU), there.logps(batch), strict=True
            )  # fmt: skip
            for key, own, other in logps:
                assert abs(own - other) / lengths[key] < SAME, route
                assert abs(truth[key] - other) / lengths[key] < EXACT, route
    checked = there.self_check(SAMPLES["several"])
    assert (checked.route, dict(checked.refused)) == (ROUTES[0], {})


def test_phase_1_with_weights_on_disk_fills_the_same_cache(
    references, cached, some_groups, tmp_path
):
    """Same identity, same numbers; nothing is left to compute where the whole model has been."""
    load = _loading(tmp_path / "weights")
    summary = precompute(
        {"llama": references["llama"]}, some_groups, Cache(tmp_path / "cache"), "some", load=load
    )[0]
    whole = cached.find("llama")
    assert summary.store.identity == whole.identity
    worst = _worst(summary.store, whole)
    assert worst < SAME
    nothing = precompute({"llama": references["llama"]}, some_groups, cached, "some", load=load)[0]
    assert not nothing.computed


def _loading(folder: Path, change: Callable[[Any], None] | None = None) -> Any:
    folder.mkdir()
    return lambda resolved, _dtype, _device: offloaded(resolved, folder, change)


def _worst(some: Any, others: Any) -> float:
    """The largest difference between two stores of the same rows, in nats a token."""
    (left, lengths), (right, _) = map(_numbers, (some, others))
    assert left.keys() == right.keys()
    return max(abs(left[key] - right[key]) / lengths[key] for key in left)


def _numbers(store: Any) -> tuple[dict[str, float], dict[str, int]]:
    table = store.table().to_pydict()
    keys = table["response_id"]
    return (
        dict(zip(keys, table["logp"], strict=True)),
        dict(zip(keys, table["num_tokens"], strict=True)),
    )


def test_swapped_layers_are_seen(references, cached, some_groups, tmp_path):
    """Each layer's weights in the other's place: every route agrees with that model, and so does
    the self-check; rescoring against a sound cache tells."""
    resolved = resolve("llama", references["llama"])
    swapped = _loading(tmp_path / "swapped", _swap)
    sound = rescore(cached, cached.find("llama"), resolved, 4, load=_loading(tmp_path / "sound"))
    assert sound.beyond is None
    assert sound.per_token < EXACT
    wrong = rescore(cached, cached.find("llama"), resolved, 4, load=swapped)
    assert wrong.beyond is not None
    assert wrong.per_token > 1000 * EXACT


def _swap(model: Any) -> None:
    layers = model.model.layers
    layers[0].mlp, layers[1].mlp = layers[1].mlp, layers[0].mlp


def test_a_map_is_loaded_told_and_its_batch_kept(references, capsys):
    """All modules by name, in the memory of the machine: what a map of one place is."""
    resolved = resolve("qwen", references["qwen"])
    model = load_model(resolved.files, resolved.reference, "float32", CPU)
    blocks = blocks_of(model, sizes_of(ResponseScorer(model)))
    names = [name for block in blocks for name in block.names]
    size = sum(block.size for block in blocks)
    placed = Placement("across", 512, (Share("cpu", size, 10**9),), dict.fromkeys(names, "cpu"))
    loaded = load_reference(resolved, "float32", CPU, placed)
    assert (loaded.where, loaded.device, loaded.batch_tokens) == ("cpu", CPU, 512)
    assert "qwen: 0.0 GB of weights over a GPU and the memory" in capsys.readouterr().err
    assert max(len(batch) for batch in loaded.batches(OTHERS, None)) < max(
        len(batch) for batch in loaded.batches(OTHERS, 2048)
    )
    before = ResponseScorer(model)
    batch = before.batches(OTHERS, 2048)[0]
    assert loaded.logps(batch) == pytest.approx(response_logps(before, batch, CPU), abs=1e-5)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"quantization": "nf4"}, "layers in 4 bits cannot wait in the memory of the machine"),
        ({"adapter": True}, "layers with an adapter cannot wait in the memory of the machine"),
    ],
)
def test_what_cannot_wait_in_memory_is_refused(references, model, words, expected):
    """Of the libraries one refuses and one moves it elsewhere; both are told before they do."""
    if words.get("adapter"):
        words = {"adapter": str(adapter_of(model))}
    reference = references["llama"].model_copy(update={"model": str(model), **words})
    resolved = resolve("llama", reference)
    shares = (Share(0, 1, 2), Share("cpu", 1, 2))
    placed = Placement("across", 512, shares, {"model": 0, "lm_head": "cpu"})
    with pytest.raises(UsageError, match=expected):
        load_reference(resolved, "float32", CPU, placed)


def adapter_of(model: Path) -> Path:
    """A LoRA adapter of a model on disk that changes its numbers."""
    torch.manual_seed(3)
    settings = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    with warnings.catch_warnings(action="ignore"):  # of one library about the other
        adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), settings)
        adapted.save_pretrained(model.parent / "adapter")
    return model.parent / "adapter"


# Two imagined devices: a process of its own, whose numbers are real

SAMPLED = ("llama", "mistral", "gemma2", "mixtral")
FAULTS = ("sources stay", "targets stay", "one memory of masks", "head above its hook")
WAYS = {
    # where, what holds weights
    "spread": ("far:0, far:1", ["far:0", "far:1"]),
    "tied": ("far:0, far:1", ["far:0", "far:1"]),
    "adapter": ("far:0, far:1", ["far:0", "far:1"]),
    "second card": ("far:1", ["far:1"]),
    "limits": ("far:0, far:1", ["far:0", "far:1"]),
    "offloaded": ("far:0", ["far:0", "meta"]),
}  # fmt: skip
needs_imagination = pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch lets no Python stand for a device",
)


def split_models(output: Path, *words: str) -> dict[str, dict[str, Any]]:
    script = [sys.executable, HERE / "split_models.py", output, *words]
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"}
    subprocess.run(script, check=True, env=environment, capture_output=True, timeout=3000)
    rows = map(json.loads, output.read_text().splitlines())
    return {row.pop("name"): row for row in rows}


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_models, some_groups) -> Path:
    """What the script loads: links to models, an adapter, groups."""
    root = tmp_path_factory.mktemp("imagined")
    for name in ("llama", "qwen"):
        (root / name).symlink_to(tiny_models[name])
    adapter_of(root / "llama")
    write_groups(root / "groups.jsonl", some_groups)
    return root


@pytest.fixture(scope="module")
def found(world) -> dict[str, dict[str, Any]]:
    return split_models(world / "found.jsonl", *SAMPLED, "--world", str(world))


def check(row: dict[str, Any]) -> None:
    """Both devices compute, every route has the whole model's numbers, and the self-check the whole
    model's route."""
    assert "error" not in row, row
    assert row["devices"] == ["far:0", "far:1"]
    assert all(apart == "both" or apart < EXACT for apart in row["routes"].values()), row
    assert row["alone"] < EXACT
    assert row["route"] == row["expected"], row


@needs_imagination
@pytest.mark.parametrize("name", [*SAMPLED, "llama, adapter"])
def test_a_split_model_gives_the_numbers_of_the_whole(found, name):
    check(found[name])
    assert not found[name]["failed"]


@needs_imagination
@pytest.mark.parametrize("name", FAULTS)
def test_what_is_left_on_the_wrong_device_raises(found, name):
    """The same split is right without the fault."""
    row = found[f"fault: {name}"]
    assert row["healthy"] == []
    assert "tree" in row["failed"]
    assert all("tensors on far:0, far:1" in reason for reason in row["failed"].values()), row


@needs_imagination
@pytest.mark.parametrize("name", WAYS)
def test_a_reference_is_loaded_where_it_was_placed(found, name):
    row = found[f"reference: {name}"]
    assert "error" not in row, row
    assert (row["where"], row["held"]) == WAYS[name]
    assert row["device"] == row["where"].split(", ")[0]
    assert row["worst"] < EXACT
    assert row["alone"] < EXACT
    assert (row["route"], row["refused"]) == ("tree", {})


@needs_imagination
def test_phase_1_across_devices_fills_the_same_cache(found, world, cached):
    row = found["reference: precomputed"]
    store, whole = Cache(world / "cache").find("llama"), cached.find("llama")
    assert row["short"] == store.short == whole.short
    assert row["scored"] == len(store.table()) == len(whole.table())
    assert _worst(store, whole) < EXACT
    assert {part.records[0].device for part in store.parts()} == {"far:0, far:1"}


@needs_imagination
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_every_family_gives_the_numbers_of_the_whole(tmp_path):
    """But for those that need what the imagined devices lack; none leaves a tensor behind."""
    rows = split_models(tmp_path / "found.jsonl")
    lacking = {name for name in FAMILIES if "error" in rows[name]}
    for name in lacking:
        assert rows[name]["error"].startswith("NotImplementedError"), rows[name]
    assert len(lacking) < len(FAMILIES) / 10
    for name in FAMILIES.keys() - lacking:
        check(rows[name])
