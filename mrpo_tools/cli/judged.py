"""How the verdicts of judges are printed: a table for each judge, and their agreement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mrpo_tools.cli.options import print_json, print_table, with_interval

if TYPE_CHECKING:
    from mrpo_tools.evaluation.contest import Bout, BoutResult, Strength
    from mrpo_tools.evaluation.contestants import Entered
    from mrpo_tools.judging.ensure import Verdicts
    from mrpo_tools.runs.record import Estimate

HEADER = ("against each other", "win rate", "win", "tie", "loss", "flips", "at equal lengths")


def report(
    entry: Entered, bouts: Sequence[Bout], said: Sequence[Verdicts], *, as_json: bool
) -> None:
    """Everything that the judges said, as tables or as one JSON object."""
    from mrpo_tools.evaluation.contest import bout_result, judges_agree, strengths

    names = entry.names
    tables = [[bout_result(bout, names, each.rows) for bout in bouts] for each in said]
    three = len(names) > 2
    ranks = [strengths(bouts, names, each.rows) if three else [] for each in said]
    agreed = judges_agree(bouts, said[0].rows, said[1].rows) if len(said) == 2 else None
    if as_json:
        judges = [
            {**_about(each), "bouts": [_bout(row) for row in table],
             "strengths": [_strength(row) for row in rank]}
            for each, table, rank in zip(said, tables, ranks, strict=True)
        ]  # fmt: skip
        kappa = dict(zip(("kappa", "agreement", "prompts"), agreed, strict=True)) if agreed else {}
        print_json({"contestants": names, "prompts": len(entry.prompts), "lacking": entry.lacking,
                    "judges": judges, "two_judges": kappa or None})  # fmt: skip
        return
    for each, table, rank in zip(said, tables, ranks, strict=True):
        _print_judge(each, table, rank)
    if agreed:
        kappa_text = "–" if agreed[0] is None else f"{agreed[0]:.3f}"
        print(
            f"the two judges agree on {_share(agreed[1])} of {agreed[2]:,} prompts, "
            f"Cohen's kappa {kappa_text}"
        )


def _print_judge(each: Verdicts, table: Sequence[BoutResult], rank: Sequence[Strength]) -> None:
    rows = [
        (f"{row.first} : {row.second}", with_interval(row.win_rate), row.wins, row.ties,
         row.losses, _share(row.flip_share), with_interval(row.controlled))
        for row in table
    ]  # fmt: skip
    print_table((f"by {each.judge.name}", *HEADER[1:]), rows)
    print(f"on {table[0].prompts:,} prompts, 95 % intervals over prompts; a tie is half a win")
    for row in table:
        for line in remarks(row):
            print(f"{row.first} : {row.second}: {line}")
    if rank:
        print_table(
            ("Bradley-Terry", "strength, nats", "win rate"),
            [(row.name, with_interval(row.strength), row.win_rate) for row in rank],
        )
    print(spent(each))
    print()


def remarks(row: BoutResult) -> list[str]:
    """What to know beside a win rate."""
    lines = []
    if row.agreement.asked:
        lines.append(
            f"asked once more, the judge said the same {row.agreement.same} of "
            f"{row.agreement.asked} times"
        )
    if row.first_shown is not None:
        lines.append(
            f"{_share(row.first_shown)} of decided verdicts are for the answer shown first"
        )
    if row.lengths is not None:
        line, longer = row.lengths, row.longer or 0.0
        lines.append(
            f"answers are {abs(longer):,.0f} characters {'longer' if longer > 0 else 'shorter'}; "
            f"{line.slope:+.2f} ± {line.slope_error:.2f} logits for {line.scale:,.0f} more"
        )
    elif row.prompts:
        lines.append(
            "no win rate at equal lengths: few prompts, lengths that are all the same, or that "
            "part the wins from the losses"
        )
    if row.identical:
        lines.append(f"{row.identical:,} prompts have equal answers: ties that nobody was asked")
    for status, count in row.without.items():
        lines.append(f"{count:,} prompts without a result: {status}")
    lines += [
        f"of {part.part}: {with_interval(part.win_rate)} of {part.prompts:,}" for part in row.parts
    ]
    return lines


def spent(each: Verdicts) -> str:
    """What was asked now, and what it cost."""
    purse = each.purse
    price = f", {purse.spent:,.4f} spent" if purse.prices is not None else ""
    left = f"; the budget left {each.unpaid:,} unasked" if each.unpaid else ""
    return (
        f"{each.reused:,} verdicts were there, {each.asked:,} asked now: {purse.prompt_tokens:,} "
        f"tokens read and {purse.completion_tokens:,} written{price}{left}"
    )


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _about(each: Verdicts) -> dict[str, Any]:
    purse = each.purse
    return {
        **each.judge.words,
        "name": each.judge.name,
        "identity": each.judge.identity.short,
        "reused": each.reused,
        "asked": each.asked,
        "unpaid": each.unpaid,
        "prompt_tokens": purse.prompt_tokens,
        "completion_tokens": purse.completion_tokens,
        "spent": purse.spent if purse.prices is not None else None,
        "seconds": round(each.seconds, 2),
    }


def _bout(row: BoutResult) -> dict[str, Any]:
    line = row.lengths
    return {
        "first": row.first,
        "second": row.second,
        "prompts": row.prompts,
        "win_rate": _estimate(row.win_rate),
        "wins": row.wins,
        "ties": row.ties,
        "losses": row.losses,
        "flips": row.flips,
        "flip_share": row.flip_share,
        "identical": row.identical,
        "without": dict(row.without),
        "first_shown": row.first_shown,
        "asked_again": row.agreement.asked,
        "same_again": row.agreement.same,
        "length_controlled": _estimate(row.controlled),
        "length_slope": None if line is None else line.slope,
        "length_slope_error": None if line is None else line.slope_error,
        "length_scale": None if line is None else line.scale,
        "longer": row.longer,
        "parts": {
            part.part: {"prompts": part.prompts, "win_rate": _estimate(part.win_rate)}
            for part in row.parts
        },
    }


def _strength(row: Strength) -> dict[str, Any]:
    return {"name": row.name, "strength": _estimate(row.strength), "win_rate": row.win_rate}


def _estimate(measured: Estimate) -> dict[str, float | None]:
    return {"value": measured.value, "low": measured.low, "high": measured.high}
