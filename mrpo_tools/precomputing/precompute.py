"""Phase 1: stream each reference over the data, one model in memory at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mrpo_tools.cache import Cache, ReferenceStore
from mrpo_tools.config import Reference
from mrpo_tools.groups import Group, in_split
from mrpo_tools.precomputing.ensure import ensure
from mrpo_tools.precomputing.summary import Summary
from mrpo_tools.progress import say
from mrpo_tools.references.identity import changes
from mrpo_tools.references.resolved import resolve


def precompute(
    references: Mapping[str, Reference],
    groups: Sequence[Group],
    cache: Cache,
    dataset: str,
    split: str | None = None,
    shard: tuple[int, int] = (0, 1),
) -> list[Summary]:
    """Score the missing responses of the data under each reference, and keep the data beside them.

    Args:
        references: by name; scored in this order, one at a time.
        groups: the data.
        cache: created if it is not there.
        dataset: its short name, for the file that keeps it.
        split: None scores every split.
        shard: (i, n) takes every n-th part of the prompts.

    Raises:
        UsageError: no group is in the split, or a reference's files or template cannot be used;
            references before it are kept.
    """
    chosen = in_split(groups, split)
    subjects = [resolve(name, reference) for name, reference in references.items()]
    if shard[0] == 0:  # at the start, so that the data can be asked about while it is scored
        cache.save_groups(dataset, groups)
    summaries = []
    for subject in subjects:
        summaries.append(ensure(cache, subject, chosen, shard))
        _tell_namesakes(cache, summaries[-1].store)
        for warning in summaries[-1].warnings:  # at once: the next reference may fail
            say(f"warning: {warning}")
        if summaries[-1].tokens:
            _free()
    if shard[0] != 0:
        cache.save_groups(dataset, groups)
    return summaries


def _tell_namesakes(cache: Cache, store: ReferenceStore) -> None:
    """What else is cached under this name, and how it differs."""
    for other in cache.named(store.name):
        if other.short != store.short:
            differing = changes(store.identity.differences(other.identity))
            say(f"note: {other} stays beside {store}, of another identity: {differing}")


def _free() -> None:
    from mrpo_tools.precomputing.run import free_memory

    free_memory()
