"""What precompute stores: whole data, numbers that are none, what it says before and after."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from simulated import Simulation, Spoiled, loading
from stores import row, said

from mrpo_tools.cache import Cache
from mrpo_tools.cli.precompute import _shard
from mrpo_tools.config import Reference, absolute_paths
from mrpo_tools.errors import CacheStale, ResourceError, UsageError
from mrpo_tools.evaluation.rank import cached_groups
from mrpo_tools.files import make_directory, write_whole
from mrpo_tools.methods.tensors import look_up
from mrpo_tools.precomputing import rescore
from mrpo_tools.precomputing.estimate import estimate
from mrpo_tools.precomputing.precompute import precompute
from mrpo_tools.references.devices import out_of_memory
from mrpo_tools.references.identity import Identity
from mrpo_tools.references.resolved import resolve


def test_an_interrupted_start_leaves_no_second_identity(cache, store, references, some_groups):
    """A model that does not load leaves nothing; a store without parts is not in the way."""
    store.append([row(0)])

    def broken(*_: object) -> None:
        raise UsageError("cannot be loaded")

    with pytest.raises(UsageError):
        precompute({"llama": references["llama"]}, some_groups[:2], cache, "some", load=broken)
    assert [one.short for one in cache.references()] == [store.short]
    empty = cache.store("llama", Identity({"model": "other"}))
    make_directory(empty.directory)
    write_whole(empty.identity_path, empty.identity.content)
    assert cache.find("llama").short == store.short
    assert cache.find(f"llama@{empty.short}").short == empty.short


def test_what_is_saved_is_whole_whatever_is_scored(references, some_groups, tmp_path, monkeypatch):
    """A split or a shard of the data is scored; all of the data is saved, whoever ends last."""
    load = Simulation().load
    cache = Cache(tmp_path / "cache")
    groups = [one.with_split("test" if n % 2 else "train") for n, one in enumerate(some_groups[:8])]
    llama = {"llama": references["llama"]}
    precompute(llama, groups, cache, "some", "test", load=load)
    assert cached_groups(cache, "all") == groups
    cache = Cache(cache.path, clock=lambda: 1e9)  # it stands, and went back
    changed = [one.with_split("train") for one in groups]
    for shard in ((1, 2), (0, 2), (1, 2)):
        precompute(llama, changed, cache, "some", None, shard, load=load)
    assert cached_groups(cache, "all") == changed


# Identities.


def test_rescore_agrees_with_a_sound_cache_and_not_with_a_false_one(cached, tmp_path, capsys):
    """A part whose hash is right and whose number is wrong: only the model can tell."""
    path = Path(shutil.copytree(cached.path, tmp_path / "cache"))
    words = ["cache", "verify", "--cache", str(path), "--rescore", "16", "--json"]
    found = json.loads(said(capsys, *words))
    assert [one["rows"] for one in found["rescored"]] == [16] * 3
    assert all(float(one["nats per token"]) < 1e-5 for one in found["rescored"])
    store = Cache(path).find("llama")
    part = store.parts()[0]
    logps = pa.array([one - 0.5 for one in part.table["logp"].to_pylist()])
    part.path.unlink()
    store.write(part.table.set_column(2, "logp", logps), part.created, part.records)
    text = said(capsys, "cache", "verify", "--cache", str(path), "--rescore", "4", "--ref",
                "llama", code=3)  # fmt: skip
    assert "nats per token apart" in text


def test_rescore_of_two_identities_of_one_name(references, some_groups, tmp_path, capsys,
                                               monkeypatch):  # fmt: skip
    """The project has words for one of them; the other is asked as it was scored."""
    cache = Cache(tmp_path / "cache")
    long = references["llama"]
    short = long.model_copy(update={"max_length": 64})
    for words in (long, short):
        precompute({"llama": words}, some_groups[:4], cache, "some")
    monkeypatch.chdir(tmp_path)
    check = ["cache", "verify", "--cache", "cache", "--rescore", "3", "--json"]
    Path("mrpo.yaml").write_text(f"references: {{llama: {{model: {long.model}, max_length: 64}}}}")
    for _ in range(2):
        found = json.loads(said(capsys, *check))["rescored"]
        assert sorted(one["rescored"] for one in found) == sorted(map(str, cache.references()))
        assert [one["rows"] for one in found] == [3, 3]
        Path("mrpo.yaml").write_text("references: {llama: {model: ./gone}}")


# Numbers that are none, and memory.


def poisoned(tiny_models: dict[str, Path], folder: Path, token: int) -> Path:
    """A model in which one token's embedding is NaN."""
    from safetensors.torch import load_file, save_file

    model = Path(shutil.copytree(tiny_models["llama"], folder / "poisoned"))
    weights = load_file(model / "model.safetensors")
    weights["model.embed_tokens.weight"][token] = float("nan")
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    return model


