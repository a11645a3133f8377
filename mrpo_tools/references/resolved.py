"""A reference with its files found and its identity known, before any weights are loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mrpo_tools.config import Reference
from mrpo_tools.references.identity import (
    Identity,
    identify,
    identify_reader,
    products_dtype,
)
from mrpo_tools.references.locate import Download, Found, download, locate
from mrpo_tools.references.model_files import ModelFiles, config_size, named_ends

if TYPE_CHECKING:
    from mrpo_tools.references.rendering import Renderer


@dataclass(frozen=True)
class ResolvedReference:
    """A reference with its files found and its identity known; no weights loaded.

    Attributes:
        name: as the project calls it.
        reference: its words.
        files: where they lie.
        dtype: of the weights, also where the words leave it open; empty where a server has them.
        identity: which numbers are its.
        ends: tokens that end an answer by the words of its files; log-probs do not depend on them.
    """

    name: str
    reference: Reference
    files: ModelFiles
    dtype: str
    identity: Identity
    ends: tuple[int, ...]

    @property
    def products(self) -> str:
        """The dtype of products."""
        return products_dtype(self.reference, self.dtype)


def device_dtype() -> str:
    """The arithmetic that this device prefers."""
    from mrpo_tools.references.devices import default_dtype

    return default_dtype()


def resolve(
    name: str,
    reference: Reference,
    *,
    download: Download = download,
    default_dtype: Callable[[], str] = device_dtype,
) -> ResolvedReference:
    """Find a reference's files and compute its identity (weights are hashed, not loaded).

    Args:
        name: as the project calls it.
        reference: its words.
        download: gets a hub repository's files.
        default_dtype: the arithmetic of a reference that leaves it open.

    Raises:
        UsageError: the files are not there, or are no model's.
    """
    files = locate(reference, download=download)
    dtype = reference.dtype or default_dtype()
    identity = identify(reference, files, dtype)
    return ResolvedReference(name, reference, files, dtype, identity, named_ends(files.model))


def resolve_reader(
    name: str, reference: Reference, *, download: Download = download
) -> ResolvedReference:
    """Find the files by which a reference reads text, where a server has its weights: its
    tokenizer, template and configuration. No weights are downloaded.

    Raises:
        UsageError: the files are not there, or are no model's.
    """

    def without_weights(hub_id: str, revision: str | None, patterns: Sequence[str]) -> Found:
        small = [pattern for pattern in patterns if pattern != "*.safetensors"]
        return download(hub_id, revision, [*small, "adapter_model.safetensors"])

    files = locate(reference, download=without_weights)
    identity = identify_reader(reference, files)
    return ResolvedReference(name, reference, files, "", identity, named_ends(files.model))


def renderer_of(resolved: ResolvedReference) -> Renderer:
    """The renderer that this reference's identity describes."""
    from mrpo_tools.references.loading import load_tokenizer
    from mrpo_tools.references.rendering import Renderer

    fields = resolved.identity.fields
    return Renderer(
        load_tokenizer(resolved.files, resolved.reference),
        name=resolved.name,
        chat_template=fields["chat_template"],
        system=fields["system"],
        added_tokens=fields["added_tokens"],
        max_length=fields["max_length"],
        max_prompt_length=fields.get("max_prompt_length"),
        overlong=fields["overlong"],
        vocab_size=config_size(resolved.files.model, "vocab_size"),
    )
