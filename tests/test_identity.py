"""Another number has another identity, with the reason by name; the same number has the same."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizer_families import CHATML, family

from mrpo_tools.cache import Cache
from mrpo_tools.cache.current import check_current
from mrpo_tools.config import Reference
from mrpo_tools.errors import CacheStale, UsageError
from mrpo_tools.references import devices, hashes, identity
from mrpo_tools.references import locate as locating
from mrpo_tools.references.hashes import HashMemo
from mrpo_tools.references.identity import Identity, identify
from mrpo_tools.references.locate import locate
from mrpo_tools.references.model_files import ModelFiles
from mrpo_tools.references.resolved import resolve

DATED = "{{- strftime_now('%d %b %Y') -}}" + CHATML
TOKENIZER_FILES = (
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tekken.json",
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one tiny layer with a tokenizer and a template, and an adapter beside it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    root = tmp_path_factory.mktemp("original")
    tokenizer = family("llama2").tokenizer
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    (root / "model" / "README.md").write_text("A model.")
    make_adapter(model, root)
    return root


def make_adapter(model: Any, root: Path) -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(root / "adapter")


@pytest.fixture
def model(original: Path, tmp_path: Path) -> Path:
    """A copy to change, with an adapter in the directory beside it."""
    for name in ("adapter", "model"):
        shutil.copytree(original / name, tmp_path / name)
    copy = tmp_path / "model"
    edit_json(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=str(copy))
    return copy


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(read_json(path) | values))


def flip_a_byte(path: Path) -> None:
    """Another file of the same size."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    later = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(later, later))


def identity_of(model: Path, dtype: str = "float32", **words: Any) -> Identity:
    reference = Reference(model=str(model), **words)
    return identify(reference, locate(reference), dtype)


def adapted(model: Path, **words: Any) -> Identity:
    return identity_of(model, adapter=str(model.parent / "adapter"), **words)


def changed(one: Identity, other: Identity) -> set[str]:
    """The fields that differ, after the two promises that hold for every pair."""
    names = {name for name, _, _ in one.differences(other)}
    assert (one.hash == other.hash) == (not names)
    assert one.differences(other) == [(name, b, a) for name, a, b in other.differences(one)]
    return names


# What changes (a file, or a word of the project file), and the fields that must say so.
FILE_CHANGES: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "a byte of the weights": (lambda model: flip_a_byte(model / "model.safetensors"), {"weights"}),
    "a number of the config": (
        lambda model: edit_json(model / "config.json", rms_norm_eps=1e-3),
        {"config"},
    ),
    "the context length": (
        lambda model: edit_json(model / "config.json", max_position_embeddings=128),
        {"config", "max_length"},
    ),
    "an added token": (lambda model: add_token(model), {"tokenizer"}),
    "the jinja file": (
        lambda model: (model / "chat_template.jinja").write_text(CHATML),
        {"chat_template"},
    ),
    "the jinja file, with a date": (
        lambda model: (model / "chat_template.jinja").write_text(DATED),
        {"chat_template", "pinned_date"},
    ),
    "no template": (lambda model: (model / "chat_template.jinja").unlink(), {"chat_template"}),
    "bos": (
        lambda model: edit_json(model / "tokenizer_config.json", bos_token="</s>"),
        {"bos_token", "tokenizer"},
    ),
    "eos": (
        lambda model: edit_json(model / "tokenizer_config.json", eos_token="<unk>"),
        {"eos_token", "tokenizer"},
    ),
}
WORD_CHANGES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "dtype": ({"dtype": "bfloat16"}, {"dtype"}),
    "float16": ({"dtype": "float16"}, {"dtype"}),
    "quantization": ({"quantization": "nf4"}, {"quantization"}),
    "max_length": ({"max_length": 63}, {"max_length"}),
    "overlong": ({"overlong": "truncate"}, {"overlong"}),
    "system drop": ({"system": "drop"}, {"system"}),
    "system error": ({"system": "error"}, {"system"}),
    "added_tokens": ({"added_tokens": "keep"}, {"added_tokens"}),
}


