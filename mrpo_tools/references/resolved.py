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
    identify_served,
    products_dtype,
)
from mrpo_tools.references.locate import Download, Found, download, locate
from mrpo_tools.references.model_files import ModelFiles, config_size, named_ends
from mrpo_tools.server import About, Server, ask_about

Ask = Callable[[Reference], About]

if TYPE_CHECKING:
    from mrpo_tools.references.rendering import Renderer


@dataclass(frozen=True)
class ResolvedReference:
    """A reference with its files found and its identity known; no weights loaded.

    Attributes:
        name: as the project calls it.
        reference: its words.
        files: where they lie.
        dtype: of the weights, also where the words leave it open; of a server's as the words say,
            empty where it samples alone.
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


def server_of(reference: Reference) -> Server:
    """The server that has a reference's weights.

    Raises:
        UsageError: its URL cannot be meant, or holds a secret.
    """
    return Server(
        reference.server or "",
        reference.server_model,
        reference.concurrency or Server.concurrency,
        reference.timeout or Server.timeout,
    )


def ask_server(reference: Reference) -> About:
    """What the server of a reference says of itself."""
    return ask_about(server_of(reference))


def as_cached(identity: Identity) -> Ask:
    """What a server said of itself when numbers were computed, so that it need not be there; but
    for the model's name, where the words say it."""

    def ask(reference: Reference) -> About:
        version, model = (identity.fields.get(name) for name in ("engine_version", "served_model"))
        return About(str(version), reference.server_model or str(model))

    return ask


def resolve(
    name: str,
    reference: Reference,
    *,
    download: Download = download,
    default_dtype: Callable[[], str] = device_dtype,
    ask: Ask = ask_server,
) -> ResolvedReference:
    """Find a reference's files and compute its identity (weights are hashed, not loaded).

    Of a reference whose weights a server has, no weights are downloaded, and the server is asked
    what it is.

    Args:
        name: as the project calls it.
        reference: its words.
        download: gets a hub repository's files.
        default_dtype: the arithmetic of a reference that leaves it open.
        ask: what a server says of itself.

    Raises:
        UsageError: the files are not there, or are no model's.
        ServerError: the server does not answer, or does not serve the model.
    """
    if reference.server is not None:
        files = _locate_without_weights(reference, download)
        identity = identify_served(reference, files, ask(reference))
        ends = named_ends(files.model)
        return ResolvedReference(name, reference, files, reference.dtype or "", identity, ends)
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
    files = _locate_without_weights(reference, download)
    identity = identify_reader(reference, files)
    return ResolvedReference(name, reference, files, "", identity, named_ends(files.model))


def _locate_without_weights(reference: Reference, download: Download) -> ModelFiles:
    def without_weights(hub_id: str, revision: str | None, patterns: Sequence[str]) -> Found:
        small = [pattern for pattern in patterns if pattern != "*.safetensors"]
        return download(hub_id, revision, [*small, "adapter_model.safetensors"])

    return locate(reference, download=without_weights)


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
