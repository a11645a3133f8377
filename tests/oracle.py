"""The methods computed a second time: float64, plain Python, one group at a time.

Written from the definitions alone, so that the tensors of `mrpo_tools.maths` have something other
than themselves to agree with. Nothing is padded, masked or vectorised here: a group is the list of
its real responses, a set is a list of indices, and every sum is a loop; `batches.tensors_of` lays
groups out as tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from types import SimpleNamespace

import numpy as np


@dataclass(frozen=True)
class Group:
    """One prompt with its N real responses; log-probs in nats, summed over the response."""

    policy: Sequence[float]
    reference: Sequence  # N numbers, or N rows of K numbers (multi_dpo)
    lengths: Sequence[int]
    scores: Sequence[float] | None = None
    chosen: Sequence[bool] | None = None
    weights: Sequence[float] | None = None
    behaviour: Sequence[float] | None = None
    unjudged: Sequence[bool] | None = None  # samples beside a labelled pair
    seed: int = 0

    @property
    def size(self) -> int:
        """N, the number of responses."""
        return len(self.policy)

    def take(self, indices: Sequence[int]) -> Group:
        """The group of these responses, in this order."""
        columns = ("policy", "reference", "lengths", "scores", "chosen", "behaviour", "unjudged")
        given = {name: values for name in columns if (values := getattr(self, name)) is not None}
        return replace(self, **{name: [v[i] for i in indices] for name, v in given.items()})

    @property
    def judged(self) -> Group:
        """Without samples that stand beside a labelled pair."""
        if self.unjudged is None:
            return self
        return self.take([i for i in range(self.size) if not self.unjudged[i]])

    def beside(self, samples: Group) -> Group:
        """This group's responses, and those of another as samples beside them."""
        columns = ("policy", "reference", "lengths", "scores", "chosen", "behaviour")
        both = {
            name: [*values, *getattr(samples, name)]
            for name in columns
            if (values := getattr(self, name)) is not None
        }
        flags = [False] * self.size + [True] * samples.size
        return replace(self, **both, unjudged=flags)


def random_group(rng: np.random.Generator, size: int, kind: str, references: int = 0) -> Group:
    """A plausible group: log-probs of tens of nats, the policy a few nats off its reference.

    `kind` says what orders the responses: "scores" (distinct), "ties" (four integer levels),
    "labels" (no scores), "labels_and_scores" or "labels_and_ties" (the two unrelated, so that
    labels contradict scores). `references` = K > 0 gives rows of K references with weights, as
    multi_dpo takes them.
    """
    reference = rng.uniform(-80.0, -5.0, size)
    policy = np.minimum(reference + rng.normal(0.0, 3.0, size), -0.5)
    scores = rng.integers(0, 4, size) if kind.endswith("ties") else rng.uniform(0.0, 10.0, size)
    labels = rng.permutation([True, False, *(rng.random(max(size - 2, 0)) < 0.5)])
    rows = reference[:, None] + rng.normal(0.0, 2.0, (size, references))
    return Group(
        policy=policy.tolist(),
        reference=rows.tolist() if references else reference.tolist(),
        lengths=rng.integers(1, 30, size).tolist(),
        scores=None if kind == "labels" else scores.astype(float).tolist(),
        chosen=[bool(flag) for flag in labels[:size]] if kind.startswith("labels") else None,
        weights=rng.dirichlet(np.ones(references)).tolist() if references else None,
        behaviour=np.minimum(policy + rng.normal(0.0, 0.5, size), -0.5).tolist(),
        seed=int(rng.integers(-(2**63), 2**63 - 1)),
    )


def log_sigmoid(x: float) -> float:
    """log 1/(1 + e^-x), without overflow on either side."""
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def sigmoid(x: float) -> float:
    """1/(1 + e^-x)."""
    return math.exp(log_sigmoid(x))


