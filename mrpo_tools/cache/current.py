"""Which stored numbers a name means, and whether they are still those of the project's model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mrpo_tools.cache import Cache, ReferenceStore
from mrpo_tools.config import Reference
from mrpo_tools.errors import CacheStale, UsageError
from mrpo_tools.references.identity import Difference, changes, fields_of_words
from mrpo_tools.references.locate import is_here
from mrpo_tools.references.resolved import ResolvedReference, as_cached, resolve


def stores_of(
    cache: Cache, names: Sequence[str], references: Mapping[str, Reference]
) -> list[ReferenceStore]:
    """The stores that names mean, each checked against the project.

    Of several identities of a name, `mistral` means the one that the project's words and files
    give now; `mistral@ab12` means that one.

    Args:
        cache: where they are.
        names: reference 1 first.
        references: what the project knows of them; a name that it does not know is not checked.

    Raises:
        UsageError: one is named twice.
        CacheMissing: one has no numbers.
        CacheStale: other files or settings than the project's, each field with both values; or
            several identities, and nothing that tells which.
    """
    stores = [_meant(cache, name, references) for name in names]
    if len({str(store) for store in stores}) < len(stores):
        raise UsageError("a reference is named twice", "--refs takes each one once")
    for store in stores:
        if store.name in references:
            _refuse(store.name, _differences(store, references[store.name]))
    return stores


def check_current(store: ReferenceStore, resolved: ResolvedReference) -> None:
    """Refuse numbers that belong to other files or settings than the project's.

    Raises:
        CacheStale: naming each field that differs, with both values.
    """
    _refuse(resolved.name, _from_files(store, resolved))


def _meant(cache: Cache, name: str, references: Mapping[str, Reference]) -> ReferenceStore:
    stores = cache.named(name)
    if name in references and len(stores) > 1:
        current = [store for store in stores if not _differences(store, references[name])]
        if len(current) == 1:
            return current[0]
    return cache.find(name)


def _differences(store: ReferenceStore, reference: Reference) -> list[Difference]:
    """Between a store and what a reference is now, by its files or, where they are not here, by
    its words; none for numbers of another program."""
    if store.identity.fields.get("origin") is not None:
        return []
    if not is_here(reference):
        return _from_words(store, reference)
    dtype = reference.dtype or store.identity.fields["dtype"]
    words = reference.model_copy(update={"dtype": dtype})
    return _from_files(store, resolve(store.name, words, ask=as_cached(store.identity)))


def _from_files(store: ReferenceStore, resolved: ResolvedReference) -> list[Difference]:
    differing = resolved.identity.differences(store.identity)
    if resolved.reference.dtype is None:  # left open: the cache's own dtype is as good
        return [pair for pair in differing if pair.field not in ("dtype", "logits")]
    return differing


def _from_words(store: ReferenceStore, reference: Reference) -> list[Difference]:
    cached, recorded = store.identity.fields, store.recorded_reference()
    words = fields_of_words(reference)
    if reference.adapter is None and recorded.adapter is not None:
        words["adapter"] = None
    if reference.model != recorded.model and cached["model"] is not None:
        words["model"] = reference.model
    if reference.chat_template is None and recorded.chat_template is not None:
        words["chat_template"] = "the model's own"
    return [
        Difference(name, now, cached.get(name))
        for name, now in words.items()
        if now != cached.get(name)
    ]


def _refuse(name: str, differing: Sequence[Difference]) -> None:
    if not differing:
        return
    raise CacheStale(
        f"the cached log-probs of reference {name!r} are of another identity: {changes(differing)}",
        f"compute them again with: mrpo precompute --ref {name}; then {name!r}, without digits, "
        "means the new numbers",
    )
