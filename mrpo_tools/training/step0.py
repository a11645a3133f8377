"""Step 0: the live policy against the cached numbers of reference 1, before the first step.

They are the same model asked by the same code, so they must agree. Where they do not, either the
policy is meant to be another model, or the cache must not be trained on. The same responses, asked
again after the last step, tell whether the policy moved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import torch

from mrpo_tools.errors import CacheStale, NonFiniteError
from mrpo_tools.maths.noise import Apart, Noise, beyond, loudest
from mrpo_tools.progress import say_once
from mrpo_tools.references.identity import SERVED_FIELDS
from mrpo_tools.scorer.scorer import ResponseScorer, response_logps
from mrpo_tools.scorer.self_check import check_sample, self_check
from mrpo_tools.scorer.trees import Row
from mrpo_tools.training.groups import TrainingGroups
from mrpo_tools.training.prepare import Prepared
from mrpo_tools.training.together import any_process

ROWS = 32
CHECKED_GROUPS = 4
CHECKED_TOKENS = 512
"""Groups that are longer take no part in the self-check, but for a window's sake."""
ARITHMETIC = frozenset({"quantization", "dtype", "autocast", "logits", *SERVED_FIELDS})
"""Fields that make the same model's numbers differ by rounding."""
HARMLESS = frozenset({"model", "revision", "max_length", "max_prompt_length", "overlong"})
"""Fields that leave the number of a given sequence as it is; `prepare` has compared the ids."""


@dataclass(frozen=True)
class Start:
    """The untrained policy on up to `ROWS` responses.

    Attributes:
        rows: each response with its prompt.
        logps: of each, nats.
        difference: the largest between it and cached reference 1, in nats per token; None when the
            policy is another model.
    """

    rows: list[Row]
    logps: list[float]
    difference: float | None = None

    def moved(self, scorer: ResponseScorer, device: torch.device) -> float | None:
        """Mean distance, in nats a token, between these log-probs and those of the policy as it is
        now; None without a response."""
        training = scorer.training
        scorer.eval()
        now = _logps(scorer, self.rows, device)
        scorer.train(training)
        distances = [
            abs(after - before) / max(len(row.responses[0]), 1)
            for row, before, after in zip(self.rows, self.logps, now, strict=True)
        ]
        return sum(distances) / len(distances) if distances else None


def check_step0(scorer: ResponseScorer, prepared: Prepared, device: torch.device) -> Start:
    """Compare up to `ROWS` responses, after choosing the scorer's fastest exact route.

    Returns:
        What the untrained policy says of them.

    Raises:
        CacheStale: equal identities, and yet other numbers than noise explains.
        NonFiniteError: the policy's numbers are NaN or infinite.
    """
    groups = prepared.training
    sample = check_sample(
        groups.trees(groups.sample()),
        size=len,
        responses=lambda tree: len(tree.responses),
        count=CHECKED_GROUPS,
        quick=CHECKED_TOKENS,
        window=getattr(scorer.config.get_text_config(), "sliding_window", None),
    )
    checked = self_check(
        scorer, sample, device, lambda flag: any_process(torch.tensor(flag, device=device))
    )
    if checked.slower:
        say_once(f"warning: {checked.slower}")
    sampled = _sample(groups)
    rows = [row for _, _, row in sampled]
    start = Start(rows, _logps(scorer, rows, device))
    if not prepared.stores:
        return start
    first = prepared.stores[0]
    fields = {field for field, _, _ in prepared.policy.identity.differences(first.identity)}
    if "engine" in fields and first.identity.fields["weights"] is None:
        fields -= {"weights"}  # of the hub's, which the commit says
    if other := fields - ARITHMETIC - HARMLESS:
        say_once(
            f"warning: the policy is not reference 1 ({first.name}): they differ in "
            f"{', '.join(sorted(other))}; log-ratios do not start at 0"
        )
        return start
    apart = [
        Apart(logp - float(groups.tensors.logps[g, n, 0]), len(row.responses[0]))
        for (g, n, row), logp in zip(sampled, start.logps, strict=True)
    ]
    _judge(apart, fields & ARITHMETIC, loudest([first.noise(), checked.noise]), first.name)
    return replace(start, difference=max(response.per_token for response in apart))


def _logps(scorer: ResponseScorer, rows: Sequence[Row], device: torch.device) -> list[float]:
    """Of responses, each computed alone."""
    return [response_logps(scorer, [row], device)[0] for row in rows]


def _sample(groups: TrainingGroups) -> list[tuple[int, int, Row]]:
    """(group, response, the two as one row) of the first responses that take part."""
    encoded = groups.encoded
    places = [
        (g, n)
        for g in range(min(len(groups), ROWS))
        for n in range(len(encoded[g].responses))
        if groups.tensors.mask[g, n]
    ]
    return [
        (g, n, Row(encoded[g].prompt_ids, [encoded[g].responses[n].ids], [0]))
        for g, n in places[:ROWS]
    ]


def _way_to_0(differing: AbstractSet[str]) -> str:
    if differing & {*SERVED_FIELDS}:
        return (
            "A server computed them; what is more than its noise is another model: "
            "docs/served_references.md"
        )
    return "To start at 0, score the reference with the policy's quantization and dtype"


def _judge(apart: Sequence[Apart], differing: AbstractSet[str], noise: Noise, first: str) -> None:
    """Warn of a difference that the arithmetic explains; refuse one that nothing explains."""
    difference = max(response.per_token for response in apart)
    if not math.isfinite(difference):
        raise NonFiniteError(
            "the policy's log-probs are not finite before the first step",
            "use dtype: bfloat16 or float32",
        )
    reason = beyond(apart, noise)
    if differing:
        say_once(
            f"warning: the policy's {', '.join(sorted(differing))} differ from cached reference "
            f"1's; they are {difference:.3g} nats per token apart at step 0. {_way_to_0(differing)}"
        )
    elif reason is not None:
        raise CacheStale(
            f"the policy at step 0 differs from cached reference {first!r} by "
            f"{difference:.3g} nats per token, though their identities are equal: {reason}",
            "mrpo precompute again in a new cache on this machine, and compare library versions",
        )
