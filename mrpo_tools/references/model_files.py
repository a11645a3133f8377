"""What a model's directory says: its weights' files, its template, its tokenizer's settings."""

from __future__ import annotations

import contextlib
import json
import math
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrpo_tools.errors import UsageError, shorten

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "tekken.json",
)  # fmt: skip
INDEX = "model.safetensors.index.json"
DEFAULT_MAX_LENGTH = 4096
MAX_JSON_BYTES = 100_000_000
MAX_TEMPLATE_BYTES = 1_000_000
AGAIN = "download it again"


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


def own_file(directory: Path, name: str) -> Path | None:
    """A file of a model's directory; None where the directory has no such name.

    What is read is a regular file that lies in the directory. A snapshot of the hub's cache may
    link into the `blobs` beside it, and nowhere else.

    Raises:
        UsageError: the name leads elsewhere, or to no regular file.
    """
    path = directory / name
    if Path(name).name != name or "\0" in name:
        raise UsageError(
            f"{directory} names {shorten(name, 60)} as a file of its own, which is no file name",
            "only files of the model's own directory are read: download it again",
        )
    try:
        mode = path.lstat().st_mode
        root, place = directory.resolve(), path.resolve() if stat.S_ISLNK(mode) else path
        mode = place.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise UsageError(f"{path} links to a file that is not there", AGAIN) from None
        return None
    except (OSError, RuntimeError) as error:  # a circle of links is a RuntimeError to pathlib
        raise UsageError(f"{path} cannot be read: {first_line(error)}", AGAIN) from None
    if path.is_symlink() and not place.is_relative_to(root) and place.parent != _blobs(root):
        raise UsageError(
            f"{path} links out of its directory, to {place}",
            "only files of the model's own directory are read: copy the file there",
        )
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path} is no regular file", AGAIN)
    return path


def _blobs(root: Path) -> Path | None:
    """Where the hub's cache keeps the files that its snapshot `root` links to."""
    blobs = root.parent.parent / "blobs"
    return blobs if root.parent.name == "snapshots" and not blobs.is_symlink() else None


def template_text(model: Path, override: str | None = None) -> str | None:
    """The chat template as text: the override's file, the model's own, or None.

    Raises:
        UsageError: it cannot be read, or is no text.
    """
    if override is not None:
        return _read_template(Path(override), f"chat_template {override}")
    jinja = own_file(model, "chat_template.jinja")
    if jinja is not None:
        return _read_template(jinja, str(jinja))
    template = tokenizer_settings(model).get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict)]
        found = [entry.get("template") for entry in named if entry.get("name") == "default"]
        if len(named) < len(template):
            raise _wrong(model / "tokenizer_config.json", "chat_template", "named templates")
        template = found[-1] if found else None
    if template is not None and not isinstance(template, str):
        raise _wrong(model / "tokenizer_config.json", "chat_template", "text")
    if template is not None and len(template) > MAX_TEMPLATE_BYTES:
        raise _wrong(model / "tokenizer_config.json", "chat_template", "a text of a sane length")
    return template


def _read_template(path: Path, name: str) -> str:
    try:
        if not path.is_file():
            raise OSError("no file, or no regular one")
        if path.stat().st_size > MAX_TEMPLATE_BYTES:
            raise OSError(f"it is larger than {MAX_TEMPLATE_BYTES:,} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{name} cannot be read: {error}", "give a UTF-8 text file with a Jinja template"
        ) from None


def tokenizer_settings(model: Path) -> dict[str, Any]:
    """`tokenizer_config.json` with its special tokens as plain text.

    Raises:
        UsageError: it cannot be read, or a special token is no text.
    """
    path = model / "tokenizer_config.json"
    settings = read_json(path) if own_file(model, path.name) else {}
    for name in ("bos_token", "eos_token"):
        if isinstance(settings.get(name), dict):
            settings[name] = settings[name].get("content")
        if not isinstance(settings.get(name), str | None):
            raise _wrong(path, name, "text")
    return settings


def text_config(model: Path) -> dict[str, Any]:
    """What `config.json` says of the language model; of a model of several kinds its text part.

    Raises:
        UsageError: it cannot be read, or the part is no object.
    """
    path = model / "config.json"
    config = read_json(path)
    text = config.get("text_config", config)
    if not isinstance(text, dict):
        raise _wrong(path, "text_config", "an object")
    return text


