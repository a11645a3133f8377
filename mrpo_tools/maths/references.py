"""From several references' log-probs to the one number per response that an objective sees.

References get no gradient: all of this is computed once, in float64, from cached numbers. K
references, the policy's initial model first. Source: MRPO, "Multi-Reference Preference Optimization
for Large Language Models" (Le et al. 2025), Eq. 7-10 and Proposition 1.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from mrpo_tools.maths.shapes import fill, pair_differences, require_shape
from mrpo_tools.words import Combine

COMBINATIONS: tuple[Combine, ...] = tuple(how for how in get_args(Combine) if how != "separate")


def confidence_weights(logps: Tensor, mask: Tensor) -> Tensor:
    """Weights proportional to how far apart a reference holds the responses (MRPO Eq. 10, ARWC).

    α_k ∝ spread_k, the mean of |r_ik − r_jk| over all pairs i < j of real responses: at N = 2 it is
    Eq. 10's |r_wk − r_lk|. No label enters, so it is the same at test time.

    Args:
        logps: [B, N, K] log-probs of the references, nats; masked entries may be NaN.
        mask: [B, N] True where there is a response.

    Returns:
        [B, K], summing to 1 over k; uniform where every spread is 0 or there is one response.

    Example:
        Spreads of 3 and 1 nats:

        >>> r = torch.tensor([[[-10.0, -8.0], [-13.0, -9.0]]])
        >>> confidence_weights(r, torch.ones(1, 2, dtype=torch.bool))
        tensor([[0.7500, 0.2500]], dtype=torch.float64)
    """
    logps = _exact(logps)
    groups, responses, references = logps.shape
    require_shape("mask", mask, (groups, responses))
    clean = fill(logps, mask.unsqueeze(-1)).transpose(1, 2)
    both = (mask.unsqueeze(-1) & mask.unsqueeze(-2)).unsqueeze(1)
    # Every pair counts twice here, for every reference alike: the ratio is the same.
    spread = fill(pair_differences(clean).abs(), both.expand(-1, references, -1, -1)).sum((-1, -2))
    total = spread.sum(-1, keepdim=True)
    uniform = torch.full_like(spread, 1.0 / references)
    return torch.where(total > 0, spread / torch.where(total > 0, total, 1.0), uniform)


def uniform_weights(logps: Tensor) -> Tensor:
    """[B, N, K] -> [B, K], all 1/K."""
    logps = _exact(logps)
    groups, _, references = logps.shape
    return logps.new_full((groups, references), 1.0 / references)


def fixed_weights(logps: Tensor, weights: Tensor) -> Tensor:
    """[B, N, K], [K] -> [B, K]: the user's K non-negative numbers, normalised, for every group."""
    logps = _exact(logps)
    groups, _, references = logps.shape
    require_shape("weights", weights, (references,))
    if not bool((weights >= 0).all()) or not bool(weights.sum() > 0):
        raise ValueError("weights must be non-negative and not all zero")
    exact = weights.to(logps)
    return (exact / exact.sum()).expand(groups, references)


def accuracy_weights(logps: Tensor, accuracies: Tensor) -> Tensor:
    """[B, N, K], [K] -> [B, K]: in proportion to held-out preference accuracy above chance.

    α_k ∝ max(accuracy_k − 0.5, 0); uniform when no reference is above chance.
    """
    above = (accuracies - 0.5).clamp(min=0)
    return fixed_weights(logps, above if bool(above.sum() > 0) else torch.ones_like(above))


