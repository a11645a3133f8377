"""Which numbers are the same numbers: a reference's identity.

Log-probs are determined by the model's weights and configuration, its arithmetic, its tokenizer
and template, and the rules of rendering. Those fields, and nothing else, are the identity: change
one and the numbers live in another directory; change anything else and they are reused. The hash
is the SHA-256 of the fields' canonical JSON, which is also the exact content of `identity.json`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mrpo_tools.config import Reference
from mrpo_tools.errors import UsageError
from mrpo_tools.groups import canonical_json
from mrpo_tools.hashes import HashMemo, hash_file

RENDERING_VERSION = 1
"""Raised whenever the same text would be rendered or tokenised to other ids."""

PINNED_DATE = "2024-07-26"
"""The day a template sees when it asks for today's."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tekken.json",
)
DOWNLOADED = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]
NOT_READ = ["consolidated*.safetensors", "original/*"]
"""Second copies of the weights in other layouts, which some repositories hold."""
IGNORED_CONFIG = frozenset(
    {"transformers_version", "_name_or_path", "torch_dtype", "dtype", "use_cache"}
)
DEFAULT_MAX_LENGTH = 4096
FIELDS = (
    "rendering_version", "model", "revision", "weights", "config", "code", "adapter", "dtype",
    "quantization", "tokenizer", "chat_template", "pinned_date", "bos_token", "eos_token", "system",
    "added_tokens", "max_length", "overlong",
)  # fmt: skip
"""Of every identity; `differences` names them. Imported numbers have an `origin` besides."""


@dataclass(frozen=True)
class Identity:
    """The fields that determine a reference's log-probs."""

    fields: dict[str, Any]

    @cached_property
    def content(self) -> bytes:
        """The bytes of `identity.json`."""
        return (canonical_json(self.fields) + "\n").encode()

    @cached_property
    def hash(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def short(self) -> str:
        """The twelve digits that a directory's name carries."""
        return self.hash[:12]

    def differences(self, other: Identity) -> list[tuple[str, Any, Any]]:
        """(field, this value, the other's value) for each field that differs."""
        names = sorted(self.fields.keys() | other.fields.keys())
        return [
            (name, self.fields.get(name), other.fields.get(name))
            for name in names
            if self.fields.get(name) != other.fields.get(name)
        ]


@dataclass(frozen=True)
class ModelFiles:
    """Where a reference's files lie on this disk.

    Attributes:
        model: directory with config, weights and tokenizer.
        adapter: directory of a LoRA adapter, if there is one.
        hub_id: the model's name on the hub; None for a local directory, whose path is no identity.
        revision: the commit on the hub.
    """

    model: Path
    adapter: Path | None = None
    hub_id: str | None = None
    revision: str | None = None


def locate(reference: Reference) -> ModelFiles:
    """Find a reference's files, downloading a hub model that is not here yet.

    A directory that holds only an adapter stands for its base model with that adapter.

    Raises:
        UsageError: neither a directory with a model nor a hub id that can be downloaded.
    """
    adapter = _locate_adapter(reference.adapter)
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


def identify(
    reference: Reference, files: ModelFiles, dtype: str, memo: HashMemo | None = None
) -> Identity:
    """The identity of a reference whose files are at hand.

    Args:
        reference: the words of the project file.
        files: what `locate` found.
        dtype: the arithmetic, resolved for this device when the project file leaves it open.
        memo: remembers the hashes of weight files by path, size and time.
    """
    memo = memo or HashMemo()
    template = template_text(files.model, reference.chat_template)
    settings = tokenizer_settings(files.model)
    weights = memo.hash_files(weight_files(files.model))
    if not weights:
        raise UsageError(
            f"{files.model} holds no safetensors weights", "only safetensors weights are read"
        )
    return Identity(
        {
            "rendering_version": RENDERING_VERSION,
            "model": files.hub_id,
            "revision": files.revision,
            "weights": _hash_names(weights),
            "config": _hash_json(files.model / "config.json", IGNORED_CONFIG),
            "code": _code_hash(files.model) if reference.trust_remote_code else None,
            "adapter": _adapter_hash(files.adapter, memo),
            "dtype": dtype,
            "quantization": reference.quantization,
            "tokenizer": _hash_names(
                {
                    name: hash_file(files.model / name)
                    for name in TOKENIZER_FILES
                    if (files.model / name).exists()
                }
            ),
            "chat_template": template,
            "pinned_date": PINNED_DATE if template and uses_date(template) else None,
            "bos_token": settings.get("bos_token"),
            "eos_token": settings.get("eos_token"),
            "system": reference.system,
            "added_tokens": reference.added_tokens,
            "max_length": reference.max_length or context_length(files.model),
            "overlong": reference.overlong,
        }
    )


def imported_identity(origin: str, model: str | None = None) -> Identity:
    """The identity of numbers that another program computed: what it is called, and nothing else
    is known."""
    return Identity({**dict.fromkeys(FIELDS), "origin": origin, "model": model})


def shown(one: object, other: object) -> tuple[str, str]:
    """Two differing values for a message, long ones cut around the place where they differ."""
    texts = (repr(one), repr(other))
    start = next(
        (i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts))
    )
    first = max(0, start - 20)
    return (_window(texts[0], first), _window(texts[1], first))


