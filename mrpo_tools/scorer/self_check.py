"""Which route of a scorer may be trusted: each is compared with the model's own logits.

The sample is computed as the run will compute it, all its trees packed into one line, because a
family that ignores where trees begin is right on one tree and wrong on two. In 16 bits no two ways
agree to the last digit: what plain rows alone and the same rows in a padded batch differ by is the
yardstick, and a route may be a few times as noisy, but lean to no side.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, chain, islice
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from mrpo_tools.errors import MrpoError, UsageError
from mrpo_tools.maths.noise import Apart, Noise, beyond, loudest
from mrpo_tools.references.devices import out_of_memory
from mrpo_tools.scorer.head import SIXTEEN_BITS
from mrpo_tools.scorer.scorer import (
    ALONE,
    OWN_LOGITS,
    ResponseScorer,
    Route,
    token_pass,
)
from mrpo_tools.scorer.trees import Row

TOLERANCE = {torch.float64: 1e-8}
SINGLE = 2e-5
"""nats per token between two exact routes in float32; in 16 bits it is allowed besides noise."""
NOISIER = 4.0
"""Times the yardstick's rms that a route's may be: other kernels round at other places."""
LARGEST = 8.0
"""Roundings: more than they make is a family that is wrong in padded batches."""
SMALLEST_SPREAD = 0.5
"""nats: of a model's log-probs, where a sample has too few tokens to tell."""
CHECK_TOKENS = 2048
"""Of a padded batch of the sample: the model's own logits are made of all its positions."""

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
Logps = Mapping[int, Tensor]
"""Token log-probs by the response's key, nats, on the CPU."""


@dataclass(frozen=True)
class Checked:
    """What the self-check found.

    Attributes:
        route: that is taken.
        noise: of its numbers in 16 bits: rms and bias against the same rows alone.
        refused: why faster routes are not taken, by name.
        calibration: of a server: what its numbers were compared with, and how they compare.
    """

    route: Route
    noise: Noise = field(default_factory=Noise)
    refused: Mapping[str, str] = field(default_factory=dict)
    calibration: Mapping[str, object] = field(default_factory=dict)

    @property
    def slower(self) -> str | None:
        """What a user should know: which faster route is not taken, and why."""
        if not self.refused:
            return None
        reasons = "; ".join(f"{name} ({reason})" for name, reason in self.refused.items())
        return f"log-probs by route {self.route.name!r}; faster ones cannot be used: {reasons}"


class Run(Protocol):
    """Makes passes through a model, and returns what each gives. A pass may be begun several times,
    where it cannot be made in one go."""

    def __call__(self, passes: Sequence[Callable[[], ResultT]]) -> list[ResultT]:
        """What each gives, in order."""


def one_by_one(passes: Sequence[Callable[[], ResultT]]) -> list[ResultT]:
    """Passes through a model that is there, one after the other."""
    return [begin() for begin in passes]


def plain_logps(
    scorer: ResponseScorer, rows: Sequence[Row], device: torch.device, run: Run = one_by_one
) -> list[list[float]]:
    """Log-probs of each row's responses, in nats, by the shortest way there is.

    That is `log_softmax` of `model(ids).logits`, each response after its prompt in a pass alone.
    """
    every = plain_token_logps(scorer, rows, device, run)
    return [[float(logps.sum(dtype=torch.float64)) for logps in tokens] for tokens in every]


def plain_token_logps(
    scorer: ResponseScorer, rows: Sequence[Row], device: torch.device, run: Run = one_by_one
) -> list[list[Tensor]]:
    """The same before they are summed: [L] nats of each response's tokens, on the CPU."""
    passes = [
        partial(_plain_pass, scorer, row.prompt, response, device)
        for row in rows
        for response in row.responses
    ]
    with _model_as_it_was(scorer):
        logps = iter(run(passes))
    return [list(islice(logps, len(row.responses))) for row in rows]


