"""What a training run can know before any weights are loaded: the method, the numbers, the ids.

Everything that can be refused is refused here, before anything is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mrpo_tools.cache import Cache, ReferenceStore
from mrpo_tools.cache.current import stores_of
from mrpo_tools.config import Recipe, Reference
from mrpo_tools.errors import CacheStale, UsageError
from mrpo_tools.groups import Group, in_split
from mrpo_tools.maths.judgements import Judgements
from mrpo_tools.methods.combination import Combined, combine
from mrpo_tools.methods.method import Method, method_of
from mrpo_tools.methods.tensors import look_up, reference_accuracies
from mrpo_tools.progress import bar, say_once
from mrpo_tools.references.rendering import EncodedGroup
from mrpo_tools.references.resolved import ResolvedReference, renderer_of
from mrpo_tools.runs.record import DataReport
from mrpo_tools.training.groups import TrainingGroups
from mrpo_tools.training.held_out import about_data, validation_accuracies
from mrpo_tools.training.policy import resolve_policy
from mrpo_tools.words import Truncated


@dataclass(frozen=True)
class Prepared:
    """Everything the trainer needs, before any weights are loaded.

    Attributes:
        policy: its files and identity.
        stores: of the references, reference 1 first.
        groups: the usable groups of the training split.
        training: the same as ids and numbers.
        held_out: all groups of the split that is measured while training; None where the recipe
            does not ask.
        report: what trains, what was skipped, what the combination did.
    """

    policy: ResolvedReference
    stores: list[ReferenceStore]
    groups: list[Group]
    training: TrainingGroups
    held_out: TrainingGroups | None
    report: DataReport

    @property
    def method(self) -> Method:
        """The resolved `--loss`."""
        return self.training.method


def prepare(
    recipe: Recipe,
    groups: Sequence[Group],
    cache: Cache,
    references: Mapping[str, Reference],
) -> Prepared:
    """Look up, check, encode and combine; nothing is written and no weights are loaded.

    Raises:
        UsageError: words that mean nothing together, or no group that the objective can use.
        CacheError: numbers that are missing, of other files, or of other tokens.
    """
    chosen = in_split(groups, recipe.split)
    method = method_of(recipe, chosen)
    stores = stores_of(cache, recipe.refs, references)
    if len({store.name for store in stores}) < len(stores):
        raise UsageError("a reference is named twice", "--refs takes each name once")
    if method.combination.weights == "accuracy":
        method = method.weighted_by(validation_accuracies(recipe, stores, groups))
    policy = resolve_policy(recipe, stores, references)
    training, report = _gather(method, policy, stores, chosen, recipe.truncated)
    usable, report = _usable_only(training, report)
    report = report.model_copy(update=about_data(groups, chosen))
    held_out = None
    if recipe.eval_steps is not None:
        measured = in_split(groups, recipe.eval_split)
        held_out_method = replace(method_of(recipe, measured), combination=method.combination)
        held_out, _ = _gather(held_out_method, policy, stores, measured, recipe.truncated)
        if not held_out.usable.any():
            say_once(f"warning: {method.name} can measure no group of split {recipe.eval_split}")
    return Prepared(
        policy=policy,
        stores=stores,
        groups=[group for group, fits in zip(chosen, training.usable, strict=True) if fits],
        training=usable,
        held_out=held_out,
        report=report,
    )


def _gather(
    method: Method,
    policy: ResolvedReference,
    stores: Sequence[ReferenceStore],
    groups: Sequence[Group],
    truncated: Truncated,
) -> tuple[TrainingGroups, DataReport]:
    """All groups with their ids and combined numbers, whether or not they are usable."""
    tensors = look_up(stores, groups, truncated)
    encoded = _encode(policy, groups)
    dropped = tensors.dropped
    for reason, unfit in _unfit(encoded, tensors.mask, truncated).items():
        dropped = dropped + Counter({reason: int((tensors.mask & unfit).sum())})
        tensors = tensors.within(tensors.mask & ~unfit)
    if stores:
        _check_tokens(
            policy=policy,
            store=stores[0],
            encoded=encoded,
            cached_hashes=tensors.token_hashes,
            mask=tensors.mask,
        )
    sides = method.sides(tensors.judged)
    combined = combine(tensors.logps, sides.mask, method.combination)
    counted = {
        "groups": len(groups),
        "dropped_responses": {reason: count for reason, count in dropped.items() if count},
        "reference_accuracies": reference_accuracies(tensors),
    }
    report = DataReport.model_validate({**counted, **dict(combined.report() or {})})
    tensors = tensors.within(sides.mask)
    training = TrainingGroups(
        method=method,
        group_ids=[group.group_id for group in groups],
        encoded=encoded,
        tensors=tensors,
        combined=combined,
        usable=_usable(method, tensors.judged, combined),
        reference_names=[store.name for store in stores],
    )
    return training, report


def _encode(policy: ResolvedReference, groups: Sequence[Group]) -> list[EncodedGroup]:
    renderer = renderer_of(policy)
    encoded = []
    with bar("tokenising for the policy", len(groups), "groups") as advance:
        for group in groups:
            encoded.append(renderer.encode(group))
            advance()
    return encoded


def _unfit(
    encoded: Sequence[EncodedGroup], mask: Tensor, truncated: Truncated
) -> dict[str, Tensor]:
    """[G, N] responses that do not fit the policy, and those that it would read cut, by reason."""
    overlong, cut = torch.zeros_like(mask), torch.zeros_like(mask)
    for g, group in enumerate(encoded):
        for n, response in enumerate(group.responses):
            overlong[g, n] = response.overlong
            cut[g, n] = response.truncated and truncated == "drop"
    return {"overlong_for_policy": overlong, "truncated_for_policy": cut}


TEXT_FIELDS = ("rendering_version", "tokenizer", "chat_template", "pinned_date", "bos_token",
               "eos_token", "system", "added_tokens")  # fmt: skip
"""Fields of an identity that decide how text becomes ids."""


def _check_tokens(
    policy: ResolvedReference,
    store: ReferenceStore,
    encoded: Sequence[EncodedGroup],
    cached_hashes: Any,
    mask: Tensor,
) -> None:
    """A policy with reference 1's tokenizer gets the very ids that reference 1 got.

    Args:
        policy: before training.
        store: of reference 1.
        encoded: G groups under the policy's tokenizer.
        cached_hashes: [G, N] of the tokens that reference 1 got.
        mask: [G, N] the responses that have a number and fit the policy.

    Raises:
        CacheStale: the same text gives other tokens.
    """
    mine, theirs = policy.identity.fields, store.identity.fields
    if any(mine[name] != theirs[name] for name in TEXT_FIELDS):
        return
    differing = sum(
        response.token_hash != cached_hashes[g, n]
        for g, group in enumerate(encoded)
        for n, response in enumerate(group.responses)
        if mask[g, n]
    )
    if not differing:
        return
    words = {
        name: values
        for name in ("max_length", "max_prompt_length", "overlong")
        if (values := (mine.get(name), theirs.get(name)))[0] != values[1]
    }
    if words:
        here, there = (
            ", ".join(f"{name} {values[side]}" for name, values in words.items()) for side in (0, 1)
        )
        raise CacheStale(
            f"{differing:,} responses are cut elsewhere for the policy ({here}) than for reference "
            f"{store.name!r} ({there}): their log-probs cannot be compared",
            f"train with {there}, or precompute the reference with {here}",
        )
    raise CacheStale(
        f"the tokens of {differing:,} responses differ from those that reference {store.name!r} "
        "got, though its files are the same: the tokenizer library has changed",
        f"compute them again in a new cache: mrpo precompute --ref {store.name} --cache DIR",
    )


def _usable(method: Method, judged: Judgements, combined: Combined) -> Tensor:
    """[G] groups that the objective can use; also its first refusal of hyper-parameters."""
    zeros = torch.zeros(judged.mask.shape, dtype=torch.float64)
    seeds = torch.zeros(len(zeros), dtype=torch.int64)
    applied = method.on(judged, combined, policy_logps=zeros, lengths=zeros, seeds=seeds)
    try:
        _ = applied.losses
    except ValueError as error:
        raise UsageError(str(error), f"mrpo losses {method.name} explains it") from None
    return applied.usable


def _usable_only(training: TrainingGroups, report: DataReport) -> tuple[TrainingGroups, DataReport]:
    """Without the groups that the objective cannot use.

    Raises:
        UsageError: it can use none.
    """
    method, usable = training.method, training.usable_only()
    reason = method.row.usable.reason
    if not len(usable):
        raise UsageError(
            f"no group can be used by {method.name}: {reason}, in all {len(training):,} groups",
            "mrpo losses lists what each objective needs",
        )
    skipped = len(training) - len(usable)
    skipped_groups = {reason: skipped} if skipped else {}
    counted = {"groups": len(usable), "skipped_groups": skipped_groups}
    return usable, report.model_copy(update=counted)