def add_token(model: Path) -> None:
    state = read_json(model / "tokenizer.json")
    token = {**state["added_tokens"][-1], "id": 9999, "content": "<new>", "special": False}
    edit_json(model / "tokenizer.json", added_tokens=[*state["added_tokens"], token])


@pytest.mark.parametrize("change", FILE_CHANGES)
def test_a_changed_file_is_another_identity(model, change):
    """One change of one file: another hash, and exactly the fields that it touches by name."""
    before = identity_of(model)
    edit, fields = FILE_CHANGES[change]
    edit(model)
    assert changed(before, identity_of(model)) == fields


@pytest.mark.parametrize("change", WORD_CHANGES)
def test_a_changed_word_is_another_identity(model, change):
    """One change of the reference in the project file: exactly that field."""
    words, fields = WORD_CHANGES[change]
    assert changed(identity_of(model), identity_of(model, **words)) == fields


@pytest.mark.parametrize("name", TOKENIZER_FILES)
def test_every_tokenizer_file_counts(model, name):
    """A tokenizer file that appears, and one whose bytes change."""
    before = identity_of(model)
    content = (model / name).read_text() if (model / name).exists() else "{}"
    (model / name).write_text(content + "\n")
    appeared = identity_of(model)
    assert changed(before, appeared) == {"tokenizer"}
    (model / name).write_text(content + "\n\n")
    assert changed(appeared, identity_of(model)) == {"tokenizer"}


@pytest.mark.parametrize("form", ["text", "list"])
def test_a_template_in_the_tokenizers_settings(model, form):
    """Older models keep it in `tokenizer_config.json`: the text is the field, and the file is."""
    (model / "chat_template.jinja").unlink()

    def write(template: str) -> Identity:
        named = [{"name": "rag", "template": "x"}, {"name": "default", "template": template}]
        value = template if form == "text" else named
        edit_json(model / "tokenizer_config.json", chat_template=value)
        return identity_of(model)

    before = write(CHATML)
    assert before.fields["chat_template"] == CHATML
    assert changed(before, write(CHATML + " ")) == {"chat_template", "tokenizer"}
    assert changed(before, write(DATED)) == {"chat_template", "tokenizer", "pinned_date"}


def test_the_jinja_file_wins_over_the_settings(model):
    """The library reads `chat_template.jinja` where there are both."""
    edit_json(model / "tokenizer_config.json", chat_template="old")
    own = (model / "chat_template.jinja").read_text()
    assert identity_of(model).fields["chat_template"] == own


def test_the_override_is_its_text(model, tmp_path):
    """Another template file: another identity; the same text in another file: the same."""
    own = identity_of(model)
    for name, text in (("a.jinja", CHATML), ("b.jinja", CHATML + "\n"), ("c.jinja", CHATML)):
        (tmp_path / name).write_text(text)
    a, b, c = (identity_of(model, chat_template=str(tmp_path / f"{name}.jinja")) for name in "abc")
    assert changed(own, a) == {"chat_template"}
    assert changed(a, b) == {"chat_template"}
    assert changed(a, c) == set()
    same = identity_of(model, chat_template=str(model / "chat_template.jinja"))
    assert changed(own, same) == set()
    (model / "chat_template.jinja").write_text("never used")
    assert changed(a, identity_of(model, chat_template=str(tmp_path / "a.jinja"))) == set()


@pytest.mark.parametrize("asks", ["strftime_now('%Y')", "date_string"])
def test_the_pinned_day_counts_where_a_template_asks_for_it(model, monkeypatch, asks):
    """Another pinned day changes the numbers of templates that write the date, and no others."""
    plain = identity_of(model)
    (model / "chat_template.jinja").write_text("{{- " + asks + " -}}" + CHATML)
    dated = identity_of(model)
    monkeypatch.setattr(identity, "PINNED_DATE", "2025-01-01")
    assert changed(dated, identity_of(model)) == {"pinned_date"}
    (model / "chat_template.jinja").write_text(plain.fields["chat_template"])
    assert changed(plain, identity_of(model)) == set()


