"""Which rows are missing -> score -> store. Phase 1 and the evaluation of policies use it alike."""

from __future__ import annotations

import math
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from mrpo_tools.batching import Row, batches, plan_rows
from mrpo_tools.cache import Cache, LogpRow, PartWriter, ReferenceStore
from mrpo_tools.config import Reference
from mrpo_tools.errors import CacheStale, ResourceError
from mrpo_tools.groups import Group, Response
from mrpo_tools.identity import Identity, ModelFiles, identify, locate
from mrpo_tools.models import (
    default_dtype,
    load_model,
    load_tokenizer,
    peak_memory_bytes,
    pick_device,
    reset_peak_memory,
)
from mrpo_tools.progress import bar
from mrpo_tools.scorer import ResponseScorer, plain_logps, score, self_check
from mrpo_tools.tokens import EncodedResponse, Renderer

CHECKED_TOKENS = 1024
"""Rows longer than this take no part in the self-check."""
CHECKED_ROWS = 4
CHECKED_ROWS_COARSE = 32


@dataclass(frozen=True)
class Subject:
    """A reference with its files found and its identity known; no weights loaded."""

    name: str
    reference: Reference
    files: ModelFiles
    dtype: str
    identity: Identity


@dataclass
class Summary:
    """What `ensure` did for one reference.

    Attributes:
        store: where the numbers are.
        reused: responses whose numbers were there already.
        scored: responses scored now, by status.
        tokens: tokens computed now, each prompt once per row.
        seconds: wall time, loading included.
        peak_bytes: the most memory held.
        warnings: what the user should know.
    """

    store: ReferenceStore
    reused: int = 0
    scored: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    warnings: list[str] = field(default_factory=list)


def resolve(name: str, reference: Reference) -> Subject:
    """Find a reference's files and compute its identity (weights are hashed, not loaded)."""
    files = locate(reference)
    dtype = reference.dtype or default_dtype()
    return Subject(name, reference, files, dtype, identify(reference, files, dtype))


def renderer_of(subject: Subject) -> Renderer:
    """The renderer that this reference's identity describes."""
    fields = subject.identity.fields
    return Renderer(
        load_tokenizer(subject.files, subject.reference),
        name=subject.name,
        chat_template=fields["chat_template"],
        system=fields["system"],
        added_tokens=fields["added_tokens"],
        max_length=fields["max_length"],
        overlong=fields["overlong"],
    )


def ensure(
    cache: Cache,
    subject: Subject,
    groups: Iterable[Group],
    shard: tuple[int, int] = (0, 1),
) -> Summary:
    """Score the responses that have no number yet under this identity, and store them.

    Args:
        cache: where to look and to write.
        subject: from `resolve`.
        groups: what should have numbers; prompts that repeat are computed once.
        shard: (i, n) takes the prompts whose id is i modulo n, for several processes.

    Raises:
        ResourceError: out of memory or disk; what was scored so far is kept.
        UsageError: the template cannot render a group; nothing is written.
    """
    started = time.monotonic()
    prompts = _by_prompt(groups, shard)
    wanted = {key for prompt in prompts for key in prompt.response_ids}
    store = _existing(cache, subject)
    missing = wanted - store.response_ids() if store else wanted
    todo = [part for prompt in prompts if (part := _only(prompt, missing)) is not None]
    encoded = _encode(subject, todo) if todo else []
    store = cache.store(subject.name, subject.identity)
    summary = Summary(store, reused=len(wanted) - len(missing))
    if encoded:
        _score_missing(subject, encoded, summary)
    summary.seconds = time.monotonic() - started
    return summary


def check_current(store: ReferenceStore, subject: Subject) -> None:
    """Refuse numbers that belong to other files or settings than the project's.

    Raises:
        CacheStale: naming each field that differs, with both values.
    """
    differing = subject.identity.differences(store.identity)
    if subject.reference.dtype is None:  # left open: the cache's own dtype is as good
        differing = [one for one in differing if one[0] != "dtype"]
    if differing:
        lines = "; ".join(
            f"{name} was {was}, is now {now}"
            for name, (was, now) in ((name, _brief(cached, now)) for name, now, cached in differing)
        )
        raise CacheStale(
            f"the cached log-probs of reference {subject.name!r} are of another identity: {lines}",
            f"score it again with: mrpo precompute --ref {subject.name}",
        )