def test_a_nan_in_the_weights_is_never_used(tiny_models, references, some_groups, tmp_path):
    """Responses with the token are caught, scored again in float32, stored as nonfinite, told, and
    left out of training; all others have the numbers of the sound model."""
    from mrpo_tools.references.resolved import renderer_of

    groups = some_groups[:12]
    renderer = renderer_of(resolve("llama", references["llama"]))
    encoded = [renderer.encode(group) for group in groups]
    uses: dict[int, set[str]] = {}
    for group, one in zip(groups, encoded, strict=True):
        for key, response in zip(group.response_ids, one.responses, strict=True):
            for token in response.ids[:-1]:  # the last is predicted, and predicts nothing
                uses.setdefault(token, set()).add(key)
    prompts = {token for one in encoded for token in one.prompt_ids}
    token = next(t for t, keys in uses.items() if t not in prompts and 1 <= len(keys) <= 4)
    model = poisoned(tiny_models, tmp_path, token)
    sick, sound = Cache(tmp_path / "sick"), Cache(tmp_path / "sound")
    words = Reference(model=str(model), dtype="float32")
    summary = precompute({"llama": words}, groups, sick, "some")[0]
    precompute({"llama": references["llama"]}, groups, sound, "some")
    assert summary.computed["nonfinite"] == len(uses[token])
    told = summary.warnings[-1]  # NaN reaches through the mask: siblings are scored again too
    assert f"{len(uses[token])} still have no finite log-prob; these are stored as nonfin" in told
    rows = {one["response_id"]: one for one in sick.find("llama").table().to_pylist()}
    honest = {one["response_id"]: one for one in sound.find("llama").table().to_pylist()}
    assert {key for key, one in rows.items() if one["status"] == "nonfinite"} == uses[token]
    for key, one in rows.items():
        if key not in uses[token]:
            assert one["logp"] == pytest.approx(honest[key]["logp"], abs=1e-4)
    tensors = look_up([sick.find("llama")], groups)
    assert tensors.dropped == {"nonfinite": len(uses[token])}
    assert bool(tensors.logps[tensors.mask].isfinite().all())


def test_bad_bfloat16_numbers_are_right_in_float32(references, some_groups, tmp_path):
    """A model whose 16-bit arithmetic overflows: scored again in float32 once it is out of
    memory, and right."""
    import weakref

    honest = loading(Spoiled)
    loaded: list[tuple[str, weakref.ref[Any]]] = []

    def load(resolved: Any, dtype: str, device: torch.device) -> Any:
        assert not loaded or loaded[-1][1]() is None, "two models in memory"
        model = honest(resolved, dtype, device)
        loaded.append((dtype, weakref.ref(model.scorer)))
        return model

    words = references["llama"].model_copy(update={"dtype": "bfloat16", "batch_tokens": 10**6})
    coarse, exact = Cache(tmp_path / "coarse"), Cache(tmp_path / "exact")
    summary = precompute({"llama": words}, some_groups[:6], coarse, "some", load=load)[0]
    assert [dtype for dtype, _ in loaded] == ["bfloat16", "float32"]
    precompute({"llama": references["llama"]}, some_groups[:6], exact, "some")
    assert summary.computed["nonfinite"] == 0
    columns = ("response_id", "logp")
    found, right = (
        dict(zip(*(one.find("llama").table()[c].to_pylist() for c in columns), strict=True))
        for one in (coarse, exact)
    )
    assert sum(found[key] == pytest.approx(right[key], rel=1e-6) for key in right) >= 1
    assert found.keys() == right.keys()


def test_a_full_cpu_memory_is_exit_4(references, some_groups, tmp_path):
    """torch's CPU allocator raises a plain RuntimeError; what was scored so far is kept."""

    class Full(Simulation):
        calls = 0

        def logps(self, rows: Any) -> list[float]:
            self.calls += 1
            if self.calls > 2:
                torch.empty(2**62, dtype=torch.uint8)
            return super().logps(rows)

    words = references["llama"].model_copy(update={"batch_tokens": 64})
    cache = Cache(tmp_path / "cache")
    with pytest.raises(ResourceError, match="out of memory while scoring") as raised:
        precompute({"llama": words}, some_groups[:6], cache, "some", load=Full().load)
    assert raised.value.exit_code == 4
    assert cache.find("llama").table().num_rows > 0
    assert not out_of_memory(RuntimeError("shapes do not match"))
    assert out_of_memory(MemoryError())