def logsumexp(values: Sequence[float]) -> float:
    """log Σ e^v; minus infinity for no values."""
    top = max(values, default=-math.inf)
    if top == -math.inf:
        return top
    return top + math.log(math.fsum(math.exp(value - top) for value in values))


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean of at least one value."""
    return math.fsum(values) / len(values)


def softmax(values: Sequence[float]) -> list[float]:
    """e^v / Σ e^v."""
    total = logsumexp(values)
    return [math.exp(value - total) for value in values]


def confidence_weights(rows: Sequence[Sequence[float]]) -> list[float]:
    """α_k ∝ the mean of |r_ik − r_jk| over the pairs i < j (MRPO Eq. 10 at N = 2)."""
    couples = list(combinations(rows, 2))
    spreads = [
        mean([abs(a[k] - b[k]) for a, b in couples]) if couples else 0.0
        for k in range(len(rows[0]))
    ]
    return fixed_weights(spreads) if sum(spreads) > 0 else uniform_weights(rows)


def uniform_weights(rows: Sequence[Sequence[float]]) -> list[float]:
    """α_k = 1/K."""
    return [1.0 / len(rows[0])] * len(rows[0])


def fixed_weights(numbers: Sequence[float]) -> list[float]:
    """The given non-negative numbers, normalised."""
    return [number / math.fsum(numbers) for number in numbers]


def adaptive_radius(rows: Sequence[Sequence[float]], epsilon_max: float) -> list[float]:
    """ε_i = ε_max · |Σ_k r_ik| / Σ_j |Σ_k r_jk| (MRPO Eq. 9); all sums 0: ε_max/N each."""
    sums = [abs(math.fsum(row)) for row in rows]
    total = math.fsum(sums)
    return [epsilon_max * (value / total if total > 0 else 1.0 / len(rows)) for value in sums]


def fixed_radius(rows: Sequence[Sequence[float]], epsilon_max: float) -> list[float]:
    """ε_i = ε_max."""
    return [epsilon_max] * len(rows)


def clip(rows: Sequence[Sequence[float]], radius: Sequence[float]) -> list[list[float]]:
    """r̂_ik = min(max(r_ik, (1+ε_i) r_i1), (1−ε_i) r_i1) for k > 1 (MRPO Eq. 8)."""
    return [
        [row[0]] + [min(max(r, (1 + eps) * row[0]), (1 - eps) * row[0]) for r in row[1:]]
        for row, eps in zip(rows, radius, strict=True)
    ]


def combine(
    rows: Sequence[Sequence[float]], weights: Sequence[float], how: str = "harmonic"
) -> list[float]:
    """The one reference log-prob of each response; a weight of 0 drops its reference."""
    listed = [(k, weight) for k, weight in enumerate(weights) if weight > 0]
    if how == "harmonic":
        return [-logsumexp([math.log(weight) - row[k] for k, weight in listed]) for row in rows]
    if how == "arithmetic":
        return [logsumexp([math.log(weight) + row[k] for k, weight in listed]) for row in rows]
    return [math.fsum(weight * row[k] for k, weight in listed) for row in rows]


def virtual_reference(
    rows: Sequence[Sequence[float]], epsilon_max: float = 0.1, how: str = "harmonic"
) -> list[float]:
    """MRPO's reference: confidence weights, adaptive radius, both from the unclipped rows."""
    clipped = clip(rows, adaptive_radius(rows, epsilon_max))
    return combine(clipped, confidence_weights(rows), how)


def scores_of(group: Group) -> list[float]:
    """The scores; without any, the chosen count as 1 and the rest as 0."""
    if group.scores is not None:
        return list(group.scores)
    return [1.0 if flag else 0.0 for flag in group.chosen]


def deviations(scores: Sequence[float]) -> list[float]:
    """δ_i = s_i − s̄, exactly 0 within 1e-9·max(1, max|s|)."""
    tolerance = 1e-9 * max(1.0, *(abs(score) for score in scores))
    raw = [score - mean(scores) for score in scores]
    return [0.0 if abs(value) <= tolerance else value for value in raw]


def population_std(values: Sequence[float]) -> float:
    """√(mean of squared deviations), dividing by N."""
    return math.sqrt(mean([(value - mean(values)) ** 2 for value in values]))


