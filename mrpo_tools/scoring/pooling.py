"""A reward model at work: rows of like length together, and proof that this changes no score.

The truth is the model's own forward pass of one row alone. Two faster routes pad rows on the right:

    pooled   the decoder's hidden states, and its head at the token from which a row alone is scored
    padded   the model's own pass of the padded batch, for families with another head

Each is compared with single rows when the model is loaded. Where it disagrees (padding that is
seen, another token pooled, no padding token) the next one is taken, and in the end one row at a
time; which and why is told and recorded.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mrpo_tools.cache import ScoreRow, WriterRecord
from mrpo_tools.cache.scores import EXACT_SCORE
from mrpo_tools.groups import Group
from mrpo_tools.maths.noise import Noise
from mrpo_tools.references.devices import (
    free_memory,
    memory_errors,
    out_of_memory,
    pick_device,
)
from mrpo_tools.references.loading import HEAD, load_reward_model
from mrpo_tools.references.model_files import first_line
from mrpo_tools.references.resolved import ResolvedReference
from mrpo_tools.references.transformers_private import attention_of
from mrpo_tools.scorer.scorer import BATCH_TOKENS
from mrpo_tools.scoring.lines import Line, lines_of
from mrpo_tools.scoring.protocol import Scoring

WINDOW = 2048
"""Responses that are tokenised and ordered by length together."""
CHECKED, CHECKED_TOKENS = 8, 1024
"""Rows of the self-check, and the tokens of one at most, unless fewer rows are as short."""
NARROW_SHARE = 0.25
"""Of the spread of the sample's scores: so far a score in 16 bits may be from itself alone. Noise
is far below, and a wrong token or a padded prefix far above."""

Rows: TypeAlias = Sequence[Sequence[int]]
"""Ids of B sequences."""
Route: TypeAlias = Callable[[Any, Rows, torch.device], Tensor]
"""(model, rows, device) -> [B] scores."""


def alone(model: Any, rows: Rows, device: torch.device) -> Tensor:
    """[B] scores: the model's own, a row at a time."""
    return torch.stack(
        [
            model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 0].double().cpu()
            for ids in (torch.tensor([row], device=device) for row in rows)
        ]
    )


def pooled(model: Any, rows: Rows, device: torch.device) -> Tensor:
    """[B] scores: the head at one token of each row.

    A row alone is scored at its last token that is not the padding token of config.json, or at its
    last where config.json names none; so it is here, whatever fills the batch.

    Raises:
        ValueError: the model has no such head.
    """
    head, decoder = getattr(model, HEAD, None), getattr(model, model.base_model_prefix, None)
    if not isinstance(head, torch.nn.Linear) or decoder is None:
        raise ValueError(f"it has no linear head called {HEAD}")
    padding = model.config.get_text_config().pad_token_id
    ids, seen = _right_padded(rows, padding or 0, device)
    hidden = decoder(input_ids=ids, attention_mask=seen).last_hidden_state
    counted = seen.bool() if padding is None else ids != padding
    last = (torch.arange(ids.shape[1], device=device) * counted).argmax(1)
    scores: Tensor = head(hidden[torch.arange(len(rows), device=device), last])
    return scores[:, 0].double().cpu()


def padded(model: Any, rows: Rows, device: torch.device) -> Tensor:
    """[B] scores: the model's own of a batch padded on the right.

    Raises:
        ValueError: config.json names no padding token.
    """
    padding = model.config.get_text_config().pad_token_id
    if padding is None:
        raise ValueError("config.json names no padding token")
    ids, seen = _right_padded(rows, padding, device)
    scores: Tensor = model(input_ids=ids, attention_mask=seen).logits
    return scores[:, 0].double().cpu()


ROUTES: Mapping[str, Route] = {"pooled": pooled, "padded": padded}
"""The fastest first."""
ALONE = "one row at a time"


@dataclass(frozen=True)
class Checked:
    """What the self-check found.

    Attributes:
        route: that is taken.
        noise: of its scores, against single rows.
        refused: why faster ones were not taken, by name.
    """

    route: str
    noise: Noise
    refused: Mapping[str, str]

    @property
    def slower(self) -> str | None:
        """What to say where rows are not batched."""
        if self.route != ALONE or not self.refused:
            return None
        return f"rows are scored one at a time: {'; '.join(self.refused.values())}"


class LoadedReward:
    """A reward model on its device.

    Args:
        model: a sequence classifier of one label.
        device: where it is.
        routes: to batch rows by, the fastest first.
    """

    def __init__(
        self, model: Any, device: torch.device, routes: Mapping[str, Route] = ROUTES
    ) -> None:
        self.model, self.device, self.routes = model, device, routes
        self.route: Route = alone

    @torch.no_grad()
    def self_check(self, rows: Rows) -> Checked:
        """Take the first route whose scores of a padded batch are those of single rows."""
        if not rows:
            return Checked(ALONE, Noise(), {})
        truth = alone(self.model, rows, self.device)
        refused: dict[str, str] = {}
        for name, route in self.routes.items():
            try:
                computed = route(self.model, rows, self.device)
            except Exception as error:  # a family's own code may fail in any way
                if out_of_memory(error):
                    raise
                refused[name] = first_line(error)
                continue
            reason = _reason(truth, computed, self.model.dtype)
            if reason is None:
                self.route = route
                return Checked(name, Noise.of((computed - truth).tolist()), refused)
            refused[name] = reason
        return Checked(ALONE, Noise(), refused)

    @torch.no_grad()
    def scores(self, rows: Rows) -> list[float]:
        """The scores of a batch."""
        values: list[float] = self.route(self.model, rows, self.device).tolist()
        return values

    @torch.no_grad()
    def score_alone(self, row: Sequence[int]) -> float:
        """The score of one row, by the model itself."""
        return float(alone(self.model, [row], self.device)[0])


