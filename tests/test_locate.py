"""A path or a hub id -> files: what is found, what is downloaded, what is refused and how."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from reference_changes import edit_json, words_of

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

    def identity_of(name: str, revision: str | None = None):
        reference = Reference(model=name, dtype="float32", revision=revision)
        return resolve("judge", reference, download=download).identity

    main = identity_of("org/one", "main")
    for name, revision, fields in (
        ("org/one", "v1", set()),
        ("org/one", "v2", {"revision"}),
        ("org/two", None, {"model"}),
        (str(model), None, {"model", "revision"}),
    ):
        differences = main.differences(identity_of(name, revision))
        assert {field for field, _, _ in differences} == fields
    assert asked == [("org/one", "main"), ("org/one", "v1"), ("org/one", "v2"), ("org/two", None)]


def test_a_download_takes_what_is_read(monkeypatch, model):
    """The revision goes to the hub client, and the commit is the name of the snapshot it returns.
    Python files for models that run their own code; never a second copy of the weights."""
    asked = []

    def download(hub_id: str, *, revision: str | None, **options: Any) -> str:
        asked.append(options)
        snapshot = model.parent / f"{revision}-of-{hub_id.replace('/', '-')}"
        return str(shutil.copytree(model, snapshot, dirs_exist_ok=True))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    files = locate(Reference(model="org/model", revision="v2"))
    assert (files.hub_id, files.adapter) == ("org/model", None)
    assert files.revision == files.model.name == "v2-of-org-model"
    locate(Reference(model="org/model", trust_remote_code=True))
    assert ["*.py" in options["allow_patterns"] for options in asked] == [False, True]
    assert all("consolidated*.safetensors" in options["ignore_patterns"] for options in asked)


@pytest.mark.parametrize(
    ("message", "line"),
    [("", "RuntimeError"), ("  \n", "RuntimeError"), ("401 Error\nlong story", "401 Error")],
)
def test_a_failed_download_is_one_line(monkeypatch, message, line):
    """The hub client's errors are long; the first line and a hint are enough."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UsageError, match=f"org/model.*{line}$") as raised:
        locate(Reference(model="org/model"))
    assert "\n" not in raised.value.what
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


@pytest.mark.parametrize("base", ["missing", None, "itself", "an adapter"])
def test_an_adapter_directory_without_its_base_is_refused(model, base):
    """No base in its config, null, the directory itself, or another adapter, both of which would be
    needed: said in words."""
    second = model.parent / "second"
    places = {"itself": str(second), "an adapter": str(model.parent / "first")}
    config = {} if base == "missing" else {"base_model_name_or_path": places.get(base)}
    (second / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="does not name a model as its base"):
        locate(Reference(model=str(second)))


# What cannot be a reference.


def written(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda model: (model / name).write_bytes(content)


def renamed(name: str, other: str) -> Callable[[Path], object]:
    return lambda model: (model / name).rename(model / other)


def untouched(_model: Path) -> None:
    """The model as it is."""


# What is done to the model, the words for it (`{}` is its directory), what the error names.
ERRORS: dict[str, tuple[Callable[[Path], object], dict[str, str], str]] = {
    "no config": (renamed("config.json", "x"), {}, "config.json"),
    "no safetensors": (renamed("model.safetensors", "pytorch_model.bin"), {}, "safetensors"),
    "config cut off": (written("config.json", b'{"model_type": "llama",'), {}, "config.json"),
    "config is a list": (written("config.json", b"[]"), {}, "config.json"),
    "no directory": (untouched, {"model": "{}/nowhere"}, "nowhere"),
    "no relative directory": (untouched, {"model": "./nowhere"}, "nowhere"),
    "a file": (untouched, {"model": "{}/config.json"}, "config.json"),
    "no adapter directory": (untouched, {"adapter": "{}/nowhere"}, "nowhere"),
    "an empty adapter": (lambda model: (model / "empty").mkdir(), {"adapter": "{}/empty"},
                         "adapter_config.json"),
    "no template file": (untouched, {"chat_template": "nowhere.jinja"}, "nowhere.jinja"),
    "a template that is no text": (written("x.jinja", b"\xff\xfe\x00"),
                                   {"chat_template": "{}/x.jinja"}, "x.jinja"),
    "no hub id": (untouched, {"model": "no-such-org/no-such-model"}, "no-such-org"),
    "no hub adapter": (untouched, {"adapter": "no-such-org/no-such-adapter"}, "no-such-org"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_be_read_is_said_with_a_way_out(model, case):
    """Every wrong reference: a UsageError that names the file or the word, and a hint."""
    spoil, words, mentioned = ERRORS[case]
    spoil(model)
    named = {key: word.format(model) for key, word in ({"model": "{}"} | words).items()}
    reference = Reference(**named)
    with pytest.raises(UsageError) as raised:
        identify(reference, locate(reference), "float32")
    assert mentioned in raised.value.what
    assert raised.value.hint
    assert "\n" not in raised.value.what