def best_first(scores: Sequence[float]) -> list[int]:
    """Indices from the largest score to the smallest, the lowest index first on a tie."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))


def visible(group: Group, h: SimpleNamespace) -> Group:
    """The group as the objective sees it: `top_bottom` leaves the m best and the m worst."""
    if h.chosen != "top_bottom":
        return group
    if group.unjudged is not None:
        rest = group.take([i for i in range(group.size) if group.unjudged[i]])
        return visible(replace(group.judged, unjudged=None), h).beside(rest)
    order, m = best_first(scores_of(group)), min(h.top_bottom, group.size // 2)
    return group.take(sorted(order[:m] + order[group.size - m :]))


def sides(group: Group, h: SimpleNamespace) -> tuple[list[int], list[int]]:
    """Y+ and Y−, as indices into the visible group."""
    everyone, scores = range(group.size), scores_of(group)
    if h.chosen == "top_bottom":
        positive = best_first(scores)[: group.size // 2]
    elif h.chosen == "top1":
        candidates = [i for i in everyone if group.chosen is None or group.chosen[i]]
        positive = [max(candidates, key=lambda i: (scores[i], -i))] if candidates else []
    elif group.chosen is not None:
        positive = [i for i in everyone if group.chosen[i]]
    else:
        delta = deviations(scores) if scores else []
        positive = [i for i in everyone if delta[i] > 0]
    return positive, [i for i in everyone if i not in positive]


def pairs(group: Group, pairing: str) -> list[tuple[int, int]]:
    """The pairs (w, l); `best_random` gives every pair the draw may choose from.

    With labels every chosen response against every rejected one, whatever their scores; the best
    is the best-scored chosen one, the worst the worst-scored rejected one.
    """
    everyone, scores = range(group.size), scores_of(group)
    if group.chosen is not None:
        winners = [i for i in everyone if group.chosen[i]]
        losers = {w: [i for i in everyone if not group.chosen[i]] for w in winners}
    else:
        winners = list(everyone)
        losers = {w: [i for i in everyone if scores[i] < scores[w]] for w in winners}
    if pairing == "all":
        return [(w, loser) for w in winners for loser in losers[w]]
    if not winners:
        return []
    best = max(winners, key=lambda i: (scores[i], -i))
    rest = losers[best]
    if pairing == "best_worst":
        return [(best, min(rest, key=lambda i: (scores[i], i)))] if rest else []
    return [(best, loser) for loser in rest]


HYPER = {
    "beta": (0.1, 0.5), "label_smoothing": (0.0, 0.2), "length_normalized": (False, True),
    "length_penalty": (0.01, 0.1), "pairing": ("best_worst", "best_vs_rest", "all"),
    "chosen": ("auto", "top1", "top_bottom"), "top_bottom": (2,),
    "deviation_scale": (0.1, 2.0), "signed": (False, True), "power": (1, 0, 2),
    "weight": ("none", "power"), "gamma": (1.0, 0.3), "delta": (1.0, 20.0),
    "sft_weight": (1.0, 0.3), "tau": (1.0, 3.0), "clip": (0.2, 0.1),
    "advantage": ("normalized", "centred", "leave_one_out"), "kl_weight": (0.04, 0.5),
    "score_scale": (10.0, 20.0),
}  # fmt: skip
"""Every hyper-parameter: its default, and other values to try."""
DEFAULTS = {name: values[0] for name, values in HYPER.items()}
OWN_DEFAULTS = {
    **{name: {"beta": 0.01} for name in ("mpo", "w_mpo", "swepo", "infonca", "nca")},
    "mpo_1vsk": {"beta": 0.01, "chosen": "top1"},
    "simpo": {"beta": 2.0},
    "mpo_reference_free": {"beta": 2.0},
    "orpo": {"sft_weight": 0.1},
    "slic": {"sft_weight": 0.1},
    "rrhf": {"pairing": "all"},
    "mppo_pair_single": {"pairing": "best_random"},
}


def settings(name: str, hyper: dict) -> SimpleNamespace:
    """Every hyper-parameter of the objective: general default, its own default, then `hyper`."""
    unknown = set(hyper) - set(DEFAULTS)
    if unknown:
        raise KeyError(f"the oracle knows no {sorted(unknown)}")
    return SimpleNamespace(**{**DEFAULTS, **OWN_DEFAULTS.get(name, {}), **hyper})


def log_ratio(group: Group, i: int) -> float:
    """Δ_i = ℓ_i − r_i."""
    return group.policy[i] - group.reference[i]


def per_token(group: Group, i: int) -> float:
    """q_i = ℓ_i / L_i."""
    return group.policy[i] / group.lengths[i]


def token_probability(group: Group, i: int) -> float:
    """p_i = exp(ℓ_i / L_i), the geometric-mean token probability."""
    return math.exp(per_token(group, i))


def implicit_rewards(group: Group, h: SimpleNamespace) -> list[float]:
    """u_i = β Δ_i for every response."""
    return [h.beta * log_ratio(group, i) for i in range(group.size)]


def log_odds(q: float) -> float:
    """q − log(1 − e^q), the log-odds of a mean token log-prob q, kept off q = 0."""
    return q - math.log(-math.expm1(min(q, -1e-6)))


def logistic(margin: float, smoothing: float = 0.0) -> float:
    """−(1−c) log σ(h) − c log σ(−h)."""
    return -(1 - smoothing) * log_sigmoid(margin) - smoothing * log_sigmoid(-margin)


def dpo(group: Group, w: int, lo: int, h: SimpleNamespace) -> float:
    """−log σ(u_w − u_l), smoothed."""
    return logistic(h.beta * (log_ratio(group, w) - log_ratio(group, lo)), h.label_smoothing)


def multi_dpo(group: Group, w: int, lo: int, h: SimpleNamespace) -> float:
    """Σ_k α_k · dpo against reference k."""
    return math.fsum(
        weight * dpo(replace(group, reference=[row[k] for row in group.reference]), w, lo, h)
        for k, weight in enumerate(group.weights)
    )


def ipo(group: Group, w: int, lo: int, h: SimpleNamespace) -> float:
    """(Δ_w − Δ_l − 1/(2β))², each Δ per token when length-normalised."""
    scale = group.lengths if h.length_normalized else [1] * group.size
    gap = log_ratio(group, w) / scale[w] - log_ratio(group, lo) / scale[lo]
    return (gap - 1 / (2 * h.beta)) ** 2


def slic(group: Group, w: int, lo: int, h: SimpleNamespace) -> float:
    """max(0, δ₀ − ℓ_w + ℓ_l) − λ ℓ_w."""
    return max(0.0, h.delta - group.policy[w] + group.policy[lo]) - h.sft_weight * group.policy[w]


def rank_hinge(group: Group, w: int, lo: int, h: SimpleNamespace) -> float:
    """max(0, ℓ_l/L_l − ℓ_w/L_w), the ranking part of RRHF."""
    return max(0.0, per_token(group, lo) - per_token(group, w))


def cpo(group: Group, w: int, lo: int, h: SimpleNamespace) -> float:
    """−log σ(β(ℓ_w − ℓ_l)) − λ ℓ_w."""
    margin = h.beta * (group.policy[w] - group.policy[lo])
    return logistic(margin) - h.sft_weight * group.policy[w]


def kto_pair(group: Group, w: int, lo: int, h: SimpleNamespace) -> float:
    """(1 − σ(u_w − z_l)) + (1 − σ(z_w − u_l)), the z of the whole batch in `h.anchors`."""
    u_w, u_l = h.beta * log_ratio(group, w), h.beta * log_ratio(group, lo)
    z_w, z_l = h.anchors
    return sigmoid(z_l - u_w) + sigmoid(u_l - z_w)


def orpo(group: Group, w: int, lo: int, h: SimpleNamespace) -> float:
    """−ℓ_w/L_w − λ log σ(odds_w − odds_l)."""
    q_w, q_l = per_token(group, w), per_token(group, lo)
    return -q_w + h.sft_weight * logistic(log_odds(q_w) - log_odds(q_l))


def r_dpo(group: Group, w: int, lo: int, h: SimpleNamespace) -> float:
    """−log σ(u_w − u_l + α(L_w − L_l))."""
    margin = h.beta * (log_ratio(group, w) - log_ratio(group, lo))
    return logistic(margin + h.length_penalty * (group.lengths[w] - group.lengths[lo]))


def simpo(group: Group, w: int, lo: int, h: SimpleNamespace) -> float:
    """−log σ(β ℓ_w/L_w − β ℓ_l/L_l − γ)."""
    return logistic(h.beta * per_token(group, w) - h.beta * per_token(group, lo) - h.gamma)


def sppo(group: Group, w: int, lo: int, h: SimpleNamespace) -> float:
    """(Δ_w − 1/(2β))² + (Δ_l + 1/(2β))²."""
    target = 1 / (2 * h.beta)
    return (log_ratio(group, w) - target) ** 2 + (log_ratio(group, lo) + target) ** 2


def mppo_pair_single(group: Group, w: int, lo: int, h: SimpleNamespace) -> float:
    """−log σ(p_w − p_l)."""
    return logistic(token_probability(group, w) - token_probability(group, lo))


PairLoss = Callable[[Group, int, int, SimpleNamespace], float]
GroupLoss = Callable[[Group, SimpleNamespace], float]


def over_pairs(pair_loss: PairLoss) -> GroupLoss:
    """The mean of a pair's loss over the group's pairs, or the drawn pair alone."""

    def loss(group: Group, h: SimpleNamespace) -> float:
        chosen = pairs(group, h.pairing)
        if h.pairing == "best_random":
            chosen = [chosen[h.drawn]]
        return mean([pair_loss(group, w, lo, h) for w, lo in chosen])

    return loss


def rrhf(group: Group, h: SimpleNamespace) -> float:
    """The mean hinge over pairs, − λ ℓ_w of the best response once."""
    best = pairs(group, "best_worst")[0][0]
    return over_pairs(rank_hinge)(group, h) - h.sft_weight * group.policy[best]


def set_contrast(
    logits: Sequence[float], positive: Sequence[int], weights: Sequence[float]
) -> float:
    """−log( Σ_{Y+} w e^x / Σ_all w e^x ); a weight of 0 takes the response out of both sums."""
    terms = [x + math.log(w) if w > 0 else -math.inf for x, w in zip(logits, weights, strict=True)]
    return logsumexp(terms) - logsumexp([terms[i] for i in positive])


def bonus(deviation: float, scale: float, power: int, signed: bool) -> float:
    """(a·|δ|)^p, with the sign of δ where `signed`; p = 0 adds nothing."""
    if power == 0 or deviation == 0:
        return 0.0
    return (scale * abs(deviation)) ** power * (math.copysign(1.0, deviation) if signed else 1.0)


def mpo(group: Group, h: SimpleNamespace) -> float:
    """−log( Σ_{Y+} e^u / Σ_all e^u )."""
    return set_contrast(implicit_rewards(group, h), sides(group, h)[0], [1.0] * group.size)


def swepo(group: Group, h: SimpleNamespace) -> float:
    """`mpo` on u_i + β(a|δ_i|)^p, or with |δ_i|^p multiplying e^{u_i}."""
    delta, logits = deviations(scores_of(group)), implicit_rewards(group, h)
    if h.weight == "power":
        return set_contrast(logits, sides(group, h)[0], [abs(d) ** h.power for d in delta])
    extra = [h.beta * bonus(d, h.deviation_scale, h.power, h.signed) for d in delta]
    logits = [u + more for u, more in zip(logits, extra, strict=True)]
    return set_contrast(logits, sides(group, h)[0], [1.0] * group.size)


def mpo_reference_free(group: Group, h: SimpleNamespace) -> float:
    """SimPO on sets: v_i = βℓ_i/L_i, the chosen ones lowered by γ."""
    positive, _ = sides(group, h)
    logits = [
        h.beta * per_token(group, i) - (h.gamma if i in positive else 0.0)
        for i in range(group.size)
    ]
    return set_contrast(logits, positive, [1.0] * group.size)


def infonca(group: Group, h: SimpleNamespace) -> float:
    """−Σ softmax(s/τ)_i · log softmax(u)_i."""
    u = implicit_rewards(group, h)
    target = softmax([score / h.tau for score in scores_of(group)])
    return -math.fsum(t * (x - logsumexp(u)) for t, x in zip(target, u, strict=True))


def nca(group: Group, h: SimpleNamespace) -> float:
    """−Σ [ softmax(s/τ)_i log σ(u_i) + (1/N) log σ(−u_i) ]."""
    u = implicit_rewards(group, h)
    target = softmax([score / h.tau for score in scores_of(group)])
    return -math.fsum(
        t * log_sigmoid(x) + log_sigmoid(-x) / group.size for t, x in zip(target, u, strict=True)
    )


def ranking(values: Sequence[float], scores: Sequence[float]) -> float:
    """Σ_i [ logsumexp of the values scored no higher than i − value_i ]."""
    return math.fsum(
        logsumexp([other for other, s in zip(values, scores, strict=True) if s <= score]) - value
        for value, score in zip(values, scores, strict=True)
    )


def plackett_luce(group: Group, h: SimpleNamespace) -> float:
    """The ranking likelihood of the scores under u."""
    return ranking(implicit_rewards(group, h), scores_of(group))


def mppo_list_mle(group: Group, h: SimpleNamespace) -> float:
    """The ranking likelihood of the scores under p."""
    return ranking([token_probability(group, i) for i in range(group.size)], scores_of(group))


def grpo_offline(group: Group, h: SimpleNamespace) -> float:
    """Clipped surrogate on ρ = e^{Δ/L} with a KL penalty, averaged over the responses."""
    scores = scores_of(group)
    total = 0.0
    for i, delta in enumerate(deviations(scores)):
        z = min(max(log_ratio(group, i) / group.lengths[i], -20.0), 20.0)
        ratio, advantage = math.exp(z), delta / population_std(scores)
        clipped = min(max(ratio, 1 - h.clip), 1 + h.clip)
        surrogate = min(ratio * advantage, clipped * advantage)
        total += surrogate - h.kl_weight * (math.exp(-z) + z - 1)
    return -total / group.size


def rlhf(group: Group, h: SimpleNamespace) -> float:
    """Clipped surrogate on ρ = e^{ℓ−b}, with R = s − β(b − r) against the group's own mean."""
    kept = [s - h.beta * (b - r) for s, b, r in
            zip(scores_of(group), group.behaviour, group.reference, strict=True)]  # fmt: skip
    total = 0.0
    for i, value in enumerate(kept):
        advantage = value - mean(kept)
        if h.advantage == "normalized":
            advantage /= population_std(kept)
        if h.advantage == "leave_one_out":
            advantage = value - mean([other for j, other in enumerate(kept) if j != i])
        ratio = math.exp(min(max(group.policy[i] - group.behaviour[i], -20.0), 20.0))
        total += min(ratio * advantage, min(max(ratio, 1 - h.clip), 1 + h.clip) * advantage)
    return -total / group.size


