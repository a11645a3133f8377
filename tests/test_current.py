"""Old numbers are never used for another identity, and always for the same: by the commands' own
functions, with the field and both values in the message."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reference_changes import CHANGES, UNLOADABLE, flip_a_byte, words_of
from simulated import Simulation
from stores import write_groups

from mrpo_tools.cache import Cache, ReferenceStore
from mrpo_tools.cache.current import check_current
from mrpo_tools.cli import run
from mrpo_tools.config import Recipe, Reference
from mrpo_tools.errors import CacheStale
from mrpo_tools.groups import Response
from mrpo_tools.precomputing.ensure import ensure
from mrpo_tools.precomputing.precompute import precompute
from mrpo_tools.references.identity import RENDERING_VERSION, Identity
from mrpo_tools.references.resolved import resolve
from mrpo_tools.training.train import prepare

ROOT = Path(__file__).parent.parent
PLAIN_WORDS = {"dtype", "max_length", "overlong", "system", "added_tokens", "quantization"}
"""Words of the project file that are fields of the identity as they are."""


@pytest.mark.parametrize("change", CHANGES)
def test_another_identity_never_reuses_numbers(change, model, some_groups, tmp_path):
    """`train` refuses the old numbers, names each field with both values and what to type, and
    `precompute` computes anew."""
    edit, words, fields = CHANGES[change]
    cache, groups = Cache(tmp_path / "cache"), some_groups[:3]
    rows = {key for group in groups for key in group.response_ids}
    assert computed(cache, words_of(model), groups) == len(rows)
    stored = cache.find("one").identity.fields
    edit(model)
    now = words_of(model, **words)
    with pytest.raises(CacheStale, match="of another identity") as raised:
        prepare(Recipe(loss="dpo", refs=["one"]), groups, cache, {"one": now})
    message = str(raised.value)
    assert message.count(" is now ") == len(fields)
    assert all(f"{field} was " in message for field in fields)
    for field in fields & PLAIN_WORDS:
        value = words.get(field, 128)
        assert f"{field} was {stored[field]!r}, is now {value!r}" in message
    assert "mrpo precompute --ref one" in raised.value.hint
    if change not in UNLOADABLE:
        assert computed(cache, now, groups) == len(rows)
        with pytest.raises(CacheStale, match="2 identities"):
            cache.find("one")


def computed(cache: Cache, reference: Reference, groups: list[Any]) -> int:
    """Responses that a precompute finds missing."""
    load = Simulation().load
    return precompute({"one": reference}, groups, cache, "some", load=load)[0].computed.total()


def test_other_rules_of_rendering_never_reuse_numbers(model, some_groups, tmp_path):
    """Numbers of an earlier rendering version are refused, though all words and files be equal."""
    now = resolve("one", words_of(model))
    fields = {**now.identity.fields, "rendering_version": RENDERING_VERSION - 1}
    earlier = replace(now, identity=Identity(fields))
    cache, groups = Cache(tmp_path / "cache"), some_groups[:3]
    ensure(cache, earlier, groups, load=Simulation().load)
    was = f"rendering_version was {RENDERING_VERSION - 1}, is now {RENDERING_VERSION}"
    with pytest.raises(CacheStale, match=was):
        prepare(Recipe(loss="dpo", refs=["one"]), groups, cache, {"one": words_of(model)})
    assert ensure(cache, now, groups, load=Simulation().load).reused == 0


def test_a_revision_is_an_identity(model, some_groups, tmp_path):
    """A hub model at another commit, though the files be the same."""
    cache, groups = Cache(tmp_path / "cache"), some_groups[:3]
    hub = Reference(model="org/one", dtype="float32")
    stores = []
    for commit in ("aaa", "bbb"):
        resolved = resolve("one", hub, download=lambda *_, commit=commit: (commit, model))
        summary = ensure(cache, resolved, groups, load=Simulation().load)
        assert summary.reused == 0
        stores.append(summary.store)
    first, second = stores
    assert [name for name, _, _ in first.identity.differences(second.identity)] == ["revision"]


def test_what_does_not_matter_reuses_every_row(model, some_groups, tiny_models, tmp_path):
    """Batches, kernels, order, splits, names of data: nothing is computed; new rows, new responses
    and one reference more: only the new cells."""
    cache, groups = Cache(tmp_path / "cache"), some_groups[:6]
    rows = {key for group in groups for key in group.response_ids}
    fresh = {key for group in some_groups[6:8] for key in group.response_ids} - rows
    shuffled = [group.with_split("test") for group in reversed(groups)]
    longer = replace(groups[0], responses=(*groups[0].responses, Response("one more")))
    words, other_words = words_of(model), words_of(model, batch_tokens=64, attention="eager")
    for name, reference, data, new, reused in (
        ("one", words, groups, len(rows), 0),
        ("one", other_words, groups, 0, len(rows)),
        ("one", words, shuffled, 0, len(rows)),
        ("one", words, [longer, *groups[1:]], 1, len(rows)),
        ("one", words, some_groups[:8], len(fresh), len(rows)),
        ("two", words, groups, len(rows), 0),
    ):
        load = Simulation().load
        summary = precompute({name: reference}, data, cache, "some", load=load)[0]
        assert (summary.computed.total(), summary.reused) == (new, reused)
    recipes = ({"learning_rate": 1.0}, {"seed": 5}, {"per_device_train_batch_size": 7})
    for words in recipes:
        words |= {"loss": "dpo", "refs": ["one"], "policy": str(tiny_models["llama"])}
        prepare(Recipe(**words), groups, cache, {"one": words_of(model)})


def stored(cache: Cache, reference: Reference) -> ReferenceStore:
    """A store of the reference's identity, without rows."""
    return cache.store("judge", resolve("judge", reference).identity)


