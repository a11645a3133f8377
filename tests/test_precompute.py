"""Phase 1: what is computed and stored, once, whole, and told when it is no number."""

from __future__ import annotations

import math
import os
import shutil
import signal
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from simulated import Simulation, Spoiled, loading
from stores import logps_of, row

from mrpo_tools.cache import Cache
from mrpo_tools.config import Reference, absolute_paths
from mrpo_tools.errors import Preempted, ResourceError, UsageError
from mrpo_tools.evaluation.rank import cached_groups
from mrpo_tools.files import make_directory, write_whole
from mrpo_tools.groups import Group
from mrpo_tools.methods.tensors import look_up
from mrpo_tools.precomputing.precompute import precompute
from mrpo_tools.references.devices import out_of_memory
from mrpo_tools.references.identity import Identity
from mrpo_tools.references.resolved import renderer_of, resolve


def numbers(cache: Cache) -> dict[str, float]:
    return logps_of(cache, "llama")


@pytest.fixture
def llama(references):
    """The reference that most tests precompute."""
    return {"llama": references["llama"]}


def encoded_of(reference: Reference, groups: list[Group]) -> dict[str, tuple[list[int], list[int]]]:
    """(ids of the prompt, ids of the response) of every response."""
    renderer = renderer_of(resolve("llama", reference))
    pairs = [(group, renderer.encode(group)) for group in groups]
    return {
        key: (encoded.prompt_ids, response.ids)
        for group, encoded in pairs
        for key, response in zip(group.response_ids, encoded.responses, strict=True)
    }


def rows_of(cache: Cache) -> dict[str, dict[str, Any]]:
    """The cached rows of `llama`, by response."""
    return {row["response_id"]: row for row in cache.find("llama").table().to_pylist()}


class Signalled(Simulation):
    """Gets SIGTERM while its third batch is computed."""

    batch = 0

    def logps(self, rows):
        self.batch += 1
        if self.batch == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().logps(rows)


def test_sigterm_keeps_what_is_computed_and_names_the_command(llama, some_groups, tmp_path):
    """Exit code 75; the same call then computes the rest, and the old handler is back."""
    cache, handler = Cache(tmp_path), signal.getsignal(signal.SIGTERM)
    words = {"llama": llama["llama"].model_copy(update={"batch_tokens": 64})}
    with pytest.raises(Preempted, match="stopped by a signal") as stopped:
        precompute(words, some_groups, cache, "some", load=Signalled().load)
    assert stopped.value.exit_code == 75
    assert signal.getsignal(signal.SIGTERM) is handler
    kept = len(numbers(cache))
    every = len({key for group in some_groups for key in group.response_ids})
    assert 0 < kept < every
    [summary] = precompute(words, some_groups, cache, "some", load=Simulation().load)
    assert (summary.reused, summary.computed["ok"]) == (kept, every - kept)


def test_a_prompt_in_two_groups_is_scored_once(llama, some_groups, tmp_path):
    """Pair data repeats prompts: both pairs of one prompt share a row, and a response that stands
    in both has one number."""
    group = next(group for group in some_groups if len(group.responses) == 4)
    pairs = [replace(group, responses=group.responses[start : start + 2]) for start in (0, 1)]
    cache, whole = Cache(tmp_path / "cache"), Cache(tmp_path / "whole")
    assert precompute(llama, pairs, cache, "pairs")[0].computed["ok"] == 3
    precompute(llama, [group], whole, "whole")
    for key, logp in numbers(cache).items():
        assert numbers(whole)[key] == pytest.approx(logp, abs=1e-5)


@pytest.mark.parametrize("shards", [2, 3])
def test_shards_make_the_whole(llama, some_groups, tmp_path, shards):
    whole, parts = Cache(tmp_path / "whole"), Cache(tmp_path / "parts")
    precompute(llama, some_groups, whole, "some")
    scored = [
        precompute(llama, some_groups, parts, "some", shard=(index, shards))[0].computed["ok"]
        for index in range(shards)
    ]
    assert all(scored)
    assert numbers(parts).keys() == numbers(whole).keys()
    assert sum(scored) == len(numbers(whole))


def test_what_is_saved_is_whole_whatever_is_computed(llama, some_groups, tmp_path):
    """A split or a shard of the data is scored; all of the data is saved, whoever ends last."""
    load = Simulation().load
    cache = Cache(tmp_path / "cache")
    groups = [group.with_split(("train", "test")[n % 2]) for n, group in enumerate(some_groups[:8])]
    precompute(llama, groups, cache, "some", "test", load=load)
    assert cached_groups(cache, "all") == groups
    cache = Cache(cache.path, clock=lambda: 1e9)  # it stands, and went back
    changed = [group.with_split("train") for group in groups]
    for shard in ((1, 2), (0, 2), (1, 2)):
        precompute(llama, changed, cache, "some", None, shard, load=load)
    assert cached_groups(cache, "all") == changed


def test_an_interrupted_start_leaves_no_second_identity(cache, store, llama, some_groups):
    """A model that does not load leaves nothing; a store without parts is not in the way."""
    store.append([row(0)])

    def broken(*_: object) -> None:
        raise UsageError("cannot be loaded")

    with pytest.raises(UsageError):
        precompute(llama, some_groups[:2], cache, "some", load=broken)
    assert [other.short for other in cache.references()] == [store.short]
    empty = cache.store("llama", Identity({"model": "other"}))
    make_directory(empty.directory)
    write_whole(empty.identity_path, empty.identity.content)
    assert cache.find("llama").short == store.short
    assert cache.find(f"llama@{empty.short}").short == empty.short


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


