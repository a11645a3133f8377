"""MPPO's objectives: reference-free, on p = exp(ℓ/L), the geometric-mean token probability.

Each gives the loss of a group, [B], from [B, N] terms; masked entries are harmless already.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from mrpo_tools.maths.objectives import reward
from mrpo_tools.maths.objectives.conditions import HAS_ANY, HAS_PAIR, HAS_TWO
from mrpo_tools.maths.objectives.pairwise import log_complement
from mrpo_tools.maths.objectives.sets import ranking
from mrpo_tools.maths.objectives.table import objective
from mrpo_tools.maths.shapes import fill, masked_mean, pair_differences
from mrpo_tools.maths.terms import Terms
from mrpo_tools.words import Pairing


def _unit_scores(t: Terms, score_scale: float) -> Tensor:
    """[B, N] scores divided by `score_scale`, refused outside [0, 1]."""
    scores = fill(t.sides.scores / score_scale, t.mask)
    if bool(((scores < 0) | (scores > 1)).any()):
        raise ValueError(
            f"{t.name} needs scores in [0, 1] after division by score_scale "
            f"{score_scale}, found {scores.min():g} to {scores.max():g}"
        )
    return scores.to(t.logp.dtype)


def _likelier(t: Terms) -> Tensor:
    """[B, N, N] −log σ(p_w − p_l)."""
    return -logsigmoid(pair_differences(t.p))


def _sum_of_logs(t: Terms, pairing: Pairing) -> Tensor:
    return fill(_likelier(t), t.pairs(pairing)).sum((-1, -2))


def _log_of_sum(t: Terms, pairing: Pairing) -> Tensor:
    return -logsigmoid(fill(pair_differences(t.p), t.pairs(pairing)).sum((-1, -2)))


@objective(usable=HAS_ANY, reward=reward.token_probability, references="none", scores=True)
def mppo_point_ce(t: Terms, *, score_scale: float = 10.0) -> Tensor:
    """mean_i −[ s_i q_i + (1−s_i) log(1 − e^{q_i}) ], s in [0, 1]

    q = ℓ/L, at most −1e-6 in log(1 − e^q); scores are divided by `score_scale`.

    Source: MPPO Eq. 6
    """
    scores = _unit_scores(t, score_scale)
    return masked_mean(-(scores * t.q + (1 - scores) * log_complement(t.q)), t.mask)


@objective(usable=HAS_ANY, reward=reward.token_probability, references="none", scores=True)
def mppo_point_mse(t: Terms, *, score_scale: float = 10.0) -> Tensor:
    """mean_i (s_i − p_i)², s in [0, 1]

    The paper prints a minus sign, which would maximise the error.

    Source: MPPO Eq. 7, with its sign mended
    """
    return masked_mean((_unit_scores(t, score_scale) - t.p).square(), t.mask)


@objective(usable=HAS_PAIR, reward=reward.token_probability, references="none")
def mppo_pair_single(t: Terms, *, pairing: Pairing = "best_random") -> Tensor:
    """−log σ(p_w − p_l), l drawn

    By the group's own seed, so the draw does not depend on the batch.

    Source: MPPO Eq. 8
    """
    return t.mean_over_pairs(_likelier(t), pairing)


@objective(usable=HAS_PAIR, reward=reward.token_probability, references="none")
def mppo_pair_mns(t: Terms, *, pairing: Pairing = "best_vs_rest") -> Tensor:
    """−Σ_i log σ(p_w − p_i)

    Over the losers i of the best response w; one tied with it in score is none.

    Source: MPPO Eq. 9
    """
    return _sum_of_logs(t, pairing)


@objective(usable=HAS_PAIR, reward=reward.token_probability, references="none")
def mppo_pair_mnm(t: Terms, *, pairing: Pairing = "best_vs_rest") -> Tensor:
    """−log σ(N⁻ p_w − Σ_i p_i)

    N⁻ is the number of losers.

    Source: MPPO Eq. 10
    """
    return _log_of_sum(t, pairing)


@objective(usable=HAS_PAIR, reward=reward.token_probability, references="none")
def mppo_pair_mcs(t: Terms, *, pairing: Pairing = "all") -> Tensor:
    """−Σ over the pairs of log σ(p_a − p_b)

    All pairs: s_a > s_b, or by labels.

    Source: MPPO Eq. 11
    """
    return _sum_of_logs(t, pairing)


@objective(usable=HAS_PAIR, reward=reward.token_probability, references="none")
def mppo_pair_mcm(t: Terms, *, pairing: Pairing = "all") -> Tensor:
    """−log σ( Σ over the pairs of (p_a − p_b) )

    All pairs: s_a > s_b, or by labels.

    Source: MPPO Eq. 12
    """
    return _log_of_sum(t, pairing)


@objective(usable=HAS_TWO, reward=reward.token_probability, references="none", scores=True)
def mppo_list_mle(t: Terms) -> Tensor:
    """Σ_i [ logsumexp over {j: s_j ≤ s_i} of p_j − p_i ]

    Source: MPPO Eq. 13
    """
    return ranking(t, t.p)
