"""Old numbers are never used for another identity, and always for the same: by the commands' own
functions, with the field and both values in the message."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from simulated import Simulation

from mrpo_tools.cache import Cache
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
DATED = "{{- strftime_now('%d %b %Y') -}}"


@pytest.fixture
def model(tiny_models, tmp_path) -> Path:
    """A copy of a model to change, with a first adapter beside it."""
    copy = Path(shutil.copytree(tiny_models["llama"], tmp_path / "model"))
    for name in ("first", "second"):
        make_adapter(tmp_path / name, name)
    return copy


def make_adapter(path: Path, content: str) -> None:
    path.mkdir()
    (path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (path / "adapter_model.safetensors").write_bytes(content.encode())


def edit_json(path: Path, **values: Any) -> None:
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | values))


def grow(path: Path, content: bytes) -> None:
    path.write_bytes(path.read_bytes() + content)


def add_token(model: Path) -> None:
    state = json.loads((model / "tokenizer.json").read_text())
    token = {**state["added_tokens"][-1], "id": 99_999, "content": "<new>", "special": False}
    edit_json(model / "tokenizer.json", added_tokens=[*state["added_tokens"], token])


def edit_template(model: Path, added: str) -> None:
    path = model / "chat_template.jinja"
    path.write_text(added + path.read_text())


CHANGES: dict[str, tuple[Callable[[Path], object], dict[str, Any], str]] = {
    "weights": (lambda model: grow(model / "model.safetensors", b"\0"), {}, "weights was "),
    "config": (
        lambda model: edit_json(model / "config.json", rms_norm_eps=1e-3), {}, "config was ",
    ),
    "adapter": (
        lambda _: None, {"adapter": "second"}, "adapter was ",
    ),
    "no adapter": (lambda _: None, {"adapter": None}, "is now None"),
    "tokenizer": (
        lambda model: edit_json(model / "special_tokens_map.json", x="y"), {}, "tokenizer was ",
    ),
    "added token": (add_token, {}, "tokenizer was "),
    "chat template": (lambda model: edit_template(model, "{# new #}"), {}, "chat_template was "),
    "template with today's date": (
        lambda model: edit_template(model, DATED), {}, "pinned_date was None, is now '2024-07-26'",
    ),
    "bos": (
        lambda model: edit_json(model / "tokenizer_config.json", bos_token="<b>"), {},
        "bos_token was ",
    ),
    "eos": (
        lambda model: edit_json(model / "tokenizer_config.json", eos_token="<e>"), {},
        "eos_token was ",
    ),
    "dtype": (
        lambda _: None, {"dtype": "bfloat16"}, "dtype was 'float32', is now 'bfloat16'",
    ),
    "quantization": (
        lambda _: None, {"quantization": "nf4"}, "quantization was None, is now 'nf4'",
    ),
    "max_length": (lambda _: None, {"max_length": 500}, "max_length was 8192, is now 500"),
    "overlong": (
        lambda _: None, {"overlong": "truncate"}, "overlong was 'skip', is now 'truncate'",
    ),
    "system": (lambda _: None, {"system": "drop"}, "system was 'fold', is now 'drop'"),
    "added_tokens": (
        lambda _: None, {"added_tokens": "keep"}, "added_tokens was 'plain', is now 'keep'",
    ),
    "code": (
        lambda model: (model / "modeling.py").write_text("x = 1"), {"trust_remote_code": True},
        "code was None, is now '",
    ),
}  # fmt: skip


def words_of(model: Path, **changed: Any) -> Reference:
    words: dict[str, Any] = {"adapter": "first", "dtype": "float32", **changed}
    adapter = words.pop("adapter")
    place = str(model.parent / adapter) if adapter else None
    return Reference(model=str(model), adapter=place, **words)


@pytest.mark.parametrize("change", CHANGES)
def test_another_identity_never_reuses_numbers(change, model, some_groups, tmp_path):
    """`train` refuses the old numbers and names field and values; `precompute` computes anew."""
    act, words, message = CHANGES[change]
    cache, groups = Cache(tmp_path / "cache"), some_groups[:3]
    rows = {key for group in groups for key in group.response_ids}
    assert computed(cache, words_of(model), groups) == len(rows)
    act(model)
    now = words_of(model, **words)
    with pytest.raises(CacheStale, match="of another identity") as raised:
        prepare(Recipe(loss="dpo", refs=["one"]), groups, cache, {"one": now})
    assert message in str(raised.value)
    assert str(raised.value).count(" is now ") == 1 + (change == "template with today's date") + (
        change in ("bos", "eos")
    )
    if change not in ("bos", "eos", "added token"):  # these made-up tokens cannot be loaded
        assert computed(cache, now, groups) == len(rows)
        with pytest.raises(CacheStale, match="2 identities"):
            cache.find("one")


def computed(cache: Cache, reference: Reference, groups: list[Any], name: str = "one") -> int:
    """Responses that a precompute finds missing."""
    load = Simulation().load
    return precompute({name: reference}, groups, cache, "some", load=load)[0].computed.total()


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
    assert computed(cache, words_of(model), groups) == len(rows)
    other_words = words_of(model, batch_tokens=64, attention="eager")
    assert computed(cache, other_words, groups) == 0
    shuffled = [group.with_split("test") for group in reversed(groups)]
    assert computed(cache, words_of(model), shuffled) == 0
    longer = replace(groups[0], responses=(*groups[0].responses, Response("one more")))
    assert computed(cache, words_of(model), [longer, *groups[1:]]) == 1
    fresh = {key for group in some_groups[6:8] for key in group.response_ids} - rows
    assert computed(cache, words_of(model), some_groups[:8]) == len(fresh)
    assert computed(cache, words_of(model), groups, "two") == len(rows)
    recipes = ({"learning_rate": 1.0}, {"seed": 5}, {"per_device_train_batch_size": 7})
    for words in recipes:
        words |= {"loss": "dpo", "refs": ["one"], "policy": str(tiny_models["llama"])}
        prepare(Recipe(**words), groups, cache, {"one": words_of(model)})


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
    lines = [json.dumps(group.as_dict()) + "\n" for group in some_groups[:3]]
    Path("data.jsonl").write_text("".join(lines))
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
