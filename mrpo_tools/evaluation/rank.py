"""Before training: which reference, which combination, which ε, from the cache alone.

Training costs hours; everything about references is a function of cached numbers, so it can be
asked first. The recommendation follows stated rules (`recommendation`) and says how sure it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mrpo_tools.cache import Cache, ReferenceStore, group_from_row
from mrpo_tools.cache.current import stores_of
from mrpo_tools.config import Reference
from mrpo_tools.errors import CacheMissing, UsageError
from mrpo_tools.evaluation.ranking import (
    accuracy_columns,
    agreement,
    candidates,
    clipped_shares,
    margin_distribution,
    measured,
    number,
    parts_of,
    virtual_logps,
)
from mrpo_tools.evaluation.recommendation import Evidence, recommend
from mrpo_tools.groups import Group, in_split
from mrpo_tools.maths import references
from mrpo_tools.maths.resampling import (
    bootstrap_means,
    percentile_interval,
    simultaneous_intervals,
)
from mrpo_tools.methods.tensors import GroupTensors, look_up, reference_rewards

EPSILONS = (0.01, 0.1, 1.0)


def rank(
    cache: Cache,
    names: Sequence[str] = (),
    split: str = "train",
    dataset: str | None = None,
    epsilons: Sequence[float] = EPSILONS,
    references: Mapping[str, Reference] | None = None,
) -> dict[str, Any]:
    """Measure every cached reference as a preference model, and recommend.

    Args:
        cache: with groups and log-probs.
        names: references, `mistral` or `mistral@ab12`; none means all of the cache.
        split: of the groups; `all` for everything. Where the data has no split: everything.
        dataset: one of the cache's data sets by name; None means all of them.
        epsilons: values of ε_max to try.
        references: what the project knows of them: numbers of other files or settings are refused,
            and of several identities of a name its own is taken.

    Returns:
        What `mrpo rank --json` prints.

    Raises:
        CacheMissing: a reference has no numbers for some response; names the command.
        CacheStale: a reference's files or settings have changed since.
        UsageError: nothing to rank, or no group with a pair.
    """
    stores = _stores(cache, names, references or {})
    groups = cached_groups(cache, split, dataset)
    tensors = look_up(stores, groups)
    labels = _labels(stores)
    accuracies = accuracy_columns(tensors, tensors.logps)
    if not bool(accuracies.isfinite().any()):
        raise UsageError("no group has a pair with different scores or labels; nothing to rank")
    order = sorted(range(len(labels)), key=lambda k: (-float(accuracies[:, k].nanmean()), k))
    labels, tensors = [labels[k] for k in order], tensors.of_references(order)
    virtual, decision = _virtual(tensors, labels, epsilons)
    return {
        "split": split if any(group.split for group in groups) else "all",
        "groups": len(groups),
        "groups_without_pairs": int(accuracies[:, 0].isnan().sum()),
        "dropped_responses": {reason: n for reason, n in tensors.dropped.items() if n},
        "references": _references(tensors, labels, [stores[k] for k in order]),
        "longer": measured(_longer(tensors), tensors.prompts)[0],
        "agreement": agreement(tensors, labels, groups),
        "clipped": [
            {"epsilon_max": epsilon, "shares": dict(zip(labels[1:], shares, strict=True))}
            for epsilon, shares in zip(epsilons, clipped_shares(tensors, epsilons), strict=True)
        ]
        if len(labels) > 1
        else [],
        "virtual": virtual,
        "parts": [
            _part(name, accuracies[places][:, order], labels)
            for name, places in parts_of(groups).items()
        ],
        "recommendation": decision,
    }


def _stores(
    cache: Cache, names: Sequence[str], known: Mapping[str, Reference]
) -> list[ReferenceStore]:
    """The stores to rank: of a name that the project knows, its own identity alone."""
    everything = [one.name if one.name in known else str(one) for one in cache.references()]
    if not everything:
        raise CacheMissing(f"{cache.path} holds no reference", "mrpo precompute --ref NAME")
    return stores_of(cache, names or list(dict.fromkeys(everything)), known)


def cached_groups(cache: Cache, split: str, dataset: str | None = None) -> list[Group]:
    """The groups that were scored into a cache, each once; of a split if they have any."""
    groups = [group_from_row(row) for row in cache.groups_table(dataset).to_pylist()]
    if not groups:
        known = ", ".join(sorted(cache.group_tables())) or "none"
        raise UsageError(
            f"{cache.path} holds no groups of data set {dataset!r} (there are: {known})"
            if dataset
            else f"{cache.path} holds no groups",
            "mrpo precompute saves the data it scores",
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
) -> list[dict[str, Any]]:
    accuracies = {
        name: measured(accuracy_columns(tensors, rewards), tensors.prompts)
        for name, rewards in reference_rewards(tensors).items()
    }
    margins = margin_distribution(tensors)
    weights = references.confidence_weights(tensors.logps, tensors.mask).mean(0).tolist()
    return [
        {
            "name": label,
            "identity": store.short,
            "accuracy": {name: one[k] for name, one in accuracies.items()},
            "margin_nats": margins[k],
            "mean_weight": weights[k],
        }
        for k, (label, store) in enumerate(zip(labels, stores, strict=True))
    ]


def _part(name: str, accuracies: torch.Tensor, labels: Sequence[str]) -> dict[str, Any]:
    means = [number(one) for one in accuracies.nanmean(0)]
    return {
        "part": name,
        "groups": len(accuracies),
        "accuracy": dict(zip(labels, means, strict=True)),
    }


def _longer(tensors: GroupTensors) -> torch.Tensor:
    """[G, 1] accuracies of always preferring the longer response."""
    return accuracy_columns(tensors, tensors.num_bytes.double().unsqueeze(-1))


def _virtual(
    tensors: GroupTensors, labels: Sequence[str], epsilons: Sequence[float]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Each virtual reference's accuracy and its gain over reference 1, and the recommendation."""
    tried = candidates(labels, epsilons)
    rewards = [virtual_logps(tensors, labels, one) for one in tried]
    columns = accuracy_columns(tensors, torch.stack([*tensors.logps.unbind(-1), *rewards], dim=-1))
    means = bootstrap_means(columns, clusters=tensors.prompts)
    count = len(labels)
    alone = columns.nanmean(0)
    gain = alone[count:] - alone[0]
    gains = simultaneous_intervals(means[:, count:] - means[:, :1], gain)
    accuracy = measured(columns[:, count:], tensors.prompts)
    found: list[dict[str, Any]] = [
        {
            "references": list(one.references),
            "combination": one.combination,
            "epsilon_max": one.epsilon_max,
            "accuracy": accuracy[place],
            "gain": {
                "value": number(gain[place]),
                "low": number(gains[place, 0]),
                "high": number(gains[place, 1]),
            },
        }
        for place, one in enumerate(tried)
    ]
    evidence = Evidence(
        labels,
        [number(one) or 0.0 for one in alone[:count]],
        percentile_interval(means[:, :1] - means[:, 1:2])[0].tolist() if count > 1 else None,
        float(percentile_interval(means[:, :1])[0, 0]) > 0.5,
        len(tensors.prompts[columns[:, 0].isfinite()].unique()),
        float(_longer(tensors).nanmean()),
        [(str(one), *row["gain"].values()) for one, row in zip(tried, found, strict=True)],
    )
    return found, recommend(evidence, tried)
