"""A path or a hub id -> a reference's files on this disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mrpo_tools.config import Reference
from mrpo_tools.errors import UsageError
from mrpo_tools.references.model_files import ModelFiles, read_json

DOWNLOADED = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
NOT_READ = ("consolidated*.safetensors", "original/*")
"""Second copies of the weights in other layouts, which some repositories hold."""

Found = tuple[str, Path]
Download = Callable[[str, str | None, Sequence[str]], Found]
"""(hub id, revision, patterns of file names) -> (commit, directory with the files)."""


def download(hub_id: str, revision: str | None, patterns: Sequence[str]) -> tuple[str, Path]:
    """(commit, snapshot directory) of a hub repository.

    Raises:
        UsageError: the hub does not give it.
    """
    from huggingface_hub import snapshot_download

    try:
        snapshot = Path(
            snapshot_download(
                hub_id,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=list(NOT_READ),
            )
        )
    except Exception as error:  # the hub client's errors share no useful base
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"model {hub_id!r} is no directory here and cannot be downloaded: {reason}",
            "check the path or the hub id, `hf auth login` for gated models, or HF_HUB_OFFLINE",
        ) from None
    return snapshot.name, snapshot


def locate(reference: Reference, *, download: Download = download) -> ModelFiles:
    """Find a reference's files, downloading a hub model that is not here yet.

    A directory that holds only an adapter stands for its base model with that adapter.

    Args:
        reference: its words.
        download: gets a hub repository's files.

    Raises:
        UsageError: neither a directory with a model nor a hub id that can be downloaded.
    """
    patterns = (*DOWNLOADED, "*.py") if reference.trust_remote_code else DOWNLOADED
    adapter = locate_adapter(reference.adapter, download=download)
    files = _locate_model(reference.model, reference.revision, patterns, download)
    if (files.model / "config.json").exists():
        return replace(files, adapter=adapter)
    if adapter is not None or not (files.model / "adapter_config.json").exists():
        raise UsageError(
            f"{files.model} holds no model: it has no config.json", "give a model directory"
        )
    base = read_json(files.model / "adapter_config.json").get("base_model_name_or_path")
    if not isinstance(base, str | None):
        raise UsageError(
            f"{files.model / 'adapter_config.json'}: base_model_name_or_path is no text",
            "name the model, and this directory with --adapter",
        )
    revision = reference.revision if files.hub_id is None else None
    base_files = _locate_model(base, revision, patterns, download) if base else files
    if not (base_files.model / "config.json").exists():
        raise UsageError(
            f"the adapter {files.model} does not name a model as its base, but {base!r}",
            "name the model, and this directory with --adapter",
        )
    return replace(base_files, adapter=files.model)


def is_here(reference: Reference) -> bool:
    """Whether a reference's model is on this machine: a directory, or downloaded before."""
    if Path(reference.model).expanduser().is_dir():
        return True
    if _looks_like_a_path(reference.model):
        return False
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(reference.model, "config.json", revision=reference.revision)
    return isinstance(config, str)


def locate_adapter(adapter: str | None, *, download: Download = download) -> Path | None:
    """The directory of an adapter: a path, or the snapshot of a hub repository.

    Raises:
        UsageError: there is none.
    """
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
    return download(adapter, None, DOWNLOADED)[1]


def _locate_model(
    model: str, revision: str | None, patterns: Sequence[str], download: Download
) -> ModelFiles:
    """A directory here, or the snapshot of a hub repository."""
    path = Path(model).expanduser()
    if path.is_dir():
        return ModelFiles(path)
    if _looks_like_a_path(model):
        raise UsageError(f"no directory {model}", "check the model's path")
    commit, snapshot = download(model, revision, patterns)
    return ModelFiles(snapshot, None, model, commit)


def _looks_like_a_path(text: str) -> bool:
    return text.startswith((".", "/", "~")) or text.count("/") != 1 or "\\" in text
