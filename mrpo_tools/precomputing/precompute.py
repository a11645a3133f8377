"""Phase 1: stream each reference over the data, one model in memory at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mrpo_tools.cache import Cache, ReferenceStore
from mrpo_tools.cache.parts import PART_ROWS
from mrpo_tools.cache.writer import ended_by_sigterm
from mrpo_tools.config import Reference
from mrpo_tools.groups import Group, in_split
from mrpo_tools.precomputing.ensure import ensure
from mrpo_tools.precomputing.summary import Summary
from mrpo_tools.progress import say
from mrpo_tools.references.identity import changes
from mrpo_tools.references.resolved import resolve

if TYPE_CHECKING:
    from mrpo_tools.scorer.engine import LoadReference


def precompute(
    references: Mapping[str, Reference],
    groups: Sequence[Group],
    cache: Cache,
    dataset: str,
    split: str | None = None,
    shard: tuple[int, int] = (0, 1),
    *,
    load: LoadReference | None = None,
    part_rows: int = PART_ROWS,
    take_over: bool = False,
) -> list[Summary]:
    """Compute each reference's missing log-probs of the data, and keep the data beside them.

    Args:
        references: by name; computed in this order, one in memory at a time.
        groups: the data.
        cache: created if it is not there.
        dataset: its short name, for the file that keeps it.
        split: None takes every split.
        shard: (i, n) takes every n-th part of the prompts.
        load: gives a reference's model; None takes `load_engine`.
        part_rows: rows of a part of the cache.
        take_over: compute what others have not written of theirs, after this part.

    Raises:
        UsageError: no group is in the split, or a reference's files or template cannot be used;
            references before it are kept.
        Preempted: SIGTERM came; what was computed so far is kept.
    """
    in_question = in_split(groups, split)
    every = [resolve(name, reference) for name, reference in references.items()]
    if shard[0] == 0:  # at the start, so that the data can be asked about meanwhile
        cache.save_groups(dataset, groups)
    summaries = []
    for resolved in every:
        with ended_by_sigterm():
            summary = ensure(
                cache, resolved, in_question, shard,
                load=load, part_rows=part_rows, take_over=take_over,
            )  # fmt: skip
        summaries.append(summary)
        _tell_namesakes(cache, summary.store)
        for warning in summary.warnings:  # at once: the next reference may fail
            say(f"warning: {warning}")
        if summary.tokens:
            from mrpo_tools.references.devices import free_memory

            free_memory()
    if shard[0] != 0:
        cache.save_groups(dataset, groups)
    return summaries


def _tell_namesakes(cache: Cache, store: ReferenceStore) -> None:
    """What else is cached under this name, and how it differs."""
    for other in cache.named(store.name):
        if other.short != store.short:
            differing = changes(store.identity.differences(other.identity))
            say(f"note: {other} stays beside {store}, of another identity: {differing}")
