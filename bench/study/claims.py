"""The six claims: their contrasts, and the rules written before the runs that falsify them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from contrasts import FLOOR, Contrast, Scores, as_family, best_of_others, contrast
from results import KLS, Study

SMALL = 0.1
"""Points of ten: what makes no difference to anybody."""
PLACEBO_SHARE = 0.8
GATE = 0.5
SINGLE = ("dpo_base", "dpo_left", "dpo_right")
BEST_DPO = "best DPO"
Pair = tuple[str, str]


@dataclass(frozen=True)
class Claim:
    """A claim of the papers.

    Attributes:
        words: what is claimed.
        pair: the arms of its primary contrast, the first minus the second.
        sign: of a difference that speaks for it.
        kls: at which it is tested.
    """

    words: str
    pair: Pair
    sign: int = 1
    kls: tuple[float, ...] = KLS


CLAIMS = {
    "beats_dpo": Claim("MRPO beats DPO", ("mrpo", BEST_DPO)),
    "radius": Claim("CTRO's radius helps", ("mrpo", "fixed_quarter")),
    "harmonic": Claim("harmonic is the one to take", ("geometric", "mrpo"), sign=-1),
    "mpo": Claim("MPO beats DPO", ("mpo", "dpo_base")),
    "regulariser": Claim("MRPO has another frontier", ("mrpo", "dpo_base")),
    "rounds": Claim("earlier policies help", ("round_mrpo", "round_dpo"), kls=(3.0,)),
}


def scores_of(study: Study, arm: str, kl: float) -> Scores:
    """Scores of an arm, or of the best DPO, by replicate."""
    if arm != BEST_DPO:
        return study.scores(arm, kl)
    return best_of_others({name: study.scores(name, kl) for name in SINGLE})


def compare(study: Study, pair: Pair, kl: float) -> Contrast:
    """The first arm minus the second, at a KL."""
    return contrast(scores_of(study, pair[0], kl), scores_of(study, pair[1], kl))


def primary(study: Study) -> dict[tuple[str, float], Contrast]:
    """Every primary contrast by claim and KL, corrected by Holm over all of them."""
    made = {
        (name, kl): compare(study, claim.pair, kl)
        for name, claim in CLAIMS.items()
        for kl in claim.kls
    }
    return as_family(made)


def gate(study: Study) -> dict[float, Contrast]:
    """Oracle minus anti-oracle."""
    return {kl: compare(study, ("oracle", "anti_oracle"), kl) for kl in KLS}


def share_of_gain(study: Study, control: str, kl: float) -> float | None:
    """A control's gain over DPO on the base as a share of MRPO's; None where MRPO has none."""
    gain = compare(study, ("mrpo", "dpo_base"), kl).mean
    mine = compare(study, (control, "dpo_base"), kl).mean
    return None if not gain or gain <= 0 or mine is None else mine / gain


Reason = tuple[float | None, str]
"""The KL that a reason is of, or None where it is of all, and its words."""


def falsified(study: Study, name: str, made: Mapping[tuple[str, float], Contrast]) -> list[Reason]:
    """The reasons of the plan for which a claim is falsified; none where it stands.

    A contrast of fewer replicates than are tested gives no reason.
    """
    mine = {kl: made[name, kl] for kl in CLAIMS[name].kls}
    known = {kl: each for kl, each in mine.items() if each.p is not None and each.intervals}
    rules: Mapping[str, Callable[[], list[Reason]]] = {
        "beats_dpo": lambda: [*_not_above(known), *(_placebo(study) if known else [])],
        "radius": lambda: [*_equivalent(known), *_no_more_divergence(study)],
        "harmonic": lambda: _not_below(known),
        "mpo": lambda: _not_above(known),
        "regulariser": lambda: _coincide(known),
        "rounds": lambda: _no_gain(known),
    }
    return rules[name]()


def _not_above(known: Mapping[float, Contrast]) -> list[Reason]:
    ends = {kl: each.interval[1] for kl, each in known.items()}
    return [(kl, f"upper end {high:+.2f}") for kl, high in ends.items() if high < SMALL]


def _not_below(known: Mapping[float, Contrast]) -> list[Reason]:
    means = {kl: each.mean or 0.0 for kl, each in known.items()}
    return [(kl, f"mean {mean:+.2f}") for kl, mean in means.items() if mean >= 0]


def _no_gain(known: Mapping[float, Contrast]) -> list[Reason]:
    ends = {kl: each.interval[0] for kl, each in known.items()}
    return [(kl, f"lower end {low:+.2f}") for kl, low in ends.items() if low <= 0]


def _placebo(study: Study) -> list[Reason]:
    shares = {kl: share_of_gain(study, "placebo", kl) for kl in KLS}
    return [
        (kl, f"the placebo has {share:.0%} of the gain")
        for kl, share in shares.items()
        if share is not None and share >= PLACEBO_SHARE
    ]


def _equivalent(known: Mapping[float, Contrast]) -> list[Reason]:
    reach = {kl: max(map(abs, each.narrow)) for kl, each in known.items()}
    return [(kl, f"equal within ± {SMALL}") for kl, end in reach.items() if end < SMALL]


def _no_more_divergence(study: Study) -> list[Reason]:
    """Clipped and unclipped, in the replicates that have both."""
    both = set(study.finished("unclipped")) & set(study.finished("mrpo"))
    if len(both) < FLOOR:
        return []
    (fallen, runs), (clipped, _) = (study.diverged([arm], both) for arm in ("unclipped", "mrpo"))
    if fallen > clipped:
        return []
    return [(None, f"unclipped diverged in {fallen} of {runs} runs, clipped in {clipped}")]


def _coincide(known: Mapping[float, Contrast]) -> list[Reason]:
    inside = [each.interval[0] <= 0 <= each.interval[1] for each in known.values()]
    return [(None, "both intervals contain 0")] if len(inside) == len(KLS) and all(inside) else []
