"""What computing a reference's log-probs would take, found without loading its weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from mrpo_tools.cache import Cache
from mrpo_tools.config import Reference
from mrpo_tools.groups import Group, in_split
from mrpo_tools.maths.logprobs import TILES
from mrpo_tools.precomputing.encoded import (
    EncodedPrompt,
    Place,
    encode,
    places_of,
    text_bytes,
    trees_of,
)
from mrpo_tools.precomputing.ensure import missing_responses
from mrpo_tools.precomputing.run import WINDOW
from mrpo_tools.references.devices import peak_flops, pick_device
from mrpo_tools.references.model_files import config_size, count_parameters, weight_files
from mrpo_tools.references.resolved import ResolvedReference, renderer_of
from mrpo_tools.scorer.blueprint import Blueprint
from mrpo_tools.scorer.calibration import most_requests
from mrpo_tools.scorer.layers import bytes_of_layers
from mrpo_tools.scorer.memory import NF4_BYTES, Weights, streamed_bytes, weights_of, working_bytes
from mrpo_tools.scorer.pace import Pace, Plan
from mrpo_tools.scorer.placement import Placement, too_large
from mrpo_tools.scorer.room import blueprint, place
from mrpo_tools.scorer.scorer import BATCH_TOKENS, response_logps
from mrpo_tools.scorer.speed import EFFICIENCY, seconds_of
from mrpo_tools.scorer.trees import Row, plan_rows, split_tree
from mrpo_tools.scorer.trees import batches as batches_of

ROW_BYTES = 45
"""Of a response in a part, as the demo's parts have it."""
STATES = 24
"""Hidden-size vectors alive for each token while a layer runs, for the rough formula."""
LOGIT_BYTES = 8
"""A float32 logit and its log-softmax."""
READ_BYTES = 2**28
"""Of a model's files, to see how fast they are read."""
Find = Callable[[ResolvedReference, str, torch.device], Placement]
"""(reference, dtype of products, device of this process) -> where it goes."""


@dataclass(frozen=True)
class Estimate:
    """What a reference would cost.

    Attributes:
        name: of the reference.
        responses: that have no number yet.
        tokens: of all their sequences, each prompt counted for each response.
        unique_tokens: that would be computed: a shared prompt once.
        padding: positions that would be computed beside them.
        overlong: responses that do not fit.
        memory_bytes: of tensors at the peak: weights and `working_bytes`.
        weights_bytes: of the model.
        working_bytes: the most that a batch takes beside them.
        disk_bytes: of the parts; about.
        seconds: of tokenising and computing, measured on a few batches; about. Of layers that are
            read again and again, the reading counts too.
        loading_seconds: of reading the weights at the speed of their disk; about.
        about: memory and seconds are of a rough formula, because the model cannot be made of its
            configuration here.
        sweeps: of layers that are read again and again; None of a model that is loaded whole.
        requests: to a server that has the weights, which computes every prompt for each response:
            `tokens` in all. Memory and seconds are then its own, and 0 here. None without a server.
        calibration_requests: before these, at most.
        where: what each GPU would hold, or why they cannot; None where nothing was reckoned.
    """

    name: str
    responses: int
    tokens: int
    unique_tokens: int
    padding: int
    overlong: int
    memory_bytes: int
    weights_bytes: int
    working_bytes: int
    disk_bytes: int
    seconds: float
    loading_seconds: float
    about: bool
    sweeps: Plan | None = None
    requests: int | None = None
    calibration_requests: int = 0
    where: str | None = None


class _Cost(NamedTuple):
    """Of a model that computes some batches: bytes and seconds."""

    weights: int
    working: int
    seconds: float
    about: bool
    sweeps: Plan | None = None