def test_the_rules_of_rendering_count(model, monkeypatch):
    """Another rendering version: other ids, another identity."""
    before = identity_of(model)
    monkeypatch.setattr(identity, "RENDERING_VERSION", identity.RENDERING_VERSION + 1)
    assert changed(before, identity_of(model)) == {"rendering_version"}


def test_an_adapter_counts(model):
    """None, one, a byte of its weights, its rank: `adapter` names them all."""
    adapter = model.parent / "adapter"
    seen = [identity_of(model), adapted(model)]
    flip_a_byte(adapter / "adapter_model.safetensors")
    seen.append(adapted(model))
    edit_json(adapter / "adapter_config.json", lora_alpha=64)
    seen.append(adapted(model))
    for i, one in enumerate(seen):
        for other in seen[:i]:
            assert changed(one, other) == {"adapter"}


def test_an_adapter_that_is_not_safetensors_is_refused(model):
    """Weights that the identity does not hash must not be scored: they could change unseen."""
    adapter = model.parent / "adapter"
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(UsageError, match="safetensors"):
        adapted(model)


def test_hub_id_and_commit_count(model, monkeypatch):
    """A model of the hub is its name and the commit that was downloaded, not the word for it."""
    commits = {"main": "aaa", "v1": "aaa", "v2": "bbb", None: "aaa"}
    asked = []

    def download(hub_id: str, revision: str | None, **_: object) -> tuple[str, Path]:
        asked.append((hub_id, revision))
        return commits[revision], model

    monkeypatch.setattr(locating, "_download", download)
    main, v1, v2 = (
        identity_of(Path("org/one"), revision=revision) for revision in ("main", "v1", "v2")
    )
    other = identity_of(Path("org/two"))
    assert asked == [("org/one", "main"), ("org/one", "v1"), ("org/one", "v2"), ("org/two", None)]
    assert changed(main, v1) == set()
    assert changed(main, v2) == {"revision"}
    assert changed(main, other) == {"model"}
    assert changed(main, identity_of(model)) == {"model", "revision"}


def test_the_models_own_code_counts_where_it_runs(model):
    """With `trust_remote_code` the Python files beside the weights decide about the numbers."""
    (model / "modeling.py").write_text("scale = 1")
    plain, trusted = identity_of(model), identity_of(model, trust_remote_code=True)
    assert changed(plain, trusted) == {"code"}
    (model / "modeling.py").write_text("scale = 2")
    assert changed(trusted, identity_of(model, trust_remote_code=True)) == {"code"}
    assert changed(plain, identity_of(model)) == set()


def test_a_download_takes_what_is_read(monkeypatch, model):
    """Python files for models that run their own code; never a second copy of the weights."""
    import huggingface_hub

    asked = []

    def download(hub_id: str, **options: Any) -> str:
        asked.append(options)
        return str(model)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    locate(Reference(model="org/model"))
    locate(Reference(model="org/model", trust_remote_code=True))
    assert ["*.py" in one["allow_patterns"] for one in asked] == [False, True]
    assert all("consolidated*.safetensors" in one["ignore_patterns"] for one in asked)


def test_every_field_has_a_test():
    """A field added to the identity needs a mutation here."""
    tested = {"model", "revision", "rendering_version", "adapter", "pinned_date", "code"}
    for _, fields in [*FILE_CHANGES.values(), *WORD_CHANGES.values()]:
        tested |= fields
    assert tested == FIELDS


FIELDS = {
    *("rendering_version", "model", "revision", "weights", "config", "code", "adapter"),
    *("dtype", "quantization", "max_length", "overlong"),
    *("tokenizer", "bos_token", "eos_token", "added_tokens"),
    *("chat_template", "pinned_date", "system"),
}


def test_the_fields_are_the_designs(model):
    """Neither a field too few nor one that would score again for nothing."""
    assert set(identity_of(model).fields) == FIELDS == set(identity.FIELDS)


def reorder(value: Any) -> Any:
    """The same JSON with its keys the other way round, at every depth."""
    if isinstance(value, dict):
        return {key: reorder(value[key]) for key in reversed(value)}
    return [reorder(one) for one in value] if isinstance(value, list) else value