@dataclass
class _Encoded:
    """A prompt's missing responses as ids of this reference."""

    group: Group
    prompt_ids: array[int]
    responses: list[EncodedResponse]


def _score_missing(subject: Subject, encoded: list[_Encoded], summary: Summary) -> None:
    device = pick_device()
    reset_peak_memory(device)
    try:
        scorer = ResponseScorer(load_model(subject.files, subject.reference, subject.dtype, device))
        flat = [(one, index) for one in encoded for index in range(len(one.responses))]
        rows = _trees(encoded)
        noise = self_check(scorer, _check_sample(rows, subject.dtype), device) if rows else 0.0
        if not scorer.share_prompts:
            summary.warnings.append(
                f"{subject.name}: shared prompts disagree with plain rows here; using plain rows"
            )
        recorded = {
            "reference": subject.reference.model_dump(mode="json"),
            "device": str(device),
            "attention": scorer.config._attn_implementation,
            "dtype": subject.dtype,
            "noise": noise,
        }
        with PartWriter(summary.store, recorded) as writer:
            _write_overlong(flat, writer, summary)
            _run(scorer, subject, rows, flat, writer, summary)
    except (torch.OutOfMemoryError, MemoryError):
        raise ResourceError(
            f"out of memory while scoring reference {subject.name!r}",
            "lower `batch_tokens` or set `quantization: nf4` for this reference",
        ) from None
    summary.peak_bytes = peak_memory_bytes(device)


def _run(
    scorer: ResponseScorer,
    subject: Subject,
    rows: list[Row],
    flat: list[tuple[_Encoded, int]],
    writer: PartWriter,
    summary: Summary,
) -> None:
    """All batches, longest first; bad numbers again, alone and in float32, at the end."""
    device = next(scorer.parameters()).device
    planned = plan_rows(rows, share=scorer.share_prompts, hidden_size=scorer.hidden_size)
    total = sum(map(len, planned))
    bad: list[int] = []
    started = time.monotonic()
    with bar(f"scoring {subject.name}", total, "tokens") as advance:
        for batch in batches(planned, subject.reference.batch_tokens):
            keys = [key for row in batch for key in row.keys]
            logps = score(scorer, batch, device)
            good = [(k, v) for k, v in zip(keys, logps, strict=True) if is_log_prob(v)]
            bad += [k for k, v in zip(keys, logps, strict=True) if not is_log_prob(v)]
            writer.add(_row(*flat[key], value, "ok") for key, value in good)
            summary.scored["ok"] += len(good)
            tokens = sum(map(len, batch))
            summary.tokens += tokens
            speed = summary.tokens / (time.monotonic() - started)
            advance(tokens, note=f"{speed:,.0f} tokens/s")
    if bad:
        _rescore(scorer, subject, [flat[key] for key in bad], writer, summary)


def _rescore(
    scorer: ResponseScorer,
    subject: Subject,
    bad: Sequence[tuple[_Encoded, int]],
    writer: PartWriter,
    summary: Summary,
) -> None:
    """Bad numbers once more, one row at a time in float32; what stays bad is `nonfinite`."""
    device = next(scorer.parameters()).device
    alone = scorer
    if subject.dtype != "float32":
        alone = ResponseScorer(load_model(subject.files, subject.reference, "float32", device))
    for one, index in bad:
        response = one.responses[index]
        value = plain_logps(alone, Row(one.prompt_ids, [response.ids], [0]), device)[0]
        status = "ok" if is_log_prob(value) else "nonfinite"
        writer.add([_row(one, index, value if status == "ok" else None, status)])
        summary.scored[status] += 1
    if summary.scored["nonfinite"]:
        summary.warnings.append(
            f"{subject.name}: {summary.scored['nonfinite']:,} responses have no finite log-prob; "
            "they are stored as nonfinite and never used"
        )


