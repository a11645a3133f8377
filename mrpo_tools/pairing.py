"""Which pairs a group makes: the rules of docs/methods.md, for everything that writes pairs.

`best_worst` is one pair of the best and the worst, `best_vs_rest` the best against each worse one,
`all` every better against every worse one. Labels win: chosen is better than rejected whatever
their scores say, and the best is the best-scored of the chosen, the worst the worst-scored of the
rejected. Without labels scores decide, and equal ones make no pair. The first wins a tie.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mrpo_tools.groups import Group, Response
from mrpo_tools.words import DeterministicPairing

Pair = tuple[Response, Response]


def pairs_of(
    group: Group, pairing: DeterministicPairing, usable: Sequence[Response] | None = None
) -> Iterator[Pair]:
    """The (chosen, rejected) pairs of a group, in the order of its responses.

    Args:
        group: what all of its responses have decides: labels, else scores, else there is no pair.
        pairing: which of them.
        usable: the responses that take part; None means all.
    """
    responses = group.responses if usable is None else usable
    better = [
        (response, other)
        for response in responses
        for other in responses
        if response is not other and _is_better(group, response, other)
    ]
    if pairing == "all" or not better:
        yield from better
        return

    def score(response: Response) -> float:
        return _score(response) if group.has_scores else 0.0

    candidates = [response for response in responses if response.chosen or not group.has_labels]
    best = max(candidates, key=score)
    against = [other for response, other in better if response is best]
    for other in against if pairing == "best_vs_rest" else sorted(against, key=score)[:1]:
        yield best, other


def doubted_labels(group: Group) -> list[str]:
    """What the scores of a labelled group say beside its labels, by names of `COUNTS` of sources.

    `chosen_scored_below_rejected`, `chosen_tied_with_rejected`: in some pair; the labels win.
    `one_sided_scores`: some responses have a score and some none; none counts.
    """
    scores = [response.score for response in group.responses if response.score is not None]
    if not group.has_labels or not scores:
        return []
    if not group.has_scores:
        return ["one_sided_scores"]
    pairs = list(pairs_of(group, "all"))
    doubts = {
        "chosen_scored_below_rejected": any(_score(a) < _score(b) for a, b in pairs),
        "chosen_tied_with_rejected": any(_score(a) == _score(b) for a, b in pairs),
    }
    return [name for name, found in doubts.items() if found]


def _score(response: Response) -> float:
    return response.score or 0.0


def _is_better(group: Group, response: Response, other: Response) -> bool:
    if group.has_labels:
        return bool(response.chosen) and not other.chosen
    return group.has_scores and _score(response) > _score(other)
