"""Another number has another identity, with the reason by name; the same number has the same."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_templates import CHATML
from reference_changes import CHANGES, DATED, HARMLESS, edit_json, flip_a_byte, words_of
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mrpo_tools.errors import UsageError
from mrpo_tools.references import identity
from mrpo_tools.references.identity import PINNED_DATE, RENDERING_VERSION, Identity, identify
from mrpo_tools.references.locate import locate
from mrpo_tools.references.model_files import TOKENIZER_FILES

FIELDS = {
    *("rendering_version", "model", "revision", "weights", "config", "code", "adapter"),
    *("dtype", "quantization", "max_length", "overlong"),
    *("tokenizer", "bos_token", "eos_token", "added_tokens"),
    *("chat_template", "pinned_date", "system"),
}


def identity_of(model: Path, **words: Any) -> Identity:
    reference = words_of(model, **words)
    return identify(reference, locate(reference), reference.dtype)


def changed(before: Identity, after: Identity) -> set[str]:
    """The fields that differ, after the promises that hold for every pair."""
    differences = before.differences(after)
    assert (before.hash == after.hash) == (before.content == after.content) == (not differences)
    assert differences == [(name, b, a) for name, a, b in after.differences(before)]
    return {name for name, _, _ in differences}


@pytest.mark.parametrize("name", sorted({*TOKENIZER_FILES} - {"tokenizer_config.json"}))
def test_every_tokenizer_file_counts(model, name):
    """A tokenizer file that appears, and one whose bytes change."""
    content = (model / name).read_text() if (model / name).exists() else "{}"
    identities = [identity_of(model)]
    for end in ("\n", "\n\n"):
        (model / name).write_text(content + end)
        identities.append(identity_of(model))
        assert changed(*identities[-2:]) == {"tokenizer"}


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
    assert changed(before, write(DATED + CHATML)) == {"chat_template", "tokenizer", "pinned_date"}


def test_the_jinja_file_wins_over_the_settings(model):
    """The library reads `chat_template.jinja` where there are both."""
    edit_json(model / "tokenizer_config.json", chat_template="old")
    text = (model / "chat_template.jinja").read_text()
    assert identity_of(model).fields["chat_template"] == text


def test_the_override_is_its_text(model, tmp_path):
    """Another template file: another identity; the same text in another file: the same."""

    def overridden(text: str, name: str = "a") -> Identity:
        (tmp_path / name).write_text(text)
        return identity_of(model, chat_template=str(tmp_path / name))

    own, other = identity_of(model), overridden(CHATML)
    assert changed(own, other) == {"chat_template"}
    assert changed(other, overridden(CHATML + "\n")) == {"chat_template"}
    assert changed(own, overridden((model / "chat_template.jinja").read_text())) == set()
    (model / "chat_template.jinja").write_text("never used")
    assert changed(other, overridden(CHATML, "b")) == set()


@pytest.mark.parametrize("asks", ["strftime_now('%Y')", "date_string"])
def test_the_pinned_day_counts_where_a_template_asks_for_it(model, asks):
    """The day is a field of templates that write the date, and of no others."""
    assert identity_of(model).fields["pinned_date"] is None
    (model / "chat_template.jinja").write_text("{{- " + asks + " -}}" + CHATML)
    assert identity_of(model).fields["pinned_date"] == PINNED_DATE


def test_the_fields_are_the_designs(model):
    """Neither a field too few nor one that would compute again for nothing; the version of the
    rules is one, another value of any is another identity, and each has a change in the table but
    for the hub's two and the version."""
    now = identity_of(model)
    assert now.fields["rendering_version"] == RENDERING_VERSION
    for field in FIELDS:
        assert changed(now, Identity({**now.fields, field: "another"})) == {field}
    assert set(now.fields) == FIELDS == set(identity.FIELDS)
    elsewhere = {"model", "revision", "rendering_version"}
    changeable = elsewhere.union(*(change.fields for change in CHANGES.values()))
    assert changeable == FIELDS.union(identity.NARROW_FIELDS, identity.CUT_FIELDS)


def test_an_adapter_that_is_not_safetensors_is_refused(model):
    """Weights that the identity does not hash must not be used: they could change unseen."""
    adapter = model.parent / "first"
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(UsageError, match="safetensors"):
        identity_of(model)


