"""Cached numbers computed once more, by the shortest way there is: can they be trusted?"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import torch

from mrpo_tools.cache import Cache, ReferenceStore, group_from_row
from mrpo_tools.cache.current import check_current
from mrpo_tools.errors import UsageError
from mrpo_tools.precomputing.run import is_log_prob, load_scorer
from mrpo_tools.references.devices import pick_device
from mrpo_tools.references.rendering import EncodedGroup
from mrpo_tools.references.resolved import ResolvedReference, renderer_of
from mrpo_tools.scorer.scorer import ResponseScorer
from mrpo_tools.scorer.self_check import plain_logps
from mrpo_tools.scorer.trees import Row


@dataclass(frozen=True)
class Rescored:
    """Cached numbers computed once more, one row at a time.

    Attributes:
        rows: how many, drawn at random from those that are `ok` and whose text is saved.
        worst: the response with the largest difference per token; None without rows.
        logp: its number computed now, nats.
        cached: its number in the cache.
        per_token: the largest difference, nats per token.
        other_tokens: responses whose tokens are not those that were scored.
    """

    rows: int
    worst: str | None
    logp: float
    cached: float
    per_token: float
    other_tokens: int


def rescore(
    cache: Cache, store: ReferenceStore, subject: ResolvedReference, count: int, seed: int = 0
) -> Rescored:
    """Compute some cached numbers again by the shortest way there is.

    Raises:
        CacheStale: the model's files are not those that were scored.
        UsageError: no text of this reference's rows is saved.
    """
    check_current(store, subject)
    table = store.table()
    known = {row["response_id"]: row for row in table.to_pylist() if row["status"] == "ok"}
    groups = [group_from_row(row) for row in cache.groups_table().to_pylist()]
    places = {
        key: (group, index)
        for group in groups
        for index, key in enumerate(group.response_ids)
        if key in known
    }
    if not places:
        raise UsageError(f"{store} has no rows whose text is saved", "mrpo cache status")
    chosen = random.Random(seed).sample(sorted(places), min(count, len(places)))
    device = pick_device()
    scorer = load_scorer(subject, subject.dtype, device)
    renderer = renderer_of(subject)
    found = [
        _again(scorer, renderer.encode(places[key][0]), places[key][1], known[key], device)
        for key in chosen
    ]
    worst = max(range(len(chosen)), key=lambda i: found[i][1])
    return Rescored(
        len(chosen),
        chosen[worst],
        found[worst][0],
        known[chosen[worst]]["logp"],
        found[worst][1],
        sum(other for _, _, other in found),
    )


def _again(
    scorer: ResponseScorer,
    encoded: EncodedGroup,
    index: int,
    row: dict[str, Any],
    device: torch.device,
) -> tuple[float, float, bool]:
    """(log-prob now, difference per token, whether the tokens are others) of a cached row."""
    response = encoded.responses[index]
    logp = plain_logps(scorer, Row(encoded.prompt_ids, [response.ids], [0]), device)[0]
    apart = abs(logp - row["logp"]) / max(len(response.ids), 1)
    return logp, apart if is_log_prob(logp) else math.inf, response.token_hash != row["token_hash"]
