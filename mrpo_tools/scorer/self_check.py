"""Which route of a scorer may be trusted: each is compared with the model's own logits."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch

from mrpo_tools.errors import UsageError
from mrpo_tools.references.devices import out_of_memory
from mrpo_tools.scorer.scorer import ROUTES, ResponseScorer, response_logps
from mrpo_tools.scorer.trees import Row

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-8}
"""nats per token between two exact routes; of 16-bit formats it is measured."""
COARSE = (0.01, 0.05)
"""The least and the most that a 16-bit format's tolerance may be."""


@torch.no_grad()
def plain_logps(scorer: ResponseScorer, row: Row, device: torch.device) -> list[float]:
    """Log-probs of a row's responses, in nats, by the shortest way there is.

    That is `log_softmax` of `model(ids).logits`, each response after its prompt in a pass alone.
    """
    sums = []
    with _model_as_it_was(scorer):
        for response in row.responses:
            ids = torch.tensor([[*row.prompt, *response]], device=device)
            logits = scorer.model(input_ids=ids, use_cache=False).logits
            logits = logits[0, len(row.prompt) - 1 : -1]
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            targets = ids[0, len(row.prompt) :, None]
            sums.append(float(logits.log_softmax(-1).gather(-1, targets).sum(dtype=torch.float64)))
    return sums


@contextlib.contextmanager
def _model_as_it_was(scorer: ResponseScorer) -> Iterator[None]:
    """The model with its own attention function."""
    route = scorer.route
    scorer.take(ROUTES[-1])
    try:
        yield
    finally:
        scorer.take(route)


def self_check(scorer: ResponseScorer, rows: Sequence[Row], device: torch.device) -> float:
    """Choose the fastest route that agrees with the model's own logits.

    Leaves `scorer` set to the first route that agrees. Rows that have no finite log-prob say
    nothing and are left out.

    Args:
        scorer: of any model.
        rows: trees; some with several responses, or shared prompts go unchecked.
        device: where the model is.

    Returns:
        The noise: the largest difference, nats per token.

    Raises:
        UsageError: attention `tree` was forced, and the model does not agree with it.
    """
    pairs = [(row, plain_logps(scorer, row, device)) for row in rows]
    expected = [(row, logps) for row, logps in pairs if all(map(math.isfinite, logps))]
    if not expected:
        scorer.take(scorer.routes[-1])
        return 0.0
    tolerance = _tolerance(scorer, expected, device)
    noise = float("inf")
    for route in scorer.routes:
        scorer.take(route)
        try:
            noise = _noise(scorer, expected, device)
        except Exception as error:
            if route is ROUTES[-1] or out_of_memory(error):
                raise
            continue  # this family's decoder does not take what the route gives it
        if noise <= tolerance:
            return noise
    if ROUTES[-1] not in scorer.routes:
        raise UsageError(
            f"attention tree does not give this model's own log-probs (difference {noise:.3g} nats "
            "per token)",
            "set attention: auto for this reference (--attention auto)",
        )
    return noise


def _tolerance(
    scorer: ResponseScorer, expected: Sequence[tuple[Row, list[float]]], device: torch.device
) -> float:
    """What exact routes may differ by: in 16 bits four times what plain rows do."""
    dtype = next(scorer.parameters()).dtype
    if dtype in TOLERANCE:
        return TOLERANCE[dtype]
    scorer.take(ROUTES[-1])
    return min(max(COARSE[0], 4 * _noise(scorer, expected, device)), COARSE[1])


def _noise(
    scorer: ResponseScorer, expected: Sequence[tuple[Row, list[float]]], device: torch.device
) -> float:
    return max(_difference(_own_route(scorer, row, device), logps, row) for row, logps in expected)


def _own_route(scorer: ResponseScorer, row: Row, device: torch.device) -> list[float]:
    if scorer.route.share:
        return response_logps(scorer, [row], device)
    parts = [Row(row.prompt, [ids], [0]) for ids in row.responses]
    return [response_logps(scorer, [part], device)[0] for part in parts]


def _difference(logps: list[float], expected: list[float], row: Row) -> float:
    apart = [
        abs(a - b) / max(len(response), 1)
        for a, b, response in zip(logps, expected, row.responses, strict=True)
    ]
    return max(apart) if all(map(math.isfinite, apart)) else math.inf
