"""`mrpo rank`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click

from mrpo_tools.cli.completion import references
from mrpo_tools.cli.help import Command
from mrpo_tools.cli.options import (
    cache_option,
    json_option,
    print_json,
    print_table,
    truncated_option,
    with_interval,
)
from mrpo_tools.cli.scorers import pinned_scores, score_option, tell_scores

if TYPE_CHECKING:
    from mrpo_tools.cache import Cache
    from mrpo_tools.evaluation.rank import Ranking
    from mrpo_tools.evaluation.ranking import Agreement, VirtualReference
    from mrpo_tools.evaluation.recommendation import Recommendation

ROWS_SHOWN = 8
PROMPT_SHOWN = 60


@click.command(cls=Command)
@click.option("--refs", metavar="A,B,…", shell_complete=references,
              help="Cached references.  [default: all]")  # fmt: skip
@click.option("--split", default="train", show_default=True, help="`all` for everything.")
@click.option("--dataset", metavar="SOURCE",
              help="Its source, or its name in the cache.  [default: all]")  # fmt: skip
@click.option("--epsilon-max", "epsilons", default="0.01,0.1,1", show_default=True, metavar="E,…",
              help="Radii of the trust region to try.")  # fmt: skip
@score_option
@truncated_option
@cache_option
@json_option
def rank(refs: str | None, split: str, dataset: str | None, epsilons: str, **options: Any) -> None:
    """Compare the cached references before training, and recommend.

    Reads the cache alone: no model is loaded, no data is read. How often each reference prefers
    what was preferred, beside always the longer and always the shorter response; how far they
    agree, what their weights and the trust region would be, and how well virtual references would
    rank. Ends with a recommendation: which reference is first, whether a combination helps, and
    how sure each is.

    \b
    Example:
        mrpo rank
        mrpo rank --refs llama,mistral --json
    """
    from mrpo_tools.cache import Cache
    from mrpo_tools.config import load_project
    from mrpo_tools.evaluation.rank import rank as verb

    names = [name for name in (refs or "").split(",") if name]
    project = load_project()
    cache = Cache(options["cache"] or project.cache)
    score = pinned_scores(options["score"], cache, project)
    ranking = verb(
        cache,
        names,
        split=split,
        dataset=_saved(cache, dataset),
        epsilons=_numbers(epsilons),
        references=project.references,
        truncated=options["truncated"] or "drop",
        score=score,
    )
    if score is not None:
        tell_scores(score)
    if options["as_json"]:
        print_json(ranking.as_json())
        return
    _print(ranking)
    print(f"next: {_command(ranking.recommendation)}")


def _command(advice: Recommendation) -> str:
    """The training that a recommendation means."""
    if not advice.others:
        return f"mrpo train --loss dpo --refs {advice.reference_1} --output runs/dpo"
    refs = ",".join([advice.reference_1, *advice.others])
    epsilon = advice.epsilon_max
    room = "--trust-region none" if epsilon is None else f"--epsilon-max {epsilon:g}"
    combined = f"--combine {advice.combination} {room}"
    return f"mrpo train --loss mrpo --refs {refs} {combined} --output runs/mrpo"


def _saved(cache: Cache, source: str | None) -> str | None:
    """The name under which the cache keeps a data set that is named as a source."""
    if source is None or source in cache.group_tables():
        return source
    from mrpo_tools.errors import UsageError
    from mrpo_tools.sources.locate import locate

    with contextlib.suppress(UsageError):  # no such data: `rank` says what the cache has
        return locate(source).name
    return source


def _numbers(text: str) -> list[float]:
    from mrpo_tools.errors import UsageError

    try:
        values = [float(word) for word in text.split(",") if word]
    except ValueError:
        values = []
    if not values or any(not 0 <= value < float("inf") for value in values):
        raise UsageError(
            f"--epsilon-max {text}: numbers of 0 or more are needed", "--epsilon-max 0.01,0.1"
        )
    return values


def _print(ranking: Ranking) -> None:
    print(
        f"{ranking.groups:,} groups of split {ranking.split}, "
        f"{ranking.groups_without_pairs:,} of them without a pair. Accuracy with its 95 % interval"
        " (bootstrap over prompts):\n"
    )
    for reason, count in ranking.dropped_responses.items():
        print(f"left out {count:,} responses: {reason}")
    _print_references(ranking)
    if ranking.agreement:
        _print_agreement(ranking.agreement)
        _print_clipped(ranking)
        _print_virtual(ranking.virtual)
    if ranking.parts:
        print("\nAccuracy by part:")
        print_table(
            ("part", "groups", *ranking.parts[0].accuracy),
            [(part.part, part.groups, *part.accuracy.values()) for part in ranking.parts],
        )
    print("\nRecommendation")
    for key, value in _in_words(ranking.recommendation).items():
        if value:
            print(f"  {key:<13}{value}")
    for note in ranking.recommendation.notes:
        print(f"note: {note}")


def _print_references(ranking: Ranking) -> None:
    leads = ranking.leading_figure != "summed"
    rows: list[tuple[object, ...]] = []
    for reference in ranking.references:
        margins = reference.margin_nats
        ends = (f"{margins.quantiles[point]:.1f}" for point in ("0.05", "0.5", "0.95"))
        accuracies = [with_interval(accuracy) for accuracy in reference.accuracy.values()]
        leading = [with_interval(reference.leading)] if leads else []
        rows.append(
            (reference.name, *leading, *accuracies, margins.mean, " | ".join(ends),
             reference.mean_weight)
        )  # fmt: skip
    blank = [""] if leads else []
    for length, accuracy in (("longer", ranking.longer), ("shorter", ranking.shorter)):
        rows.append((f"always the {length}", *blank, *[with_interval(accuracy)] * 3, *[""] * 3))
    figures = ["at equal length"] if leads else []
    print_table(
        ("reference", *figures, "accuracy", "per token", "per byte", "margin", "5 | 50 | 95 %",
         "weight"), rows,
    )  # fmt: skip
    print(
        "margin: mean log-prob (nats) of the chosen less the rejected. weight: MRPO's, over groups."
    )
    if leads:
        print(
            f"The {ranking.better_length} response is better more often than chance, so references "
            "are ordered, and combinations\njudged, by the log-prob per byte at equal length: over "
            "pairs weighted so that length says nothing."
        )


def _print_agreement(agreements: list[Agreement]) -> None:
    print("\nAgreement, pair by pair:")
    print_table(
        ("references", "pairs", "both right", "first only", "second only", "both wrong", "agree",
         "kappa"),
        [
            (f"{two.first}, {two.second}", two.pairs, two.both_right, two.first_only,
             two.second_only, two.both_wrong, two.agreement, two.kappa)
            for two in agreements
        ],
    )  # fmt: skip
    if any(two.disagreements for two in agreements):
        print("Where they differ most (accuracy on the group of the first, of the second):")
    for two in agreements:
        for group in two.disagreements[:2]:
            prompt = " ".join(group.prompt.split())
            start = prompt if len(prompt) <= PROMPT_SHOWN else f"{prompt[: PROMPT_SHOWN - 1]}…"
            print(
                f"  {two.first} {group.first:.2f}, {two.second} {group.second:.2f}  "
                f"{group.group_id[:8]}  {start}"
            )


def _print_clipped(ranking: Ranking) -> None:
    first = ranking.references[0].name
    print(f"\nShare of responses clipped to the trust region around {first}:")
    print_table(
        ("ε_max", *ranking.clipped[0].shares),
        [(f"{clipped.epsilon_max:g}", *clipped.shares.values()) for clipped in ranking.clipped],
    )


def _print_virtual(tried: list[VirtualReference]) -> None:
    print("\nVirtual references, the most accurate first (gain: over reference 1 alone):")
    order = sorted(tried, key=lambda virtual: -(virtual.accuracy.value or 0.0))
    print_table(
        ("references", "combination", "ε_max", "accuracy", "gain"),
        [
            (" + ".join(virtual.references), virtual.combination,
             "no clip" if virtual.epsilon_max is None else f"{virtual.epsilon_max:g}",
             with_interval(virtual.accuracy), with_interval(virtual.gain, "+.3f"))
            for virtual in order[:ROWS_SHOWN]
        ],
    )  # fmt: skip
    if len(tried) > ROWS_SHOWN:
        print(f"… and {len(tried) - ROWS_SHOWN} more with --json")


def _in_words(advice: Recommendation) -> dict[str, str]:
    """The fixed fields as people read them."""
    epsilon = "no clipping" if advice.epsilon_max is None else f"{advice.epsilon_max:g}"
    return {
        "reference 1": advice.reference_1,
        "others": ", ".join(advice.others) or "none",
        "combination": advice.combination or "none",
        "ε_max": epsilon if advice.others else "none",
        "why": advice.why,
        "confidence": f"{advice.confidence}: {_about_the_first(advice)}",
        "combining": _about_combinations(advice),
    }


def _about_the_first(advice: Recommendation) -> str:
    if advice.confidence == "low":
        return "which reference is the best cannot be told"
    return f"{advice.reference_1} is the best reference"


def _about_combinations(advice: Recommendation) -> str:
    """The second confidence, in words."""
    if advice.combination_confidence is None:
        return ""
    if advice.others:
        said = "this combination ranks better than reference 1 alone"
    elif advice.combination_confidence == "low":
        said = "no gain of a combination is shown, and none ruled out"
    else:
        said = "no combination ranks a point better"
    return f"{advice.combination_confidence}: {said}"