def test_a_split_that_is_not_there_is_named(llama, some_groups, tmp_path):
    cache = Cache(tmp_path / "cache")
    groups = [group.with_split("train") for group in some_groups[:3]]
    with pytest.raises(UsageError, match=r"no group is in split 'typo' \(there are: train 3\)"):
        precompute(llama, groups, cache, "some", split="typo")
    assert not cache.path.exists()


def test_a_nan_is_caught_rescored_and_never_used(references, some_groups, tmp_path):
    """Numbers that cannot be log-probs: scored again alone; what stays bad is `nonfinite`."""

    class FirstStaysBad(Spoiled):
        numbers = (float("nan"), 1.0, float("-inf"))

        def plain_logps(self, rows):
            return [[float("nan")], *super().plain_logps(rows)[1:]]

    reference = references["llama"].model_copy(update={"batch_tokens": 10**6})
    cache, load = Cache(tmp_path / "cache"), loading(FirstStaysBad)
    summary = precompute({"llama": reference}, some_groups, cache, "some", load=load)[0]
    assert summary.computed["nonfinite"] == 1
    assert "no finite log-prob" in summary.warnings[-1]
    assert cache.find("llama").count_by_status()["nonfinite"] == 1
    good = [value for value in numbers(cache).values() if value is not None]
    assert len(good) == len(numbers(cache)) - 1
    assert all(-math.inf < value <= 0 for value in good)
    assert look_up([cache.find("llama")], some_groups).dropped == {"nonfinite": 1}


def test_a_nan_in_the_weights_is_never_used(tiny_models, references, some_groups, tmp_path):
    """Responses with the token are caught, scored again in float32, stored as nonfinite, told, and
    left out of training; all others have the numbers of the sound model."""
    groups = some_groups[:12]
    encoded = encoded_of(references["llama"], groups)
    uses: dict[int, set[str]] = {}
    for key, (_, ids) in encoded.items():
        for token in ids[:-1]:  # the last is predicted, and predicts nothing
            uses.setdefault(token, set()).add(key)
    prompts = {token for ids, _ in encoded.values() for token in ids}
    token = next(t for t, keys in uses.items() if t not in prompts and 1 <= len(keys) <= 4)
    model = Path(shutil.copytree(tiny_models["llama"], tmp_path / "poisoned"))
    weights = load_file(model / "model.safetensors")
    weights["model.embed_tokens.weight"][token] = math.nan
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    sick, sound = Cache(tmp_path / "sick"), Cache(tmp_path / "sound")
    words = Reference(model=str(model), dtype="float32")
    summary = precompute({"llama": words}, groups, sick, "some")[0]
    precompute({"llama": references["llama"]}, groups, sound, "some")
    assert summary.computed["nonfinite"] == len(uses[token])
    warning = summary.warnings[-1]  # NaN reaches through the mask: siblings are scored again too
    assert f"{len(uses[token])} still have no finite log-prob; these are stored as n" in warning
    rows, honest = rows_of(sick), numbers(sound)
    assert {key for key, row in rows.items() if row["status"] == "nonfinite"} == uses[token]
    for key in rows.keys() - uses[token]:
        assert rows[key]["logp"] == pytest.approx(honest[key], abs=1e-4)
    tensors = look_up([sick.find("llama")], groups)
    assert tensors.dropped == {"nonfinite": len(uses[token])}
    assert bool(tensors.logps[tensors.mask].isfinite().all())


def test_bad_bfloat16_numbers_are_right_in_float32(references, some_groups, tmp_path):
    """A model whose 16-bit arithmetic overflows: scored again in float32 once it is out of
    memory, and right."""
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
    rescored, right = numbers(coarse), numbers(exact)
    assert sum(rescored[key] == pytest.approx(right[key], rel=1e-6) for key in right) >= 1
    assert rescored.keys() == right.keys()


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
    with pytest.raises(ResourceError, match="out of memory while computing") as raised:
        precompute({"llama": words}, some_groups[:6], cache, "some", load=Full().load)
    assert raised.value.exit_code == 4
    assert cache.find("llama").table().num_rows > 0
    assert not out_of_memory(RuntimeError("shapes do not match"))
    assert out_of_memory(MemoryError())


def test_what_does_not_fit_is_stored_as_such(references, some_groups, tmp_path):
    """`overlong` without a number, told and left out of training; or cut, flagged and used."""
    groups = some_groups[:8]
    encoded = encoded_of(references["llama"], groups)
    lengths = {key: len(prompt) + len(response) for key, (prompt, response) in encoded.items()}
    limit = sorted(lengths.values())[len(lengths) // 2]
    long = {key for key, length in lengths.items() if length > limit}
    assert 0 < len(long) < len(lengths)
    for rule, name in (("skip", "skipped"), ("truncate", "cut")):
        words = references["llama"].model_copy(update={"max_length": limit, "overlong": rule})
        cache = Cache(tmp_path / name)
        summary = precompute({"llama": words}, groups, cache, "some")[0]
        rows = rows_of(cache)
        overlong = {key for key, row in rows.items() if row["status"] == "overlong"}
        cut = {key for key, row in rows.items() if row["truncated"]}
        assert cut == long - overlong
        assert (cut == set()) == (rule == "skip")
        if rule == "skip":
            assert all(rows[key]["logp"] is None for key in long)
            assert look_up([cache.find("llama")], groups).dropped == {"overlong": len(long)}
            assert "do not fit max_length" in summary.warnings[0]