def touch_all(model: Path) -> None:
    for path in model.rglob("*"):
        os.utime(path, ns=(1, 1))


HARMLESS: dict[str, Callable[[Path], object]] = {
    "mtimes": touch_all,
    "library version": lambda model: edit_json(
        model / "config.json", transformers_version="4.0.0", _name_or_path="/elsewhere"
    ),
    "stored dtype word": lambda model: edit_json(model / "config.json", torch_dtype="float16"),
    "key order": lambda model: (model / "config.json").write_text(
        json.dumps(reorder(read_json(model / "config.json")), indent=4)
    ),
    "generation config": lambda model: edit_json(
        model / "generation_config.json", temperature=0.1, eos_token_id=[1, 2]
    ),
    "readme": lambda model: (model / "README.md").write_text("Another text."),
    "other files": lambda model: (model / "training_args.bin").write_bytes(b"x"),
    "other weights formats": lambda model: (model / "pytorch_model.bin").write_bytes(b"x"),
    "adapter's notes": lambda model: edit_json(
        model.parent / "adapter" / "adapter_config.json",
        base_model_name_or_path="/elsewhere",
        inference_mode=False,
        peft_version="0.1",
    ),
    "adapter's key order": lambda model: (
        model.parent / "adapter" / "adapter_config.json"
    ).write_text(json.dumps(reorder(read_json(model.parent / "adapter" / "adapter_config.json")))),
    "adapter's readme": lambda model: (model.parent / "adapter" / "README.md").write_text("x"),
}


@pytest.mark.parametrize("change", HARMLESS)
def test_what_does_not_change_numbers_does_not_change_the_identity(model, change):
    """The hash is the same to the last digit, so cached rows are found again."""
    before = adapted(model)
    HARMLESS[change](model)
    after = adapted(model)
    assert changed(before, after) == set()
    assert before.content == after.content


@pytest.mark.parametrize(
    "words",
    [
        {"batch_tokens": 16},
        {"attention": "eager"},
        {"attention": "sdpa", "batch_tokens": 99},
        {"max_length": 64},
        {"revision": "v2"},
    ],
)
def test_words_that_do_not_change_numbers(model, words):
    """Speed, a length that is the model's own, the revision of a directory that has none."""
    assert changed(identity_of(model), identity_of(model, **words)) == set()


def test_a_model_may_move(model, tmp_path, monkeypatch):
    """Moved, copied, linked, by a relative path: the same model."""
    before = adapted(model)
    shutil.copytree(model, tmp_path / "copy")
    (tmp_path / "link").symlink_to(tmp_path / "copy", target_is_directory=True)
    shutil.copytree(tmp_path / "adapter", tmp_path / "far" / "adapter")
    shutil.move(model, tmp_path / "far" / "model")
    monkeypatch.chdir(tmp_path)
    adapter = str(tmp_path / "far" / "adapter")
    for path in (Path("copy"), tmp_path / "link", tmp_path / "far" / "model"):
        assert changed(before, identity_of(path, adapter=adapter)) == set()


def test_explicit_length_frees_the_config_of_it(model):
    """A context length changes `config` alone where the project file sets `max_length`."""
    before = identity_of(model, max_length=32)
    edit_json(model / "config.json", max_position_embeddings=128)
    assert changed(before, identity_of(model, max_length=32)) == {"config"}


def test_token_as_text_or_as_a_mapping(model):
    """`eos_token` written as a mapping is the token it holds."""
    before = identity_of(model)
    edit_json(model / "tokenizer_config.json", eos_token={"content": "</s>", "special": True})
    assert changed(before, identity_of(model)) == {"tokenizer"}


def test_content_is_the_file_and_hash_is_its_hash(model):
    """`identity.json` can be read back into the fields, and hashed by anybody."""
    import hashlib

    one = identity_of(model)
    assert json.loads(one.content) == one.fields
    assert one.hash == hashlib.sha256(one.content).hexdigest()
    assert one.short == one.hash[:12]


