"""Outcomes on the command line: the options that ask for them, and how they are printed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from mrpo_tools.cli.options import decorate, print_table, with_interval

if TYPE_CHECKING:
    from mrpo_tools.runs.outcomes import Outcome, OutcomesRecord
    from mrpo_tools.sampling.answers import Sampling

rule_options = decorate(
    click.option("--rule", "rules", multiple=True, metavar="MODULE:FUNCTION",
                 help="Marks generated answers: FUNCTION(messages, answer). Repeats."),
    click.option("--full-marks", type=float, help="Of the rule.  [default: its `full_marks`]"),
    click.option("--samples", default=4, show_default=True, type=click.IntRange(0),
                 help="Answers drawn for each prompt, beside the greedy one."),
    click.option("--temperature", default=1.0, show_default=True, type=float,
                 help="Of these; KL needs 1."),
    click.option("--max-new-tokens", default=256, show_default=True, type=int,
                 help="Of an answer."),
)  # fmt: skip


def sampling_of(options: Mapping[str, Any]) -> Sampling:
    """How `rule_options` have answers drawn beside the greedy ones; greedy for none."""
    from mrpo_tools.sampling.answers import Sampling

    length = options["max_new_tokens"]
    if not options["samples"]:
        return Sampling(max_new_tokens=length)
    return Sampling(options["samples"], options["temperature"], max_new_tokens=length)


def print_outcomes(record: OutcomesRecord) -> None:
    """Every outcome, before training and after."""
    for scorer in dict.fromkeys(outcome.scorer for outcome in record.outcomes):
        own = [outcome for outcome in record.outcomes if outcome.scorer == scorer]
        aside = " (held out)" if own[0].held_out else ""
        header = (f"outcome by {scorer}{aside}", "untrained", "trained", "gain")
        trained_alone = not record.untrained
        rows = [row for outcome in own for row in _rows(outcome, record.before(outcome))]
        keep = (0, 2) if trained_alone else (0, 1, 2, 3)
        names = ("", "", "policy", "") if trained_alone else header
        print_table(
            (header[0], *(names[place] for place in keep[1:])),
            [tuple(row[place] for place in keep) for row in rows],
        )
        prompts = own[0].prompts
        print(f"on {prompts:,} prompts of split {record.split}, 95 % intervals over prompts")
        for line in dict.fromkeys(line for outcome in own for line in remarks(outcome)):
            print(line)
    print()


def _rows(outcome: Outcome, before: Outcome | None) -> Iterator[tuple[str, str, str, str]]:
    """A line for each number."""
    labels = {"mean": ("mean marks", ".3f"), "full": ("full marks", ".3f"),
              "kl_nats": ("KL(π‖reference 1), nats", ".3f")}  # fmt: skip
    quantities: tuple[Any, ...] = tuple(labels)
    for quantity in quantities:
        value = outcome.estimate(quantity)
        if value.value is None:
            continue
        label, form = labels[quantity]
        old = None if before is None else getattr(before, quantity)
        gain = with_interval(outcome.estimate("gain")) if quantity == "mean" else ""
        yield (
            f"{outcome.way}: {label}",
            "" if old is None else format(old, form),
            with_interval(value, form),
            gain,
        )


def remarks(outcome: Outcome) -> list[str]:
    """What to know beside an outcome's numbers."""
    lines = [] if outcome.note is None else [f"{outcome.way}: {outcome.note}"]
    if outcome.truncated:
        length = outcome.sampling.get("max_new_tokens", "so many")
        lines.append(
            f"{outcome.way}: {outcome.truncated:.0%} of the answers were cut at {length} tokens"
        )
    return lines
