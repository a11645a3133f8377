"""Before training: which reference, which combination, which ε, from the cache alone.

Training costs hours; everything about references is a function of cached numbers, so it can be
asked first. The recommendation follows stated rules (`recommendation`) and says how sure it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mrpo_tools.cache import Cache, ReferenceStore, group_from_row
from mrpo_tools.cache.current import stores_of
from mrpo_tools.config import Reference
from mrpo_tools.errors import CacheMissing, UsageError
from mrpo_tools.evaluation.estimates import accuracy_columns, number, references_alone
from mrpo_tools.evaluation.evidence import Evidence, gather
from mrpo_tools.evaluation.leading import Figure, Length, Shares, leading_figure, length_rules
from mrpo_tools.evaluation.ranking import (
    Agreement,
    Margins,
    VirtualReference,
    agreement,
    clipped_shares,
    margin_distribution,
    parts_of,
)
from mrpo_tools.evaluation.recommendation import Recommendation, recommend
from mrpo_tools.groups import Group, in_split
from mrpo_tools.methods.tensors import GroupTensors, look_up
from mrpo_tools.runs.record import VERSION, Estimate
from mrpo_tools.scoring.apply import with_scores
from mrpo_tools.words import Truncated

EPSILONS = (0.01, 0.1, 1.0)


@dataclass(frozen=True)
class RankedReference:
    """One reference as a preference model.

    Attributes:
        name: with digits of the identity where two references share it.
        identity: its first digits.
        accuracy: preference accuracy, by kind of reward.
        leading: the accuracy that references are ordered by.
        margin_nats: of its log-probs.
        mean_weight: over groups, as MRPO weights it.
    """

    name: str
    identity: str
    accuracy: dict[str, Estimate]
    leading: Estimate
    margin_nats: Margins
    mean_weight: float


@dataclass(frozen=True)
class Clipped:
    """The share of responses that a trust region clips, for each reference but the first."""

    epsilon_max: float
    shares: dict[str, float]


@dataclass(frozen=True)
class PartOfData:
    """Groups of one kind by their ids, and each reference's accuracy, by the leading figure."""

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
        leading_figure: the accuracy that references are ordered by and combinations judged by.
        longer: accuracy of always preferring the longer response.
        shorter: accuracy of always preferring the shorter response.
        better_length: which of the two predicts the label better than chance, if one does.
        agreement: of every two references, by the reward of the leading figure.
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
    leading_figure: Figure
    longer: Estimate
    shorter: Estimate
    better_length: Length | None
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
    score: str | None = None,
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
        score: the scorer whose stored scores say what is better; None for the data's own.

    Raises:
        CacheMissing: a reference has no numbers for some response; names the command.
        CacheStale: a reference's files or settings have changed since.
        UsageError: nothing to rank, or no group with a pair.
    """
    stores = _stores(cache, names, references or {})
    groups, left_out = _judged(cache, cached_groups(cache, split, dataset), score)
    tensors = look_up(stores, groups, truncated)
    labels = _labels(stores)
    unpaired = accuracy_columns(tensors, tensors.logps)[:, 0].isnan()
    if bool(unpaired.all()):
        raise UsageError("no group has a pair with different scores or labels; nothing to rank")
    rules = length_rules(tensors)
    figure = leading_figure(tensors, rules)
    accuracies = figure.shares(tensors, tensors.logps).accuracies.nan_to_num(0.0).tolist()
    order = sorted(range(len(labels)), key=lambda k: (-accuracies[k], k))
    labels, tensors = [labels[k] for k in order], tensors.of_references(order)
    evidence = gather(tensors, labels, epsilons, figure, rules)
    return Ranking(
        split=split if any(group.split for group in groups) else "all",
        groups=len(groups),
        groups_without_pairs=int(unpaired.sum()),
        dropped_responses={reason: n for reason, n in tensors.dropped.items() if n} | left_out,
        references=_references(tensors, evidence, [stores[k] for k in order]),
        leading_figure=figure.name,
        longer=rules.longer,
        shorter=rules.shorter,
        better_length=rules.better,
        agreement=agreement(tensors, figure.rewards(tensors.logps), labels, groups),
        clipped=_clipped(tensors, labels, epsilons),
        virtual=list(evidence.tried),
        parts=_parts(figure.shares(tensors, tensors.logps), labels, groups),
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


def _judged(
    cache: Cache, groups: Sequence[Group], score: str | None
) -> tuple[Sequence[Group], dict[str, int]]:
    """Groups with the scores that count, and how many responses have none, by reason."""
    return (groups, {}) if score is None else with_scores(groups, cache.find_scores(score))


def cached_groups(cache: Cache, split: str, dataset: str | None = None) -> Sequence[Group]:
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
    tensors: GroupTensors, evidence: Evidence, stores: Sequence[ReferenceStore]
) -> list[RankedReference]:
    accuracies = references_alone(tensors)
    margins = margin_distribution(tensors)
    return [
        RankedReference(
            name=label,
            identity=store.short,
            accuracy={kind: estimates[k] for kind, estimates in accuracies.items()},
            leading=evidence.alone[k],
            margin_nats=margins[k],
            mean_weight=evidence.mean_weights[k],
        )
        for k, (label, store) in enumerate(zip(evidence.labels, stores, strict=True))
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


def _parts(shares: Shares, labels: Sequence[str], groups: Sequence[Group]) -> list[PartOfData]:
    parts = []
    for name, places in parts_of(groups).items():
        accuracies = map(number, shares.of_groups(places).accuracies)
        parts.append(PartOfData(name, len(places), dict(zip(labels, accuracies, strict=True))))
    return parts