def config_size(model: Path, *names: str) -> int | None:
    """The first of some sizes that `config.json` states; None where it states none.

    Raises:
        UsageError: it is no integer, or a negative one.
    """
    text = text_config(model)
    for name in names:
        size = text.get(name)
        if size is not None and size is not False and type(size) is not int:
            raise _wrong(model / "config.json", name, "an integer")
        if size and not 0 < size < 2**63:
            raise _wrong(model / "config.json", name, "a size")
        if size:
            return int(size)
    return None


def context_length(model: Path) -> int:
    """The number of tokens a model was made for."""
    return config_size(model, "max_position_embeddings", "n_positions") or DEFAULT_MAX_LENGTH


def named_ends(model: Path) -> tuple[int, ...]:
    """The tokens that end an answer, as `generation_config.json` names them, or else the model's
    configuration; none where these name none, or cannot be read, which loading the model tells."""
    for name in ("generation_config.json", "config.json"):
        with contextlib.suppress(UsageError):
            named = read_json(model / name).get("eos_token_id")
            ends = named if isinstance(named, list) else [named]
            if ends and all(type(end) is int for end in ends):
                return tuple(sorted(ends))
    return ()


def sliding_window(model: Path) -> int | None:
    """How many positions back some layer of a model sees; None where every layer sees all."""
    if text_config(model).get("use_sliding_window") is False:
        return None
    return config_size(model, "sliding_window")


def weight_files(model: Path) -> list[Path]:
    """The safetensors files that `from_pretrained` reads.

    Raises:
        UsageError: one that the index names is not there, or is no file of the directory.
    """
    single = own_file(model, "model.safetensors")
    if single is not None:
        return [single]
    index = own_file(model, INDEX)
    if index is None:
        return []
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) and name for name in weight_map.values()
    ):
        raise _wrong(index, "weight_map", "names of files by names of tensors")
    files = {name: own_file(model, name) for name in sorted(set(weight_map.values()))}
    missing = [name for name, file in files.items() if file is None]
    if missing:
        raise UsageError(f"{model} lacks {', '.join(missing)}, which its index names", AGAIN)
    return [file for file in files.values() if file is not None]


def adapter_weights(adapter: Path) -> list[Path]:
    """The safetensors file of an adapter, in a list.

    Raises:
        UsageError: there is none.
    """
    weights = own_file(adapter, "adapter_model.safetensors")
    if weights is None:
        raise UsageError(
            f"{adapter} holds no safetensors weights", "save the adapter with safetensors"
        )
    return [weights]


def tensor_shapes(paths: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors in some safetensors files, from their headers.

    Raises:
        UsageError: one is damaged.
    """
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        try:
            with safe_open(path, framework="numpy") as weights:
                names = weights.keys()
                shapes |= {name: tuple(weights.get_slice(name).get_shape()) for name in names}
        except (SafetensorError, OSError, ValueError) as error:
            raise UsageError(
                f"{path} cannot be read as safetensors: {first_line(error)}", AGAIN
            ) from None
    return shapes


def count_parameters(model: Path) -> int:
    """Parameters of a model on disk, from the headers of its safetensors files.

    Raises:
        UsageError: one is damaged.
    """
    return sum(map(math.prod, tensor_shapes(weight_files(model)).values()))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, with the next where it only leads to it; or its
    kind."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])


def is_failure(error: BaseException) -> bool:
    """Whether a library has failed: by an exception, or by a panic, which is none to Python."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model's directory.

    Raises:
        UsageError: the file holds none, or is none of the directory.
    """
    try:
        file = own_file(path.parent, path.name)
        if file is None:
            raise OSError("there is no such file")
        if file.stat().st_size > MAX_JSON_BYTES:
            raise OSError(f"it is larger than {MAX_JSON_BYTES:,} bytes")
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {first_line(error)}", AGAIN) from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds no JSON object", AGAIN)
    return values


def _wrong(path: Path, field: str, expected: str) -> UsageError:
    return UsageError(f"{path}: {field} is not {expected}", AGAIN)
