"""Time before it is spent: operations counted, and their speed measured on a few batches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from mrpo_tools.references.devices import free_bytes, peak_flops
from mrpo_tools.scorer.blueprint import Blueprint
from mrpo_tools.scorer.scorer import ResponseScorer
from mrpo_tools.scorer.trees import Row, cost

EFFICIENCY = 0.6
"""Useful operations as a share of the matrix-product peak, where measuring would take too long."""
PROBE_SECONDS = 3.0
"""What measuring may take."""
PATIENCE = 4
"""Times that long, if it is the one batch that can be measured."""
DRAWN_A_SECOND = 1e8
"""Random numbers that a processor makes; an accelerator's time for them is not seen."""
STRATA = 3
"""Batches that are measured; they come longest first, and short rows run at another speed."""


class Work(NamedTuple):
    """Operations of a forward pass.

    Attributes:
        a_token: of the layers' matrices, two for each parameter that a token meets.
        a_target: of the head.
        a_pair: of attention, for each pair of tokens.
    """

    a_token: float
    a_target: float
    a_pair: float

    def of(self, rows: Sequence[Row]) -> float:
        """Operations of a batch."""
        tokens = sum(map(len, rows))
        targets = sum(len(ids) for row in rows for ids in row.responses)
        pairs = 6 * (cost(rows, 1) - tokens)  # at a width of one a pair costs a sixth of a token
        return self.a_token * tokens + self.a_target * targets + self.a_pair * pairs


def work_of(scorer: ResponseScorer) -> Work:
    """What a model computes; of experts only those that a token is sent to."""
    text = scorer.config.get_text_config()
    embedding = scorer.causal_lm.get_input_embeddings().weight
    head = scorer.causal_lm.get_output_embeddings().weight
    sent, experts = (_first(text, names) for names in (CHOSEN_EXPERTS, ALL_EXPERTS))
    share = sent / experts if sent and experts else 1.0
    numbers = sum(
        weight.numel() * (share if ".experts." in name else 1.0)
        for name, weight in scorer.named_parameters()
        if weight is not embedding and weight is not head
    )
    heads = getattr(text, "num_attention_heads", None) or 1
    width = heads * (getattr(text, "head_dim", None) or text.hidden_size // heads)
    return Work(2 * numbers, 2 * head.numel(), 4 * width * text.num_hidden_layers)


CHOSEN_EXPERTS = ("num_experts_per_tok", "top_k_experts")
ALL_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def seconds_of(
    blueprint: Blueprint,
    batches: Sequence[Sequence[Row]],
    compute: Callable[[ResponseScorer, Sequence[Row]], Any],
    *,
    passes: float = 1.0,
    budget: float = PROBE_SECONDS,
    clock: Callable[[], float] | None = None,
) -> float:
    """Seconds that all batches take once the model is there; about.

    A few batches are computed with random weights and as many layers as the budget allows, and the
    rest is reckoned by operations: first the last and smallest one, with one layer of each kind.
    Where not even that can be made, a share of the matrix-product peak is taken instead.

    Args:
        blueprint: of the model.
        batches: the rows of each, longest rows first.
        compute: one batch, to its end.
        passes: forward passes that `compute` is worth.
        budget: seconds.
        clock: says the time in seconds; None is the wall's.
    """
    if not batches:
        return 0.0
    outline = blueprint.made(torch.device("meta"))
    work = work_of(outline)
    amounts = [work.of(batch) for batch in batches]
    least = blueprint.of_layers(blueprint.sample(1))
    drawing = _seconds_to_draw(least)
    if drawing > budget:
        peak = _product_speed(blueprint.device, outline.dtype)
        return sum(amounts) * passes / (EFFICIENCY * peak)
    clock = clock or time.perf_counter
    timed = partial(_rate, compute, clock)
    scorer = _ready(least)
    timed(scorer, batches[-1])  # the first call of a kernel is no measure
    rate = timed(scorer, batches[-1])
    middles = [(2 * part + 1) * len(batches) // (2 * STRATA) for part in range(STRATA)]
    probed = sum(amounts[place] for place in middles) * rate
    deepest = _affordable(blueprint, probed, budget)
    if deepest is None:  # small batches are slow for their size, so the middle one is tried still
        dear = amounts[middles[1]] * rate * least.layers / blueprint.layers > PATIENCE * budget
        return sum(amounts) * (rate if dear else timed(scorer, batches[middles[1]]))
    scorer = _ready(deepest)
    rates = [timed(scorer, batches[place]) for place in middles]
    borders = [len(batches) * end // STRATA for end in range(STRATA + 1)]
    return sum(
        rates[part] * sum(amounts[borders[part] : borders[part + 1]]) for part in range(STRATA)
    )


def _ready(blueprint: Blueprint) -> ResponseScorer:
    """The scorer with random weights, on its fastest route."""
    scorer = blueprint.made(blueprint.device)
    scorer.take(scorer.routes[0])
    return scorer


def _rate(
    compute: Callable[[ResponseScorer, Sequence[Row]], Any],
    clock: Callable[[], float],
    scorer: ResponseScorer,
    batch: Sequence[Row],
) -> float:
    """Seconds that an operation of a batch takes."""
    started = clock()
    compute(scorer, batch)
    return (clock() - started) / work_of(scorer).of(batch)


def _affordable(blueprint: Blueprint, seconds: float, budget: float) -> Blueprint | None:
    """The blueprint with as many layers as can be made and measured in the budget.

    Args:
        blueprint: at full depth.
        seconds: that the batches to be measured would take at full depth.
        budget: seconds.
    """
    least, layers = blueprint.sample(1), blueprint.layers
    counts = {layers >> halved for halved in range(layers.bit_length())} | {0}
    for count in sorted(counts, reverse=True):
        shallow = blueprint.of_layers(sorted({*least, *range(count)}))
        computing = seconds * shallow.layers / layers
        if computing <= budget and computing + _seconds_to_draw(shallow) <= budget:
            return shallow
    return None


def _seconds_to_draw(blueprint: Blueprint) -> float:
    """Of making random weights; infinite where they would take a quarter of the free memory."""
    scorer = blueprint.made(torch.device("meta"))
    numbers = sum(weight.numel() for weight in scorer.parameters())
    if numbers * blueprint.dtype.itemsize > free_bytes(blueprint.device) / 4:
        return math.inf
    return numbers / DRAWN_A_SECOND if blueprint.device.type == "cpu" else 0.0


def _product_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a matrix product."""
    peak = peak_flops(device, dtype)
    if device.type != "cpu" or dtype == torch.float32:
        return peak
    spent = []
    for kind in (torch.float32, dtype):  # processors without 16-bit units are far slower
        matrix = torch.ones(512, 512, dtype=kind)
        started = time.perf_counter()
        _ = matrix[:16] @ matrix
        spent.append(time.perf_counter() - started)
    return peak * spent[0] / spent[1]


def _first(config: Any, names: Sequence[str]) -> float:
    """The first of some numbers that a configuration has; 0 where it has none."""
    return next((value for name in names if (value := getattr(config, name, None))), 0)
