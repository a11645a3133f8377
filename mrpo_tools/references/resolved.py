"""A reference with its files found and its identity known, before any weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mrpo_tools.config import Reference
from mrpo_tools.references.identity import Identity, identify
from mrpo_tools.references.locate import locate
from mrpo_tools.references.model_files import ModelFiles

if TYPE_CHECKING:
    from mrpo_tools.references.rendering import Renderer


@dataclass(frozen=True)
class ResolvedReference:
    """A reference with its files found and its identity known; no weights loaded."""

    name: str
    reference: Reference
    files: ModelFiles
    dtype: str
    identity: Identity


def resolve(name: str, reference: Reference) -> ResolvedReference:
    """Find a reference's files and compute its identity (weights are hashed, not loaded)."""
    files = locate(reference)
    dtype = reference.dtype or _device_dtype()
    return ResolvedReference(name, reference, files, dtype, identify(reference, files, dtype))


def renderer_of(subject: ResolvedReference) -> Renderer:
    """The renderer that this reference's identity describes."""
    from mrpo_tools.references.loading import load_tokenizer
    from mrpo_tools.references.rendering import Renderer

    fields = subject.identity.fields
    return Renderer(
        load_tokenizer(subject.files, subject.reference),
        name=subject.name,
        chat_template=fields["chat_template"],
        system=fields["system"],
        added_tokens=fields["added_tokens"],
        max_length=fields["max_length"],
        overlong=fields["overlong"],
    )


def _device_dtype() -> str:
    from mrpo_tools.references.devices import default_dtype

    return default_dtype()
