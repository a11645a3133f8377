"""What is missing -> ids -> one model's log-probs -> parts. The model is loaded here and freed.

Numbers that cannot be log-probs are computed again alone and in float32, with the first model out
of memory; what stays bad is stored as `nonfinite`.
"""

from __future__ import annotations

import gc
import math
import sys
import time
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from mrpo_tools.cache import LogpRow, PartWriter, WriterRecord
from mrpo_tools.config import absolute_paths
from mrpo_tools.groups import Group
from mrpo_tools.precomputing.prefetch import ahead
from mrpo_tools.precomputing.summary import Summary
from mrpo_tools.progress import bar
from mrpo_tools.references.devices import (
    memory_errors,
    peak_flops,
    peak_memory_bytes,
    pick_device,
    reset_peak_memory,
)
from mrpo_tools.references.loading import load_model
from mrpo_tools.references.rendering import EncodedResponse, Renderer
from mrpo_tools.references.resolved import ResolvedReference, renderer_of
from mrpo_tools.scorer.scorer import ResponseScorer, score
from mrpo_tools.scorer.self_check import plain_logps, self_check
from mrpo_tools.scorer.trees import Row

WINDOW = 512
"""Prompts that are tokenised and ordered by length together."""
CHECKED_BYTES = 2000
"""Groups with more text than this take no part in the self-check."""
CHECKED_GROUPS = 4
CHECKED_GROUPS_COARSE = 32

Wanted = tuple["Encoded", int]
"""A response: its prompt, and its place among the prompt's responses."""


@dataclass
class Encoded:
    """A prompt's missing responses as ids of this reference."""

    group: Group
    prompt_ids: array[int]
    responses: list[EncodedResponse]


def score_missing(subject: ResolvedReference, groups: Sequence[Group], summary: Summary) -> None:
    """Score every response of `groups`, store the numbers, and count them in `summary`.

    Tokenising, scoring and writing overlap: the next prompts are tokenised in one thread and the
    last parts written in another while the model computes. The longest prompts come first.

    Raises:
        ResourceError: out of memory or disk; what was scored so far is kept.
        UsageError: the template cannot render a group; what was scored so far is kept.
    """
    device = pick_device()
    reset_peak_memory(device)
    with memory_errors(
        f"scoring reference {subject.name!r}",
        "lower `batch_tokens` or set `quantization: nf4` for this reference",
    ):
        _score(subject, sorted(groups, key=_bytes, reverse=True), device, summary)
    summary.peak_bytes = peak_memory_bytes(device)


def free_memory() -> None:
    """Give a model's memory back before the next is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _score(
    subject: ResolvedReference, groups: Sequence[Group], device: torch.device, summary: Summary
) -> None:
    started = time.time()
    renderer = renderer_of(subject)
    sample = trees_of(encode(renderer, _check_sample(groups, subject.dtype)))
    windows = [groups[start : start + WINDOW] for start in range(0, len(groups), WINDOW)]
    encoded = ahead(partial(encode, renderer), windows)
    scorer = load_scorer(subject, subject.dtype, device)
    noise = self_check(scorer, sample, device)
    if not scorer.route.share:
        summary.warnings.append(
            f"{subject.name}: shared prompts disagree with plain rows here; using plain rows"
        )
    record = replace(_record(scorer, subject, device, noise), started=started)
    with PartWriter(summary.store, record) as writer:
        bad = _run(scorer, subject, encoded, sum(map(_bytes, groups)), writer, summary)
        if bad and subject.dtype != "float32":
            writer.flush()
            del scorer
            free_memory()
            scorer = load_scorer(subject, "float32", device)
        if bad:
            _rescore(scorer, subject, bad, writer, summary)
    if summary.scored["overlong"]:
        summary.warnings.append(
            f"{summary.scored['overlong']:,} responses do not fit max_length; they are stored as "
            "overlong (set `overlong: truncate`, or a larger max_length)"
        )


def load_scorer(subject: ResolvedReference, dtype: str, device: torch.device) -> ResponseScorer:
    """A subject's model, ready to score in a dtype."""
    return ResponseScorer(
        load_model(subject.files, subject.reference, dtype, device), subject.reference.attention
    )


def _record(
    scorer: ResponseScorer, subject: ResolvedReference, device: torch.device, noise: float
) -> WriterRecord:
    """What a part says of its writer, beside the library versions."""
    return WriterRecord(
        reference=absolute_paths(subject.reference).model_dump(mode="json"),
        device=str(device),
        attention=scorer.config._attn_implementation,
        dtype=subject.dtype,
        noise=noise,
    )


