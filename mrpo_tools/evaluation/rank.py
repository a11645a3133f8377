"""Before training: which reference, which combination, which ε, from the cache alone.

Training costs hours; everything about references is a function of cached numbers, so it can be
asked first. The recommendation follows stated rules (`recommendation`) and says how sure it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from mrpo_tools.cache import Cache, ReferenceStore, group_from_row
from mrpo_tools.cache.current import stores_of
from mrpo_tools.config import Reference
from mrpo_tools.errors import CacheMissing, UsageError
from mrpo_tools.evaluation.estimates import (
    accuracy_columns,
    estimates,
    number,
    references_alone,
)
from mrpo_tools.evaluation.ranking import (
    Agreement,
    Margins,
    VirtualReference,
    agreement,
    candidates,
    clipped_shares,
    margin_distribution,
    parts_of,
    virtual_logps,
)
from mrpo_tools.evaluation.recommendation import Evidence, Recommendation, recommend
from mrpo_tools.groups import Group, in_split
from mrpo_tools.maths import references
from mrpo_tools.maths.resampling import (
    bootstrap_means,
    percentile_interval,
    simultaneous_intervals,
)
from mrpo_tools.methods.tensors import GroupTensors, look_up
from mrpo_tools.runs.record import VERSION, Estimate
from mrpo_tools.words import Truncated

EPSILONS = (0.01, 0.1, 1.0)


@dataclass(frozen=True)
class RankedReference:
    """One reference as a preference model.

    Attributes:
        name: with digits of the identity where two references share it.
        identity: its first digits.
        accuracy: preference accuracy, by kind of reward.
        margin_nats: of its log-probs.
        mean_weight: over groups, as MRPO weights it.
    """

    name: str
    identity: str
    accuracy: dict[str, Estimate]
    margin_nats: Margins
    mean_weight: float


@dataclass(frozen=True)
class Clipped:
    """The share of responses that a trust region clips, for each reference but the first."""

    epsilon_max: float
    shares: dict[str, float]


@dataclass(frozen=True)
class PartOfData:
    """Groups of one kind by their ids, and each reference's accuracy on them."""

    part: str
    groups: int
    accuracy: dict[str, float | None]


@dataclass(frozen=True)
class Ranking:
    """References measured as preference models, the most accurate first, and advice.

    Attributes:
        split: of the groups; `all` where the data has none.
        groups: how many.
        groups_without_pairs: of them.
        dropped_responses: how many were left out, by reason.
        references: in order.
        longer: accuracy of always preferring the longer response.
        agreement: of every two references.
        clipped: for each ε_max; empty for one reference.
        virtual: every virtual reference tried.
        parts: of the data, where ids name some.
        recommendation: by the rules of `recommend`.
    """

    split: str
    groups: int
    groups_without_pairs: int
    dropped_responses: dict[str, int]
    references: list[RankedReference]
    longer: Estimate
    agreement: list[Agreement]
    clipped: list[Clipped]
    virtual: list[VirtualReference]
    parts: list[PartOfData]
    recommendation: Recommendation

    def as_json(self) -> dict[str, Any]:
        """What `mrpo rank --json` prints."""
        return {"version": VERSION, **asdict(self)}


def rank(
    cache: Cache,
    names: Sequence[str] = (),
    split: str = "train",
    dataset: str | None = None,
    epsilons: Sequence[float] = EPSILONS,
    references: Mapping[str, Reference] | None = None,
    truncated: Truncated = "drop",
) -> Ranking:
    """Measure every cached reference as a preference model, and recommend.

    Args:
        cache: with groups and log-probs.
        names: references, `mistral` or `mistral@ab12`; none means all of the cache.
        split: of the groups; `all` for everything. Where the data has no split: everything.
        dataset: one of the cache's data sets by name; None means all of them.
        epsilons: values of ε_max to try.
        references: what the project knows of them: numbers of other files or settings are refused,
            and of several identities of a name its own is taken.
        truncated: whether responses take part that a reference read cut.

    Raises:
        CacheMissing: a reference has no numbers for some response; names the command.
        CacheStale: a reference's files or settings have changed since.
        UsageError: nothing to rank, or no group with a pair.
    """
    stores = _stores(cache, names, references or {})
    groups = cached_groups(cache, split, dataset)
    tensors = look_up(stores, groups, truncated)
    labels = _labels(stores)
    accuracies = accuracy_columns(tensors, tensors.logps)
    if not bool(accuracies.isfinite().any()):
        raise UsageError("no group has a pair with different scores or labels; nothing to rank")
    order = sorted(range(len(labels)), key=lambda k: (-float(accuracies[:, k].nanmean()), k))
    labels, tensors = [labels[k] for k in order], tensors.of_references(order)
    evidence = _evidence(tensors, labels, epsilons)
    return Ranking(
        split=split if any(group.split for group in groups) else "all",
        groups=len(groups),
        groups_without_pairs=int(accuracies[:, 0].isnan().sum()),
        dropped_responses={reason: n for reason, n in tensors.dropped.items() if n},
        references=_references(tensors, labels, [stores[k] for k in order]),
        longer=estimates(_longer(tensors), tensors.prompts)[0],
        agreement=agreement(tensors, labels, groups),
        clipped=_clipped(tensors, labels, epsilons),
        virtual=list(evidence.tried),
        parts=[
            _part(name, accuracies[places][:, order], labels)
            for name, places in parts_of(groups).items()
        ],
        recommendation=recommend(evidence),
    )


