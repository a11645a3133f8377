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
from mrpo_tools.groups import Group, in_split, kinds_of_judgement
from mrpo_tools.maths import contrasts, objectives
from mrpo_tools.methods.method import Method, resolve_method
from mrpo_tools.methods.tensors import (
    Combined,
    GroupTensors,
    combine,
    look_up,
    reference_accuracies,
)
from mrpo_tools.progress import bar, say_once
from mrpo_tools.references.rendering import EncodedGroup
from mrpo_tools.references.resolved import ResolvedReference, renderer_of, resolve


@dataclass(frozen=True)
class Prepared:
    """Everything the trainer needs, before any weights are loaded.

    Attributes:
        method: the resolved `--loss`.
        policy: the policy's files and identity.
        stores: of the references, reference 1 first.
        groups: the usable groups.
        encoded: their ids under the policy's tokenizer.
        tensors: their cached numbers; the mask leaves out what does not take part.
        combined: reference log-probs and weights.
        report: what the combination did, and what was skipped.
        held_out: the same of the split that is measured while training, with all of its groups;
            None where the recipe does not ask.
    """

    method: Method
    policy: ResolvedReference
    stores: list[ReferenceStore]
    groups: list[Group]
    encoded: list[EncodedGroup]
    tensors: GroupTensors
    combined: Combined
    report: dict[str, Any]
    held_out: Prepared | None = None


def prepare(
    recipe: Recipe,
    groups: Sequence[Group],
    cache: Cache,
    references: Mapping[str, Reference],
) -> Prepared:
    """Look up, check, encode and combine; nothing is written and no weights are loaded."""
    chosen = in_split(groups, recipe.split)
    method = _method(recipe, chosen)
    stores = stores_of(cache, recipe.refs, references)
    if len({store.name for store in stores}) < len(stores):
        raise UsageError("a reference is named twice", "--refs takes each name once")
    if method.combination.weights == "accuracy":
        others = [group for group in groups if group.split not in (recipe.split, None)]
        method = method.weighted_by(_held_out_accuracies(stores, others, recipe.split))
    policy = policy_subject(recipe, stores, references)
    prepared = _usable_only(_numbers(method, policy, stores, chosen))
    if recipe.eval_steps is None:
        return prepared
    measured = in_split(groups, recipe.eval_split)
    method = replace(_method(recipe, measured), combination=method.combination)
    held_out = _numbers(method, policy, stores, measured)
    if not _usable(method, held_out.tensors, held_out.combined).any():
        say_once(f"warning: {method.name} can measure no group of split {recipe.eval_split}")
    return replace(prepared, held_out=held_out)


def _method(recipe: Recipe, groups: Sequence[Group]) -> Method:
    return resolve_method(recipe, len(recipe.refs), *kinds_of_judgement(groups))


def _held_out_accuracies(
    stores: Sequence[ReferenceStore], groups: Sequence[Group], split: str
) -> list[float]:
    """Each reference's own preference accuracy on groups that training does not see."""
    if split == "all" or not groups:
        raise UsageError(
            "weights accuracy needs groups outside the training split",
            "hold some out with --test-size 0.1, or use --weights confidence",
        )
    return reference_accuracies(look_up(stores, groups))["summed"]


def policy_subject(
    recipe: Recipe, stores: Sequence[ReferenceStore], references: Mapping[str, Reference]
) -> ResolvedReference:
    """The policy before training: reference 1 unless the recipe names another model."""
    words = recipe.policy
    if words is not None:
        reference = references.get(words) or Reference(model=words)
        name = words if words in references else "policy"
    elif stores:
        name = stores[0].name
        reference = references.get(name) or stores[0].recorded_reference()
        if reference.dtype is None:
            cached_dtype = stores[0].identity.fields["dtype"]
            reference = reference.model_copy(update={"dtype": cached_dtype})
    else:
        raise UsageError(f"{recipe.loss} has no reference 1 to start from", "--policy MODEL")
    changes: dict[str, Any] = {}
    for word in ("quantization", "dtype", "max_length"):
        if getattr(recipe, word) is not None:
            changes[word] = getattr(recipe, word)
    if recipe.finetuning == "full" and recipe.dtype is None:
        changes["dtype"] = "float32"  # small steps are lost in 16-bit weights
    subject = resolve(name, reference.model_copy(update=changes))
    if subject.files.adapter is not None:
        raise UsageError(
            f"the policy {name!r} is a model with a LoRA adapter, and training would begin without "
            "it",
            f"merge them first: mrpo merge {subject.files.adapter} --output DIR, then --policy DIR",
        )
    return subject


def _encode(policy: ResolvedReference, groups: Sequence[Group]) -> list[EncodedGroup]:
    renderer = renderer_of(policy)
    encoded = []
    with bar("tokenising for the policy", len(groups), "groups") as advance:
        for group in groups:
            encoded.append(renderer.encode(group))
            advance()
    return encoded


TEXT_FIELDS = ("rendering_version", "tokenizer", "chat_template", "pinned_date", "bos_token",
               "eos_token", "system", "added_tokens")  # fmt: skip
"""Fields of an identity that decide how text becomes ids."""


