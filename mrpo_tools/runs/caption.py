"""What the numbers and marks of a comparison are, in words."""

from __future__ import annotations

from mrpo_tools.runs.compare import TIES, Comparison
from mrpo_tools.runs.marks import FEWEST_PAIRS

FALSE_ALARMS = 57
"""Per cent of comparisons of one method with one baseline over three seeds in which MRPO's rule
calls one of them better though nothing differs (docs/false_alarms.json)."""
NO_OUTCOME = (
    "No answers were judged, so the log-prob accuracy is marked: it is one thing for every method, "
    "but predicts no outcome, that is, not which policy answers better. "
    "`mrpo evaluate RUN --rule MODULE:FUNCTION` measures one."
)


def caption(comparison: Comparison) -> str:
    """What the numbers and marks are."""
    sentences = [
        f"Split {comparison.split}: mean ± sample std over seeds; shares and accuracies in %.",
        f"`difference`, `p` and `d` are of the first column ({comparison.marked.title}): the "
        "difference to the best baseline (*), paired by seed, with its 95 % interval (Student's "
        "t); p of the difference to every baseline, by Holm over the methods; Cohen's d against "
        "the best baseline.",
        _marks(comparison),
        "MRPO's rule, d ≥ 0.5, marks nothing here: over three seeds without any effect it calls "
        f"a method or its baseline better in {FALSE_ALARMS} % of cases.",
        "" if comparison.marked.is_outcome else NO_OUTCOME,
        "Reference 1 is the method's own: of a single-reference baseline, that reference. "
        f"Untrained, a policy that is its own reference {TIES} every pair.",
    ]
    return " ".join(filter(None, sentences))


def _marks(comparison: Comparison) -> str:
    """What is bold, or why nothing is."""
    pairs = comparison.pairs
    if not pairs:
        return "Without a baseline and another method beside it nothing is marked."
    rule = "Bold is better than every baseline, italics worse than every one, at p < 0.05"
    if pairs[0] >= FEWEST_PAIRS:
        return f"{rule}."
    shared = f"{pairs[0]}" if pairs[0] == pairs[-1] else f"{pairs[0]} to {pairs[-1]}"
    few = f"{shared} seed{'s' * (shared != '1')} shared with every baseline"
    nothing = f"nothing is marked below {FEWEST_PAIRS}"
    return f"{few}: {nothing}." if pairs[-1] < FEWEST_PAIRS else f"{rule}; {few}: {nothing}."
