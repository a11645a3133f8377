"""A path or a hub id -> files: what is found, what is downloaded, what is refused and how."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from reference_changes import edit_json, read_json, words_of

from mrpo_tools.config import Reference
from mrpo_tools.errors import UsageError
from mrpo_tools.references.identity import identify
from mrpo_tools.references.locate import locate
from mrpo_tools.references.model_files import ModelFiles
from mrpo_tools.references.resolved import resolve


def test_hub_id_and_commit_count(model):
    """A model of the hub is its name and the commit that was downloaded, not the word for it."""
    commits = {"main": "aaa", "v1": "aaa", "v2": "bbb", None: "aaa"}
    asked = []

    def download(hub_id: str, revision: str | None, _: object) -> tuple[str, Path]:
        asked.append((hub_id, revision))
        return commits[revision], model

    def identity_of(name: str, **words: Any):
        reference = Reference(model=name, dtype="float32", **words)
        return resolve("judge", reference, download=download).identity

    def changed(one, other) -> set[str]:
        return {name for name, _, _ in one.differences(other)}

    main, v1, v2 = (identity_of("org/one", revision=name) for name in ("main", "v1", "v2"))
    other = identity_of("org/two")
    assert asked == [("org/one", "main"), ("org/one", "v1"), ("org/one", "v2"), ("org/two", None)]
    assert changed(main, v1) == set()
    assert changed(main, v2) == {"revision"}
    assert changed(main, other) == {"model"}
    assert changed(main, identity_of(str(model))) == {"model", "revision"}


def test_a_download_takes_what_is_read(monkeypatch, model):
    """Python files for models that run their own code; never a second copy of the weights."""
    asked = []

    def download(hub_id: str, **options: Any) -> str:
        asked.append(options)
        return str(model)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    locate(Reference(model="org/model"))
    locate(Reference(model="org/model", trust_remote_code=True))
    assert ["*.py" in options["allow_patterns"] for options in asked] == [False, True]
    assert all("consolidated*.safetensors" in options["ignore_patterns"] for options in asked)


def test_a_download_asks_for_the_revision_and_keeps_the_commit(model, monkeypatch):
    """The revision goes to the hub client; the commit is the name of the snapshot it returns."""

    def download(hub_id: str, *, revision: str | None, **_: object) -> str:
        snapshot = model.parent / f"{revision}-of-{hub_id.replace('/', '-')}"
        return str(shutil.copytree(model, snapshot))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    files = locate(Reference(model="org/model", revision="v2"))
    assert files.hub_id == "org/model"
    assert files.revision == files.model.name == "v2-of-org-model"
    assert files.adapter is None


@pytest.mark.parametrize("message", ["", "401 Client Error\nlong story", "  \n"])
def test_a_failed_download_is_one_line(monkeypatch, message):
    """The hub client's errors are long; the first line and a hint are enough."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UsageError, match="org/model") as raised:
        locate(Reference(model="org/model"))
    assert "\n" not in raised.value.what
    assert (message.split("\n")[0].strip() or "RuntimeError") in raised.value.what
    assert raised.value.hint


# A directory that holds only an adapter.


def test_an_adapter_directory_stands_for_base_and_adapter(model):
    """`model: DIR` with an adapter in it is `model: BASE` with `adapter: DIR`."""
    adapter = model.parent / "first"
    only = Reference(model=str(adapter), dtype="float32")
    files = locate(only)
    assert (files.model, files.adapter) == (model, adapter)
    both = words_of(model)
    assert identify(only, files, "float32") == identify(both, locate(both), "float32")


def test_an_adapter_of_a_hub_model_or_in_a_hub_repository(model):
    """Its base is downloaded, at the revision that the reference names; and what holds for a
    directory holds for a repository that has nothing but an adapter."""
    adapter = model.parent / "first"

    def download(hub_id: str, revision: str | None, _: Sequence[str]) -> tuple[str, Path]:
        return f"{revision}!", adapter if hub_id == "org/adapter" else model

    files = locate(Reference(model="org/adapter"), download=download)
    assert (files.model, files.adapter) == (model, adapter)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="org/base")
    files = locate(Reference(model=str(adapter), revision="v3"), download=download)
    assert files == ModelFiles(model, adapter, "org/base", "v3!")


def test_an_adapter_of_an_adapter_is_not_half_loaded(model):
    """An adapter whose base is an adapter needs both; dropping one would be another model."""
    second = model.parent / "second"
    edit_json(second / "adapter_config.json", base_model_name_or_path=str(model.parent / "first"))
    with pytest.raises(UsageError, match="adapter"):
        locate(Reference(model=str(second)))


@pytest.mark.parametrize("base_name", [None, "missing", "itself"])
def test_an_adapter_directory_without_its_base_is_refused(model, base_name):
    """No base in its config, null, or the directory itself: said in words."""
    adapter = model.parent / "first"
    config = read_json(adapter / "adapter_config.json")
    if base_name == "missing":
        del config["base_model_name_or_path"]
    else:
        config["base_model_name_or_path"] = str(adapter) if base_name == "itself" else None
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError):
        locate(Reference(model=str(adapter)))


# What cannot be a reference.


def written(name: str, content: bytes) -> Callable[[Path], dict[str, str]]:
    """A file of the model with this content, and no other words."""

    def spoil(model: Path) -> dict[str, str]:
        (model / name).write_bytes(content)
        return {}

    return spoil


def drop_config(model: Path) -> dict[str, str]:
    (model / "config.json").unlink()
    return {}


def drop_weights(model: Path) -> dict[str, str]:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
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
    "config cut off": (written("config.json", b'{"model_type": "llama",'), "config.json"),
    "config is a list": (written("config.json", b"[]"), "config.json"),
    "no directory": (lambda model: {"model": str(model / "nowhere")}, "nowhere"),
    "no relative directory": (lambda _: {"model": "./nowhere"}, "nowhere"),
    "a file": (lambda model: {"model": str(model / "config.json")}, "config.json"),
    "no adapter directory": (lambda model: {"adapter": str(model / "nowhere")}, "nowhere"),
    "an empty adapter": (empty_adapter, "adapter_config.json"),
    "no template file": (lambda _: {"chat_template": "nowhere.jinja"}, "nowhere.jinja"),
    "a template that is no text": (binary_template, "x.jinja"),
    "no hub id": (lambda _: {"model": "no-such-org/no-such-model"}, "no-such-org"),
    "no hub adapter": (lambda _: {"adapter": "no-such-org/no-such-adapter"}, "no-such-org"),
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
