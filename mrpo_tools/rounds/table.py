"""The table over rounds: what each round's policy gives, how far it went, and what it took."""

from __future__ import annotations

from collections.abc import Sequence

from mrpo_tools.rounds.record import PHASES, RoundRecord
from mrpo_tools.runs.outcomes import Outcome
from mrpo_tools.runs.record import Estimate

Rows = list[tuple[str, ...]]
NONE = "–"
REMARKS = (
    "Outcomes are of answers sampled to held-out prompts, 95 % intervals over prompts. KL is in "
    "nats of a whole answer, to reference 1 and to the policy of the round before."
)


def outcome_rows(records: Sequence[RoundRecord]) -> tuple[tuple[str, ...], Rows]:
    """Header and a row a round, the first policy's before them."""
    if not records:
        return (), []
    scorers = list(dict.fromkeys(each.scorer for each in records[0].outcomes))
    header = (
        "round", "trained against",
        *(f"{scorer}{' (held out)' if place else ''}" for place, scorer in enumerate(scorers)),
        "KL to 1", "KL to last", "tokens", "cut", "score of samples", "groups", "seconds",
    )  # fmt: skip
    first = _sampled(records[0].untrained)
    rows = [("0", NONE, *_outcomes(first, scorers), NONE, NONE, *_length(first), *[NONE] * 3)]
    for record in records:
        own = _sampled(record.outcomes)
        lead = own.get(scorers[0])
        rows.append(
            (
                str(record.number),
                ",".join(record.references),
                *_outcomes(own, scorers),
                _estimate(lead.estimate("kl_nats") if lead else Estimate(), ".3f"),
                _estimate(record.kl_last, ".3f"),
                *_length(own),
                NONE if record.score is None else f"{record.score:.3f}",
                f"{record.groups:,}",
                f"{sum(record.seconds.values()):,.0f}",
            )
        )
    return header, rows


def cost_rows(records: Sequence[RoundRecord]) -> tuple[tuple[str, ...], Rows]:
    """Header and a row a round: what became of the answers, and seconds by phase."""
    statuses = list(dict.fromkeys(name for record in records for name in record.statuses))
    header = ("round", "answers", *(name.replace("_", " ") for name in statuses), *PHASES)
    rows = [
        (
            str(record.number),
            f"{record.answered:,}",
            *(f"{record.statuses.get(name, 0):,}" for name in statuses),
            *(f"{record.seconds.get(phase, 0.0):,.1f}" for phase in PHASES),
        )
        for record in records
    ]
    return header, rows


def as_markdown(records: Sequence[RoundRecord]) -> str:
    """Both tables as a page."""
    tables = [_markdown(*outcome_rows(records)), REMARKS, _markdown(*cost_rows(records))]
    return "\n\n".join(tables) + "\n"


def _markdown(header: tuple[str, ...], rows: Rows) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _sampled(outcomes: Sequence[Outcome]) -> dict[str, Outcome]:
    """By scorer, of sampled answers."""
    return {each.scorer: each for each in outcomes if each.decoding == "sampled"}


def _outcomes(own: dict[str, Outcome], scorers: Sequence[str]) -> list[str]:
    return [
        _estimate(own[name].estimate("mean"), ".2f") if name in own else NONE for name in scorers
    ]


def _length(own: dict[str, Outcome]) -> tuple[str, str]:
    """Mean tokens of an answer, and the share that was cut."""
    first = next(iter(own.values()), None)
    if first is None or first.mean_tokens is None:
        return NONE, NONE
    return f"{first.mean_tokens:.1f}", f"{first.truncated or 0.0:.1%}"


def _estimate(value: Estimate, form: str) -> str:
    if value.value is None:
        return NONE
    if value.low is None or value.high is None:
        return format(value.value, form)
    return f"{value.value:{form}} [{value.low:{form}}, {value.high:{form}}]"