def trust_region_radius(logps: Tensor, mask: Tensor, epsilon_max: float) -> Tensor:
    """The adaptive radius of the trust region around reference 1 (MRPO Eq. 9, CTRO).

    ε_i = ε_max · |Σ_k r_ik| / Σ_j |Σ_k r_jk| over the group's real responses: unlikely responses
    get more room. The radii of a group sum to ε_max.

    Args:
        logps: [B, N, K] log-probs of the references, nats; masked entries may be NaN.
        mask: [B, N] True where there is a response.
        epsilon_max: relative radius, ≥ 0.

    Returns:
        [B, N] relative radii; ε_max/N each where all sums are 0; 0 where masked.

    Example:
        Sums of −30 and −10 share 0.1 as 3:1:

        >>> r = torch.tensor([[[-10.0, -20.0], [-4.0, -6.0]]])
        >>> trust_region_radius(r, torch.ones(1, 2, dtype=torch.bool), 0.1)
        tensor([[0.0750, 0.0250]], dtype=torch.float64)
    """
    logps = _exact(logps)
    groups, responses, _ = logps.shape
    require_shape("mask", mask, (groups, responses))
    sums = fill(logps, mask.unsqueeze(-1)).sum(-1).abs()
    total = sums.sum(-1, keepdim=True)
    count = mask.sum(-1, keepdim=True).clamp(min=1)
    share = torch.where(
        total > 0, sums / torch.where(total > 0, total, 1.0), 1.0 / count.to(sums.dtype)
    )
    return fill(epsilon_max * share, mask)


def clip_to_trust_region(logps: Tensor, radius: Tensor) -> Tensor:
    """References 2..K clipped around reference 1 (MRPO Eq. 8); reference 1 is untouched.

    r̂_ik = min(max(r_ik, (1 + ε_i) r_i1), (1 − ε_i) r_i1). Log-probs are negative, so 1 + ε gives
    the lower bound.

    Args:
        logps: [B, N, K] log-probs, nats, reference 1 first.
        radius: [B, N] relative radii.

    Returns:
        [B, N, K]. With radius 0 every reference is reference 1, and MRPO is DPO.
    """
    logps = _exact(logps)
    groups, responses, _ = logps.shape
    require_shape("radius", radius, (groups, responses))
    radius = radius.to(logps.dtype)
    first = logps[..., :1]
    room = radius.unsqueeze(-1) * first.abs()
    others = torch.minimum(torch.maximum(logps[..., 1:], first - room), first + room)
    return torch.cat([first, others], dim=-1)


def combine(logps: Tensor, weights: Tensor, how: Combine = "harmonic") -> Tensor:
    """One log-prob per response from K references.

    * harmonic, the virtual reference (MRPO Prop. 1): r_i = −logsumexp_k(log α_k − r_ik)
    * geometric, the exact optimum of Eq. 6 up to a shift per prompt: r_i = Σ_k α_k r_ik
    * arithmetic, the mixture: r_i = logsumexp_k(log α_k + r_ik)

    harmonic ≤ geometric ≤ arithmetic, all between the smallest and the largest reference. A
    reference with α_k = 0 is dropped.

    Args:
        logps: [B, N, K] log-probs, nats, clipped already where that is wanted.
        weights: [B, K], non-negative, summing to 1 over k.
        how: one of `COMBINATIONS`.

    Returns:
        [B, N] log-probs, nats. NaN inputs stay in their own entry.

    Example:
        1/(0.5/0.2 + 0.5/0.6) = 0.3:

        >>> r = torch.tensor([[[0.2, 0.6]]]).log()
        >>> combine(r, torch.tensor([[0.5, 0.5]])).exp()
        tensor([[0.3000]], dtype=torch.float64)
    """
    logps = _exact(logps)
    groups, _, references = logps.shape
    require_shape("weights", weights, (groups, references))
    if how not in COMBINATIONS:
        raise ValueError(f"how must be one of {', '.join(COMBINATIONS)}, got {how!r}")
    spread = weights.to(logps.dtype).unsqueeze(1).expand_as(logps)
    logps = fill(logps, spread > 0)
    if how == "geometric":
        return (spread * logps).sum(-1)
    log_weights = spread.log()
    if how == "harmonic":
        return -(log_weights - logps).logsumexp(-1)
    return (log_weights + logps).logsumexp(-1)


def _exact(logps: Tensor) -> Tensor:
    """[B, N, K] in float64, the only precision in which references are combined."""
    if logps.dim() != 3:
        raise ValueError(f"logps must have shape [B, N, K], got {list(logps.shape)}")
    return logps.to(torch.float64)
