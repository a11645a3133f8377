"""Time before it is spent: operations counted, and their speed measured on a few batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
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
) -> float:
    """Seconds that all batches take once the model is there; about.

    A few batches are computed with random weights and as many layers as the budget allows, and the
    rest is reckoned by operations. Where not even one layer of each kind can be computed in that
    time or does not fit, a share of the matrix-product peak is taken instead.

    Args:
        blueprint: of the model.
        batches: the rows of each, longest rows first.
        compute: one batch, to its end.
        passes: forward passes that `compute` is worth.
        budget: seconds.
    """
    if not batches:
        return 0.0
    outline = blueprint.made(torch.device("meta"))
    work = work_of(outline)
    amounts = [work.of(batch) for batch in batches]
    peak = _product_speed(blueprint.device, outline.dtype)
    middles = [(2 * part + 1) * len(batches) // (2 * STRATA) for part in range(STRATA)]
    probed = sum(amounts[place] for place in middles) * passes * (STRATA + 1) / STRATA
    shallow = _affordable(blueprint, probed / (EFFICIENCY * peak), budget)
    if shallow is None:
        return sum(amounts) * passes / (EFFICIENCY * peak)
    scorer = shallow.made(shallow.device)
    scorer.take(scorer.routes[0])
    smaller, rates = work_of(scorer), dict[int, float]()
    _timed(compute, scorer, batches[-1])  # the first call of a kernel is no measure
    left = budget
    for part in (1, 0, 2):
        if left > 0:
            seconds = _timed(compute, scorer, batches[middles[part]])
            rates[part] = seconds / smaller.of(batches[middles[part]])
            left -= seconds
    borders = [len(batches) * end // STRATA for end in range(STRATA + 1)]
    return sum(
        rates.get(part, rates[1]) * sum(amounts[borders[part] : borders[part + 1]])
        for part in range(STRATA)
    )


def _timed(
    compute: Callable[[ResponseScorer, Sequence[Row]], Any],
    scorer: ResponseScorer,
    batch: Sequence[Row],
) -> float:
    started = time.perf_counter()
    compute(scorer, batch)
    return time.perf_counter() - started


def _affordable(blueprint: Blueprint, seconds: float, budget: float) -> Blueprint | None:
    """The blueprint with as many layers as can be made and measured in the budget.

    Args:
        blueprint: at full depth.
        seconds: that the batches to be measured would take at full depth.
        budget: seconds.
    """
    least = blueprint.sample(1)
    for count in (blueprint.layers, *(blueprint.layers >> halved for halved in range(1, 12)), 0):
        shallow = blueprint.of_layers(sorted({*least, *range(count)}))
        scorer = shallow.made(torch.device("meta"))
        numbers = sum(weight.numel() for weight in scorer.parameters())
        drawing = numbers / DRAWN_A_SECOND if blueprint.device.type == "cpu" else 0.0
        needed = seconds * shallow.layers / blueprint.layers + drawing
        fits = numbers * blueprint.dtype.itemsize < free_bytes(blueprint.device) / 4
        if needed <= budget and fits:
            return shallow
        if shallow.layers == len(least):
            break
    return None


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