def kd(group: Group, h: SimpleNamespace) -> float:
    """DPO on the judged responses against reference 1, and the samples' way to the others."""
    judged = group.judged
    against_1 = replace(judged, reference=[row[0] for row in judged.reference])
    pair = mean([dpo(against_1, w, lo, h) for w, lo in pairs(against_1, h.pairing)])
    drawn = [i for i in range(group.size) if group.unjudged[i]]
    costs = {
        i: math.fsum(weight * (group.behaviour[i] - r)
                     for weight, r in list(zip(group.weights, group.reference[i], strict=True))[1:])
        for i in drawn
    }  # fmt: skip
    terms = []
    for i in drawn:
        ratio = math.exp(min(max(group.policy[i] - group.behaviour[i], -20.0), 20.0))
        terms.append(ratio * (costs[i] - mean([costs[j] for j in drawn if j != i])))
    return pair + h.beta * mean(terms)


def sft(group: Group, h: SimpleNamespace) -> float:
    """−ℓ_w/L_w, the mean over Y+."""
    return mean([-per_token(group, i) for i in sides(group, h)[0]])


def mppo_point_ce(group: Group, h: SimpleNamespace) -> float:
    """Cross-entropy of p_i against s_i / score_scale, averaged over the responses."""
    losses = []
    for i, score in enumerate(scores_of(group)):
        q, target = per_token(group, i), score / h.score_scale
        losses.append(-(target * q + (1 - target) * math.log(-math.expm1(min(q, -1e-6)))))
    return mean(losses)


