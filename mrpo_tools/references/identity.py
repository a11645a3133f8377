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
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from mrpo_tools.config import Reference
from mrpo_tools.errors import UsageError
from mrpo_tools.groups import canonical_json
from mrpo_tools.references.hashes import HashMemo, hash_file
from mrpo_tools.references.locate import locate_adapter
from mrpo_tools.references.model_files import (
    TOKENIZER_FILES,
    ModelFiles,
    adapter_weights,
    context_length,
    own_file,
    read_json,
    template_text,
    tokenizer_settings,
    weight_files,
)
from mrpo_tools.server.about import About

RENDERING_VERSION = 1
"""Raised whenever the same text would be rendered or tokenised to other ids."""

PINNED_DATE = "2024-07-26"
"""The day a template sees when it asks for today's."""

IGNORED_CONFIG = frozenset(
    {"transformers_version", "_name_or_path", "torch_dtype", "dtype", "use_cache"}
)
FIELDS = (
    "rendering_version", "model", "revision", "weights", "config", "code", "adapter", "dtype",
    "quantization", "tokenizer", "chat_template", "pinned_date", "bos_token", "eos_token", "system",
    "added_tokens", "max_length", "overlong",
)  # fmt: skip
"""Of every identity. Imported numbers have an `origin` besides, served ones `SERVED_FIELDS`."""

NARROW_FIELDS = ("autocast", "logits")
"""Of products in 16 bits alone, so that identities in float32 stay what they were."""

CUT_FIELDS = ("max_prompt_length",)
"""Of references that read the end of long prompts alone, for the same reason."""

SERVED_FIELDS = ("engine", "engine_version", "logprobs_mode", "served_model")
"""Of references whose weights a server has, for the same reason."""

ENGINE, LOGPROBS_MODE = "vllm", "raw_logprobs"
"""What is meant where a served reference does not say it."""


class Difference(NamedTuple):
    """A field in which two identities differ, with the value of each."""

    field: str
    now: object
    cached: object


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
        """SHA-256 of `content`, in hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def short(self) -> str:
        """The twelve digits that a directory's name carries."""
        return self.hash[:12]

    def differences(self, cached: Identity) -> list[Difference]:
        """Each field that differs, with this value first, by name."""
        names = sorted(self.fields.keys() | cached.fields.keys())
        pairs = [Difference(name, self.fields.get(name), cached.fields.get(name)) for name in names]
        return [pair for pair in pairs if pair.now != pair.cached]


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
    weights = memo.hash_files(weight_files(files.model))
    if not weights:
        raise UsageError(
            f"{files.model} holds no safetensors weights", "only safetensors weights are read"
        )
    return Identity(
        {
            "model": files.hub_id,
            "revision": files.revision,
            "weights": _hash_names(weights),
            "config": _hash_json(files.model / "config.json", IGNORED_CONFIG),
            "code": _code_hash(files.model) if reference.trust_remote_code else None,
            "adapter": _adapter_hash(files.adapter, memo),
            "dtype": dtype,
            "quantization": reference.quantization,
            **_reading(reference, files),
            **_occasional(reference, dtype),
        }
    )


def identify_reader(reference: Reference, files: ModelFiles) -> Identity:
    """The identity of a model that a server runs: which ids a text has, and of which weights it is
    said to be. Those of the hub are known by their commit, and those that lie here by their hash.

    Args:
        reference: the words of the project file.
        files: what `locate` found, weights or not.
    """
    memo = HashMemo()
    weights = {} if files.hub_id else memo.hash_files(weight_files(files.model))
    return Identity(
        {
            "model": files.hub_id,
            "revision": files.revision,
            "weights": _hash_names(weights) if weights else None,
            "adapter": _adapter_hash(files.adapter, memo),
            **_reading(reference, files),
        }
    )


def identify_served(reference: Reference, files: ModelFiles, served: About) -> Identity:
    """The identity of log-probs that a server computes: never that of a model that is loaded here.

    Which weights it has cannot be seen. Those of the hub are known by their commit, and those that
    lie here by their hash: of these it is said to be. Its dtype and quantisation are what the words
    say; its version and what it calls the model are what it says. Where it is is no part of it.

    Args:
        reference: the words of the project file, of a server.
        files: what `locate` found, weights or not.
        served: what the server says of itself.
    """
    reader = identify_reader(reference, files).fields
    context = context_length(files.model)
    if reference.max_length is None and context is not None:
        reader["max_length"] = context - 1  # an engine generates a token after the last one
    return Identity(
        {
            **reader,
            "config": _hash_json(files.model / "config.json", IGNORED_CONFIG),
            "code": _code_hash(files.model) if reference.trust_remote_code else None,
            "dtype": reference.dtype,
            "quantization": reference.served_quantization,
            **{name: getattr(reference, name) for name in CUT_FIELDS if getattr(reference, name)},
            **_serving(reference),
            "engine_version": served.version,
            "served_model": served.model,
        }
    )


