"""A server's log-probs against those of the weights, where these lie here too.

The weights are rounded as the server has them and multiplied in float32, a line at a time: what the
server's numbers would be without noise. How much noise there may be is measured here where that is
cheap: the same lines with products of the server's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from mrpo_tools.config import loaded_here
from mrpo_tools.errors import UsageError
from mrpo_tools.maths.noise import Apart, Noise, beyond
from mrpo_tools.references.devices import free_bytes, free_memory, peak_flops
from mrpo_tools.references.loading import load_model
from mrpo_tools.references.model_files import count_parameters, read_json, weight_files
from mrpo_tools.references.resolved import ResolvedReference
from mrpo_tools.scorer.consistency import Line, Sample
from mrpo_tools.scorer.scorer import ResponseScorer
from mrpo_tools.scorer.self_check import NOISIER, SINGLE, plain_token_logps
from mrpo_tools.scorer.trees import Row

WIDTH = 4
"""Bytes of a float32 weight."""
ROOM = 1.3
"""Times the weights: what a pass takes beside them."""
SECONDS, EFFICIENCY, FEWEST = 300.0, 0.3, 8
"""Lines are left out beyond so long, at this share of the peak; with fewer it is not worth it."""
SMALL = 200_000_000
"""Parameters up to which 16-bit products are quick on a CPU too."""


class Found(NamedTuple):
    """What the comparison says: why the numbers are not the model's, if so; the noise in them; how
    many lines were compared."""

    reason: str | None
    noise: Noise
    lines: int


def why_not(resolved: ResolvedReference, device: torch.device) -> str | None:
    """Why a server's numbers cannot be compared with weights here; None where they can."""
    try:
        files = weight_files(resolved.files.model)
    except UsageError:
        files = []
    if not files:
        return "the weights do not lie here"
    if resolved.reference.served_quantization is not None:
        return "the server's are quantised"
    if "quantization_config" in read_json(resolved.files.model / "config.json"):
        return "the weights are quantised"
    needed = ROOM * WIDTH * count_parameters(resolved.files.model)
    if needed > free_bytes(device):
        return f"the weights need {needed / 1e9:.1f} GB here, and do not fit"
    if _affordable(resolved, device) == 0:
        return f"one pass of the weights takes minutes on {device.type} here"
    return None


def compare(resolved: ResolvedReference, sample: Sample, device: torch.device) -> Found:
    """A server's log-probs, line by line, with those of the weights.

    Raises:
        ResourceError: the model does not fit into memory.
        UsageError: its files cannot be loaded.
    """
    count = _fitting(sample.lines, _affordable(resolved, device))
    lines, values = sample.lines[:count], sample.values[:count]
    model = load_model(resolved.files, loaded_here(resolved.reference), sample.dtype, device)
    dtype, quick = getattr(torch, sample.dtype), count_parameters(resolved.files.model) <= SMALL
    narrow = None
    if dtype is not torch.float32 and (quick or device.type != "cpu"):
        narrow = _tokens(ResponseScorer(model, "auto", dtype), lines, device)
    exact = _tokens(ResponseScorer(model.float(), "auto", torch.float32), lines, device)
    del model
    free_memory()
    here = 0.0 if narrow is None else Noise.of(_differences(narrow, exact)).rms
    served = [
        torch.tensor(line.of_response(own), dtype=torch.float64)
        for line, own in zip(lines, values, strict=True)
    ]
    noise = Noise.of(_differences(served, exact))
    most = Noise(rms=max(here, sample.rms) if dtype is not torch.float32 else 0.0)
    apart = [
        Apart(float((own - other).sum()), len(other))
        for own, other in zip(served, exact, strict=True)
    ]
    return Found(_reason(apart, noise, most), noise, count)


def _reason(apart: Sequence[Apart], noise: Noise, most: Noise) -> str | None:
    reason = beyond(apart, most, SINGLE)
    if reason is not None or not most.rms or noise.rms <= NOISIER * most.rms:
        return reason
    return (
        f"tokens are {noise.rms:.3g} nats apart (root mean square), and noise explains "
        f"{NOISIER * most.rms:.2g}"
    )


def _tokens(
    scorer: ResponseScorer, lines: Sequence[Line], device: torch.device
) -> list[torch.Tensor]:
    """Log-probs of each response's tokens."""
    rows = [Row(line.ids[: line.start], [line.ids[line.start :]], [0]) for line in lines]
    return [logps.double() for [logps] in plain_token_logps(scorer, rows, device)]


def _differences(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> list[float]:
    return [float(each) for a, b in zip(first, second, strict=True) for each in (a - b).tolist()]


def _affordable(resolved: ResolvedReference, device: torch.device) -> int:
    """Tokens that the weights can compute here in `SECONDS`; 0 where a few lines take longer."""
    operations = 2 * count_parameters(resolved.files.model)
    tokens = int(EFFICIENCY * peak_flops(device, torch.float32) * SECONDS / operations)
    return tokens if tokens >= FEWEST * 256 else 0


def _fitting(lines: Sequence[Line], tokens: int) -> int:
    """How many of the first lines have so many tokens."""
    used = 0
    for place, line in enumerate(lines):
        used += len(line.ids)
        if used > tokens and place >= FEWEST:
            return place
    return len(lines)