def mppo_point_mse(group: Group, h: SimpleNamespace) -> float:
    """mean of (s_i / score_scale − p_i)²."""
    targets = [score / h.score_scale for score in scores_of(group)]
    return mean([(t - token_probability(group, i)) ** 2 for i, t in enumerate(targets)])


def probability_gaps(group: Group, chosen: Sequence[tuple[int, int]]) -> list[float]:
    """p_a − p_b for every pair (a, b)."""
    return [token_probability(group, a) - token_probability(group, b) for a, b in chosen]


def mppo_pair_mns(group: Group, h: SimpleNamespace) -> float:
    """−Σ log σ(p_w − p_i)."""
    return math.fsum(logistic(gap) for gap in probability_gaps(group, pairs(group, "best_vs_rest")))


def mppo_pair_mnm(group: Group, h: SimpleNamespace) -> float:
    """−log σ(N⁻ p_w − Σ p_i) = −log σ of the summed gaps."""
    return logistic(math.fsum(probability_gaps(group, pairs(group, "best_vs_rest"))))


def mppo_pair_mcs(group: Group, h: SimpleNamespace) -> float:
    """−Σ log σ(p_a − p_b) over all pairs."""
    return math.fsum(logistic(gap) for gap in probability_gaps(group, pairs(group, "all")))


