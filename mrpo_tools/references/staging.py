"""What a library sees of a model's directory: a copy of our making.

A model may come from anyone, and libraries do many things that its files ask of them: they load an
adapter that lies beside the weights, open files that a tokenizer's settings name, and fetch and
run an attention kernel from the hub. So they get a directory of ours: links to the weights and the
tokenizer's files, and JSON without the words that ask for more than numbers. With
`trust_remote_code` they get the directory itself.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mrpo_tools.errors import UsageError, disk_error, shorten
from mrpo_tools.references.model_files import (
    INDEX,
    TOKENIZER_FILES,
    own_file,
    read_json,
    weight_files,
)

SETTINGS = "tokenizer_config.json"
LINKED = ("chat_template.jinja", *(name for name in TOKENIZER_FILES if name != SETTINGS))
UNHEEDED = re.compile(
    r"auto_map|.*attn_implementation.*|.*experts_implementation|use_kernels|kernel_config"
    r"|transformers_weights|.*_files?|init_inputs|tokenizer_object|slow_tokenizer|sp_model_kwargs"
    r"|_?name_or_path|_commit_hash|local_files_only|custom_generate"
)
"""Keys whose words would be code, files, kernels or places; no number depends on them."""
ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""What greedy decoding takes from generation_config.json."""


@contextlib.contextmanager
def staged(model: Path, *, trusted: bool = False, weights: bool = False) -> Iterator[Path]:
    """A directory to load a model or its tokenizer from.

    Args:
        model: the directory that a user named.
        trusted: hand out that directory itself, code and all.
        weights: link the weights too.

    Raises:
        ResourceError: no space for the directory's links.
        UsageError: a file is none of the directory's own, or asks for what is refused.
    """
    config, settings = vet(model)
    if trusted:
        yield model
        return
    written = {"config.json": heeded(config), SETTINGS: heeded(settings)}
    files = [path for link in LINKED if (path := own_file(model, link))]
    if weights:
        written["generation_config.json"] = _endings(model)
        files += weight_files(model)
        index = own_file(model, INDEX)
        files += [index] if index else []
    with contextlib.ExitStack() as stack:
        try:
            stage = Path(tempfile.mkdtemp(prefix="mrpo-"))
            stack.callback(_clear, stage)
            for name, values in written.items():
                (stage / name).write_text(json.dumps(values), encoding="utf-8")
            for path in files:
                (stage / path.name).symlink_to(path.resolve())
        except OSError as error:
            raise disk_error(tempfile.gettempdir(), error) from None
        yield stage


def _clear(stage: Path) -> None:
    """Remove a directory of links; what the file system refuses costs nothing but its entry."""
    with contextlib.suppress(OSError):
        shutil.rmtree(stage)


def vet(model: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """`config.json` and `tokenizer_config.json` of a directory of which all may be read.

    Raises:
        UsageError: it may not.
    """
    for name in (*LINKED, "generation_config.json"):
        own_file(model, name)
    if own_file(model, "adapter_config.json"):
        raise UsageError(
            f"{model} holds a model and an adapter, and which is meant is open",
            "move one of them to a directory of its own",
        )
    config = read_json(model / "config.json")
    for part in (config, config.get("text_config")):
        if isinstance(part, dict):
            _refuse_quantised(model, part)
    return config, read_json(model / SETTINGS) if own_file(model, SETTINGS) else {}


def _refuse_quantised(model: Path, config: dict[str, Any]) -> None:
    asked = config.get("quantization_config") or config.get("compression_config")
    if not asked:
        return
    method = asked.get("quant_method") if isinstance(asked, dict) else asked
    if isinstance(asked, dict) and method is None:
        method = "bitsandbytes" if {"load_in_4bit", "load_in_8bit"} & asked.keys() else "no name"
    raise UsageError(
        f"{model} holds weights quantised by {shorten(str(method))}, which cannot be read",
        "name the model in 16 bits; `quantization: nf4` loads it in 4",
    )


def heeded(values: Any) -> Any:
    """JSON without the keys that nobody heeds, at any depth."""
    if isinstance(values, list):
        return [heeded(value) for value in values]
    if not isinstance(values, dict):
        return values
    return {key: heeded(value) for key, value in values.items() if not UNHEEDED.fullmatch(key)}


def _endings(model: Path) -> dict[str, Any]:
    """The ids that begin, end and pad a generated text."""
    path = model / "generation_config.json"
    given = read_json(path) if own_file(model, path.name) else {}
    endings = {key: given[key] for key in ENDS if given.get(key) is not None}
    for key, value in endings.items():
        ids = value if isinstance(value, list) else [value]
        if not all(type(number) is int and number >= 0 for number in ids):
            raise UsageError(f"{path}: {key} is no token id", "download it again")
    return endings