def _serving(reference: Reference) -> dict[str, object]:
    """Fields that the words of a server decide."""
    return {
        "engine": reference.engine or ENGINE,
        "logprobs_mode": reference.logprobs_mode or LOGPROBS_MODE,
    }


def _reading(reference: Reference, files: ModelFiles) -> dict[str, Any]:
    """The fields that decide which ids a text has."""
    template = template_text(files.model, reference.chat_template)
    settings = tokenizer_settings(files.model)
    tokenizer = {name: own_file(files.model, name) for name in TOKENIZER_FILES}
    return {
        "rendering_version": RENDERING_VERSION,
        "tokenizer": _hash_names({n: hash_file(path) for n, path in tokenizer.items() if path}),
        "chat_template": template,
        "pinned_date": PINNED_DATE if template and uses_date(template) else None,
        "bos_token": settings.get("bos_token"),
        "eos_token": settings.get("eos_token"),
        "system": reference.system,
        "added_tokens": reference.added_tokens,
        "max_length": reference.max_length or context_length(files.model),
        "overlong": reference.overlong,
    }


def _occasional(reference: Reference, dtype: str) -> dict[str, object]:
    """The fields that few identities have: of cut prompts, and of 16-bit products, whose logits are
    float32 (before, they had 16 bits too)."""
    cut = {name: value for name in CUT_FIELDS if (value := getattr(reference, name)) is not None}
    products = products_dtype(reference, dtype)
    fields = {**cut, "autocast": products} if products != dtype else cut
    return fields if products == "float32" else {**fields, "logits": "float32"}


def products_dtype(reference: Reference, dtype: str) -> str:
    """The format of a model's products, whose weights are of `dtype`."""
    return reference.autocast or dtype


def imported_identity(origin: str, model: str | None = None) -> Identity:
    """The identity of numbers that another program computed: what it is called, and nothing else
    is known."""
    return Identity({**dict.fromkeys(FIELDS), "origin": origin, "model": model})


def excerpts(first: object, second: object) -> tuple[str, str]:
    """Two differing values for a message, long ones cut around the place where they differ."""
    texts = (repr(first), repr(second))
    start = next(
        (i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts))
    )
    begin = max(0, start - 20)
    return _window(texts[0], begin), _window(texts[1], begin)


def changes(differences: Iterable[Difference]) -> str:
    """`max_length was 100, is now 200; …`"""
    texts = [(pair.field, *excerpts(pair.cached, pair.now)) for pair in differences]
    return "; ".join(f"{field} was {was}, is now {now}" for field, was, now in texts)


def fields_of_words(reference: Reference) -> dict[str, object]:
    """Fields of the identity that a reference's words decide without its model's files."""
    fields: dict[str, object] = {
        name: getattr(reference, name)
        for name in ("quantization", "overlong", "system", "added_tokens")
    }
    if reference.server is None:
        fields["engine"] = None
    else:
        fields |= {**_serving(reference), "quantization": reference.served_quantization}
        fields |= {"served_model": reference.server_model} if reference.server_model else {}
    for name in ("dtype", "max_length", *CUT_FIELDS):
        if getattr(reference, name) is not None:
            fields[name] = getattr(reference, name)
    if reference.revision is not None and re.fullmatch("[0-9a-f]{40}", reference.revision):
        fields["revision"] = reference.revision
    if reference.chat_template is not None:
        fields["chat_template"] = template_text(Path(), reference.chat_template)
    if reference.adapter is not None:
        fields["adapter"] = _adapter_hash(locate_adapter(reference.adapter), HashMemo())
    return fields


def uses_date(template: str) -> bool:
    """Whether a template writes today's date."""
    return "strftime_now" in template or "date_string" in template


def _window(text: str, first: int) -> str:
    if len(text) <= 60:
        return text
    end = first + 57
    return ("…" if first else "") + text[first:end] + ("…" if end < len(text) else "")


def _code_hash(model: Path) -> str:
    """Of the Python files beside the weights, which `trust_remote_code` runs."""
    paths = [path for path in model.rglob("*.py") if path.is_file()]
    return _hash_names({str(path.relative_to(model)): hash_file(path) for path in paths})


def _adapter_hash(adapter: Path | None, memo: HashMemo) -> str | None:
    if adapter is None:
        return None
    names = memo.hash_files(adapter_weights(adapter))
    ignored = frozenset({"base_model_name_or_path", "inference_mode", "peft_version"})
    names["adapter_config.json"] = _hash_json(adapter / "adapter_config.json", ignored)
    return _hash_names(names)


def _hash_names(hashes: dict[str, str]) -> str:
    return hashlib.sha256(canonical_json(hashes).encode()).hexdigest()


def _hash_json(path: Path, ignored: frozenset[str]) -> str:
    values = {key: value for key, value in read_json(path).items() if key not in ignored}
    text = json.dumps(values, sort_keys=True)  # a configuration may hold Infinity
    return hashlib.sha256(text.encode()).hexdigest()
