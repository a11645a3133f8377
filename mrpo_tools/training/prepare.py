"""What a training run can know before any weights are loaded: the method, the numbers, the ids.

Everything that can be refused is refused here, before anything is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from mrpo_tools.cache import Cache, ReferenceStore, ScoreStore
from mrpo_tools.cache.current import stores_of
from mrpo_tools.config import Recipe, Reference
from mrpo_tools.errors import ResourceError, UsageError
from mrpo_tools.groups import Group, facts_of, in_split, taken
from mrpo_tools.groups.facts import Ids, Places
from mrpo_tools.maths.judgements import Judgements
from mrpo_tools.maths.shapes import blocks
from mrpo_tools.methods.combination import Combined, combine
from mrpo_tools.methods.method import Method, method_of
from mrpo_tools.methods.tensors import (
    GroupTensors,
    behaviour_of,
    look_up,
    reference_accuracies,
)
from mrpo_tools.progress import say_once
from mrpo_tools.references.devices import free_bytes
from mrpo_tools.references.rendering import EncodedGroup
from mrpo_tools.references.resolved import ResolvedReference
from mrpo_tools.runs.record import DataReport
from mrpo_tools.training.encoded import (
    EncodedGroups,
    Expected,
    encode_all,
    encode_late,
    same_cut,
    same_text,
    stale,
)
from mrpo_tools.training.groups import TrainingGroups
from mrpo_tools.training.held_out import about_data, validation_accuracies
from mrpo_tools.training.policy import resolve_policy
from mrpo_tools.training.scored import scored_groups
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
        score: of the scorer whose scores count; None where the data's own do.
        behaviour: of the policy that samples were drawn from; None where the objective asks for
            none.
    """

    policy: ResolvedReference
    stores: list[ReferenceStore]
    groups: Sequence[Group]
    training: TrainingGroups
    held_out: TrainingGroups | None
    report: DataReport
    score: ScoreStore | None = None
    behaviour: ReferenceStore | None = None

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
        ResourceError: too many groups for the widest of them.
    """
    scored = scored_groups(recipe, groups, cache)
    groups = scored.groups
    chosen = in_split(groups, recipe.split)
    method = method_of(recipe, chosen)
    stores = stores_of(cache, recipe.refs, references)
    if len({store.name for store in stores}) < len(stores):
        raise UsageError("a reference is named twice", "--refs takes each name once")
    if method.combination.weights == "accuracy":
        method = method.weighted_by(validation_accuracies(recipe, stores, groups))
    policy = resolve_policy(recipe, stores, references)
    drawn = [recipe.behaviour] if recipe.behaviour else []
    behaviour = next(iter(stores_of(cache, drawn, references)), None)
    training, report = _gather(method, policy, stores, chosen, recipe.truncated, behaviour)
    usable, report = _usable_only(training, report)
    report = report.model_copy(update=about_data(groups, chosen) | scored.about(report))
    held_out = None
    if recipe.eval_steps is not None:
        measured = in_split(groups, recipe.eval_split)
        held_out_method = replace(method_of(recipe, measured), combination=method.combination)
        held_out, _ = _gather(
            held_out_method, policy, stores, measured, recipe.truncated, behaviour
        )
        if not held_out.usable.any():
            say_once(f"warning: {method.name} can measure no group of split {recipe.eval_split}")
    return Prepared(
        policy=policy,
        stores=stores,
        groups=_those(chosen, training.usable),
        training=usable,
        held_out=held_out,
        report=report,
        score=scored.store,
        behaviour=behaviour,
    )


def _those(groups: Sequence[Group], usable: Tensor) -> Sequence[Group]:
    return groups if bool(usable.all()) else taken(groups, usable.nonzero().flatten().numpy())


def _gather(
    method: Method,
    policy: ResolvedReference,
    stores: Sequence[ReferenceStore],
    groups: Sequence[Group],
    truncated: Truncated,
    behaviour: ReferenceStore | None,
) -> tuple[TrainingGroups, DataReport]:
    """All groups with their ids and combined numbers, whether or not they are usable."""
    check_width(facts_of(groups).sizes, len(stores), free_bytes(torch.device("cpu")))
    tensors = look_up(stores, groups, truncated)
    encoded = _encode(policy, stores[0] if stores else None, groups, tensors, truncated)
    dropped = tensors.dropped
    for reason, unfit in encoded.unfit.items():
        dropped = dropped + Counter({reason: int(unfit.sum())})
        tensors = tensors.within(tensors.mask & ~unfit)
    drawn, without = behaviour_of(behaviour, groups, tensors.judged)
    dropped = dropped + Counter(no_behaviour=int(without.sum()))
    tensors = tensors.within(tensors.mask & ~without)
    sides = method.sides(tensors.judged)
    combined = combine(tensors.logps, sides.mask, method.combination)
    combined = replace(combined, behaviour=drawn)
    counted = {
        "groups": len(groups),
        "dropped_responses": {reason: count for reason, count in dropped.items() if count},
        "reference_accuracies": reference_accuracies(tensors),
    }
    report = DataReport.model_validate({**counted, **dict(combined.report() or {})})
    tensors = tensors.within(sides.mask)
    training = TrainingGroups(
        method=method,
        group_ids=Ids(facts_of(groups).group_keys),
        encoded=encoded.groups,
        lengths=encoded.lengths,
        prompt_bytes=facts_of(groups).prompt_bytes,
        tensors=tensors,
        combined=combined,
        usable=_usable(method, tensors.judged, combined),
        reference_names=[store.name for store in stores],
    )
    return training, report


CELL_BYTES = (70, 35)
"""Of a response's numbers while they are combined: beside the references', and of each."""


def check_width(sizes: Places, references: int, free: float) -> None:
    """Refuse groups that take more memory than there is when all are as wide as the widest.

    Args:
        sizes: [G] responses of each group.
        references: how many.
        free: bytes of memory.

    Raises:
        ResourceError: with the numbers.
    """
    widest = int(sizes.max(initial=0))
    needed = len(sizes) * widest * (CELL_BYTES[0] + CELL_BYTES[1] * references)
    if needed > free:
        raise ResourceError(
            f"{len(sizes):,} groups of {sizes.mean():.1f} responses on average, each with room for "
            f"the {widest:,} of the largest, would take {needed / 1e9:.1f} GB of memory; "
            f"{free / 1e9:.1f} GB are free",
            "train on the widest groups in a run of their own, or leave some responses out",
        )


class _Encoded(NamedTuple):
    """G groups under the policy's tokenizer.

    Attributes:
        groups: as ids.
        lengths: [G, N] tokens of the responses that have a number.
        unfit: [G, N] by reason: responses that have a number and do not fit the policy, or that it
            would read cut.
    """

    groups: EncodedGroups
    lengths: Tensor
    unfit: Mapping[str, Tensor]


def _encode(
    policy: ResolvedReference,
    store: ReferenceStore | None,
    groups: Sequence[Group],
    tensors: GroupTensors,
    truncated: Truncated,
) -> _Encoded:
    """The policy's ids; where it reads as reference 1 did, they are made when they are needed.

    Raises:
        CacheStale: the same text gives other tokens than reference 1 got.
    """
    mask = tensors.mask
    if store is None or not same_text(policy, store):
        encoded = encode_all(policy, groups)
        return _Encoded(encoded, *_measured(encoded, mask, truncated))
    expected = Expected(store, tensors.token_hashes, mask.numpy())
    if same_cut(policy, store):
        return _Encoded(encode_late(policy, groups, expected), tensors.num_tokens[..., 0], {})
    encoded = encode_all(policy, groups)
    lengths, unfit = _measured(encoded, mask, truncated)
    fits = mask & ~torch.stack(list(unfit.values())).any(0)
    expected = expected._replace(mask=fits.numpy())
    differing = sum(expected.differing(g, group) for g, group in enumerate(encoded))
    if differing:
        raise stale(policy, store, differing)
    return _Encoded(encoded, lengths, unfit)


def _measured(
    encoded: Sequence[EncodedGroup], mask: Tensor, truncated: Truncated
) -> tuple[Tensor, dict[str, Tensor]]:
    """`lengths` and `unfit` of `_Encoded`."""
    lengths = torch.zeros(mask.shape, dtype=torch.long)
    overlong, cut = torch.zeros_like(mask), torch.zeros_like(mask)
    for g, group in enumerate(encoded):
        for n, response in enumerate(group.responses):
            lengths[g, n] = len(response.ids)
            overlong[g, n] = response.overlong
            cut[g, n] = response.truncated and truncated == "drop"
    unfit = {"overlong_for_policy": overlong & mask, "truncated_for_policy": cut & mask & ~overlong}
    return lengths * mask, unfit


def _usable(method: Method, judged: Judgements, combined: Combined) -> Tensor:
    """[G] groups that the objective can use; also its first refusal of hyper-parameters."""
    usable = []
    for place in blocks(tuple(judged.mask.shape)):
        part = judged.of_groups(place)
        zeros = torch.zeros(part.mask.shape, dtype=torch.float64)
        seeds = torch.zeros(len(zeros), dtype=torch.int64)
        applied = method.on(
            part, combined.of_groups(place), policy_logps=zeros, lengths=zeros, seeds=seeds
        )
        try:
            _ = applied.losses
        except ValueError as error:
            raise UsageError(str(error), f"mrpo losses {method.name} explains it") from None
        usable.append(applied.usable)
    return torch.cat(usable)


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