def test_a_config_with_an_infinite_number(model):
    """Some hybrids write `Infinity` into config.json, and Python reads it."""
    before = identity_of(model)
    edit_json(model / "config.json", time_step_limit=[0.0, float("inf")])
    assert changed(before, identity_of(model)) == {"config"}


# The weights that are hashed are the weights that are loaded.


def shard(model: Path, name: str) -> None:
    """Name a copy of the weights in an index, as sharded models do."""
    shutil.copy(model / "model.safetensors", model / name)
    keys = read_weights(model / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(keys, name)}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def test_sharded_weights_count(model):
    """Every shard of the index, and no file beside them."""
    shard(model, "model-00001-of-00001.safetensors")
    (model / "model.safetensors").unlink()
    before = identity_of(model)
    shutil.copy(model / "model-00001-of-00001.safetensors", model / "consolidated.safetensors")
    assert changed(before, identity_of(model)) == set()
    flip_a_byte(model / "model-00001-of-00001.safetensors")
    assert changed(before, identity_of(model)) == {"weights"}


def test_a_single_file_beside_an_index_is_what_is_loaded(model):
    """The library loads `model.safetensors` first; so its bytes are the identity."""
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    shard(model, "model-00001-of-00001.safetensors")
    tensors = read_weights(model / "model.safetensors")
    zeros = {key: torch.zeros_like(value) for key, value in tensors.items()}
    save_file(zeros, model / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    loaded = AutoModelForCausalLM.from_pretrained(model)
    assert loaded.lm_head.weight.detach().abs().sum() > 0
    before = identity_of(model)
    flip_a_byte(model / "model.safetensors")
    assert changed(before, identity_of(model)) == {"weights"}


# A directory that holds only an adapter.


def test_an_adapter_directory_stands_for_base_and_adapter(model):
    """`model: DIR` with an adapter in it is `model: BASE` with `adapter: DIR`."""
    adapter = model.parent / "adapter"
    found = locate(Reference(model=str(adapter)))
    assert (found.model, found.adapter) == (model, adapter)
    assert changed(identity_of(adapter), adapted(model)) == set()


def test_an_adapter_directory_of_a_hub_model(model, monkeypatch):
    """Its base is downloaded, at the revision that the reference names."""
    adapter = model.parent / "adapter"
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="org/base")
    monkeypatch.setattr(locating, "_download", lambda _, revision, **__: (f"{revision}!", model))
    found = locate(Reference(model=str(adapter), revision="v3"))
    assert found == ModelFiles(model, adapter, "org/base", "v3!")


def test_an_adapter_repository_of_the_hub_stands_for_base_and_adapter(model, monkeypatch):
    """What holds for a directory holds for a hub repository that has nothing but an adapter."""
    adapter = model.parent / "adapter"
    monkeypatch.setattr(locating, "_download", lambda hub_id, revision, **_: ("ccc", adapter))
    found = locate(Reference(model="org/adapter"))
    assert (found.model, found.adapter) == (model, adapter)


def test_an_adapter_of_an_adapter_is_not_half_loaded(model):
    """An adapter whose base is an adapter needs both; dropping one would be another model."""
    second = model.parent / "second"
    shutil.copytree(model.parent / "adapter", second)
    edit_json(second / "adapter_config.json", base_model_name_or_path=str(model.parent / "adapter"))
    with pytest.raises(UsageError, match="adapter"):
        locate(Reference(model=str(second)))


@pytest.mark.parametrize("base_name", [None, "missing", "itself"])
def test_an_adapter_directory_without_its_base_is_refused(model, base_name):
    """No base in its config, null, or the directory itself: said in words."""
    adapter = model.parent / "adapter"
    config = read_json(adapter / "adapter_config.json")
    if base_name == "missing":
        del config["base_model_name_or_path"]
    else:
        config["base_model_name_or_path"] = str(adapter) if base_name == "itself" else None
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError):
        locate(Reference(model=str(adapter)))


# The memory of hashes.

SHA_OF_WEIGHTS = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
SHA_OF_OTHERS = "147ec15498661dd98b2128a1fa230b4838f66d6b66dea64847dc55ac7d88a130"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def memo_file(tmp_path: Path) -> Path:
    return tmp_path / "memo" / "hashes.json"


