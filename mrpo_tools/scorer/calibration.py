"""A server's log-probs before the first is kept: are they the model's, and how noisy?

The lines of a sample are asked for one at a time, then many at a time in the opposite order; both
times the numbers must be the same but for noise, which is measured. They must fit together
(`consistency`), and be those of the weights where these lie here (`against_weights`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mrpo_tools.errors import ServerError, UsageError
from mrpo_tools.maths.noise import Apart, Noise, beyond, loudest
from mrpo_tools.references.devices import pick_device
from mrpo_tools.references.resolved import ResolvedReference
from mrpo_tools.scorer.against_weights import compare, why_not
from mrpo_tools.scorer.consistency import (
    CHECKS,
    FEW,
    ONCE,
    PER_LINE,
    Line,
    Sample,
    impossible,
    rounded,
)
from mrpo_tools.scorer.self_check import SINGLE, SMALLEST_SPREAD
from mrpo_tools.server import PromptLogprobs, together

LINES = 64
UNSTEADY = 16.0
"""Roundings to the declared dtype: more than that between the same line's numbers is no noise."""


def most_requests(lines: int) -> int:
    """Requests of a calibration on so many lines, at most."""
    lines = min(lines, LINES)
    return 2 * lines + PER_LINE * min(lines, FEW) + ONCE if lines else 0


class Biased(ServerError):
    """A server's numbers are not a model's, or not this one's: none of them is kept."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(
            f"the server's log-probs cannot be those of reference {name!r}: {reason}; none is kept",
            "see what it serves and how it was started: docs/served_references.md",
        )


@dataclass(frozen=True)
class Calibrated:
    """A server whose numbers may be kept.

    Attributes:
        sample: the lines and their log-probs, to ask for again.
        noise: of the numbers, per token.
        about: what was compared with what, for the record.
    """

    sample: Sample
    noise: Noise
    about: Mapping[str, object]


def calibrate(
    asked: PromptLogprobs, resolved: ResolvedReference, lines: Sequence[Line], concurrency: int
) -> Calibrated:
    """Ask a server in every way, and compare.

    Args:
        asked: the server.
        resolved: the reference that it is said to serve.
        lines: one at least.
        concurrency: requests at a time.

    Raises:
        Biased: the numbers are not a model's, or not this model's.
        ServerError: the server does not answer.
        UsageError: the weights are wished for, and are not here.
    """
    name, dtype = resolved.name, resolved.dtype
    device = pick_device()
    against = _weights(resolved, device)
    alone = [asked.of(line.ids) for line in lines]
    _refuse(name, impossible(alone))
    own = _own_noise(lines, alone, _at_once(asked, lines, concurrency))
    rounding = _rounding(dtype, lines, alone)
    _refuse(name, _unsteady(own, rounding))
    sample = Sample(lines, alone, dtype, max(own.noise.rms, rounding))
    _refuse(name, rounded(sample))
    for check in CHECKS:
        _refuse(name, check(asked, sample))
    about: dict[str, object] = {
        "lines": len(lines),
        "against": "itself",
        "itself": vars(own.noise),
        "weights": against,
    }
    if against is not None:
        return Calibrated(sample, own.noise, about)
    found = compare(resolved, sample, device)
    _refuse(name, found.reason and f"against the weights here, {found.reason}")
    about |= {"against": "weights", "weights": {**vars(found.noise), "lines": found.lines}}
    return Calibrated(sample, loudest([own.noise, found.noise]), about)


def in_words(about: Mapping[str, Any]) -> str:
    """What a calibration says to whoever waits for it."""
    against = about["against"]
    noise = about[against]
    compared = (
        f"the server's log-probs of {about['lines']} responses against {{}}: root mean "
        f"square {noise['rms']:.1e}, mean {noise['bias']:+.1e} nats a token"
    )
    if against == "weights":
        return compared.format("the weights here")
    return f"{compared.format('themselves')}; whose they are is believed ({about['weights']})"


@dataclass(frozen=True)
class _Own:
    """The same lines asked for twice: the responses' differences, and the noise of a token."""

    apart: Sequence[Apart]
    noise: Noise


def _weights(resolved: ResolvedReference, device: torch.device) -> str | None:
    """Why the weights are not compared with; None where they are.

    Raises:
        UsageError: they are wished for, and cannot be.
    """
    wanted = resolved.reference.calibration or "auto"
    if wanted == "server":
        return "not wished for"
    reason = why_not(resolved, device)
    if reason is not None and wanted == "weights":
        raise UsageError(
            f"reference {resolved.name!r} cannot be compared with its weights: {reason}",
            "calibration: server asks the server alone",
        )
    return reason


def _at_once(
    asked: PromptLogprobs, lines: Sequence[Line], concurrency: int
) -> list[Sequence[float]]:
    """Log-probs of all lines, the last first, many at a time."""
    places = range(len(lines) - 1, -1, -1)
    answers = together(lambda place: asked.of(lines[place].ids), places, concurrency)
    by_place = {place: values for batch in answers for place, values in batch}
    return [by_place[place] for place in range(len(lines))]


def _own_noise(
    lines: Sequence[Line], first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]
) -> _Own:
    every, apart = [], []
    for line, one, other in zip(lines, first, second, strict=True):
        pairs = zip(line.of_response(other), line.of_response(one), strict=True)
        differences = [a - b for a, b in pairs]
        apart.append(Apart(sum(differences), len(differences)))
        every += differences
    return _Own(apart, Noise.of(every))


def _rounding(dtype: str, lines: Sequence[Line], values: Sequence[Sequence[float]]) -> float:
    """What one rounding to the declared 16 bits is worth, where log-probs spread as these do."""
    if dtype == "float32":
        return 0.0
    every = [v for line, own in zip(lines, values, strict=True) for v in line.of_response(own)]
    spread = float(torch.tensor(every, dtype=torch.float64).std(correction=0)) if every else 0.0
    return float(torch.finfo(getattr(torch, dtype)).eps) / 2 * max(spread, SMALLEST_SPREAD)


def _unsteady(own: _Own, rounding: float) -> str | None:
    """Why the same lines' numbers differ by more than noise of the declared dtype."""
    reason = beyond(own.apart, Noise(rms=max(own.noise.rms, rounding) if rounding else 0.0), SINGLE)
    if reason is None and rounding and own.noise.rms > UNSTEADY * rounding:
        reason = (
            f"tokens are {own.noise.rms:.3g} nats apart (root mean square), and the noise of the "
            f"declared dtype is at most {UNSTEADY * rounding:.2g}"
        )
    return reason and f"asked for twice, {reason}"


def _refuse(name: str, reason: str | None) -> None:
    if reason is not None:
        raise Biased(name, reason)