def changes(differing: Iterable[tuple[str, object, object]]) -> str:
    """`max_length was 100, is now 200; …` of (field, value now, cached value) each."""
    return "; ".join(
        f"{field} was {was}, is now {now}"
        for field, (was, now) in ((field, shown(cached, now)) for field, now, cached in differing)
    )


def fields_of_words(reference: Reference) -> dict[str, Any]:
    """Fields of the identity that a reference's words decide without its model's files."""
    fields: dict[str, Any] = {
        name: getattr(reference, name)
        for name in ("quantization", "overlong", "system", "added_tokens")
    }
    for name in ("dtype", "max_length"):
        if getattr(reference, name) is not None:
            fields[name] = getattr(reference, name)
    if reference.revision is not None and re.fullmatch("[0-9a-f]{40}", reference.revision):
        fields["revision"] = reference.revision
    if reference.chat_template is not None:
        fields["chat_template"] = template_text(Path(), reference.chat_template)
    if reference.adapter is not None:
        fields["adapter"] = _adapter_hash(_locate_adapter(reference.adapter), HashMemo())
    return fields


def is_here(reference: Reference) -> bool:
    """Whether a reference's model is on this machine: a directory, or downloaded before."""
    if Path(reference.model).expanduser().is_dir():
        return True
    if _looks_like_a_path(reference.model):
        return False
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(reference.model, "config.json", revision=reference.revision)
    return isinstance(found, str)


def template_text(model: Path, override: str | None = None) -> str | None:
    """The chat template as text: the override's file, the model's own, or None."""
    if override is not None:
        try:
            return Path(override).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"chat_template {override} cannot be read: {error}",
                "give a UTF-8 text file with a Jinja template",
            ) from None
    jinja = model / "chat_template.jinja"
    if jinja.exists():
        return jinja.read_text(encoding="utf-8")
    template = tokenizer_settings(model).get("chat_template")
    if isinstance(template, list):
        named = {one["name"]: one["template"] for one in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


def uses_date(template: str) -> bool:
    """Whether a template writes today's date."""
    return "strftime_now" in template or "date_string" in template


def tokenizer_settings(model: Path) -> dict[str, Any]:
    """`tokenizer_config.json` with its special tokens as plain text."""
    path = model / "tokenizer_config.json"
    settings = read_json(path) if path.exists() else {}
    for name in ("bos_token", "eos_token"):
        if isinstance(settings.get(name), dict):
            settings[name] = settings[name].get("content")
    return settings


def context_length(model: Path) -> int:
    """The number of tokens a model was made for."""
    config = read_json(model / "config.json")
    text = config.get("text_config", config)
    length = text.get("max_position_embeddings") or text.get("n_positions")
    return int(length or DEFAULT_MAX_LENGTH)


def weight_files(model: Path) -> list[Path]:
    """The safetensors files that `from_pretrained` reads."""
    single, index = model / "model.safetensors", model / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if not index.exists():
        return []
    files = sorted({model / name for name in read_json(index)["weight_map"].values()})
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise UsageError(
            f"{model} lacks {', '.join(missing)}, which its index names", "download it again"
        )
    return files


def _locate_adapter(adapter: str | None) -> Path | None:
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


def _window(text: str, first: int) -> str:
    if len(text) <= 60:
        return text
    end = first + 57
    return ("…" if first else "") + text[first:end] + ("…" if end < len(text) else "")


def _code_hash(model: Path) -> str:
    """Of the Python files beside the weights, which `trust_remote_code` runs."""
    code = {str(path.relative_to(model)): hash_file(path) for path in model.rglob("*.py")}
    return _hash_names(code)


def _adapter_hash(adapter: Path | None, memo: HashMemo) -> str | None:
    if adapter is None:
        return None
    names = memo.hash_files(sorted(adapter.glob("adapter_model*.safetensors")))
    if not names:
        raise UsageError(
            f"{adapter} holds no safetensors weights", "save the adapter with safetensors"
        )
    ignored = frozenset({"base_model_name_or_path", "inference_mode", "peft_version"})
    names["adapter_config.json"] = _hash_json(adapter / "adapter_config.json", ignored)
    return _hash_names(names)


def _hash_names(hashes: dict[str, str]) -> str:
    return hashlib.sha256(canonical_json(hashes).encode()).hexdigest()


def _hash_json(path: Path, ignored: frozenset[str]) -> str:
    kept = {key: value for key, value in read_json(path).items() if key not in ignored}
    text = json.dumps(kept, sort_keys=True)  # a configuration may hold Infinity
    return hashlib.sha256(text.encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model's directory.

    Raises:
        UsageError: the file holds none.
    """
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}", "download it again") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds no JSON object", "download it again")
    return values
