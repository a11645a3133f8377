"""Which rows are missing -> compute -> store. Phase 1 and the evaluation of policies use it alike.

torch is imported only when something is missing: a start with nothing to do is quick.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from mrpo_tools.cache import Cache
from mrpo_tools.cache.missing import Shard, missing_from
from mrpo_tools.cache.parts import PART_ROWS
from mrpo_tools.groups import Group
from mrpo_tools.precomputing.summary import Summary
from mrpo_tools.precomputing.taking_over import Others
from mrpo_tools.references.resolved import ResolvedReference

if TYPE_CHECKING:
    from mrpo_tools.scorer.engine import LoadReference


def ensure(
    cache: Cache,
    resolved: ResolvedReference,
    groups: Iterable[Group],
    shard: Shard = (0, 1),
    *,
    load: LoadReference | None = None,
    part_rows: int = PART_ROWS,
    take_over: bool = False,
) -> Summary:
    """Compute the log-probs that are missing under this identity, and store them.

    Args:
        cache: where to look and to write.
        resolved: from `resolve`.
        groups: what should have numbers; prompts that repeat are computed once.
        shard: (i, n) takes the prompts whose id is i modulo n, for several processes.
        load: gives the model; None takes `load_engine`, and torch only where it is needed.
        part_rows: rows of a part: what a kill can lose.
        take_over: after this shard what others have not written of theirs, see `Others`.

    Raises:
        ResourceError: out of memory or disk; what was computed so far is kept.
        UsageError: the template cannot render a group; what was computed so far is kept.
    """
    started = time.monotonic()
    summary = Summary(cache.store(resolved.name, resolved.identity))
    others = Others(summary.store, list(groups), shard) if take_over else None
    if others is None:
        incomplete, reused = missing_from(summary.store, groups, shard)
    else:
        incomplete, reused = others.own, others.reused
    own = reused + sum(len(group.responses) for group in incomplete)
    if others is not None:
        incomplete = incomplete or next(others.blocks(), [])
    if incomplete:
        from mrpo_tools.precomputing.long_rows import tell_long_rows
        from mrpo_tools.precomputing.run import compute_missing
        from mrpo_tools.scorer.choose import load_engine

        if resolved.reference.server is None:
            tell_long_rows(resolved, incomplete)
        summary = compute_missing(
            resolved,
            summary.store,
            incomplete,
            load=load or load_engine,
            part_rows=part_rows,
            others=others,
        )
    reused = own - (summary.computed.total() - summary.taken_over)
    return replace(summary, reused=reused, seconds=time.monotonic() - started)


def missing_responses(
    cache: Cache,
    resolved: ResolvedReference,
    groups: Iterable[Group],
    shard: Shard = (0, 1),
) -> tuple[list[Group], int]:
    """Each prompt with its responses that have no number yet, and how many responses have one."""
    return missing_from(cache.store(resolved.name, resolved.identity), groups, shard)
