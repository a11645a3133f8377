"""What a model's directory says: its weights' files, its template, its tokenizer's settings."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrpo_tools.errors import UsageError

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "tekken.json",
)  # fmt: skip
DEFAULT_MAX_LENGTH = 4096


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
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


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


def sliding_window(model: Path) -> int | None:
    """How many positions back some layer of a model sees; None where every layer sees all."""
    config = read_json(model / "config.json")
    text = config.get("text_config", config)
    window = text.get("sliding_window")
    return None if window is None or text.get("use_sliding_window") is False else int(window)


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