def stale(store: ReferenceStore, reference: Reference) -> str:
    with pytest.raises(CacheStale, match="'judge'") as raised:
        check_current(store, resolve("judge", reference))
    return str(raised.value)


def test_every_stale_field_is_named(model, tmp_path):
    """Several differences are told together."""
    store = stored(Cache(tmp_path), words_of(model))
    flip_a_byte(model / "model.safetensors")
    message = stale(store, words_of(model, max_length=32, system="error"))
    assert message.count(" is now ") == 3
    for field in ("weights", "max_length", "system"):
        assert f"{field} was" in message


def test_a_changed_template_is_shown_where_it_changed(model, tmp_path):
    """Two long templates with one beginning: what the message shows of them differs."""
    store = stored(Cache(tmp_path), words_of(model))
    template = model / "chat_template.jinja"
    template.write_text(template.read_text() + "{# changed #}")
    message = stale(store, words_of(model))
    was, now = message.split("chat_template was ")[1].split(", is now ")
    assert was != now
    assert len(message) < 500


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_open_dtype_is_the_devices(model, dtype):
    """`dtype` left open is what the device prefers, and that is written into the identity."""
    prefers = resolve("judge", words_of(model, dtype=None), default_dtype=lambda: dtype)
    named = resolve("judge", words_of(model, dtype=dtype))
    assert prefers.identity == named.identity
    assert named.identity.fields["dtype"] == dtype


def test_an_open_dtype_takes_the_caches(model, tmp_path):
    """Other batch sizes, and `dtype` left open, are current numbers of any dtype; other fields are
    still told."""
    store = stored(Cache(tmp_path), words_of(model, dtype="bfloat16"))
    for words in ({"dtype": "bfloat16"}, {"dtype": None}, {"dtype": None, "batch_tokens": 16}):
        check_current(store, resolve("judge", words_of(model, **words)))
    assert "dtype" not in stale(store, words_of(model, dtype=None, max_length=32))


@pytest.mark.long
def test_a_start_over_two_gigabytes_is_quick(tiny_models, some_groups, tmp_path):
    """Weights that were hashed once are not read again: with nothing to score, a second start
    takes under a second beyond imports."""
    model = Path(shutil.copytree(tiny_models["llama"], tmp_path / "model"))
    with (model / "model.safetensors").open("r+b") as weights:
        weights.truncate(2 * 10**9)
    reference, cache = Reference(model=str(model), dtype="float32"), Cache(tmp_path / "cache")
    times = []
    for _ in range(3):
        started = time.monotonic()
        computed(cache, reference, some_groups[:6])
        times.append(time.monotonic() - started)
    print("seconds", times)
    assert times[0] > times[2]
    assert times[2] < 1


def test_a_start_with_nothing_to_score_needs_no_torch(
    tiny_models, some_groups, tmp_path, monkeypatch
):
    """It reads the data, hashes the files, looks at the cache, and is done."""
    monkeypatch.chdir(tmp_path)
    model = tiny_models["llama"]
    write_groups(Path("data.jsonl"), some_groups[:3])
    words = ["precompute", "--ref", f"one={model}", "--dtype", "float32", "--dataset", "data.jsonl"]
    assert run(words) == 0
    program = (
        "import sys; from mrpo_tools.cli import run; code = run(sys.argv[1:]);"
        "assert not {'torch', 'transformers'} & sys.modules.keys(); sys.exit(code)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", program, *words, "--json"], env=env, text=True,
                            capture_output=True, check=False)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)[0]["scored"] == 0
