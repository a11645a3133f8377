"""Which responses have no score yet -> score -> store. torch is imported only by reward models."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mrpo_tools.cache import Cache, PartWriter, ScoreRow, ScoreStore
from mrpo_tools.cache.missing import Shard, missing_from
from mrpo_tools.cache.parts import FAILED, PART_ROWS, PART_SECONDS
from mrpo_tools.cache.upkeep import compact_store
from mrpo_tools.cache.writer import ended_by_sigterm
from mrpo_tools.groups import Group
from mrpo_tools.progress import bar, say
from mrpo_tools.scoring.protocol import Said, Scorer, numbers_of

REASON_SHOWN = 200
"""Characters of why a scorer failed, in a warning."""


@dataclass(frozen=True)
class ScoreSummary:
    """What `ensure_scores` did for one scorer.

    Attributes:
        store: where the scores are.
        reused: responses whose scores were there already.
        computed: responses scored now, by status.
        tokens: that a model read now.
        seconds: wall time, loading included.
        warnings: what the user should know.
    """

    store: ScoreStore
    reused: int = 0
    computed: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()


def ensure_scores(
    scorer: Scorer,
    groups: Iterable[Group],
    cache: Cache,
    shard: Shard = (0, 1),
    *,
    part_rows: int = PART_ROWS,
) -> ScoreSummary:
    """Score the responses that have no score of this identity, and store them.

    Args:
        scorer: loaded only where something is missing.
        groups: what should have scores; prompts that repeat are scored once.
        cache: where to look and to write.
        shard: (i, n) takes the prompts whose id is i modulo n, for several processes.
        part_rows: rows of a part: what a kill can lose.

    Raises:
        ResourceError: out of memory or disk; what was scored so far is kept.
        UsageError: the scorer cannot be loaded, or cannot render a group; the same.
        Preempted: SIGTERM came; the same.
    """
    started = time.monotonic()
    store = cache.score_store(scorer.store_name, scorer.stored_identity)
    incomplete, reused = missing_from(store, groups, shard)
    if not incomplete:
        return ScoreSummary(store, reused, seconds=time.monotonic() - started)
    counts: Counter[str] = Counter()
    tokens, failure = 0, None
    paid = scorer.kind == "judge"  # for each answer: it is on the disk before the next one is
    seconds = 0.0 if paid else PART_SECONDS
    with ended_by_sigterm():
        scoring = scorer.begin(incomplete)
        total = sum(len(group.responses) for group in incomplete)
        with (
            PartWriter(store, scoring.record, rows=part_rows, seconds=seconds) as writer,
            bar(f"scores by {scorer.store_name}", total, "responses") as advance,
        ):
            for batch in scoring.rows:
                writer.add(batch)
                counts.update(row.status for row in batch)
                tokens += sum(row.num_tokens or 0 for row in batch if row.score is not None)
                failure = failure or _first_failure(batch)
                advance(len(batch))
    if paid:
        compact_store(store)
    return ScoreSummary(
        store=store,
        reused=reused,
        computed=counts,
        tokens=tokens,
        seconds=time.monotonic() - started,
        warnings=(*scoring.warnings, *_warnings(scorer.store_name, counts, failure)),
    )


def stored_marks(scorer: Scorer, groups: Sequence[Group], cache: Cache) -> list[list[float]]:
    """The score of every response, group by group; those that the cache lacks are scored.

    Raises:
        As `ensure_scores`; UsageError where some response gets no score.
    """
    summary = ensure_scores(scorer, groups, cache)
    for warning in summary.warnings:
        say(f"warning: {warning}")
    keys = [key for group in groups for key in group.response_ids]
    stored = summary.store.scores_of(keys)
    said = map(Said, stored.score, stored.status, stored.reason)
    return numbers_of(scorer, groups, dict(zip(keys, said, strict=True)))


def _first_failure(batch: Iterable[ScoreRow]) -> str | None:
    return next((row.reason for row in batch if row.status == FAILED), None)


def _warnings(name: str, counts: Counter[str], failure: str | None) -> list[str]:
    """What got no score, in words."""
    said = {
        "overlong": "do not fit max_length (set `overlong: truncate`, or a larger max_length)",
        "nonfinite": "have no finite score, alone too; they are never used",
        FAILED: f"got none, and are asked again next time: {(failure or '')[:REASON_SHOWN]}",
    }
    return [
        f"{name}: {counts[status]:,} responses {words}"
        for status, words in said.items()
        if counts[status]
    ]
