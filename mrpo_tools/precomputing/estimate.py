"""What scoring a reference would take, found without loading its weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mrpo_tools.cache import Cache
from mrpo_tools.groups import Group, in_split
from mrpo_tools.maths.logprobs import TILES
from mrpo_tools.precomputing.ensure import missing
from mrpo_tools.precomputing.run import encode, trees_of
from mrpo_tools.references.devices import peak_flops, pick_device
from mrpo_tools.references.model_files import read_json, weight_files
from mrpo_tools.references.resolved import ResolvedReference, renderer_of
from mrpo_tools.scorer.scorer import BATCH_TOKENS
from mrpo_tools.scorer.trees import batches, plan_rows, split_tree

EFFICIENCY = 0.6
"""Useful operations as a share of the matrix-product peak."""
ROW_BYTES = 45
"""Of a response in a part, as the demo's parts have it."""
STATES = 24
"""Hidden-size vectors alive for each token while a layer runs."""
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
    subject: ResolvedReference,
    groups: Sequence[Group],
    cache: Cache,
    split: str | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Estimate:
    """Count what `precompute` would score now; loads the tokenizer only.

    Raises:
        UsageError: no group is in the split, or the template cannot render one.
    """
    todo, _ = missing(cache, subject, in_split(groups, split), shard)
    encoded = encode(renderer_of(subject), todo)
    trees = trees_of(encoded)
    config = read_json(subject.files.model / "config.json")
    config = config.get("text_config", config)
    device, dtype = pick_device(), getattr(torch, subject.dtype)
    packed = subject.reference.attention in ("auto", "tree")
    limit = subject.reference.batch_tokens or BATCH_TOKENS[device.type == "cpu"]
    most = subject.reference.batch_tokens or max(BATCH_TOKENS.values())
    parts = [part for tree in trees for part in split_tree(tree, most)]
    rows = plan_rows(parts, hidden_size=config["hidden_size"], packed=packed)
    planned = batches(rows, limit, packed=packed)
    computed = sum(map(len, rows))
    padded = 0 if packed else sum(len(one) * max(map(len, one)) for one in planned) - computed
    parameters = count_parameters(subject.files.model)
    weights = parameters * (NF4_BYTES if subject.reference.quantization else dtype.itemsize)
    states = max((sum(map(len, one)) for one in planned), default=0) * config["hidden_size"]
    logits = TILES[device.type == "cpu"] * config["vocab_size"]
    flops = 2 * parameters * (computed + padded)
    return Estimate(
        subject.name,
        sum(len(one.responses) for one in encoded),
        sum(len(one.prompt) * len(one.keys) + sum(map(len, one.responses)) for one in trees),
        computed,
        padded,
        sum(response.overlong for one in encoded for response in one.responses),
        int(weights + states * STATES * dtype.itemsize + logits * 8),
        ROW_BYTES * sum(len(one.responses) for one in encoded),
        flops / (EFFICIENCY * peak_flops(device, dtype)) if flops else 0.0,
    )


def count_parameters(model: Path) -> int:
    """Parameters of a model on disk, from the headers of its safetensors files."""
    total = 0
    for path in weight_files(model):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        shapes = [one["shape"] for name, one in header.items() if name != "__metadata__"]
        total += sum(int(torch.Size(shape).numel()) for shape in shapes)
    return total
