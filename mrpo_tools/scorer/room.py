"""What a reference takes and what the devices of this machine have free: where it goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from mrpo_tools.errors import UsageError
from mrpo_tools.references.devices import cards_of, free_bytes, local_processes
from mrpo_tools.references.model_files import adapter_weights, first_line, weight_files
from mrpo_tools.references.resolved import ResolvedReference
from mrpo_tools.scorer.across import blocks_of
from mrpo_tools.scorer.blueprint import Blueprint, blueprint_of
from mrpo_tools.scorer.memory import sizes_of, streamed_bytes, weights_of, working_bytes
from mrpo_tools.scorer.placement import (
    Need,
    Placement,
    Share,
    bytes_of,
    placement,
    room_for_weights,
)
from mrpo_tools.scorer.scorer import BATCH_TOKENS, ResponseScorer
from mrpo_tools.scorer.self_check import CHECK_TOKENS
from mrpo_tools.scorer.trees import Row

LOGITS = 3 * 4
"""Bytes of a number of the vocabulary for each token of the self-check's padded batch: the model's
own logits in float32, those of its targets, and a tile."""
WIDENED_ADAPTER = 2
"""Times the bytes of an adapter's file, whose 16-bit weights PEFT widens."""

STATES = 24
"""Hidden-size vectors alive for each token while a layer runs, for the rough formula."""
WIDENED = 4
"""Times the bytes of its files that a model takes at most: in float64, of files in 16 bits."""

FreeBytes = Callable[[torch.device], int]


def blueprint(
    resolved: ResolvedReference, device: torch.device, products: str | None = None
) -> Blueprint:
    """The reference's model as its configuration has it, without weights.

    Args:
        resolved: the reference.
        device: where it would be.
        products: their dtype, and the weights', where they are not the reference's own.
    """
    reference, own = resolved.reference, products in (None, resolved.products)
    dtype = getattr(torch, products or resolved.products)
    return blueprint_of(
        files=resolved.files,
        reference=reference,
        dtype=resolved.dtype if own else str(products),
        device=device,
        scorer=lambda model: ResponseScorer(
            model.requires_grad_(requires_grad=False), reference.attention, dtype
        ),
    )


def place(
    resolved: ResolvedReference,
    products: str,
    device: torch.device,
    *,
    cards: Sequence[torch.device] | None = None,
    free: FreeBytes = free_bytes,
    processes: int | None = None,
) -> Placement:
    """Where a reference goes, before any weights are read.

    A layer at a time is the way of what nothing here holds, unless its words forbid it or ask for
    another; several processes do not take it by themselves, for one of them may have all GPUs.
    Other GPUs than the first are asked only where that one is too small. A CPU, and a GPU of Apple,
    is one device, whatever `device_map` says, and too small where the weights alone are more than
    it has free: what else there is in its memory may give way.

    Args:
        resolved: the reference.
        products: their dtype.
        device: of this process.
        cards: GPUs that this process sees; None asks torch.
        free: bytes that a device has free.
        processes: of this machine that work together; None asks the environment.

    Raises:
        UsageError: a device map that this process cannot have.
    """
    words = resolved.reference
    if words.server is not None:
        return Placement("server")
    cards = cards_of(device) if cards is None else cards
    first = cards[0] if cards else device
    if words.stream_layers:
        return _in_layers(resolved, products, device, free(first))
    processes = local_processes() if processes is None else processes
    if cards:
        placed = _on_cards(resolved, products, device, cards, free, processes)
    else:
        placed = _without_cards(resolved, products, device, free(device))
    free_to_choose = words.stream_layers is None and words.device_map is None
    if placed.kind == "too large" and free_to_choose and placed.processes == 1:
        alone = _in_layers(resolved, products, device, free(first))
        return replace(placed, kind="layers", batch_tokens=alone.batch_tokens)
    return placed


def _surely_fits(resolved: ResolvedReference, free: int) -> bool:
    """Whether a model fits in whatever dtype, so that nothing need be reckoned."""
    files = sum(path.stat().st_size for path in weight_files(resolved.files.model))
    return WIDENED * files <= free


def _in_layers(
    resolved: ResolvedReference, products: str, device: torch.device, free: int
) -> Placement:
    """The largest batch beside the ends and some layers; the smallest where none fits."""
    if _surely_fits(resolved, free):
        return Placement("layers")
    quantized = resolved.reference.quantization is not None
    try:
        plan = blueprint(resolved, device, products)
        held = streamed_bytes(weights_of(plan, quantized=quantized), quantized=quantized)
        batches = need_of(resolved, products, device).working
    except Exception:  # a family's own code may fail in any way without real weights
        return Placement("layers")
    fitting = (tokens for tokens, working in batches if held <= room_for_weights(free, working))
    return Placement("layers", next(fitting, batches[-1][0]))