def estimate(
    resolved: ResolvedReference,
    groups: Sequence[Group],
    cache: Cache,
    split: str | None = None,
    shard: tuple[int, int] = (0, 1),
    *,
    find: Find = place,
) -> Estimate:
    """Count what `precompute` would compute now; loads the tokenizer only.

    Args:
        resolved: the reference.
        groups: all of them.
        cache: that may have numbers already.
        split: of the groups; None takes all.
        shard: (which, of how many).
        find: where the reference would go.

    Raises:
        UsageError: no group is in the split, the template cannot render one, or the devices cannot
            be as the reference says.
    """
    incomplete, _ = missing_responses(cache, resolved, in_split(groups, split), shard)
    renderer = renderer_of(resolved)
    incomplete = sorted(incomplete, key=text_bytes, reverse=True)
    started = time.perf_counter()
    prompts = encode(renderer, incomplete)
    tokenising = time.perf_counter() - started
    places, trees = places_of(prompts), trees_of(prompts)
    if resolved.reference.server is not None:
        return _of_server(resolved.name, places, trees, tokenising)
    placed = find(resolved, resolved.products, pick_device())
    batches = _planned(prompts, resolved, resolved.reference.batch_tokens or placed.batch_tokens)
    tokens = [sum(map(len, batch)) for batch in batches]
    cost = _cost(resolved, batches, placed)
    windows = max(1, math.ceil(len(prompts) / WINDOW))
    return Estimate(
        name=resolved.name,
        responses=len(places),
        tokens=_sequence_tokens(trees),
        unique_tokens=sum(tokens),
        padding=0 if _packed(resolved.reference) else _padding(batches),
        overlong=sum(place.response.overlong for place in places),
        memory_bytes=cost.weights + cost.working,
        weights_bytes=cost.weights,
        working_bytes=cost.working,
        disk_bytes=ROW_BYTES * len(places),
        seconds=max(tokenising, cost.seconds + tokenising / windows),  # all but the first overlap
        loading_seconds=0.0 if cost.sweeps else loading_seconds(resolved.files.model),
        about=cost.about,
        sweeps=cost.sweeps,
        where=_where(resolved.name, placed, cost.sweeps),
    )


def _of_server(
    name: str, places: Sequence[Place], trees: Sequence[Row], tokenising: float
) -> Estimate:
    """What a server would be asked for."""
    requests = sum(len(tree.keys) for tree in trees)
    return Estimate(
        name=name,
        responses=len(places),
        tokens=_sequence_tokens(trees),
        unique_tokens=sum(len(tree.prompt) + _response_tokens(tree) for tree in trees),
        padding=0,
        overlong=sum(place.response.overlong for place in places),
        memory_bytes=0,
        weights_bytes=0,
        working_bytes=0,
        disk_bytes=ROW_BYTES * len(places),
        seconds=tokenising,
        loading_seconds=0.0,
        about=False,
        requests=requests,
        calibration_requests=most_requests(requests),
    )


def _where(name: str, placed: Placement, sweeps: Plan | None) -> str | None:
    if sweeps is not None:
        return f"a layer at a time: about {sweeps}"
    if placed.kind == "too large":
        return str(too_large(name, placed))
    if placed.kind == "across":
        return placed.told
    return placed.words or None if placed.kind == "one" else None


def loading_seconds(model: Path) -> float:
    """Seconds that reading a model's weights takes at the speed of a first piece of them."""
    files = weight_files(model)
    if not files:
        return 0.0
    with files[0].open("rb") as file:
        started = time.perf_counter()
        read = len(file.read(READ_BYTES))
        speed = read / (time.perf_counter() - started)
    return sum(path.stat().st_size for path in files) / speed


def _cost(
    resolved: ResolvedReference, batches: Sequence[Sequence[Row]], placed: Placement
) -> _Cost:
    """By the model made of its configuration; by a formula where it cannot be made."""
    device = pick_device()
    try:
        plan = blueprint(resolved, device)
        quantized = resolved.reference.quantization is not None
        weights = weights_of(plan, quantized=quantized)
        largest = max(batches, key=lambda batch: sum(map(len, batch)), default=[])
        working = working_bytes(plan, largest) if largest else 0
        if quantized:
            working += weights.largest
        seconds = seconds_of(
            plan, batches, lambda scorer, rows: response_logps(scorer, rows, device)
        )
    except Exception:  # a family's own code may fail in any way without real weights
        return _formula(resolved, batches, device)
    if placed.kind == "layers":
        return _in_sweeps(resolved, plan, weights, batches, _Cost(0, working, seconds, about=False))
    return _Cost(weights.total, working, seconds, about=False)