def _check_token_hashes(
    policy: ResolvedReference,
    store: ReferenceStore,
    encoded: Sequence[EncodedGroup],
    tensors: GroupTensors,
) -> None:
    """A policy with reference 1's tokenizer scores the very ids that reference 1 was scored on."""
    mine, theirs = policy.identity.fields, store.identity.fields
    if any(mine[field] != theirs[field] for field in TEXT_FIELDS):
        return
    differing = sum(
        response.token_hash != tensors.token_hashes[g][n][0]
        for g, group in enumerate(encoded)
        for n, response in enumerate(group.responses)
        if tensors.mask[g, n] and not response.overlong
    )
    if not differing:
        return
    lengths = mine["max_length"], theirs["max_length"]
    if lengths[0] != lengths[1] or mine["overlong"] != theirs["overlong"]:
        raise CacheStale(
            f"{differing:,} responses are cut elsewhere for the policy (max_length {lengths[0]}) "
            f"than for reference {store.name!r} (max_length {lengths[1]}): their log-probs cannot "
            "be compared",
            f"train with max_length {lengths[1]}, or score the reference with {lengths[0]}",
        )
    raise CacheStale(
        f"the tokens of {differing:,} responses differ from those that reference {store.name!r} "
        "was scored on, though its files are the same: the tokenizer library has changed",
        f"score it again in a new cache: mrpo precompute --ref {store.name} --cache DIR",
    )


def _numbers(
    method: Method,
    policy: ResolvedReference,
    stores: list[ReferenceStore],
    groups: list[Group],
) -> Prepared:
    """Groups with their cached numbers combined, all of them, whether or not they are usable."""
    tensors = look_up(stores, groups)
    encoded = _encode(policy, groups)
    if stores:
        _check_token_hashes(policy, stores[0], encoded, tensors)
    overlong = _overlong(encoded, tensors.mask.shape[1])
    dropped = tensors.dropped + Counter(overlong_for_policy=int((tensors.mask & overlong).sum()))
    tensors = replace(tensors, mask=tensors.mask & ~overlong, dropped=dropped)
    hyper = method.complete_hyper
    sides = contrasts.choose_sides(
        tensors.scores, tensors.chosen, tensors.mask, hyper["partition"], hyper["top_bottom"]
    )
    combined = combine(tensors, method.combination, sides.mask)
    report = {
        "groups": len(groups),
        "dropped_responses": {key: n for key, n in dropped.items() if n},
        "reference_accuracies": reference_accuracies(tensors),
        **combined.report,
    }
    tensors = replace(tensors, mask=sides.mask)
    return Prepared(method, policy, stores, groups, encoded, tensors, combined, report)


def _usable_only(prepared: Prepared) -> Prepared:
    """Without the groups that the objective cannot use.

    Raises:
        UsageError: it can use none, or refuses its hyper-parameters.
    """
    method, combined = prepared.method, prepared.combined
    usable = _usable(method, prepared.tensors, combined)
    keep = usable.nonzero().flatten().tolist()
    if not keep:
        reason = objectives.REASONS[method.row.usable]
        raise UsageError(
            f"no group can be used by {method.name}: {reason}, in all "
            f"{len(prepared.groups):,} groups",
            "mrpo losses lists what each objective needs",
        )
    return replace(
        prepared,
        groups=[prepared.groups[g] for g in keep],
        encoded=[prepared.encoded[g] for g in keep],
        tensors=_take(prepared.tensors, keep),
        combined=replace(combined, logps=combined.logps[keep], weights=combined.weights[keep]),
        report=prepared.report | {"groups": len(keep), "skipped_groups": _skipped(method, usable)},
    )


def _overlong(encoded: Sequence[EncodedGroup], width: int) -> Tensor:
    """[G, N] responses that do not fit the policy."""
    overlong = torch.zeros(len(encoded), width, dtype=torch.bool)
    for g, group in enumerate(encoded):
        for n, response in enumerate(group.responses):
            overlong[g, n] = response.overlong
    return overlong


def _usable(method: Method, tensors: GroupTensors, combined: Combined) -> Tensor:
    """[G] groups that the objective can use; also its first refusal of hyper-parameters."""
    zeros = torch.zeros(tensors.mask.shape, dtype=torch.float64)
    batch = objectives.Batch(
        zeros,
        combined.logps if method.row.reference else None,
        zeros,
        tensors.scores,
        tensors.chosen,
        tensors.mask,
        weights=combined.weights if combined.logps.dim() == 3 else None,
        seeds=torch.zeros(len(zeros), dtype=torch.int64),
    )
    try:
        objectives.compute(method.objective, batch, **method.hyper)
    except ValueError as error:
        raise UsageError(str(error), f"mrpo losses {method.name} explains it") from None
    return objectives.usable(method.objective, batch, **method.hyper)


def _skipped(method: Method, usable: Tensor) -> dict[str, int]:
    count = int((~usable).sum())
    return {objectives.REASONS[method.row.usable]: count} if count else {}


def _take(tensors: GroupTensors, keep: list[int]) -> GroupTensors:
    return replace(
        tensors,
        logps=tensors.logps[keep],
        mask=tensors.mask[keep],
        scores=None if tensors.scores is None else tensors.scores[keep],
        chosen=None if tensors.chosen is None else tensors.chosen[keep],
        num_tokens=tensors.num_tokens[keep],
        num_bytes=tensors.num_bytes[keep],
        token_hashes=[tensors.token_hashes[g] for g in keep],
        prompts=tensors.prompts[keep],
    )