def _run(
    scorer: ResponseScorer,
    subject: ResolvedReference,
    windows: Iterable[list[Encoded]],
    total: int,
    writer: PartWriter,
    summary: Summary,
) -> list[Wanted]:
    """All batches of all windows; returns the responses whose numbers are no log-probs."""
    device = next(scorer.parameters()).device
    bad: list[Wanted] = []
    meter = Meter(scorer, device)
    with bar(f"scoring {subject.name}", total / 1000, "kB of text") as advance:
        for window in windows:
            flat = [(one, index) for one in window for index in range(len(one.responses))]
            overlong = [(one, index) for one, index in flat if one.responses[index].overlong]
            writer.add(_row(one, index, None, "overlong") for one, index in overlong)
            summary.scored["overlong"] += len(overlong)
            advance(sum(_share(*one) for one in overlong) / 1000)
            for batch in scorer.batches(trees_of(window), subject.reference.batch_tokens):
                keys = [key for row in batch for key in row.keys]
                logps = score(scorer, batch, device)
                good = [(k, v) for k, v in zip(keys, logps, strict=True) if is_log_prob(v)]
                bad += [flat[k] for k, v in zip(keys, logps, strict=True) if not is_log_prob(v)]
                writer.add(_row(*flat[key], value, "ok") for key, value in good)
                summary.scored["ok"] += len(good)
                meter.add(batch, scorer.route.packed, summary)
                advance(sum(_share(*flat[key]) for key in keys) / 1000, note=meter.note)
    return bad


def _rescore(
    alone: ResponseScorer,
    subject: ResolvedReference,
    bad: Sequence[Wanted],
    writer: PartWriter,
    summary: Summary,
) -> None:
    """Bad numbers once more, one row at a time in float32; what stays bad is `nonfinite`."""
    device = next(alone.parameters()).device
    for one, index in bad:
        response = one.responses[index]
        value = plain_logps(alone, Row(one.prompt_ids, [response.ids], [0]), device)[0]
        status = "ok" if is_log_prob(value) else "nonfinite"
        writer.add([_row(one, index, value if status == "ok" else None, status)])
        summary.scored[status] += 1
    summary.warnings.append(
        f"{subject.name}: {len(bad):,} numbers were no log-probs; scored again alone in float32, "
        f"{summary.scored['nonfinite']:,} still have no finite log-prob; these are stored as "
        "nonfinite and never used"
    )


class Meter:
    """What the bar says: tokens, padding, tokens a second, useful share of the peak, memory."""

    def __init__(self, scorer: ResponseScorer, device: torch.device) -> None:
        self.device, self.started = device, time.monotonic()
        self.shown = sys.stderr.isatty()
        self.peak = peak_flops(device, next(scorer.parameters()).dtype) if self.shown else 0.0
        self.scorer, self.scored, self.note = scorer, 0, ""

    def add(self, batch: Sequence[Row], packed: bool, summary: Summary) -> None:
        """Count a batch, and renew the note."""
        tokens = sum(map(len, batch))
        summary.tokens += tokens
        summary.padding += 0 if packed else len(batch) * max(map(len, batch)) - tokens
        if not self.shown:
            return
        self.scored += sum(len(one) for row in batch for one in row.responses)
        seconds = time.monotonic() - self.started
        speed = summary.tokens / seconds
        share = self.scorer.useful_flops(summary.tokens, self.scored) / seconds / self.peak
        padding = summary.padding / (summary.tokens + summary.padding)
        memory = peak_memory_bytes(self.device) / 1e9
        self.note = (
            f"{summary.tokens:,} tokens, {padding:.0%} padding, {speed:,.0f} tokens/s, "
            f"{share:.0%} of peak, {memory:.1f} GB"
        )


def is_log_prob(value: float) -> bool:
    """Whether a number can be the log of a probability."""
    return math.isfinite(value) and value <= 0


def _row(one: Encoded, index: int, logp: float | None, status: str) -> LogpRow:
    response = one.responses[index]
    return LogpRow(
        one.group.response_ids[index],
        one.group.prompt_id,
        logp,
        len(response.ids),
        len(one.group.responses[index].content.encode()),
        status,
        response.truncated,
        response.token_hash,
    )


def encode(renderer: Renderer, groups: Sequence[Group]) -> list[Encoded]:
    """Ids of prompts and responses, as a reference's renderer makes them."""
    encoded = []
    for group in groups:
        ids = renderer.encode(group)
        responses = [
            EncodedResponse(array("l", one.ids), one.token_hash, one.truncated, one.overlong)
            for one in ids.responses
        ]
        encoded.append(Encoded(group, array("l", ids.prompt_ids), responses))
    return encoded


def trees_of(encoded: Sequence[Encoded]) -> list[Row]:
    """Each prompt with its responses that fit; a key counts the responses of all prompts."""
    trees, first = [], 0
    for one in encoded:
        fitting = [i for i, response in enumerate(one.responses) if not response.overlong]
        if fitting:
            ids = [one.responses[i].ids for i in fitting]
            trees.append(Row(one.prompt_ids, ids, [first + i for i in fitting]))
        first += len(one.responses)
    return trees


def _check_sample(groups: Sequence[Group], dtype: str) -> list[Group]:
    """Of groups with the longest first: a few short ones, and the longest that is still quick.

    Groups with several responses are preferred: only they show whether shared prompts agree.
    """
    several = [group for group in groups if len(group.responses) > 1] or list(groups)
    short = several[-(CHECKED_GROUPS if dtype == "float32" else CHECKED_GROUPS_COARSE) :]
    quick = [group for group in several if _bytes(group) <= CHECKED_BYTES]
    return [*short, *quick[:1]]


def _bytes(group: Group) -> int:
    """Bytes of a group's text."""
    texts = [turn.content for turn in group.prompt] + [one.content for one in group.responses]
    return sum(len(text.encode()) for text in texts)


def _share(one: Encoded, index: int) -> float:
    """The part of a group's bytes that one of its responses stands for."""
    return _bytes(one.group) / len(one.responses)