def test_what_does_not_fit_is_stored_as_such(references, some_groups, tmp_path):
    """`overlong` without a number, told and left out of training; or cut, flagged and used."""
    from mrpo_tools.references.resolved import renderer_of

    groups = some_groups[:8]
    renderer = renderer_of(resolve("llama", references["llama"]))
    lengths = {
        key: len(one.prompt_ids) + len(response.ids)
        for group, one in ((group, renderer.encode(group)) for group in groups)
        for key, response in zip(group.response_ids, one.responses, strict=True)
    }
    limit = sorted(lengths.values())[len(lengths) // 2]
    long = {key for key, length in lengths.items() if length > limit}
    assert 0 < len(long) < len(lengths)
    for rule, name in (("skip", "skipped"), ("truncate", "cut")):
        words = references["llama"].model_copy(update={"max_length": limit, "overlong": rule})
        cache = Cache(tmp_path / name)
        summary = precompute({"llama": words}, groups, cache, "some")[0]
        rows = {one["response_id"]: one for one in cache.find("llama").table().to_pylist()}
        overlong = {key for key, one in rows.items() if one["status"] == "overlong"}
        assert {key for key, one in rows.items() if one["truncated"]} <= long
        dropped = look_up([cache.find("llama")], groups).dropped
        if rule == "skip":
            assert overlong == long
            assert all(rows[key]["logp"] is None for key in long)
            assert dropped == {"overlong": len(long)}
            assert "do not fit max_length" in summary.warnings[0]
        else:
            cut = {key for key, one in rows.items() if one["truncated"]}
            assert cut == long - overlong != set()


# Words of `precompute`.


def test_a_split_that_is_not_there_is_named(references, some_groups, tmp_path):
    cache = Cache(tmp_path / "cache")
    groups = [one.with_split("train") for one in some_groups[:3]]
    with pytest.raises(UsageError, match=r"no group is in split 'typo' \(there are: train 3\)"):
        precompute({"llama": references["llama"]}, groups, cache, "some", split="typo")
    assert not cache.path.exists()


def test_a_dry_run_counts_the_split_and_the_shard(references, some_groups, tmp_path):
    """What it counts is what precompute then scores."""
    cache = Cache(tmp_path / "cache")
    groups = [
        one.with_split("test" if n % 2 else "train") for n, one in enumerate(some_groups[:12])
    ]
    subject = resolve("llama", references["llama"])
    for split, shard in (("test", (0, 1)), ("test", (1, 3)), (None, (0, 2))):
        expected = estimate(subject, groups, cache, split, shard)
        one = Cache(tmp_path / f"{split}-{shard[0]}")
        found = precompute({"llama": references["llama"]}, groups, one, "some", split, shard)[0]
        assert found.computed["ok"] == expected.responses > 0
    with pytest.raises(UsageError, match="no group is in split 'typo'"):
        estimate(subject, groups, cache, "typo")


@pytest.mark.parametrize(
    ("environment", "shard"),
    [({}, (0, 1)), ({"RANK": "1"}, (0, 1)), ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
     ({"WORLD_SIZE": "2"}, (0, 1))],
)  # fmt: skip
def test_a_process_takes_its_rank_only_with_the_worlds_size(monkeypatch, environment, shard):
    """RANK alone, which job schedulers set too, does not take half of the rows away."""
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert _shard(None) == shard
    assert _shard("3/16") == (2, 16)


def test_recorded_paths_work_from_elsewhere(tiny_models, some_groups, tmp_path, monkeypatch):
    """Relative paths are recorded as absolute ones; hub ids and absent paths stay as they are."""
    monkeypatch.chdir(tiny_models["llama"].parent)
    cache = Cache(tmp_path / "cache")
    words = Reference(model="llama", dtype="float32")
    precompute({"one": words}, some_groups[:2], cache, "some", load=Simulation().load)
    monkeypatch.chdir(tmp_path)
    assert cache.find("one").recorded_reference().model == str(tiny_models["llama"])
    hub = Reference(model="org/model", adapter="org/adapter")
    assert absolute_paths(hub) == hub


def test_rescoring_other_weights_is_refused(cached, references, some_groups):
    store = cached.find("llama")
    with pytest.raises(CacheStale, match="of another identity"):
        rescore.rescore(cached, store, resolve("llama", references["qwen"]), 4)