def test_the_models_own_code_counts_where_it_runs(model):
    """With `trust_remote_code` the Python files beside the weights decide about the numbers."""
    (model / "modeling.py").write_text("scale = 1")
    plain, trusted = identity_of(model), identity_of(model, trust_remote_code=True)
    (model / "modeling.py").write_text("scale = 2")
    assert changed(trusted, identity_of(model, trust_remote_code=True)) == {"code"}
    assert changed(plain, identity_of(model)) == set()


@pytest.mark.parametrize("change", [*CHANGES, *HARMLESS])
def test_exactly_the_fields_that_a_change_touches(model, change):
    """A file or a word that changes numbers is another hash; others leave every digit of it."""
    before = identity_of(model)
    edit, words, fields = {**CHANGES, **HARMLESS}[change]
    edit(model)
    assert changed(before, identity_of(model, **words)) == fields


def test_a_model_may_move(model, tmp_path, monkeypatch):
    """Moved, copied, linked, by a relative path: the same model."""
    before = identity_of(model)
    shutil.copytree(model, tmp_path / "copy")
    (tmp_path / "link").symlink_to(tmp_path / "copy", target_is_directory=True)
    shutil.copytree(tmp_path / "first", tmp_path / "far" / "adapter")
    shutil.move(model, tmp_path / "far" / "model")
    monkeypatch.chdir(tmp_path)
    for path in (Path("copy"), tmp_path / "link", tmp_path / "far" / "model"):
        moved = words_of(path).model_copy(update={"adapter": str(tmp_path / "far" / "adapter")})
        assert changed(before, identify(moved, locate(moved), "float32")) == set()


def test_explicit_length_frees_the_config_of_it(model):
    """A context length changes `config` alone where the project file sets `max_length`."""
    before = identity_of(model, max_length=32)
    edit_json(model / "config.json", max_position_embeddings=128)
    assert changed(before, identity_of(model, max_length=32)) == {"config"}


def test_token_as_text_or_as_a_mapping(model):
    """`eos_token` written as a mapping is the token it holds."""
    before = identity_of(model)
    token = {"content": before.fields["eos_token"], "special": True}
    edit_json(model / "tokenizer_config.json", eos_token=token)
    assert changed(before, identity_of(model)) == {"tokenizer"}


def test_content_is_the_file_and_hash_is_its_hash(model):
    """`identity.json` can be read back into the fields, and hashed by anybody."""
    now = identity_of(model)
    assert json.loads(now.content) == now.fields
    assert now.hash == hashlib.sha256(now.content).hexdigest()
    assert now.short == now.hash[:12]


# The weights that are hashed are the weights that are loaded.

SHARD = "model-00001-of-00001.safetensors"


def shard(model: Path) -> None:
    """Name a copy of the weights in an index, as sharded models do."""
    shutil.copy(model / "model.safetensors", model / SHARD)
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(model / SHARD), SHARD)}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def test_sharded_weights_count(model):
    """Every shard of the index, and no file beside them; a shard that is missing is told."""
    shard(model)
    (model / "model.safetensors").unlink()
    before = identity_of(model)
    shutil.copy(model / SHARD, model / "consolidated.safetensors")
    assert changed(before, identity_of(model)) == set()
    flip_a_byte(model / SHARD)
    assert changed(before, identity_of(model)) == {"weights"}
    (model / SHARD).unlink()
    with pytest.raises(UsageError, match=SHARD) as raised:
        identity_of(model)
    assert raised.value.hint


def test_a_single_file_beside_an_index_is_what_is_loaded(model):
    """The library loads `model.safetensors` first; so its bytes are the identity."""
    shard(model)
    tensors = load_file(model / "model.safetensors")
    zeros = {key: torch.zeros_like(value) for key, value in tensors.items()}
    save_file(zeros, model / SHARD, metadata={"format": "pt"})
    loaded = AutoModelForCausalLM.from_pretrained(model)
    assert loaded.lm_head.weight.detach().abs().sum() > 0
    before = identity_of(model)
    flip_a_byte(model / "model.safetensors")
    assert changed(before, identity_of(model)) == {"weights"}