def mppo_pair_mcm(group: Group, h: SimpleNamespace) -> float:
    """−log σ(Σ (p_a − p_b)) over all pairs."""
    return logistic(math.fsum(probability_gaps(group, pairs(group, "all"))))


def by_name(*functions: Callable) -> dict[str, Callable]:
    """Functions under their own names."""
    return {function.__name__: function for function in functions}


OF_PAIRS = by_name(
    dpo, multi_dpo, ipo, slic, cpo, kto_pair, orpo, r_dpo, simpo, sppo, mppo_pair_single
)
PAIR_LOSSES = {
    **{name: over_pairs(pair_loss) for name, pair_loss in OF_PAIRS.items()},
    **by_name(rrhf, mppo_pair_mns, mppo_pair_mnm, mppo_pair_mcs, mppo_pair_mcm),
}
SET_LOSSES = {**by_name(mpo, swepo, mpo_reference_free), "w_mpo": swepo, "mpo_1vsk": mpo}
LIST_LOSSES = by_name(infonca, nca, plackett_luce, mppo_list_mle)
POINT_LOSSES = by_name(mppo_point_ce, mppo_point_mse)
LOSSES = {
    **PAIR_LOSSES, **SET_LOSSES, **LIST_LOSSES, **POINT_LOSSES,
    **by_name(grpo_offline, rlhf, kd, sft),
}  # fmt: skip
REFERENCE_FREE = {name for name in LOSSES if name.startswith("mppo_")} | {
    "mpo_reference_free", "slic", "rrhf", "cpo", "orpo", "simpo", "sft"
}  # fmt: skip


