"""Cached numbers computed once more, by the shortest way there is: can they be trusted?"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import NamedTuple

from mrpo_tools.cache import Cache, ReferenceStore, group_from_row
from mrpo_tools.cache.current import check_current
from mrpo_tools.errors import UsageError
from mrpo_tools.maths.noise import Apart, beyond
from mrpo_tools.precomputing.run import is_log_prob
from mrpo_tools.references.devices import pick_device
from mrpo_tools.references.rendering import EncodedResponse
from mrpo_tools.references.resolved import ResolvedReference, renderer_of
from mrpo_tools.scorer.choose import load_engine
from mrpo_tools.scorer.engine import LoadReference
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
        beyond: why the differences are more than the noise of these numbers; None where not.
        other_tokens: responses whose tokens are not those of the cached number.
    """

    rows: int
    worst: str | None
    logp: float
    cached: float
    per_token: float
    beyond: str | None
    other_tokens: int


def rescore(
    cache: Cache,
    store: ReferenceStore,
    resolved: ResolvedReference,
    count: int,
    seed: int = 0,
    *,
    load: LoadReference = load_engine,
) -> Rescored:
    """Compute some cached numbers again by the shortest way there is.

    Args:
        cache: with the text of the rows.
        store: of the reference.
        resolved: the model as it is now.
        count: rows at most.
        seed: of the draw.
        load: gives the model.

    Raises:
        CacheStale: the model's files are not those of the numbers.
        UsageError: no text of this reference's rows is saved.
    """
    check_current(store, resolved)
    cached = _cached(store)
    places = {
        key: (group, index)
        for group in map(group_from_row, cache.groups_table().to_pylist())
        for index, key in enumerate(group.response_ids)
        if key in cached
    }
    if not places:
        raise UsageError(f"{store} has no rows whose text is saved", "mrpo cache status")
    drawn = random.Random(seed).sample(sorted(places), min(count, len(places)))
    model = load(resolved, resolved.products, pick_device())
    encode = renderer_of(resolved).encode
    prompts = [(encode(group), index) for group, index in map(places.__getitem__, drawn)]
    responses = [prompt.responses[index] for prompt, index in prompts]
    rows = [Row(prompt.prompt_ids, [prompt.responses[i].ids], [0]) for prompt, i in prompts]
    again = {
        key: _again(logp, response, *cached[key])
        for key, response, [logp] in zip(drawn, responses, model.plain_logps(rows), strict=True)
    }
    worst = max(drawn, key=lambda key: again[key].apart.per_token)
    return Rescored(
        rows=len(drawn),
        worst=worst,
        logp=again[worst].logp,
        cached=cached[worst][0],
        per_token=again[worst].apart.per_token,
        beyond=beyond([number.apart for number in again.values()], store.noise()),
        other_tokens=sum(number.other_tokens for number in again.values()),
    )


def _cached(store: ReferenceStore) -> dict[str, tuple[float, str]]:
    """(log-prob, hash of the tokens) of every response that has one."""
    columns = store.table().select(("response_id", "status", "logp", "token_hash"))
    return {
        key: (logp, token_hash)
        for key, status, logp, token_hash in zip(*columns.to_pydict().values(), strict=True)
        if status == "ok"
    }


class _Again(NamedTuple):
    """A log-prob computed now, its difference from the cached one, and whether tokens differ."""

    logp: float
    apart: Apart
    other_tokens: bool


def _again(logp: float, response: EncodedResponse, cached: float, token_hash: str) -> _Again:
    apart = Apart(logp - cached if is_log_prob(logp) else math.inf, len(response.ids))
    return _Again(logp, apart, response.token_hash != token_hash)
