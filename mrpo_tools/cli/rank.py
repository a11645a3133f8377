"""`mrpo rank`."""

from __future__ import annotations

from typing import Any

import click

from mrpo_tools.cli.options import cache_option, json_option, print_json, print_table, with_interval

ROWS_SHOWN = 8
PROMPT_SHOWN = 60


@click.command()
@click.option("--refs", metavar="A,B,…", help="Cached references.  [default: all]")
@click.option("--split", default="train", show_default=True, help="`all` for everything.")
@click.option("--dataset", metavar="NAME", help="One of the cache's data sets.  [default: all]")
@click.option("--epsilon-max", "epsilons", default="0.01,0.1,1", show_default=True, metavar="E,…")
@cache_option
@json_option
def rank(refs: str | None, split: str, dataset: str | None, epsilons: str, **options: Any) -> None:
    """Compare the cached references before training, and recommend.

    Reads the cache alone: no model is loaded, no data is read. How often each reference prefers
    what was preferred, how far they agree, what their weights and the trust region would be, and
    how well virtual references would rank. Ends with a recommendation and how sure it is.

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
    found = verb(cache, names, split, dataset, _numbers(epsilons), project.references)
    if options["as_json"]:
        print_json(found)
    else:
        _print(found)


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


def _print(found: dict[str, Any]) -> None:
    print(
        f"{found['groups']:,} groups of split {found['split']}, "
        f"{found['groups_without_pairs']:,} of them without a pair. Accuracy with its 95 % interval"
        " (bootstrap over prompts):\n"
    )
    for reason, count in found["dropped_responses"].items():
        print(f"left out {count:,} responses: {reason}")
    _print_references(found)
    if found["agreement"]:
        _print_agreement(found["agreement"])
        _print_clipped(found)
        _print_virtual(found["virtual"])
    if found["parts"]:
        names = list(found["parts"][0]["accuracy"])
        print("\nAccuracy by part:")
        print_table(
            ("part", "groups", *names),
            [(one["part"], one["groups"], *one["accuracy"].values()) for one in found["parts"]],
        )
    print("\nRecommendation")
    for key, value in _in_words(found["recommendation"]).items():
        print(f"  {key:<13}{value}")


def _print_references(found: dict[str, Any]) -> None:
    rows: list[tuple[object, ...]] = []
    for one in found["references"]:
        quantiles = one["margin_nats"]["quantiles"]
        rows.append(
            (
                one["name"],
                *(with_interval(value) for value in one["accuracy"].values()),
                one["margin_nats"]["mean"],
                f"{quantiles['0.05']:.1f} | {quantiles['0.5']:.1f} | {quantiles['0.95']:.1f}",
                one["mean_weight"],
            )
        )
    rows.append(("always the longer", with_interval(found["longer"]), *[""] * 5))
    header = ("reference", "accuracy", "per token", "per byte", "margin", "5 | 50 | 95 %", "weight")
    print_table(header, rows)
    print(
        "margin: mean log-prob (nats) of the chosen less the rejected. weight: MRPO's, over groups."
    )


def _print_agreement(rows: list[dict[str, Any]]) -> None:
    print("\nAgreement, pair by pair:")
    header = ("references", "pairs", "both right", "first only", "second only", "both wrong",
              "agree", "kappa")  # fmt: skip
    print_table(
        header,
        [
            (f"{one['first']}, {one['second']}", one["pairs"], one["both_right"],
             one["first_only"], one["second_only"], one["both_wrong"], one["agreement"],
             one["kappa"])
            for one in rows
        ],
    )  # fmt: skip
    if any(one["disagreements"] for one in rows):
        print("Where they differ most (accuracy on the group of the first, of the second):")
    for one in rows:
        for group in one["disagreements"][:2]:
            prompt = " ".join(group["prompt"].split())
            shown = prompt if len(prompt) <= PROMPT_SHOWN else f"{prompt[: PROMPT_SHOWN - 1]}…"
            print(
                f"  {one['first']} {group['first']:.2f}, {one['second']} {group['second']:.2f}  "
                f"{group['group_id'][:8]}  {shown}"
            )


def _print_clipped(found: dict[str, Any]) -> None:
    names = list(found["clipped"][0]["shares"])
    first = found["references"][0]["name"]
    print(f"\nShare of responses clipped to the trust region around {first}:")
    print_table(
        ("ε_max", *names),
        [(f"{one['epsilon_max']:g}", *one["shares"].values()) for one in found["clipped"]],
    )


def _print_virtual(rows: list[dict[str, Any]]) -> None:
    print("\nVirtual references, the most accurate first (gain: over reference 1 alone):")
    order = sorted(rows, key=lambda one: -one["accuracy"]["value"])
    print_table(
        ("references", "combination", "ε_max", "accuracy", "gain"),
        [
            (" + ".join(one["references"]), one["combination"],
             "no clip" if one["epsilon_max"] is None else f"{one['epsilon_max']:g}",
             with_interval(one["accuracy"]), with_interval(one["gain"], signed=True))
            for one in order[:ROWS_SHOWN]
        ],
    )  # fmt: skip
    if len(rows) > ROWS_SHOWN:
        print(f"… and {len(rows) - ROWS_SHOWN} more with --json")


def _in_words(found: dict[str, Any]) -> dict[str, str]:
    """The fixed fields as people read them."""
    epsilon = "no clipping" if found["epsilon_max"] is None else f"{found['epsilon_max']:g}"
    return {
        "reference 1": found["reference_1"],
        "others": ", ".join(found["others"]) or "none",
        "combination": found["combination"] or "none",
        "ε_max": epsilon if found["others"] else "none",
        "why": found["why"],
        "confidence": found["confidence"],
    }