def is_log_prob(value: float) -> bool:
    """Whether a number can be the log of a probability."""
    return math.isfinite(value) and value <= 0


def _write_overlong(
    flat: Sequence[tuple[_Encoded, int]], writer: PartWriter, summary: Summary
) -> None:
    overlong = [(one, index) for one, index in flat if one.responses[index].overlong]
    writer.add(_row(one, index, None, "overlong") for one, index in overlong)
    summary.scored["overlong"] += len(overlong)
    if overlong:
        summary.warnings.append(
            f"{len(overlong):,} responses do not fit max_length; they are stored as overlong "
            "(set `overlong: truncate`, or a larger max_length)"
        )


def _row(one: _Encoded, index: int, logp: float | None, status: str) -> LogpRow:
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


def _encode(subject: Subject, groups: Sequence[Group]) -> list[_Encoded]:
    renderer = renderer_of(subject)
    encoded = []
    with bar(f"tokenising for {subject.name}", len(groups), "prompts") as advance:
        for group in groups:
            ids = renderer.encode(group)
            responses = [
                EncodedResponse(array("l", one.ids), one.token_hash, one.truncated, one.overlong)
                for one in ids.responses
            ]
            encoded.append(_Encoded(group, array("l", ids.prompt_ids), responses))
            advance()
    return encoded


def _trees(encoded: Sequence[_Encoded]) -> list[Row]:
    """Each prompt with its responses that fit; a key counts the responses of all prompts."""
    trees, first = [], 0
    for one in encoded:
        fitting = [i for i, response in enumerate(one.responses) if not response.overlong]
        if fitting:
            ids = [one.responses[i].ids for i in fitting]
            trees.append(Row(one.prompt_ids, ids, [first + i for i in fitting]))
        first += len(one.responses)
    return trees


def _check_sample(rows: Sequence[Row], dtype: str) -> list[Row]:
    """A few short prompts, and the longest that is still quick."""
    ordered = sorted(rows, key=len)
    short = ordered[: CHECKED_ROWS if dtype == "float32" else CHECKED_ROWS_COARSE]
    quick = [row for row in ordered if len(row) <= CHECKED_TOKENS]
    return [*short, *quick[-1:]]


def _existing(cache: Cache, subject: Subject) -> ReferenceStore | None:
    """The subject's store if there is one already; nothing is created."""
    directory = cache.references_path / f"{subject.name}-{subject.identity.short}"
    return ReferenceStore(directory) if (directory / "identity.json").exists() else None


def _by_prompt(groups: Iterable[Group], shard: tuple[int, int]) -> list[Group]:
    """One group for each prompt of this shard, with every response of that prompt."""
    index, count = shard
    merged: dict[str, dict[str, Response]] = {}
    first: dict[str, Group] = {}
    for group in groups:
        if int(group.prompt_id, 16) % count == index:
            first.setdefault(group.prompt_id, group)
            contents = merged.setdefault(group.prompt_id, {})
            for response in group.responses:
                contents.setdefault(response.content, Response(response.content))
    return [Group(first[key].prompt, tuple(merged[key].values())) for key in merged]


def _only(group: Group, response_ids: set[str]) -> Group | None:
    """The group with these responses only; None when none is left."""
    kept = tuple(
        response
        for response, key in zip(group.responses, group.response_ids, strict=True)
        if key in response_ids
    )
    if len(kept) == len(group.responses):
        return group
    return Group(group.prompt, kept) if kept else None


def _brief(one: object, other: object) -> tuple[str, str]:
    """Two differing values, long ones cut around the place where they differ."""
    texts = (repr(one), repr(other))
    start = next(
        (i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts))
    )
    first = max(0, start - 20)
    return (_window(texts[0], first), _window(texts[1], first))


def _window(text: str, first: int) -> str:
    if len(text) <= 60:
        return text
    end = first + 57
    return ("…" if first else "") + text[first:end] + ("…" if end < len(text) else "")
