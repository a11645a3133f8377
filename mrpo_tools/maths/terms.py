"""The numbers of a batch, and the symbols that objectives are written in.

ℓ policy log-prob, r reference log-prob, b that of the policy which a response was sampled from
(nats, summed over the response's tokens), L response tokens under the policy's tokenizer,
Δ = ℓ − r, ρ = e^{ℓ − b}, s score, δ its deviation from the group's mean, q = ℓ/L, p = e^q. Shapes:
B groups of up to N responses, K references.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mrpo_tools.maths import contrasts
from mrpo_tools.maths.judgements import Judgements
from mrpo_tools.maths.shapes import fill, masked_mean, require_shape
from mrpo_tools.words import Chosen, Pairing

RATIO_LIMIT = 20.0
"""The largest |log ρ| of a policy ratio ρ."""


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
        behaviour_logps: [B, N] b, nats: under the policy that the responses were sampled from, for
            `rlhf` and `kd`; of responses that were not sampled it may hold anything.
        unjudged: [B, N] bool: samples beside a labelled pair, for `kd`; None: none.

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
    behaviour_logps: Tensor | None = None
    unjudged: Tensor | None = None

    @classmethod
    def of(
        cls,
        judged: Judgements,
        *,
        policy_logps: Tensor,
        lengths: Tensor,
        reference_logps: Tensor | None = None,
        weights: Tensor | None = None,
        seeds: Tensor | None = None,
        behaviour_logps: Tensor | None = None,
    ) -> Batch:
        """The batch of groups that are judged already; shapes as of the attributes."""
        return cls(
            policy_logps=policy_logps,
            reference_logps=reference_logps,
            lengths=lengths,
            scores=judged.scores,
            chosen=judged.chosen,
            mask=judged.mask,
            weights=weights,
            seeds=seeds,
            behaviour_logps=behaviour_logps,
            unjudged=judged.unjudged,
        )

    def __post_init__(self) -> None:
        if self.policy_logps.dim() != 2:
            raise ValueError(
                f"policy_logps must have shape [B, N], got {list(self.policy_logps.shape)}"
            )
        shape = tuple(self.policy_logps.shape)
        for name in ("lengths", "mask"):
            require_shape(name, getattr(self, name), shape)
        if self.reference_logps is not None:
            references = tuple(self.reference_logps.shape[2:3])
            require_shape("reference_logps", self.reference_logps, shape + references)
            if self.weights is not None:
                require_shape("weights", self.weights, shape[:1] + (references or (1,)))
        if self.seeds is not None:
            require_shape("seeds", self.seeds, (shape[0],))
        if self.behaviour_logps is not None:
            require_shape("behaviour_logps", self.behaviour_logps, shape)
        _ = self.judged

    @cached_property
    def judged(self) -> Judgements:
        """Mask, scores and labels as one."""
        return Judgements(self.mask, self.scores, self.chosen, self.unjudged)


class Terms:
    """The symbols of one batch, each computed when it is first asked for.

    Masked entries are filled with harmless numbers first, so whatever they held reaches nothing.

    Args:
        name: of the objective, for messages.
        batch: the numbers.
        chosen: the rule that says who is chosen.
        top_bottom: m of the rule `top_bottom`.
        seed: one for all groups, where the batch has none of their own.
    """

    def __init__(
        self, name: str, batch: Batch, *, chosen: Chosen, top_bottom: int, seed: int | None
    ) -> None:
        self.name, self.batch = name, batch
        self._chosen, self._top_bottom, self._seed = chosen, top_bottom, seed
        self._pairs: dict[Pairing, Tensor] = {}

    @cached_property
    def sides(self) -> contrasts.Sides:
        """Who is chosen and who is rejected."""
        judged = self.batch.judged
        if self._chosen == "auto":
            return judged.sides
        return judged.sides_by(self._chosen, self._top_bottom)

    def pairs(self, pairing: Pairing) -> Tensor:
        """[B, N, N] bool: the pairs (w, l) of a pairing rule."""
        if pairing not in self._pairs:
            self._pairs[pairing] = contrasts.pairs(self.sides, pairing, self._seeds)
        return self._pairs[pairing]

    def mean_over_pairs(self, losses: Tensor, pairing: Pairing) -> Tensor:
        """[B, N, N] losses of pairs -> [B]: their mean over the group's pairs."""
        return masked_mean(losses, self.pairs(pairing), (-1, -2))

    @property
    def _seeds(self) -> Tensor | None:
        """The groups' own seeds, or one for all of them."""
        if self.batch.seeds is not None or self._seed is None:
            return self.batch.seeds
        groups, device = len(self.batch.mask), self.batch.mask.device
        return torch.full((groups,), self._seed, dtype=torch.int64, device=device)

    @property
    def mask(self) -> Tensor:
        """[B, N] the responses that take part."""
        return self.sides.mask

    @cached_property
    def logp(self) -> Tensor:
        """[B, N] ℓ in float32 or better."""
        logps = self.batch.policy_logps
        exact = torch.promote_types(logps.dtype, torch.float32)
        return fill(logps.to(exact), self.batch.mask)

    @cached_property
    def length(self) -> Tensor:
        """[B, N] L, at least 1."""
        return fill(self.batch.lengths.to(self.logp.dtype), self.batch.mask, 1.0).clamp(min=1)

    @cached_property
    def reference(self) -> Tensor:
        """[B, N] r, nats.

        Raises:
            ValueError: the batch has no reference, or several.
        """
        reference = self.batch.reference_logps
        if reference is None:
            raise ValueError(f"{self.name} needs reference_logps")
        if reference.dim() != 2:
            raise ValueError(
                f"{self.name} takes one reference log-prob per response, [B, N]; combine "
                "several with references.combine"
            )
        return fill(reference, self.batch.mask)

    @cached_property
    def ratio(self) -> Tensor:
        """[B, N] Δ = ℓ − r."""
        return self.logp - self.reference

    @cached_property
    def references(self) -> list[Tensor]:
        """K times [B, N]: each reference's r, nats.

        Raises:
            ValueError: the batch does not have [B, N, K] reference log-probs.
        """
        references = self.batch.reference_logps
        if references is None or references.dim() != 3:
            raise ValueError(f"{self.name} needs reference_logps [B, N, K] and weights [B, K]")
        return [fill(logps, self.batch.mask) for logps in references.unbind(-1)]

    @cached_property
    def ratios(self) -> list[Tensor]:
        """K times [B, N]: Δ against each reference."""
        return [self.logp - reference for reference in self.references]

    @property
    def weights(self) -> Tensor:
        """[B, K] of the references.

        Raises:
            ValueError: the batch has none.
        """
        if self.batch.weights is None:
            raise ValueError(f"{self.name} needs reference_logps [B, N, K] and weights [B, K]")
        return self.batch.weights

    @cached_property
    def samples(self) -> Tensor:
        """[B, N] the responses that were sampled: those beside a labelled pair, or else all."""
        unjudged = self.batch.unjudged
        return self.mask if unjudged is None else self.mask & unjudged

    @cached_property
    def behaviour(self) -> Tensor:
        """[B, N] b, nats; 0 where a response was not sampled.

        Raises:
            ValueError: the batch has none.
        """
        if self.batch.behaviour_logps is None:
            raise ValueError(f"{self.name} needs behaviour_logps: b of the samples")
        return fill(self.batch.behaviour_logps, self.samples)

    @cached_property
    def importance(self) -> Tensor:
        """[B, N] ρ = exp(ℓ − b), the exponent in ±20; 1 where a response was not sampled."""
        return fill(self.logp - self.behaviour, self.samples).clamp(-RATIO_LIMIT, RATIO_LIMIT).exp()

    @cached_property
    def q(self) -> Tensor:
        """[B, N] ℓ/L, nats per token."""
        return self.logp / self.length

    @cached_property
    def p(self) -> Tensor:
        """[B, N] the geometric-mean token probability exp(ℓ/L)."""
        return self.q.exp()

    @cached_property
    def deviation(self) -> Tensor:
        """[B, N] δ, in the precision of ℓ."""
        return self.sides.deviations.to(self.logp.dtype)

    def target(self, tau: float) -> Tensor:
        """[B, N] softmax(s/τ) over the group, 0 where masked."""
        scores = fill(self.sides.scores / tau, self.mask, float("-inf"))
        return fill(scores.softmax(-1), self.mask)
