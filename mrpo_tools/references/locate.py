"""A path or a hub id -> a reference's files on this disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mrpo_tools.config import Reference
from mrpo_tools.errors import UsageError
from mrpo_tools.references.model_files import ModelFiles, read_json

DOWNLOADED = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]


NOT_READ = ["consolidated*.safetensors", "original/*"]
"""Second copies of the weights in other layouts, which some repositories hold."""


def locate(reference: Reference) -> ModelFiles:
    """Find a reference's files, downloading a hub model that is not here yet.

    A directory that holds only an adapter stands for its base model with that adapter.

    Raises:
        UsageError: neither a directory with a model nor a hub id that can be downloaded.
    """
    adapter = locate_adapter(reference.adapter)
    found = _locate_model(reference.model, reference.revision, reference.trust_remote_code)
    if (found.model / "config.json").exists():
        return replace(found, adapter=adapter)
    if adapter is not None or not (found.model / "adapter_config.json").exists():
        raise UsageError(
            f"{found.model} holds no model: it has no config.json", "give a model directory"
        )
    base = read_json(found.model / "adapter_config.json").get("base_model_name_or_path")
    revision = reference.revision if found.hub_id is None else None
    beneath = _locate_model(base, revision, reference.trust_remote_code) if base else found
    if not (beneath.model / "config.json").exists():
        raise UsageError(
            f"the adapter {found.model} does not name a model as its base, but {base!r}",
            "name the model, and this directory with --adapter",
        )
    return replace(beneath, adapter=found.model)


def _locate_model(model: str, revision: str | None, with_code: bool) -> ModelFiles:
    """A directory here, or the snapshot of a hub repository."""
    path = Path(model).expanduser()
    if path.is_dir():
        return ModelFiles(path)
    if _looks_like_a_path(model):
        raise UsageError(f"no directory {model}", "check the model's path")
    commit, snapshot = _download(model, revision, with_code=with_code)
    return ModelFiles(snapshot, None, model, commit)


def is_here(reference: Reference) -> bool:
    """Whether a reference's model is on this machine: a directory, or downloaded before."""
    if Path(reference.model).expanduser().is_dir():
        return True
    if _looks_like_a_path(reference.model):
        return False
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(reference.model, "config.json", revision=reference.revision)
    return isinstance(found, str)


def locate_adapter(adapter: str | None) -> Path | None:
    if adapter is None:
        return None
    path = Path(adapter).expanduser()
    if path.is_dir():
        if not (path / "adapter_config.json").exists():
            raise UsageError(
                f"{path} holds no adapter: it has no adapter_config.json",
                "give a directory written by peft's save_pretrained",
            )
        return path
    if _looks_like_a_path(adapter):
        raise UsageError(f"no directory {adapter}", "check the adapter's path")
    return _download(adapter, None, with_code=False)[1]


def _looks_like_a_path(text: str) -> bool:
    return text.startswith((".", "/", "~")) or text.count("/") != 1 or "\\" in text


def _download(hub_id: str, revision: str | None, *, with_code: bool) -> tuple[str, Path]:
    """(commit, snapshot directory) of a hub repository."""
    from huggingface_hub import snapshot_download

    patterns = [*DOWNLOADED, "*.py"] if with_code else DOWNLOADED
    try:
        snapshot = Path(
            snapshot_download(
                hub_id, revision=revision, allow_patterns=patterns, ignore_patterns=NOT_READ
            )
        )
    except Exception as error:  # the hub client's errors share no useful base
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"model {hub_id!r} is no directory here and cannot be downloaded: {reason}",
            "check the path or the hub id, `hf auth login` for gated models, or HF_HUB_OFFLINE",
        ) from None
    return snapshot.name, snapshot