@torch.no_grad()
def _plain_pass(
    scorer: ResponseScorer, prompt: Sequence[int], response: Sequence[int], device: torch.device
) -> Tensor:
    ids = torch.tensor([[*prompt, *response]], device=device)
    keeps = "logits_to_keep" in inspect.signature(scorer.causal_lm.forward).parameters
    last = {"logits_to_keep": len(response) + 1} if keeps else {}
    with scorer.arithmetic():
        logits = scorer.own_logits(ids, **last)
    logits = logits[0, logits.shape[1] - 1 - len(response) : -1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    targets = ids[0, len(prompt) :, None].to(logits.device)
    return logits.log_softmax(-1).gather(-1, targets).squeeze(-1).cpu()


@contextlib.contextmanager
def _model_as_it_was(scorer: ResponseScorer) -> Iterator[None]:
    """The model with its own attention function."""
    route = scorer.route
    scorer.take(ALONE)
    try:
        yield
    finally:
        scorer.take(route)


def check_sample(
    items: Sequence[ItemT],
    *,
    size: Callable[[ItemT], float],
    responses: Callable[[ItemT], int],
    count: int,
    quick: float,
    window: float | None = None,
) -> list[ItemT]:
    """What a self-check should see: short and long items, with several responses and with one, and
    one beyond the model's window.

    Args:
        items: to choose from.
        size: of one, in any unit.
        responses: of one.
        count: of each kind, about.
        quick: the largest size that takes part, but for the window's sake.
        window: of the model, in the same unit, if it has one.
    """
    ordered = sorted(items, key=size)
    small = [item for item in ordered if size(item) <= quick] or ordered[:1]
    several = [item for item in small if responses(item) > 1]
    single = [item for item in small if responses(item) == 1]
    chosen = [*_spread(several, count), *_spread(single, count if not several else count // 2)]
    longer = [item for item in ordered if window is not None and size(item) > window]
    if longer and not any(size(item) > (window or 0) for item in chosen):
        chosen.append(longer[0])
    return chosen


def _spread(items: Sequence[ItemT], count: int) -> list[ItemT]:
    """At most `count` items, evenly from the first to the last."""
    if len(items) <= count:
        return list(items)
    return [items[round(place * (len(items) - 1) / max(count - 1, 1))] for place in range(count)]


def self_check(
    scorer: ResponseScorer,
    rows: Sequence[Row],
    device: torch.device,
    any_process: Callable[[bool], bool] = bool,
    run: Run = one_by_one,
) -> Checked:
    """Choose the fastest route that agrees with the model's own logits.

    Leaves `scorer` set to the first route that agrees. Responses that have no finite log-prob say
    nothing and are left out.

    Args:
        scorer: of any model.
        rows: trees (see `check_sample`). Where none has several responses, one is added: what the
            run meets later may.
        device: where the model is.
        any_process: whether a route is refused in any of several processes, which must all take
            the same one; by default there is one.
        run: makes the passes.

    Raises:
        UsageError: attention `tree` was forced, and the model does not agree with it.
    """
    rows = _renamed([*rows, *_shared(rows)])
    truth = {
        key: logps
        for row, plain in zip(rows, plain_token_logps(scorer, rows, device, run), strict=True)
        for key, logps in zip(row.keys, plain, strict=True)
        if bool(logps.isfinite().all())
    }
    if not truth:
        scorer.take(scorer.routes[-1])
        return Checked(scorer.route)
    measured = _plain_noise(scorer, rows, truth, device, run)
    yardstick = _yardstick(scorer, truth, measured)
    refused: dict[str, str] = dict(scorer.unavailable())
    for route in scorer.routes:
        scorer.take(route)
        if route is ALONE:
            return Checked(route, measured, refused)
        computed = _computed(scorer, rows, device, run)
        reason = computed if isinstance(computed, str) else _reason(truth, computed, yardstick)
        is_refused = any_process(reason is not None)
        if not isinstance(computed, str) and not is_refused:
            return Checked(route, loudest([measured, _noise(truth, computed)]), refused)
        refused[route.name] = reason or "another process refuses it"
    raise UsageError(
        f"attention tree does not give this model's own log-probs: {refused[route.name]}",
        "set attention: auto for this reference (--attention auto)",
    )


def _shared(rows: Sequence[Row]) -> list[Row]:
    """A prompt with its response twice, where no prompt of the sample has several."""
    if not rows or any(len(row.responses) > 1 for row in rows):
        return []
    longest = max(rows, key=lambda row: len(row.responses[0]))
    return [Row(longest.prompt, [*longest.responses] * 2, range(2))]


def _renamed(rows: Sequence[Row]) -> list[Row]:
    """The sample with keys that no two responses share."""
    starts = accumulate((len(row.responses) for row in rows), initial=0)
    return [
        Row(row.prompt, row.responses, range(start, start + len(row.responses)))
        for row, start in zip(rows, starts, strict=False)
    ]


def _plain_noise(
    scorer: ResponseScorer, rows: Sequence[Row], truth: Logps, device: torch.device, run: Run
) -> Noise:
    """Plain rows in a padded batch against the same rows alone, in 16 bits; silence elsewhere, and
    where the family is wrong in padded batches."""
    if scorer.dtype not in SIXTEEN_BITS:
        return Noise()
    scorer.take(OWN_LOGITS)
    computed = _computed(scorer, rows, device, run)
    noise = Noise() if isinstance(computed, str) else _noise(truth, computed)
    return noise if noise.rms <= LARGEST * _rounding(scorer, truth) else Noise()


def _yardstick(scorer: ResponseScorer, truth: Logps, measured: Noise) -> Noise:
    """The noise of plain rows, without its bias, and no less than one rounding of the logits."""
    rms = max(measured.rms, _rounding(scorer, truth))
    return Noise(rms=rms, tokens=measured.tokens)


def _rounding(scorer: ResponseScorer, truth: Logps) -> float:
    """What one rounding to the scorer's 16 bits is worth where log-probs spread as these do: half a
    unit in the last place; 0 of wider formats."""
    if scorer.dtype not in SIXTEEN_BITS:
        return 0.0
    spread = float(torch.cat(list(truth.values())).double().std(correction=0))
    return torch.finfo(scorer.dtype).eps / 2 * max(spread, SMALLEST_SPREAD)


def _computed(
    scorer: ResponseScorer, rows: Sequence[Row], device: torch.device, run: Run
) -> Logps | str:
    """The sample by the scorer's route, packed into one line or padded; or why that failed."""
    if scorer.route.share and not scorer.takes_positions:
        return "its decoder takes no positions, and would count those of the line"
    whole = sum(map(len, rows))
    limit = whole if scorer.route.packed else CHECK_TOKENS
    try:
        batches = scorer.batches(rows, limit, worth=math.inf)
        computed = run([token_pass(scorer, batch, device) for batch in batches])
    except MrpoError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        first = str(error).strip().splitlines()[:1]
        return ": ".join([type(error).__name__, *first])
    keys = [key for batch in batches for row in batch for key in row.keys]
    return dict(zip(keys, chain.from_iterable(computed), strict=True))


def _noise(truth: Logps, computed: Logps) -> Noise:
    return Noise.of(torch.cat([computed[key] - truth[key] for key in truth]).double().tolist())


def _reason(truth: Logps, computed: Logps, yardstick: Noise) -> str | None:
    """Why a route is not taken; None where it agrees."""
    apart = [
        Apart(float((computed[key] - truth[key]).sum(dtype=torch.float64)), len(truth[key]))
        for key in truth
    ]
    dtype = next(iter(truth.values())).dtype
    exact = TOLERANCE.get(dtype, SINGLE)
    reason = beyond(apart, yardstick, exact)
    if reason is not None or not yardstick.rms:
        return reason
    rms, most = _noise(truth, computed).rms, NOISIER * yardstick.rms
    if rms > most:
        return f"tokens are {rms:.3g} nats apart (root mean square), and noise explains {most:.2g}"
    return None
