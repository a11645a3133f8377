"""What may change about a reference, and the fields of the identity that must say so."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mrpo_tools.config import Reference

DATED = "{{- strftime_now('%d %b %Y') -}}"


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


def words_of(model: Path, **words: Any) -> Reference:
    """A reference on a model with its first adapter, unless the words say another or None."""
    adapter = words.pop("adapter", "first")
    place = str(model.parent / adapter) if adapter else None
    return Reference(model=str(model), adapter=place, **{"dtype": "float32", **words})


class Change(NamedTuple):
    """An edit of the model's files or other words of the project file, and what tells of it."""

    edit: Callable[[Path], object]
    words: dict[str, Any]
    fields: set[str]


def edited(file: str, fields: str, **values: Any) -> Change:
    """Other values in a JSON file."""
    return Change(lambda model: edit_json(model / file, **values), {}, set(fields.split()))


def written(file: str, fields: str, text: str, **words: Any) -> Change:
    """Another text in a file, before what it holds."""

    def edit(model: Path) -> None:
        path = model / file
        path.write_text(text + (path.read_text() if path.exists() else ""))

    return Change(edit, words, set(fields.split()))


def flipped(file: str, field: str) -> Change:
    return Change(lambda model: flip_a_byte(model / file), {}, {field})


def nothing(_: Path) -> None:
    """The files stay as they are."""


def said(**words: Any) -> Change:
    """Another word for one field."""
    return Change(nothing, words, set(words))


def add_token(model: Path) -> None:
    state = read_json(model / "tokenizer.json")
    token = {**state["added_tokens"][-1], "id": 99_999, "content": "<new>", "special": False}
    edit_json(model / "tokenizer.json", added_tokens=[*state["added_tokens"], token])


CHANGES: dict[str, Change] = {
    "a byte of the weights": flipped("model.safetensors", "weights"),
    "a byte of the adapter": flipped("../first/adapter_model.safetensors", "adapter"),
    "the adapter's rank": edited("../first/adapter_config.json", "adapter", lora_alpha=64),
    "another adapter": said(adapter="second"),
    "no adapter": said(adapter=None),
    "a number of the config": edited("config.json", "config", rms_norm_eps=1e-3),
    "an infinite number": edited("config.json", "config", time_step_limit=[0.0, float("inf")]),
    "the context length": edited("config.json", "config max_length", max_position_embeddings=128),
    "an added token": Change(add_token, {}, {"tokenizer"}),
    "a tokenizer file": edited("special_tokens_map.json", "tokenizer", x="y"),
    "bos": edited("tokenizer_config.json", "bos_token tokenizer", bos_token="<b>"),
    "eos": edited("tokenizer_config.json", "eos_token tokenizer", eos_token="<e>"),
    "the template": written("chat_template.jinja", "chat_template", "{# new #}"),
    "the template, with a date": written("chat_template.jinja", "chat_template pinned_date", DATED),
    "no template": Change(
        lambda model: (model / "chat_template.jinja").unlink(), {}, {"chat_template"}
    ),
    "the model's own code": written("modeling.py", "code", "x = 1", trust_remote_code=True),
    "dtype": Change(nothing, {"dtype": "bfloat16"}, {"dtype", "logits"}),
    "float16": Change(nothing, {"dtype": "float16"}, {"dtype", "logits"}),
    "autocast": Change(nothing, {"autocast": "bfloat16"}, {"autocast", "logits"}),
    "quantization": said(quantization="nf4"),
    "max_length": said(max_length=500),
    "overlong": said(overlong="truncate"),
    "the end of long prompts": said(overlong="keep_end", max_prompt_length=40),
    "system drop": said(system="drop"),
    "system error": said(system="error"),
    "added_tokens": said(added_tokens="keep"),
}
UNLOADABLE = {"an added token", "bos", "eos"}
"""Made-up tokens, with which no tokenizer can be loaded."""


def reorder(value: Any) -> Any:
    """The same JSON with its keys the other way round, at every depth."""
    if isinstance(value, dict):
        return {key: reorder(value[key]) for key in reversed(value)}
    return [reorder(item) for item in value] if isinstance(value, list) else value


def rewrite(path: Path) -> None:
    path.write_text(json.dumps(reorder(read_json(path)), indent=4))


def touch_all(model: Path) -> None:
    for path in model.rglob("*"):
        os.utime(path, ns=(1, 1))


ADAPTER = "../first/adapter_config.json"
HARMLESS = {
    "mtimes": Change(touch_all, {}, set()),
    "library version": edited("config.json", "", transformers_version="4", _name_or_path="/else"),
    "stored dtype word": edited("config.json", "", torch_dtype="float16"),
    "key order": Change(lambda model: rewrite(model / "config.json"), {}, set()),
    "generation config": edited("generation_config.json", "", temperature=1, eos_token_id=[1, 2]),
    "readme": written("README.md", "", "Another text."),
    "other files": written("training_args.bin", "", "x"),
    "other weights formats": written("pytorch_model.bin", "", "x"),
    "adapter's notes": edited(
        ADAPTER, "", base_model_name_or_path="/else", inference_mode=False, peft_version="0.1"),
    "adapter's key order": Change(lambda model: rewrite(model / ADAPTER), {}, set()),
    "adapter's readme": written("../first/README.md", "", "x"),
    "speed": Change(nothing, {"attention": "eager", "batch_tokens": 16}, set()),
    "a layer at a time": Change(nothing, {"stream_layers": True, "sweep_tokens": 16}, set()),
    "another kernel": Change(nothing, {"attention": "sdpa"}, set()),
    "the model's own length": Change(nothing, {"max_length": 8192}, set()),
    "the revision of a directory, which has none": Change(nothing, {"revision": "v2"}, set()),
}  # fmt: skip
