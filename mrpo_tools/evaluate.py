"""Evaluation: the metrics of METHODS §5, from cached numbers.

The trained policy is scored like any reference, into the run's own cache, so that evaluation can
be interrupted, repeated at no cost and asked with SQL. Four accuracies always stand together: the
method's own reward is not comparable between methods, because a reference that ranks well lowers
it and one that ranks badly lifts it, with no training at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrpo_tools.cache import Cache, ReferenceStore
from mrpo_tools.errors import UsageError
from mrpo_tools.groups import Group, in_split
from mrpo_tools.maths import contrasts, metrics, objectives
from mrpo_tools.methods import Method, resolve_method
from mrpo_tools.reference_logps import (
    Combined,
    GroupTensors,
    combine,
    look_up,
    reference_accuracies,
)
from mrpo_tools.run import Run, save_json
from mrpo_tools.scoring import ensure, resolve

EVALUATION = "evaluation"


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one run on one split; `RUN/evaluation/<split>.json` holds the same."""

    path: Path
    metrics: dict[str, Any]


def evaluate(run: Run, groups: Sequence[Group], cache: Cache, split: str = "test") -> Evaluation:
    """Score the policy on a split and compare it with its references and with itself untrained.

    Args:
        run: a finished run.
        groups: all of the data.
        cache: where the references' numbers are; they are looked up, not computed.
        split: `all` for everything.

    Raises:
        UsageError: no group is in the split.
        CacheMissing: a reference has no numbers for it; names the command.
    """
    chosen = in_split(groups, split)
    if not chosen:
        names = ", ".join(sorted({str(group.split) for group in groups}))
        raise UsageError(
            f"no group is in split {split!r} (there are: {names})",
            "choose one with --split, or hold some out: --test-size 0.1",
        )
    method = resolve_method(
        run.recipe,
        len(run.reference_stores),
        all(group.has_scores for group in chosen),
        all(group.has_labels for group in chosen),
    )
    accuracies = run.record["combination"]["accuracies"]
    if accuracies is not None:
        method = method.weighted_by(accuracies)
    stores = [cache.find(name) for name in run.reference_stores]
    tensors = look_up(cache, stores, chosen)
    own = Cache(run.path / EVALUATION)
    trained = _policy_logps(own, "policy", run, chosen)
    untrained = _untrained(own, run, chosen, stores, tensors)
    found = _metrics(method, tensors, trained, untrained)
    found |= {"split": split, "loss": run.recipe.loss, "references": run.reference_stores}
    path = run.path / EVALUATION / f"{split}.json"
    save_json(path, found)
    return Evaluation(path, found)


@dataclass(frozen=True)
class PolicyLogps:
    """[G, N] a policy's log-probs (nats), token counts, and where it has both."""

    logps: Tensor
    lengths: Tensor
    mask: Tensor


def _policy_logps(own: Cache, name: str, run: Run, groups: Sequence[Group]) -> PolicyLogps:
    reference = run.trained_policy if name == "policy" else run.policy
    store = ensure(own, resolve(name, reference), groups).store
    return _first(look_up(own, [store], groups))


def _untrained(
    own: Cache,
    run: Run,
    groups: Sequence[Group],
    stores: Sequence[ReferenceStore],
    tensors: GroupTensors,
) -> PolicyLogps:
    """The policy before training: cached reference 1 where they are the same, else scored."""
    if stores and stores[0].identity.hash == run.record["policy_identity"]:
        return _first(tensors)
    return _policy_logps(own, "policy-step0", run, groups)


def _first(tensors: GroupTensors) -> PolicyLogps:
    return PolicyLogps(tensors.logps[..., 0], tensors.num_tokens[..., 0], tensors.mask)


def _metrics(
    method: Method, tensors: GroupTensors, trained: PolicyLogps, untrained: PolicyLogps
) -> dict[str, Any]:
    mask = tensors.mask & trained.mask & untrained.mask
    tensors = replace(tensors, mask=mask)
    hyper = method.complete_hyper
    sides = contrasts.choose_sides(
        tensors.scores, tensors.chosen, mask, hyper["partition"], hyper["top_bottom"]
    )
    combined = combine(tensors, method.combination, sides.mask)
    judged = (mask, tensors.scores, tensors.chosen)
    own = _rewards(method, tensors, combined, trained)
    before = _rewards(method, tensors, combined, untrained)
    rewards = {
        "accuracies": own,
        "accuracies_step0": before,
        "accuracies_logp": trained.logps,
        "accuracies_logp_step0": untrained.logps,
        "accuracies_longer": tensors.num_bytes.to(torch.float64),
    }
    if tensors.logps.shape[-1]:
        rewards["accuracies_reference_1"] = trained.logps - tensors.logps[..., 0]
    found: dict[str, Any] = {
        name: _mean(metrics.accuracies(one, *judged)) for name, one in rewards.items()
    }
    found |= {
        "margins": _mean(metrics.margins(own, *judged)),
        "margins_step0": _mean(metrics.margins(before, *judged)),
        "top1": _mean(metrics.top1(own, *judged)),
        "reference_accuracies": reference_accuracies(tensors),
        "groups": int(metrics.accuracies(own, *judged).isfinite().sum()),
        "groups_without_pairs": int(metrics.accuracies(own, *judged).isnan().sum()),
        "dropped_responses": dict(Counter({k: n for k, n in tensors.dropped.items() if n})),
        "combination": combined.report,
    }
    if tensors.scores is not None:
        found["kendall_tau"] = _mean(metrics.kendall_tau(own, mask, tensors.scores))
    return found


def _rewards(
    method: Method, tensors: GroupTensors, combined: Combined, policy: PolicyLogps
) -> Tensor:
    """[G, N] the method's own reward of a policy's log-probs."""
    batch = objectives.Batch(
        policy.logps,
        combined.logps if method.row.reference else None,
        policy.lengths,
        tensors.scores,
        tensors.chosen,
        tensors.mask,
        weights=combined.weights if combined.logps.dim() == 3 else None,
    )
    return objectives.rewards(method.objective, batch, **method.hyper)


def _mean(values: Tensor) -> float | None:
    """The mean over the groups that have a value."""
    known = values[values.isfinite()]
    return float(known.mean()) if known.numel() else None
