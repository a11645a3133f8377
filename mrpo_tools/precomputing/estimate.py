"""What computing a reference's log-probs would take, found without loading its weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from mrpo_tools.cache import Cache
from mrpo_tools.config import Reference
from mrpo_tools.groups import Group, in_split
from mrpo_tools.maths.logprobs import TILES
from mrpo_tools.precomputing.encoded import encode, places_of, trees_of
from mrpo_tools.precomputing.ensure import missing_responses
from mrpo_tools.references.devices import peak_flops, pick_device
from mrpo_tools.references.model_files import read_json, weight_files
from mrpo_tools.references.resolved import ResolvedReference, renderer_of
from mrpo_tools.scorer.scorer import BATCH_TOKENS
from mrpo_tools.scorer.trees import Row, plan_rows, split_tree
from mrpo_tools.scorer.trees import batches as batches_of

EFFICIENCY = 0.6
"""Useful operations as a share of the matrix-product peak."""
ROW_BYTES = 45
"""Of a response in a part, as the demo's parts have it."""
STATES = 24
"""Hidden-size vectors alive for each token while a layer runs."""
LOGIT_BYTES = 8
"""A float32 logit and its log-softmax."""
NF4_BYTES = 0.56
"""Of a weight in NF4 with double quantisation, some layers staying in 16 bits."""


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
        memory_bytes: weights, the states of a batch and a tile of logits; about.
        disk_bytes: of the parts; about.
        seconds: at 60 % of this device's matrix-product peak; about, loading not included.
    """

    name: str
    responses: int
    tokens: int
    unique_tokens: int
    padding: int
    overlong: int
    memory_bytes: int
    disk_bytes: int
    seconds: float


def estimate(
    resolved: ResolvedReference,
    groups: Sequence[Group],
    cache: Cache,
    split: str | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Estimate:
    """Count what `precompute` would compute now; loads the tokenizer only.

    Raises:
        UsageError: no group is in the split, or the template cannot render one.
    """
    incomplete, _ = missing_responses(cache, resolved, in_split(groups, split), shard)
    prompts = encode(renderer_of(resolved), incomplete)
    places, trees = places_of(prompts), trees_of(prompts)
    config = read_json(resolved.files.model / "config.json")
    config = config.get("text_config", config)
    device, dtype = pick_device(), getattr(torch, resolved.dtype)
    batches = _planned(trees, resolved.reference, config["hidden_size"], device)
    tokens = [sum(map(len, batch)) for batch in batches]
    padding = 0
    if not _packed(resolved.reference):
        lines = [len(batch) * max(map(len, batch)) for batch in batches]
        padding = sum(lines) - sum(tokens)
    parameters = count_parameters(resolved.files.model)
    weights = parameters * (NF4_BYTES if resolved.reference.quantization else dtype.itemsize)
    states = max(tokens, default=0) * config["hidden_size"] * STATES * dtype.itemsize
    logits = TILES[device.type == "cpu"] * config["vocab_size"] * LOGIT_BYTES
    flops = 2 * parameters * (sum(tokens) + padding)
    return Estimate(
        name=resolved.name,
        responses=len(places),
        tokens=sum(len(tree.prompt) * len(tree.keys) + _response_tokens(tree) for tree in trees),
        unique_tokens=sum(tokens),
        padding=padding,
        overlong=sum(place.response.overlong for place in places),
        memory_bytes=int(weights + states + logits),
        disk_bytes=ROW_BYTES * len(places),
        seconds=flops / (EFFICIENCY * peak_flops(device, dtype)) if flops else 0.0,
    )


def count_parameters(model: Path) -> int:
    """Parameters of a model on disk, from the headers of its safetensors files."""
    total = 0
    for path in weight_files(model):
        with safe_open(path, framework="numpy") as weights:
            total += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118  no mapping
    return total


def _planned(
    trees: Sequence[Row], reference: Reference, hidden_size: int, device: torch.device
) -> list[list[Row]]:
    """The batches that a scorer on its fastest route would make."""
    packed = _packed(reference)
    longest = reference.batch_tokens or max(BATCH_TOKENS.values())
    parts = [part for tree in trees for part in split_tree(tree, longest)]
    rows = plan_rows(parts, hidden_size=hidden_size, packed=packed)
    limit = reference.batch_tokens or BATCH_TOKENS[device.type == "cpu"]
    return batches_of(rows, limit, packed=packed)


def _packed(reference: Reference) -> bool:
    return reference.attention in ("auto", "tree")


def _response_tokens(tree: Row) -> int:
    return sum(map(len, tree.responses))
