"""The metrics of docs/methods.md §5 for one policy: means over groups and their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from mrpo_tools.maths import metrics
from mrpo_tools.maths.resampling import bootstrap_means, percentile_interval
from mrpo_tools.methods.combination import Combined, combine
from mrpo_tools.methods.method import Method
from mrpo_tools.methods.tensors import GroupTensors, reference_rewards
from mrpo_tools.runs.record import EvaluationRecord

KeyT = TypeVar("KeyT")
Ends = list[float | None] | None
"""Of a 95 % interval; None without a value."""


@dataclass(frozen=True)
class PolicyLogps:
    """[G, N] a policy's log-probs (nats), token counts, and where it has both."""

    logps: Tensor
    lengths: Tensor
    mask: Tensor


def policy_metrics(
    method: Method, tensors: GroupTensors, trained: PolicyLogps, untrained: PolicyLogps | None
) -> EvaluationRecord:
    """Everything that can be said of a policy beside its references, and itself untrained.

    Args:
        method: whose reward is the policy's own.
        tensors: the references' numbers, and who is preferred.
        trained: the policy's own log-probs.
        untrained: the same before training; None where nothing stands for it.

    Returns:
        What `RUN/evaluation/<split>.json` says of numbers; None for what no group can say.
    """
    mask = tensors.mask & trained.mask
    if untrained is not None:
        mask = mask & untrained.mask
    tensors = tensors.within(mask)
    seen = method.sides(tensors.judged).mask
    combined = combine(tensors.logps, seen, method.combination)
    columns = _columns(method, tensors, seen, combined, trained, untrained)
    means, intervals = _means(columns, tensors.prompts)
    references = {
        kind: [metrics.accuracies(reward, tensors.judged) for reward in rewards.unbind(-1)]
        for kind, rewards in reference_rewards(tensors).items()
    }
    alone = {
        kind: _means(dict(enumerate(one)), tensors.prompts) for kind, one in references.items()
    }
    own = columns["accuracies"]
    values = {
        **means,
        "reference_accuracies": {kind: list(mean.values()) for kind, (mean, _) in alone.items()},
        "intervals": {
            **intervals,
            "reference_accuracies": {
                kind: list(ends.values()) for kind, (_, ends) in alone.items()
            },
        },
        "groups": int(own.isfinite().sum()),
        "groups_without_pairs": int(own.isnan().sum()),
        "dropped_responses": {reason: n for reason, n in tensors.dropped.items() if n},
        "combination": combined.report() or {},
        "histograms": combined.histograms(),
    }
    return EvaluationRecord.model_validate(values)


def _columns(
    method: Method,
    tensors: GroupTensors,
    seen: Tensor,
    combined: Combined,
    trained: PolicyLogps,
    untrained: PolicyLogps | None,
) -> dict[str, Tensor]:
    """[G] each metric of each group; NaN where a group cannot say.

    The method's own reward is that of training, so it is asked where the objective sees a response
    (`seen`, [G, N], without those that `top_bottom` leaves out); everything else of all of them.
    """
    judged = tensors.judged
    mine = judged.within(seen)
    own = _rewards(method, tensors, combined, trained)
    rewards = {
        "accuracies_logp": trained.logps,
        "accuracies_longer": tensors.num_bytes.to(torch.float64),
    }
    found = {
        "accuracies": metrics.accuracies(own, mine),
        "margins": metrics.margins(own, mine),
        "top1": metrics.top1(own, mine),
    }
    if untrained is not None:
        before = _rewards(method, tensors, combined, untrained)
        rewards["accuracies_logp_step0"] = untrained.logps
        found["accuracies_step0"] = metrics.accuracies(before, mine)
        found["margins_step0"] = metrics.margins(before, mine)
    if tensors.logps.shape[-1]:
        rewards["accuracies_reference_1"] = trained.logps - tensors.logps[..., 0]
    if judged.scores is not None:
        found["kendall_tau"] = metrics.kendall_tau(own, mine)
    return found | {name: metrics.accuracies(one, judged) for name, one in rewards.items()}


def _rewards(
    method: Method, tensors: GroupTensors, combined: Combined, policy: PolicyLogps
) -> Tensor:
    """[G, N] the method's own reward of a policy's log-probs."""
    applied = method.on(tensors.judged, combined, policy_logps=policy.logps, lengths=policy.lengths)
    return applied.rewards


def _means(
    columns: Mapping[KeyT, Tensor], prompts: Tensor
) -> tuple[dict[KeyT, float | None], dict[KeyT, Ends]]:
    """Each metric's mean over the groups that have it, and its 95 % interval over prompts."""
    if not columns:
        return {}, {}
    values = torch.stack([one.to(torch.float64) for one in columns.values()], dim=-1)
    ends = percentile_interval(bootstrap_means(values, clusters=prompts))
    means = {name: _number(one) for name, one in zip(columns, values.nanmean(0), strict=True)}
    intervals: dict[KeyT, Ends] = {
        name: None if means[name] is None else [_number(low), _number(high)]
        for name, (low, high) in zip(columns, ends, strict=True)
    }
    return means, intervals


def _number(value: Tensor) -> float | None:
    return float(value) if bool(value.isfinite()) else None