def _is_usable(name: str, group: Group, h: SimpleNamespace) -> bool:
    """Whether the visible group has a loss under this objective."""
    if group.size == 0:
        return False
    if name == "kd":
        drawn = 0 if group.unjudged is None else sum(group.unjudged)
        return bool(pairs(group.judged, "all")) and drawn >= 2
    if name == "rlhf":
        kept = [s - h.beta * (b - r) for s, b, r in
                zip(scores_of(group), group.behaviour, group.reference, strict=True)]  # fmt: skip
        return any(delta != 0 for delta in deviations(kept))
    positive, negative = sides(group, h)
    if name in PAIR_LOSSES:
        return bool(pairs(group, "all"))
    if name in LIST_LOSSES:
        return group.size >= 2
    if name == "grpo_offline":
        return any(delta != 0 for delta in deviations(scores_of(group)))
    if name == "sft":
        return bool(positive)
    if name == "swepo" and h.weight == "power":
        weights = [abs(delta) ** h.power for delta in deviations(scores_of(group))]
        return all(any(weights[i] > 0 for i in side) for side in (positive, negative))
    return name in POINT_LOSSES or bool(positive and negative)


def usable(name: str, group: Group, **hyper) -> bool:
    """Whether the group has a loss under this objective."""
    h = settings(name, hyper)
    return _is_usable(name, visible(group, h), h)