def score_all(
    resolved: ResolvedReference, words: Mapping[str, Any], groups: Sequence[Group]
) -> Scoring:
    """Load a reward model, check it, and score every response of these groups; the longest first.

    Args:
        resolved: its files and identity.
        words: for the record.
        groups: the responses.

    Raises:
        ResourceError: out of memory; also while rows are read.
        UsageError: it cannot be loaded, or its template cannot render a group.
    """
    started, device = time.time(), pick_device()
    with _memory_errors(resolved.name):
        loaded = LoadedReward(
            load_reward_model(resolved.files, resolved.reference, resolved.dtype, device), device
        )
        ordered = sorted(groups, key=_text_length, reverse=True)
        lines = lines_of(resolved, ordered)
        first = list(islice(lines, WINDOW))
        sample = [*first, *lines_of(resolved, ordered[-CHECKED:])]  # the longest and the shortest
        checked = loaded.self_check(
            check_sample([line.ids for line in sample if not line.overlong])
        )
    record = WriterRecord(
        scorer=words,
        device=str(device),
        attention=attention_of(loaded.model.config),
        dtype=resolved.dtype,
        route=checked.route,
        refused=checked.refused,
        noise=checked.noise,
        started=started,
    )
    warnings = () if checked.slower is None else (f"{resolved.name}: {checked.slower}",)
    most = resolved.reference.batch_tokens or BATCH_TOKENS[device.type == "cpu"]
    return Scoring(_rows(resolved.name, loaded, _windows(first, lines), most), record, warnings)


def _windows(first: list[Line], rest: Iterator[Line]) -> Iterator[list[Line]]:
    window = first
    while window:
        yield window
        window = list(islice(rest, WINDOW))


def _rows(
    name: str, loaded: LoadedReward, windows: Iterator[list[Line]], most: int
) -> Iterator[list[ScoreRow]]:
    """The rows of all lines; the model's memory is given back in the end."""
    try:
        for window in windows:
            yield [_row(line, None, "overlong") for line in window if line.overlong]
            for batch in batches([line for line in window if not line.overlong], most):
                with _memory_errors(name):
                    scores = loaded.scores([line.ids for line in batch])
                    yield [
                        _checked(loaded, line, score)
                        for line, score in zip(batch, scores, strict=True)
                    ]
    finally:
        loaded.model = None
        free_memory()


def _checked(loaded: LoadedReward, line: Line, score: float) -> ScoreRow:
    """A score that is no number is computed once more alone."""
    if not math.isfinite(score):
        score = loaded.score_alone(line.ids)
    return _row(line, score) if math.isfinite(score) else _row(line, None, "nonfinite")


def _row(line: Line, score: float | None, status: str = "ok") -> ScoreRow:
    return ScoreRow(line.response_id, line.prompt_id, score, status, len(line.ids), line.truncated)


def batches(lines: Sequence[Line], most: int) -> Iterator[list[Line]]:
    """Lines of like length together, the longest first, of so many tokens at most with padding."""
    ordered = sorted(lines, key=lambda line: len(line.ids), reverse=True)
    while ordered:
        count = max(1, most // max(1, len(ordered[0].ids)))
        yield ordered[:count]
        ordered = ordered[count:]


def check_sample(rows: Rows) -> list[Sequence[int]]:
    """Rows of different lengths for the self-check: the shortest, and of the rest every so many."""
    ordered = sorted(rows, key=len)
    fitting = sum(len(row) <= CHECKED_TOKENS for row in ordered)
    short = ordered[: max(fitting, CHECKED)]
    step = max(1, math.ceil(len(short) / CHECKED))
    return [*short[::step], *short[-1:]]


def _reason(truth: Tensor, computed: Tensor, dtype: torch.dtype) -> str | None:
    """Why a route is not taken; None where it agrees."""
    distances = (computed - truth).abs()
    if dtype == torch.float32:
        most = EXACT_SCORE * truth.abs().clamp(min=1.0)
    else:
        most = (NARROW_SHARE * truth.std(correction=0)).expand(len(truth))
    if bool((distances <= most).all()):  # not of NaN
        return None
    return f"a score in a batch is {float(distances.max()):.3g} from the same row alone"


def _right_padded(rows: Rows, padding: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """[B, T] ids and what of them is no padding."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[padding] * (width - len(row))] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, (torch.arange(width, device=device) < lengths[:, None]).long()


def _text_length(group: Group) -> int:
    texts = [turn.written for turn in group.prompt]
    return sum(map(len, texts)) + max(len(each.message.written) for each in group.responses)


def _memory_errors(name: str) -> Any:
    return memory_errors(
        f"scoring by {name!r}", "lower --batch-tokens, or --quantization nf4 for this scorer"
    )
