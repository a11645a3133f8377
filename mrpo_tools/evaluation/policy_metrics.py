"""The metrics of docs/methods.md §5 for one policy: means over groups and their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mrpo_tools.evaluation.estimates import estimates, number, references_alone
from mrpo_tools.maths import metrics
from mrpo_tools.methods.combination import Combined, combine
from mrpo_tools.methods.method import Method
from mrpo_tools.methods.tensors import GroupTensors
from mrpo_tools.runs.record import EvaluatedPart, EvaluationRecord


@dataclass(frozen=True)
class PolicyLogps:
    """[G, N] a policy's log-probs (nats), token counts, and where it has both."""

    logps: Tensor
    lengths: Tensor
    mask: Tensor


BY_PART = ("accuracies", "top1", "accuracies_reference_1", "accuracies_logp")
"""What is said of each part of the data."""


def policy_metrics(
    method: Method,
    tensors: GroupTensors,
    trained: PolicyLogps,
    untrained: PolicyLogps | None,
    parts: Mapping[str, Sequence[int]] | None = None,
) -> EvaluationRecord:
    """Everything that can be said of a policy beside its references, and itself untrained.

    Args:
        method: whose reward is the policy's own.
        tensors: the references' numbers, and who is preferred.
        trained: the policy's own log-probs.
        untrained: the same before training; None where nothing stands for it.
        parts: the groups of each part of the data, by its name.

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
    values = torch.stack([column.to(torch.float64) for column in columns.values()], dim=-1)
    measured = dict(zip(columns, estimates(values, tensors.prompts), strict=True))
    alone = references_alone(tensors)
    means = {kind: [accuracy.value for accuracy in of] for kind, of in alone.items()}
    ends = {kind: [accuracy.interval for accuracy in of] for kind, of in alone.items()}
    return EvaluationRecord.model_validate(
        {
            **{metric: estimate.value for metric, estimate in measured.items()},
            "reference_accuracies": means,
            "intervals": {
                **{metric: estimate.interval for metric, estimate in measured.items()},
                "reference_accuracies": ends,
            },
            **_moved(trained, untrained, mask),
            **_parts(columns, tensors.prompts, parts or {}),
            "groups": int(columns["accuracies"].isfinite().sum()),
            "groups_without_pairs": int(columns["accuracies"].isnan().sum()),
            "dropped_responses": {reason: n for reason, n in tensors.dropped.items() if n},
            "combination": combined.report() or {},
            "histograms": combined.histograms(),
        }
    )


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
        "accuracies_logp_per_token": trained.logps / trained.lengths.clamp(min=1),
        "accuracies_longer": tensors.num_bytes.to(torch.float64),
    }
    columns = {
        "accuracies": metrics.accuracies(own, mine),
        "margins": metrics.margins(own, mine),
        "top1": metrics.top1(own, mine),
    }
    if untrained is not None:
        before = _rewards(method, tensors, combined, untrained)
        rewards["accuracies_logp_step0"] = untrained.logps
        columns["accuracies_step0"] = metrics.accuracies(before, mine)
        columns["margins_step0"] = metrics.margins(before, mine)
    if tensors.logps.shape[-1]:
        rewards["accuracies_reference_1"] = trained.logps - tensors.logps[..., 0]
    if judged.scores is not None:
        columns["kendall_tau"] = metrics.kendall_tau(own, mine)
    return columns | {name: metrics.accuracies(of, judged) for name, of in rewards.items()}


def _parts(
    columns: Mapping[str, Tensor], prompts: Tensor, parts: Mapping[str, Sequence[int]]
) -> dict[str, dict[str, EvaluatedPart]]:
    """The metrics of each part; nothing where the data have none."""
    names = [name for name in BY_PART if name in columns]
    values = torch.stack([columns[name].to(torch.float64) for name in names], dim=-1)
    every = {}
    for part, places in parts.items():
        own = values[list(places)]
        measured = dict(zip(names, estimates(own, prompts[list(places)]), strict=True))
        every[part] = EvaluatedPart(
            groups=int(own[:, 0].isfinite().sum()),
            intervals={name: estimate.interval for name, estimate in measured.items()},
            **{name: estimate.value for name, estimate in measured.items()},
        )
    return {"parts": every} if every else {}


def _moved(
    trained: PolicyLogps, untrained: PolicyLogps | None, mask: Tensor
) -> dict[str, float | None]:
    """How far training took the policy; nothing where there is none to compare it with."""
    if untrained is None:
        return {}
    distance = (trained.logps - untrained.logps).abs() / trained.lengths.clamp(min=1)
    return {"moved_nats_per_token": number(distance[mask].mean())}


def _rewards(
    method: Method, tensors: GroupTensors, combined: Combined, policy: PolicyLogps
) -> Tensor:
    """[G, N] the method's own reward of a policy's log-probs."""
    applied = method.on(tensors.judged, combined, policy_logps=policy.logps, lengths=policy.lengths)
    return applied.rewards