class Reader:
    """Counts the files that are really read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read: list[str] = []
        original = hashes.hash_file

        def spy(path: Path) -> str:
            self.read.append(path.name)
            return original(path)

        monkeypatch.setattr(hashes, "hash_file", spy)


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Reader:
    return Reader(monkeypatch)


def test_an_unchanged_file_is_read_once(weights, memo_file, reader):
    """The second answer comes from the memory, in this process and in the next."""
    announced = []
    for _ in range(3):
        assert HashMemo(memo_file).hash_files([weights], announced.append) == {
            "model.safetensors": SHA_OF_WEIGHTS
        }
    assert reader.read == ["model.safetensors"]
    assert announced == [weights]


def test_a_file_of_the_same_size_and_another_time_is_read_again(weights, memo_file, reader):
    """Same length, other bytes, a nanosecond later: other hash. Same bytes touched: same hash."""
    memo = HashMemo(memo_file)
    memo.hash_files([weights])
    time = weights.stat().st_mtime_ns
    weights.write_bytes(b"Weights")
    os.utime(weights, ns=(time + 1, time + 1))
    assert memo.hash_files([weights]) == {"model.safetensors": SHA_OF_OTHERS}
    os.utime(weights, ns=(time + 2, time + 2))
    assert memo.hash_files([weights]) == {"model.safetensors": SHA_OF_OTHERS}
    assert len(reader.read) == 3


def test_another_size_or_another_place_is_read(weights, memo_file, reader, tmp_path):
    """The time alone is no key: a longer file with the old time, a file of the same name."""
    memo = HashMemo(memo_file)
    memo.hash_files([weights])
    time = weights.stat().st_mtime_ns
    other = tmp_path / "other" / weights.name
    other.parent.mkdir()
    other.write_bytes(b"Weights")
    os.utime(other, ns=(time, time))
    assert memo.hash_files([other]) == {"model.safetensors": SHA_OF_OTHERS}
    weights.write_bytes(b"weights, longer")
    os.utime(weights, ns=(time, time))
    assert memo.hash_files([weights])["model.safetensors"] not in (SHA_OF_WEIGHTS, SHA_OF_OTHERS)
    assert len(reader.read) == 3


def test_the_memory_keeps_what_others_wrote(weights, memo_file, tmp_path, reader):
    """Two memories of one file: the second does not forget what the first learned."""
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"Weights")
    HashMemo(memo_file).hash_files([weights])
    HashMemo(memo_file).hash_files([other])
    HashMemo(memo_file).hash_files([weights, other])
    assert reader.read == ["model.safetensors", "other.safetensors"]
    assert os.listdir(memo_file.parent) == [memo_file.name]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"3", b'"x"', b"\xff\xfe", b"{}", b'{"a": 1}']
)
def test_a_corrupted_memory_is_ignored(weights, memo_file, reader, content):
    """Whatever the file holds, the hash is right, and the memory works again afterwards."""
    memo_file.parent.mkdir()
    memo_file.write_bytes(content)
    for _ in range(2):
        assert HashMemo(memo_file).hash_files([weights]) == {"model.safetensors": SHA_OF_WEIGHTS}
    assert reader.read == ["model.safetensors"]


@pytest.mark.parametrize("value", [None, 5, "", "abc", ["x"], {}])
def test_a_corrupted_hash_is_no_hash(weights, memo_file, value):
    """An entry that cannot be a SHA-256 is not believed."""
    HashMemo(memo_file).hash_files([weights])
    known = read_json(memo_file)
    memo_file.write_text(json.dumps(dict.fromkeys(known, value)))
    assert HashMemo(memo_file).hash_files([weights]) == {"model.safetensors": SHA_OF_WEIGHTS}


@pytest.mark.parametrize("where", ["a file", "a directory", "read-only"])
def test_a_memory_that_cannot_be_kept_is_harmless(weights, tmp_path, monkeypatch, where):
    """A parent that is a file, a directory in its place, a disk that refuses: slower, no worse."""
    blocked = tmp_path / "blocked"
    if where == "a directory":
        (blocked / "hashes.json").mkdir(parents=True)
    elif where == "a file":
        blocked.write_text("x")
    else:
        monkeypatch.setattr(os, "replace", refuse)
    for _ in range(2):
        memo = HashMemo(blocked / "hashes.json")
        assert memo.hash_files([weights]) == {"model.safetensors": SHA_OF_WEIGHTS}
    if where == "a directory":
        assert os.listdir(blocked) == ["hashes.json"], "no temporary stays behind"


def refuse(*_: object, **__: object) -> None:
    raise PermissionError(13, "Permission denied")


def test_the_memory_lives_in_the_users_cache(monkeypatch, tmp_path):
    """`XDG_CACHE_HOME` where it is set, `~/.cache` elsewhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert HashMemo().path == tmp_path / "xdg" / "mrpo" / "file-hashes.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert HashMemo().path == tmp_path / ".cache" / "mrpo" / "file-hashes.json"