def kto_anchors(groups: Sequence[Group], h: SimpleNamespace) -> tuple[float, float]:
    """z_w and z_l: β·max(0, mean Δ) over the w and over the l of the batch's usable groups."""
    every = [(group, w, lo) for group in groups for w, lo in pairs(group, h.pairing)]
    if not every:
        return 0.0, 0.0
    winners = mean([log_ratio(group, w) for group, w, _ in every])
    losers = mean([log_ratio(group, lo) for group, _, lo in every])
    return h.beta * max(0.0, winners), h.beta * max(0.0, losers)


def losses(name: str, groups: Sequence[Group], drawn: int = 0, **hyper) -> list[float | None]:
    """The loss of every group, None where it is unusable.

    `drawn` is the index into Y− that `best_random` is taken to have drawn.
    """
    h = settings(name, hyper)
    h.drawn = drawn
    seen = [visible(group, h) for group in groups]
    if name == "kto_pair":
        h.anchors = kto_anchors(seen, h)
    return [LOSSES[name](group, h) if _is_usable(name, group, h) else None for group in seen]


def candidate_losses(name: str, group: Group, **hyper) -> list[float]:
    """The losses `best_random` may give this group, one per member of Y−."""
    hyper = {**hyper, "pairing": "best_random"}
    count = len(pairs(group, "best_random"))
    return [losses(name, [group], drawn=j, **hyper)[0] for j in range(count)]


def rewards(name: str, group: Group, **hyper) -> list[float]:
    """The reward of every response: no deviation term, the training reference."""
    h, everyone = settings(name, hyper), range(group.size)
    if name in ("multi_dpo", "kd"):
        return [h.beta * (group.policy[i] - group.reference[i][0]) for i in everyone]
    if name in ("simpo", "mpo_reference_free"):
        return [h.beta * per_token(group, i) for i in everyone]
    if name == "cpo":
        return [h.beta * value for value in group.policy]
    if name == "slic":
        return list(group.policy)
    if name in ("rrhf", "orpo", "sft"):
        return [per_token(group, i) for i in everyone]
    if name.startswith("mppo_"):
        return [token_probability(group, i) for i in everyone]
    return implicit_rewards(group, h)


def accuracies(values: Sequence[float], group: Group) -> float:
    """Share of pairs with reward_a > reward_b, strictly; NaN without a pair."""
    every = pairs(group, "all")
    return mean([float(values[a] > values[b]) for a, b in every]) if every else math.nan


def margins(values: Sequence[float], group: Group) -> float:
    """Mean reward over Y+ minus mean reward over Y−; NaN where a side is empty."""
    positive, negative = sides(group, SimpleNamespace(chosen="auto"))
    if not positive or not negative:
        return math.nan
    return mean([values[i] for i in positive]) - mean([values[i] for i in negative])


def top1(values: Sequence[float], group: Group) -> float:
    """Whether the argmax reward (lowest index on a tie) has the largest score; NaN if all tie."""
    scores = scores_of(group)
    if min(scores) == max(scores):
        return math.nan
    return float(scores[best_first(values)[0]] == max(scores))


def kendall_tau(values: Sequence[float], group: Group) -> float:
    """tau-b: (C − D) / √((n₀ − ties in the rewards)(n₀ − ties in the scores))."""
    agreement, untied_values, untied_scores = 0, 0, 0
    for i, j in combinations(range(group.size), 2):
        x = np.sign(values[i] - values[j])
        y = np.sign(group.scores[i] - group.scores[j])
        agreement += int(x * y)
        untied_values += int(x != 0)
        untied_scores += int(y != 0)
    if untied_values == 0 or untied_scores == 0:
        return math.nan
    return agreement / math.sqrt(untied_values * untied_scores)
