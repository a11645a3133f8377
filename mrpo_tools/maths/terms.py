"""The symbols of the table: the numbers of a batch, and what each objective makes of them.

ℓ policy log-prob, r reference log-prob (nats, summed over the response's tokens), L response tokens
under the policy's tokenizer, Δ = ℓ − r, s score, u = βΔ, v = βℓ/L, q = ℓ/L, p = e^q.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mrpo_tools.maths import contrasts
from mrpo_tools.maths.shapes import fill, require_shape

Hyper = Mapping[str, Any]


@dataclass(frozen=True)
class Batch:
    """The numbers of B groups of up to N responses; masked entries may hold NaN.

    Attributes:
        policy_logps: [B, N] ℓ, nats, with gradient.
        reference_logps: [B, N] r, nats; [B, N, K] for `multi_dpo`; None without a reference.
        lengths: [B, N] L, response tokens under the policy's tokenizer.
        scores: [B, N] s, higher is better; None: chosen counts as 1, the rest as 0.
        chosen: [B, N] bool labels of the data; None: no labels.
        mask: [B, N] bool, True where there is a response.
        weights: [B, K] reference weights, for `multi_dpo`.
        seeds: [B] int64, for pairing `best_random`.

    Raises:
        ValueError: a shape does not fit, or there are neither scores nor labels.
    """

    policy_logps: Tensor
    reference_logps: Tensor | None
    lengths: Tensor
    scores: Tensor | None
    chosen: Tensor | None
    mask: Tensor
    weights: Tensor | None = None
    seeds: Tensor | None = None

    def __post_init__(self) -> None:
        if self.policy_logps.dim() != 2:
            raise ValueError(
                f"policy_logps must have shape [B, N], got {list(self.policy_logps.shape)}"
            )
        shape = tuple(self.policy_logps.shape)
        for name in ("lengths", "scores", "chosen", "mask"):
            tensor = getattr(self, name)
            if tensor is not None:
                require_shape(name, tensor, shape)
        if self.reference_logps is not None:
            references = tuple(self.reference_logps.shape[2:3])
            require_shape("reference_logps", self.reference_logps, shape + references)
            if self.weights is not None:
                require_shape("weights", self.weights, shape[:1] + (references or (1,)))
        if self.seeds is not None:
            require_shape("seeds", self.seeds, (shape[0],))
        if self.scores is None and self.chosen is None:
            raise ValueError("a batch needs scores or chosen")


class Terms:
    """The symbols of the table for one batch, each computed when it is first asked for.

    Masked entries are filled with harmless numbers first, so whatever they held reaches nothing.
    """

    def __init__(self, name: str, batch: Batch, hyper: Hyper) -> None:
        self.name, self.batch, self.hyper = name, batch, hyper

    def __getitem__(self, name: str) -> float:
        """A hyper-parameter that is a number."""
        return float(self.hyper[name])

    @cached_property
    def sides(self) -> contrasts.Sides:
        batch, hyper = self.batch, self.hyper
        return contrasts.choose_sides(
            batch.scores, batch.chosen, batch.mask, hyper["partition"], hyper["top_bottom"]
        )

    @cached_property
    def pairs(self) -> Tensor:
        return contrasts.pairs(self.sides, self.batch.chosen, self.hyper["pairing"], self._seeds)

    @property
    def _seeds(self) -> Tensor | None:
        """The groups' own seeds, or one for all of them."""
        seed = self.hyper["seed"]
        if self.batch.seeds is not None or seed is None:
            return self.batch.seeds
        groups = len(self.batch.mask)
        return torch.full((groups,), seed, dtype=torch.int64, device=self.batch.mask.device)

    @property
    def mask(self) -> Tensor:
        return self.sides.mask

    @cached_property
    def logp(self) -> Tensor:
        """ℓ in float32 or better."""
        logps = self.batch.policy_logps
        exact = torch.promote_types(logps.dtype, torch.float32)
        return fill(logps.to(exact), self.batch.mask)

    @cached_property
    def length(self) -> Tensor:
        return fill(self.batch.lengths.to(self.logp.dtype), self.batch.mask, 1.0).clamp(min=1)

    @cached_property
    def ratio(self) -> Tensor:
        """Δ = ℓ − r."""
        reference = self.batch.reference_logps
        if reference is None:
            raise ValueError(f"{self.name} needs reference_logps")
        if reference.dim() != 2:
            raise ValueError(
                f"{self.name} takes one reference log-prob per response, [B, N]; combine "
                "several with references.combine"
            )
        return self.logp - fill(reference, self.batch.mask)

    @cached_property
    def u(self) -> Tensor:
        """The implicit reward βΔ."""
        return self["beta"] * self.ratio

    @cached_property
    def q(self) -> Tensor:
        """ℓ/L, nats per token."""
        return self.logp / self.length

    @cached_property
    def v(self) -> Tensor:
        """βℓ/L."""
        return self["beta"] * self.q

    @cached_property
    def p(self) -> Tensor:
        """The geometric-mean token probability exp(ℓ/L)."""
        return self.q.exp()

    @cached_property
    def target(self) -> Tensor:
        """softmax(s/τ) over the group, 0 where masked."""
        scores = fill(self.sides.scores / self["tau"], self.mask, float("-inf"))
        return fill(scores.softmax(-1), self.mask)