def _in_sweeps(
    resolved: ResolvedReference,
    plan: Blueprint,
    weights: Weights,
    batches: Sequence[Sequence[Row]],
    whole: _Cost,
) -> _Cost:
    """Of layers that are read again and again, from the cost of a model that is in memory."""
    model, tokens = resolved.files.model, sum(len(row) for batch in batches for row in batch)
    sizes = bytes_of_layers(resolved, plan.layers)
    pace = Pace(sum(sizes), resolved.reference.sweep_tokens)
    share = sum(sizes) / sum(path.stat().st_size for path in weight_files(model))
    pace.has_read(sum(sizes), share * loading_seconds(model))
    pace.has_computed(tokens, whole.seconds)
    sweeps = pace.plan(tokens, sum(1 for _ in pace.sweeps(batches)))
    states = sweeps.sweep_tokens * int(plan.text.hidden_size) * weights.width
    held = streamed_bytes(weights, quantized=resolved.reference.quantization is not None)
    return _Cost(held, whole.working + states, sweeps.seconds, about=False, sweeps=sweeps)


def _formula(
    resolved: ResolvedReference, batches: Sequence[Sequence[Row]], device: torch.device
) -> _Cost:
    """Roughly, from three numbers of the configuration and the headers of the weights."""
    model = resolved.files.model
    hidden = config_size(model, "hidden_size", "n_embd", "d_model") or 0
    vocabulary = config_size(model, "vocab_size") or 0
    dtype = getattr(torch, resolved.dtype)
    parameters = count_parameters(model)
    weights = parameters * (NF4_BYTES if resolved.reference.quantization else dtype.itemsize)
    tokens = [sum(map(len, batch)) for batch in batches]
    states = max(tokens, default=0) * hidden * STATES * dtype.itemsize
    logits = TILES[device.type == "cpu"] * vocabulary * LOGIT_BYTES
    seconds = 2 * parameters * sum(tokens) / (EFFICIENCY * peak_flops(device, dtype))
    return _Cost(int(weights), int(states + logits), seconds if tokens else 0.0, about=True)


def _planned(
    prompts: Sequence[EncodedPrompt], resolved: ResolvedReference, batch_tokens: int | None
) -> list[list[Row]]:
    """The batches that a scorer on its fastest route would make, window by window."""
    reference, device = resolved.reference, pick_device()
    hidden_size = config_size(resolved.files.model, "hidden_size", "n_embd", "d_model") or 1
    packed = _packed(reference)
    longest = batch_tokens or max(BATCH_TOKENS.values())
    limit = batch_tokens or BATCH_TOKENS[device.type == "cpu"]
    planned = []
    for start in range(0, len(prompts), WINDOW):
        trees = trees_of(prompts[start : start + WINDOW])
        parts = [part for tree in trees for part in split_tree(tree, longest)]
        rows = plan_rows(parts, hidden_size=hidden_size, packed=packed)
        planned += batches_of(rows, limit, packed=packed)
    return planned


def _packed(reference: Reference) -> bool:
    return reference.attention in ("auto", "tree")


def _sequence_tokens(trees: Sequence[Row]) -> int:
    """Of all sequences, each prompt counted for each response."""
    return sum(len(tree.prompt) * len(tree.keys) + _response_tokens(tree) for tree in trees)


def _padding(batches: Sequence[Sequence[Row]]) -> int:
    """Positions without a token, where rows of a batch are as wide as its longest."""
    return sum(max(map(len, batch)) - len(row) for batch in batches for row in batch)


def _response_tokens(tree: Row) -> int:
    return sum(map(len, tree.responses))
