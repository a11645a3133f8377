"""Which pairs a group makes: the rules of docs/methods.md, for everything that writes pairs.

`best_worst` is one pair of the best and the worst, `best_vs_rest` the best against each worse one,
`all` every better against every worse one. Labels win: chosen is better than rejected whatever
their scores say, and the best is the best-scored of the chosen, the worst the worst-scored of the
rejected. Without labels scores decide, and equal ones make no pair. The first wins a tie.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from mrpo_tools.groups import Group, Response
from mrpo_tools.groups.facts import Facts
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


def count_doubted_labels(facts: Facts) -> Counter[str]:
    """`doubted_labels` of many groups, counted, in the order in which they would be met."""
    labelled, scored = facts.has_labels, facts.has_scores
    one_sided = labelled & ~scored & facts.any_of(~np.isnan(facts.scores))
    below, tied = _against_labels(facts, labelled & scored)
    kinds = {
        "chosen_scored_below_rejected": below,
        "chosen_tied_with_rejected": tied,
        "one_sided_scores": one_sided,
    }
    met = sorted((int(groups.argmax()), name) for name, groups in kinds.items() if groups.any())
    return Counter({name: int(kinds[name].sum()) for _, name in met})


def _against_labels(
    facts: Facts, judged: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """[G], [G]: groups in which a chosen response has a lower score than a rejected one, or the
    same; of those that have both judgements."""
    responses = np.flatnonzero(judged[facts.owners])
    owners, scores = facts.owners[responses], facts.scores[responses]
    labels = facts.labels[responses]
    below, tied = np.zeros(len(judged), dtype=bool), np.zeros(len(judged), dtype=bool)
    order = np.lexsort((labels, scores, owners))
    owners, scores, labels = owners[order], scores[order], labels[order]
    # In the order of scores, rejected before chosen on a tie: of neighbours of one group, a chosen
    # one before a rejected one is below it, and different labels of one score are a tie.
    same = owners[1:] == owners[:-1]
    below[owners[1:][same & (labels[1:] < labels[:-1])]] = True
    equal = same & (scores[1:] == scores[:-1])
    tied[owners[1:][equal & (labels[1:] != labels[:-1])]] = True
    return below, tied


def _score(response: Response) -> float:
    return response.score or 0.0


def _is_better(group: Group, response: Response, other: Response) -> bool:
    if group.has_labels:
        return response.chosen is True and other.chosen is False
    return group.has_scores and _score(response) > _score(other)