def _on_cards(
    resolved: ResolvedReference,
    products: str,
    device: torch.device,
    cards: Sequence[torch.device],
    free: FreeBytes,
    processes: int,
) -> Placement:
    asked = resolved.reference.device_map is not None
    if processes > 1:
        if asked:
            raise UsageError(
                f"device_map: auto of {resolved.name!r} spreads it over all GPUs, and "
                f"{processes} processes of this machine have one each",
                "start one process: mrpo precompute --ref …; or one for each set of GPUs: "
                f"CUDA_VISIBLE_DEVICES=0,1 mrpo precompute --shard 1/{processes} …",
            )
        cards = [device]
    limits = _limits(resolved, len(cards))
    try:
        need = need_of(resolved, products, device)
    except Exception as error:  # a family's own code may fail in any way without real weights
        if not asked:
            return Placement("one")
        raise UsageError(
            f"the layers of {resolved.name!r} cannot be told apart: {first_line(error)}",
            "leave device_map out, which puts it on one device",
        ) from None
    if not asked:
        alone = placement(need, [free(cards[0])])
        if alone.kind == "one" or len(cards) == 1:
            return replace(alone, processes=processes)
    return placement(need, [free(card) for card in cards], asked=asked, limits=limits)


def _without_cards(
    resolved: ResolvedReference, products: str, device: torch.device, free: int
) -> Placement:
    free = (_limits(resolved, 0) or {}).get("cpu", free)
    if _surely_fits(resolved, free):
        return Placement("one")
    try:
        need = need_of(resolved, products, device)
    except Exception:  # as above
        return Placement("one")
    if need.weights <= free:
        return Placement("one")
    tokens, working = need.working[-1]
    share = Share("cpu", 0, free)
    return Placement("too large", tokens, (share,), None, working, need.weights)


def _limits(resolved: ResolvedReference, count: int) -> dict[int | str, int] | None:
    """`max_memory` in bytes, where so many GPUs are seen."""
    said = resolved.reference.max_memory
    if said is None:
        return None
    absent = [place for place in said if isinstance(place, int) and place >= count]
    if absent:
        seen = f"{count} are seen, from 0" if count else "none is seen"
        raise UsageError(
            f"max_memory of {resolved.name!r} names GPU {absent[0]}, and {seen}",
            "name those of `nvidia-smi -L`, counted among CUDA_VISIBLE_DEVICES",
        )
    return {where: bytes_of(size) for where, size in said.items()}


def need_of(resolved: ResolvedReference, products: str, device: torch.device) -> Need:
    """What a reference takes on devices of a kind. See `needed`.

    Raises:
        Exception: of any kind, where a family cannot be imagined.
    """
    words = resolved.reference
    files = adapter_weights(resolved.files.adapter) if resolved.files.adapter else []
    return needed(
        blueprint(resolved, device, products),
        quantized=words.quantization is not None,
        adapter=sum(path.stat().st_size for path in files),
        batch_tokens=words.batch_tokens,
    )


def needed(
    plan: Blueprint, *, quantized: bool = False, adapter: int = 0, batch_tokens: int | None = None
) -> Need:
    """What a model takes: its blocks, and batches down to a quarter of what is usual on its device.
    A batch is taken to be of one sequence, half of it a response.

    Args:
        plan: of the model.
        quantized: its layers' matrices are in NF4.
        adapter: bytes of its adapter's files.
        batch_tokens: of a batch; None takes what is usual.
    """
    scorer = plan.made(torch.device("meta"))
    blocks = blocks_of(scorer.causal_lm, sizes_of(scorer, quantized=quantized))
    weights = weights_of(plan, quantized=quantized)
    widened = weights.largest if quantized else 0
    checking = LOGITS * CHECK_TOKENS * int(plan.text.vocab_size)

    def working(tokens: int) -> int:
        computing = max(_computing(plan, tokens), checking) + widened
        loading = max(computing, weights.tensor)  # a tensor is read before it has its place
        return loading + WIDENED_ADAPTER * adapter

    usual = BATCH_TOKENS[plan.device.type == "cpu"]
    sizes = (usual, usual // 2, usual // 4)
    if batch_tokens is not None:  # it is not made smaller, and may fit for all that
        least = working(min(batch_tokens, usual // 4))
        return Need(blocks, ((batch_tokens, working(batch_tokens)), (batch_tokens, least)))
    return Need(blocks, tuple((size, working(size)) for size in sizes))


def _computing(plan: Blueprint, tokens: int) -> int:
    """Bytes of a batch beside the weights; by a rough formula where layers cannot be imagined, as
    grouped products of experts in float32 cannot."""
    row = Row(range(tokens // 2), [range(tokens - tokens // 2)], [0])
    try:
        return working_bytes(plan, [row])
    except Exception:  # a family's own code may fail in any way without real weights
        return STATES * tokens * int(plan.text.hidden_size) * plan.dtype.itemsize
