"""Phase 1: stream each reference over the data, one model in memory at a time."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mrpo_tools.cache import Cache
from mrpo_tools.config import Reference
from mrpo_tools.groups import Group, in_split
from mrpo_tools.scoring import Subject, Summary, ensure, renderer_of, resolve


@dataclass(frozen=True)
class Estimate:
    """What a reference would cost, found without loading its weights.

    Attributes:
        responses: that have no number yet.
        tokens: of all their sequences, each prompt counted for each response.
        unique_tokens: with every prompt counted once.
        overlong: responses that do not fit.
        weight_bytes: of the model on disk.
    """

    name: str
    responses: int
    tokens: int
    unique_tokens: int
    overlong: int
    weight_bytes: int


def precompute(
    references: Mapping[str, Reference],
    groups: Sequence[Group],
    cache: Cache,
    dataset: str,
    split: str | None = None,
    shard: tuple[int, int] = (0, 1),
) -> list[Summary]:
    """Score the missing responses of the data under each reference, and keep the data beside them.

    Args:
        references: by name; scored in this order, one at a time.
        groups: the data.
        cache: created if it is not there.
        dataset: its short name, for the file that keeps it.
        split: None scores every split.
        shard: (i, n) takes every n-th part of the prompts.

    Raises:
        UsageError: a reference's files or template cannot be used; references before it are kept.
    """
    chosen = in_split(groups, split)
    subjects = [resolve(name, reference) for name, reference in references.items()]
    summaries = []
    for subject in subjects:
        summaries.append(ensure(cache, subject, chosen, shard))
        _free()
    cache.save_groups(dataset, groups)
    return summaries


def estimate(subject: Subject, groups: Sequence[Group], cache: Cache) -> Estimate:
    """Tokens and sizes of what `ensure` would score now; loads the tokenizer only."""
    directory = cache.references_path / f"{subject.name}-{subject.identity.short}"
    known: set[str] = set()
    if directory.is_dir():
        known = cache.find(f"{subject.name}@{subject.identity.short}").response_ids()
    renderer = renderer_of(subject)
    seen: set[str] = set()
    prompts: set[str] = set()
    tokens = unique = overlong = 0
    for group in groups:
        fresh = set(group.response_ids) - known - seen
        if not fresh:
            continue
        encoded = renderer.encode(group)
        if group.prompt_id not in prompts:
            unique += len(encoded.prompt_ids)
            prompts.add(group.prompt_id)
        for key, response in zip(group.response_ids, encoded.responses, strict=True):
            if key in fresh:
                overlong += response.overlong
                unique += 0 if response.overlong else len(response.ids)
                tokens += 0 if response.overlong else len(response.ids) + len(encoded.prompt_ids)
        seen |= fresh
    return Estimate(
        subject.name, len(seen), tokens, unique, overlong, _weight_bytes(subject.files.model)
    )


def _weight_bytes(model: Path) -> int:
    return sum(path.stat().st_size for path in model.glob("*.safetensors"))


def _free() -> None:
    """Give a model's memory back before the next is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