# What cannot be a reference.


def drop_config(model: Path) -> dict[str, str]:
    (model / "config.json").unlink()
    return {}


def drop_weights(model: Path) -> dict[str, str]:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    return {}


def drop_a_shard(model: Path) -> dict[str, str]:
    shard(model, "model-00001-of-00001.safetensors")
    (model / "model.safetensors").unlink()
    (model / "model-00001-of-00001.safetensors").unlink()
    return {}


def break_config(model: Path) -> dict[str, str]:
    (model / "config.json").write_text('{"model_type": "llama",')
    return {}


def list_config(model: Path) -> dict[str, str]:
    (model / "config.json").write_text("[]")
    return {}


def empty_adapter(model: Path) -> dict[str, str]:
    (model.parent / "empty").mkdir()
    return {"adapter": str(model.parent / "empty")}


def binary_template(model: Path) -> dict[str, str]:
    (model / "x.jinja").write_bytes(b"\xff\xfe\x00")
    return {"chat_template": str(model / "x.jinja")}


ERRORS: dict[str, tuple[Callable[[Path], dict[str, str]], str]] = {
    "no config": (drop_config, "config.json"),
    "no safetensors": (drop_weights, "safetensors"),
    "a shard missing": (drop_a_shard, "model-00001-of-00001.safetensors"),
    "config cut off": (break_config, "config.json"),
    "config is a list": (list_config, "config.json"),
    "no directory": (lambda model: {"model": str(model / "nowhere")}, "nowhere"),
    "no relative directory": (lambda model: {"model": "./nowhere"}, "nowhere"),
    "a file": (lambda model: {"model": str(model / "README.md")}, "README.md"),
    "no adapter directory": (lambda model: {"adapter": str(model / "nowhere")}, "nowhere"),
    "an empty adapter": (empty_adapter, "adapter_config.json"),
    "no template file": (lambda model: {"chat_template": "nowhere.jinja"}, "nowhere.jinja"),
    "a template that is no text": (binary_template, "x.jinja"),
    "no hub id": (lambda model: {"model": "no-such-org/no-such-model"}, "no-such-org"),
    "no hub adapter": (lambda model: {"adapter": "no-such-org/no-such-adapter"}, "no-such-org"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_be_read_is_said_with_a_way_out(model, case):
    """Every wrong reference: a UsageError that names the file or the word, and a hint."""
    spoil, word = ERRORS[case]
    reference = Reference(**{"model": str(model), **spoil(model)})
    with pytest.raises(UsageError) as raised:
        identify(reference, locate(reference), "float32")
    assert word in raised.value.what
    assert raised.value.hint
    assert "\n" not in raised.value.what


def test_a_download_asks_for_the_revision_and_keeps_the_commit(model, monkeypatch):
    """The revision goes to the hub client; the commit is the name of the snapshot it returns."""
    import huggingface_hub

    def download(hub_id: str, *, revision: str | None, **_: object) -> str:
        snapshot = model.parent / f"{revision}-of-{hub_id.replace('/', '-')}"
        return str(shutil.copytree(model, snapshot))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = locate(Reference(model="org/model", revision="v2"))
    assert found.hub_id == "org/model"
    assert found.revision == found.model.name == "v2-of-org-model"
    assert found.adapter is None


@pytest.mark.parametrize("message", ["", "401 Client Error\nlong story", "  \n"])
def test_a_failed_download_is_one_line(monkeypatch, message):
    """The hub client's errors are long; the first line and a hint are enough."""
    import huggingface_hub

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UsageError, match="org/model") as raised:
        locate(Reference(model="org/model"))
    assert "\n" not in raised.value.what
    assert (message.split("\n")[0].strip() or "RuntimeError") in raised.value.what
    assert raised.value.hint


# The cache's numbers and the project's words.


@pytest.fixture
def store(model: Path, tmp_path: Path):
    subject = resolve("judge", Reference(model=str(model), dtype="float32"))
    return Cache(tmp_path / "cache").store("judge", subject.identity)


def stale(store: Any, model: Path, **words: Any) -> CacheStale:
    subject = resolve("judge", Reference(model=str(model), **words))
    with pytest.raises(CacheStale, match="'judge'") as raised:
        check_current(store, subject)
    assert "mrpo precompute" in raised.value.hint
    assert "judge" in raised.value.hint
    return raised.value


@pytest.mark.parametrize(
    ("words", "field", "was", "now"),
    [
        ({"max_length": 32}, "max_length", "64", "32"),
        ({"overlong": "truncate"}, "overlong", "'skip'", "'truncate'"),
        ({"system": "drop"}, "system", "'fold'", "'drop'"),
        ({"added_tokens": "keep"}, "added_tokens", "'plain'", "'keep'"),
        ({"quantization": "nf4"}, "quantization", "None", "'nf4'"),
        ({"dtype": "bfloat16"}, "dtype", "'float32'", "'bfloat16'"),
    ],
)
def test_stale_numbers_are_refused_by_field(store, model, words, field, was, now):
    """The field and both values, the cached one first; no other field."""
    error = stale(store, model, **{"dtype": "float32", **words})
    assert f"{field} was {was}, is now {now}" in str(error)
    assert str(error).count(" is now ") == 1


def test_every_stale_field_is_named(store, model):
    """Several differences are told together."""
    flip_a_byte(model / "model.safetensors")
    text = str(stale(store, model, dtype="float32", max_length=32, system="error"))
    assert text.count(" is now ") == 3
    for field in ("weights", "max_length", "system"):
        assert f"{field} was" in text


def test_a_changed_template_is_shown_where_it_changed(store, model):
    """Two long templates with one beginning: what the message shows of them differs."""
    template = model / "chat_template.jinja"
    template.write_text(template.read_text() + "{# changed #}")
    text = str(stale(store, model, dtype="float32"))
    was, now = text.split("chat_template was ")[1].split(", is now ")
    assert was != now
    assert len(text) < 500


def test_current_numbers_are_used(store, model):
    """The same words, an open dtype, other batch sizes: the numbers are current."""
    for words in ({"dtype": "float32"}, {}, {"batch_tokens": 16, "attention": "eager"}):
        check_current(store, resolve("judge", Reference(model=str(model), **words)))


def test_an_open_dtype_is_the_devices(model, monkeypatch):
    """`dtype` left open is what the device prefers, and that is written into the identity."""
    for dtype in ("float32", "bfloat16"):
        monkeypatch.setattr(devices, "default_dtype", lambda dtype=dtype: dtype)
        open_one = resolve("judge", Reference(model=str(model)))
        named = resolve("judge", Reference(model=str(model), dtype=dtype))
        assert open_one.identity == named.identity
        assert named.identity.fields["dtype"] == dtype


def test_an_open_dtype_takes_the_caches(model, tmp_path):
    """`dtype` left open accepts numbers of any dtype; other fields are still told."""
    coarse = resolve("judge", Reference(model=str(model), dtype="bfloat16"))
    store = Cache(tmp_path / "cache").store("judge", coarse.identity)
    check_current(store, resolve("judge", Reference(model=str(model))))
    assert "dtype" not in str(stale(store, model, max_length=32))