def _stores(
    cache: Cache, names: Sequence[str], project: Mapping[str, Reference]
) -> list[ReferenceStore]:
    """The stores to rank: of a name that the project knows, its own identity alone."""
    everything = [
        store.name if store.name in project else str(store) for store in cache.references()
    ]
    if not everything:
        raise CacheMissing(f"{cache.path} holds no reference", "mrpo precompute --ref NAME")
    return stores_of(cache, names or list(dict.fromkeys(everything)), project)


def cached_groups(cache: Cache, split: str, dataset: str | None = None) -> list[Group]:
    """The groups of a cache, each once; of a split if they have any."""
    groups = [group_from_row(row) for row in cache.groups_table(dataset).to_pylist()]
    if not groups:
        there = ", ".join(sorted(cache.group_tables())) or "none"
        raise UsageError(
            f"{cache.path} holds no groups of data set {dataset!r} (there are: {there})"
            if dataset
            else f"{cache.path} holds no groups",
            f"mrpo precompute --ref NAME --dataset {dataset or 'SOURCE'}",
        )
    if not any(group.split for group in groups):
        return groups
    return in_split(groups, split)


def _labels(stores: Sequence[ReferenceStore]) -> list[str]:
    """Names, with digits of the identity where two references share one."""
    names = [store.name for store in stores]
    return [
        f"{store.name}@{store.short[:4]}" if names.count(store.name) > 1 else store.name
        for store in stores
    ]


def _references(
    tensors: GroupTensors, labels: Sequence[str], stores: Sequence[ReferenceStore]
) -> list[RankedReference]:
    accuracies = references_alone(tensors)
    margins = margin_distribution(tensors)
    weights = references.confidence_weights(tensors.logps, tensors.mask).mean(0).tolist()
    return [
        RankedReference(
            name=label,
            identity=store.short,
            accuracy={kind: estimates[k] for kind, estimates in accuracies.items()},
            margin_nats=margins[k],
            mean_weight=weights[k],
        )
        for k, (label, store) in enumerate(zip(labels, stores, strict=True))
    ]


def _clipped(
    tensors: GroupTensors, labels: Sequence[str], epsilons: Sequence[float]
) -> list[Clipped]:
    if len(labels) < 2:
        return []
    return [
        Clipped(epsilon, dict(zip(labels[1:], shares, strict=True)))
        for epsilon, shares in zip(epsilons, clipped_shares(tensors, epsilons), strict=True)
    ]


def _part(name: str, accuracies: torch.Tensor, labels: Sequence[str]) -> PartOfData:
    means = [number(mean) for mean in accuracies.nanmean(0)]
    return PartOfData(name, len(accuracies), dict(zip(labels, means, strict=True)))


def _longer(tensors: GroupTensors) -> torch.Tensor:
    """[G, 1] accuracies of always preferring the longer response."""
    return accuracy_columns(tensors, tensors.num_bytes.double().unsqueeze(-1))


def _evidence(tensors: GroupTensors, labels: Sequence[str], epsilons: Sequence[float]) -> Evidence:
    """Each virtual reference's accuracy and its gain over reference 1, and what else counts."""
    tried = candidates(labels, epsilons)
    rewards = [virtual_logps(tensors, labels, candidate) for candidate in tried]
    columns = accuracy_columns(tensors, torch.stack([*tensors.logps.unbind(-1), *rewards], dim=-1))
    means = bootstrap_means(columns, clusters=tensors.prompts)
    count = len(labels)
    alone = columns.nanmean(0)
    gain = alone[count:] - alone[0]
    gains = simultaneous_intervals(means[:, count:] - means[:, :1], gain)
    accuracy = estimates(columns[:, count:], tensors.prompts)
    ahead = percentile_interval(means[:, :1] - means[:, 1:2])[0].tolist() if count > 1 else None
    return Evidence(
        labels=labels,
        alone=[number(mean) or 0.0 for mean in alone[:count]],
        ahead=ahead,
        above_chance=float(percentile_interval(means[:, :1])[0, 0]) > 0.5,
        prompts=len(set(tensors.prompts[columns[:, 0].isfinite()].tolist())),
        longer=float(_longer(tensors).nanmean()),
        tried=[
            VirtualReference(
                candidate.references,
                candidate.combination,
                candidate.epsilon_max,
                accuracy=accuracy[place],
                gain=Estimate(*map(number, (gain[place], *gains[place]))),
            )
            for place, candidate in enumerate(tried)
        ],
    )
