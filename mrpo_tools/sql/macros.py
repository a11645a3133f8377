"""The reference mathematics of `mrpo_tools.maths` as SQL table macros.

A macro takes names of references, reference 1 first. A response takes part when every reference
that is named has a number for it (`status` is `ok`) and read it whole (not `truncated`); a group
appears once all of its responses have a row under them, so what it shows is what training uses
unless its recipe keeps truncated ones.

A macro's body is a chain of common table expressions. The chains share their links, which stand
below in the order of the computation: MRPO Eq. 10, 9, 8 and Proposition 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mrpo_tools.sql.names import literal, text_list

HOME = "memory.main"
"""Where the views are; by its full name no expression of a user's query stands in for one."""

JUDGED = "judged_groups"
"""The view the macros read beside `logps`: groups without their text."""

_JUDGED = f"""
CREATE VIEW {JUDGED} AS
SELECT grp, group_id, prompt_id, dataset, split, responses, len(responses)::INTEGER AS size,
       list_bool_and(list_transform(responses, lambda r: r.chosen IS NOT NULL)) AS labelled,
       list_bool_and(list_transform(responses, lambda r: r.score IS NOT NULL)) AS scored
FROM stored_judgements"""


@dataclass(frozen=True)
class Macro:
    """A table macro.

    Attributes:
        name: as it is called.
        arguments: SQL of its parameters, all with defaults.
        about: one line for people.
        columns: what it returns.
        named: SQL of the list of references it is about, in terms of the parameters and
            `every_reference`.
        body: its last links and its SELECT.
    """

    name: str
    arguments: str
    about: str
    columns: tuple[str, ...]
    named: str
    body: str


# Responses of groups with the numbers of the references that are named; narrow, for millions.
_NUMBERS = f"""
judged AS (
    SELECT grp, size, place::INTEGER AS position, response.response_id AS response_id,
           response.score AS score, response.chosen AS chosen
    FROM (SELECT grp, size, unnest(responses) AS response,
                 generate_subscripts(responses, 1) - 1 AS place FROM {HOME}.{JUDGED})
),
numbers AS (
    SELECT grp, size, position, score, chosen, k, logp, num_tokens, num_bytes,
           status = 'ok' AND NOT truncated AS ok
    FROM {HOME}.logps JOIN named USING (reference) JOIN judged USING (response_id)
),"""

# Groups of which every response has a row; in them, responses with a number under every reference.
_USABLE = f"""{_NUMBERS}
complete AS (
    SELECT grp FROM numbers GROUP BY grp
    HAVING count(*) = any_value(size) * (SELECT count(*) FROM named)
),
dropped AS (SELECT DISTINCT grp, position FROM numbers WHERE NOT ok),
usable AS (
    SELECT grp, position, k, logp
    FROM numbers SEMI JOIN complete USING (grp) ANTI JOIN dropped USING (grp, position)
),"""

# Eq. 10 for N responses: the sum of |r_i - r_j| over pairs, as in a sorted list; from the smallest
# up, so that nothing cancels. The mean's constant cancels in the ratio.
_WEIGHTS = """
spreads AS (
    SELECT grp, k,
           list_sum(list_transform(r, lambda x, i: (2 * i - len(r) - 1) * (x - r[1]))) AS spread
    FROM (SELECT grp, k, list_sort(list(logp)) AS r FROM usable GROUP BY grp, k)
),
totals AS (SELECT grp, sum(spread) AS total FROM spreads GROUP BY grp),
weighed AS (
    SELECT grp, k, CASE WHEN total > 0 THEN spread / total
                        ELSE 1::DOUBLE / (SELECT count(*) FROM named) END AS weight
    FROM complete CROSS JOIN named LEFT JOIN spreads USING (grp, k) LEFT JOIN totals USING (grp)
),"""

# Eq. 9.
_RADII = """
members AS (
    SELECT grp, position, abs(sum(logp)) AS size, max(logp) FILTER (k = 1) AS centre
    FROM usable GROUP BY grp, position
),
sizes AS (SELECT grp, sum(size) AS total, count(*) AS count FROM members GROUP BY grp),
radii AS (
    SELECT grp, position, centre,
           eps_max::DOUBLE * CASE WHEN total > 0 THEN size / total ELSE 1 / count END AS radius
    FROM members JOIN sizes USING (grp)
),"""

# Eq. 8; reference 1 lies in its own trust region.
_CLIPPED = f"""{_RADII}
bounded AS (
    SELECT grp, position, k, logp, centre, radius,
           least(greatest(logp, centre - radius * abs(centre)), centre + radius * abs(centre))
           AS clipped
    FROM usable JOIN radii USING (grp, position)
),"""

# Proposition 1, harmonic: -logsumexp_k(log weight - clipped).
_COMBINED = """
combined AS (
    SELECT grp, position, centre, radius, -(list_max(terms)
           + ln(list_sum(list_transform(terms, lambda t: exp(t - list_max(terms)))))) AS logp
    FROM (SELECT grp, position, any_value(centre) AS centre, any_value(radius) AS radius,
                 list(ln(weight) - clipped) AS terms
          FROM bounded JOIN weighed USING (grp, k) WHERE weight > 0 GROUP BY grp, position)
),"""

# A group's chosen and rejected responses: by its labels, or else by scores against their mean.
_SIDES = f"""{_NUMBERS}
means AS (
    SELECT grp, k, avg(score) FILTER (ok) AS mean,
           1e-9 * greatest(1, max(abs(score)) FILTER (ok)) AS tolerance
    FROM numbers GROUP BY grp, k HAVING count(*) = any_value(size)
),
sides AS (
    SELECT grp, k, position, labelled, score, logp, logp / greatest(num_tokens, 1) AS per_token,
           logp / greatest(num_bytes, 1) AS per_byte,
           CASE WHEN labelled THEN chosen WHEN scored THEN score - mean > tolerance END AS positive
    FROM numbers JOIN means USING (grp, k)
    JOIN (SELECT grp, labelled, scored FROM {HOME}.{JUDGED}) USING (grp) WHERE ok
),
margined AS (
    SELECT grp, k, count(*) AS responses,
           avg(logp) FILTER (positive) - avg(logp) FILTER (NOT positive) AS margin
    FROM sides GROUP BY grp, k
),
ranked AS (
    SELECT best.grp, best.k, count(*) AS pairs,
           avg((best.logp > worst.logp)::INTEGER) AS accuracy,
           avg((best.per_token > worst.per_token)::INTEGER) AS accuracy_per_token,
           avg((best.per_byte > worst.per_byte)::INTEGER) AS accuracy_per_byte
    FROM sides AS best JOIN sides AS worst ON best.grp = worst.grp AND best.k = worst.k
      AND CASE WHEN best.labelled THEN best.positive AND NOT worst.positive
               ELSE best.score > worst.score END
    GROUP BY best.grp, best.k
),"""

_AGREED = """
paired AS (
    SELECT grp, position, max(logp) FILTER (k = 1) AS first, max(logp) FILTER (k = 2) AS second
    FROM usable GROUP BY grp, position
),
signs AS (
    SELECT i.grp, sign(i.first - j.first) AS first,
           sign(i.second - j.second) AS second
    FROM paired AS i JOIN paired AS j
      ON i.grp = j.grp AND i.position < j.position
),
agreed AS (
    SELECT grp, count(*) AS pairs, avg((first = second)::INTEGER) AS agreement,
           sum(first * second) / nullif(sqrt(sum(abs(first)) * sum(abs(second))), 0) AS tau
    FROM signs GROUP BY grp
)"""

_REFS = "CASE WHEN refs IS NULL THEN every_reference ELSE refs END"
_GROUP = ("group_id", "prompt_id", "dataset", "split")
_RESPONSE_SQL = f"{JUDGED}.responses[position + 1].response_id AS response_id"
_GROUP_SQL = ", ".join(f"{JUDGED}.{column}" for column in _GROUP)

MACROS = (
    Macro(
        "margins",
        "ref := NULL",
        "per group: how far a reference (or each) holds chosen above rejected, "
        "and the share of pairs it ranks right",
        ("reference", *_GROUP, "responses", "pairs", "margin", "accuracy",
         "accuracy_per_token", "accuracy_per_byte"),
        "CASE WHEN ref IS NULL THEN every_reference ELSE [ref] END",
        f"""{_SIDES}
answer AS (SELECT * FROM margined LEFT JOIN ranked USING (grp, k))
SELECT named.reference, {_GROUP_SQL}, answer.responses, coalesce(answer.pairs, 0) AS pairs,
       answer.margin, answer.accuracy, answer.accuracy_per_token, answer.accuracy_per_byte
FROM answer JOIN named USING (k) JOIN {HOME}.{JUDGED} USING (grp)""",
    ),
    Macro(
        "weights",
        "refs := NULL",
        "per group and reference: the confidence weight (MRPO Eq. 10)",
        (*_GROUP, "reference", "weight"),
        _REFS,
        f"""{_USABLE}{_WEIGHTS.rstrip(",")}
SELECT {_GROUP_SQL}, named.reference, weighed.weight
FROM weighed JOIN named USING (k) JOIN {HOME}.{JUDGED} USING (grp)""",
    ),
    Macro(
        "radius",
        "eps_max := 0.1, refs := NULL",
        "per response: the adaptive radius of the trust region (Eq. 9)",
        (*_GROUP, "response_id", "position", "radius"),
        _REFS,
        f"""{_USABLE}{_RADII.rstrip(",")}
SELECT {_GROUP_SQL}, {_RESPONSE_SQL}, radii.position, radii.radius
FROM radii JOIN {HOME}.{JUDGED} USING (grp)""",
    ),
    Macro(
        "trust_region",
        "eps_max := 0.1, refs := NULL",
        "per response and reference: the log-prob before and after clipping (Eq. 8)",
        (*_GROUP, "response_id", "position", "reference", "logp", "clipped", "moved"),
        _REFS,
        f"""{_USABLE}{_CLIPPED.rstrip(",")}
SELECT {_GROUP_SQL}, {_RESPONSE_SQL}, bounded.position, named.reference, bounded.logp,
       bounded.clipped, bounded.logp <> bounded.clipped AS moved
FROM bounded JOIN named USING (k) JOIN {HOME}.{JUDGED} USING (grp)""",
    ),
    Macro(
        "virtual_reference",
        "eps_max := 0.1, refs := NULL",
        "per response: the one log-prob that MRPO trains against "
        "(harmonic, confidence weights, adaptive radius)",
        (*_GROUP, "response_id", "position", "logp", "reference_1", "radius"),
        _REFS,
        f"""{_USABLE}{_WEIGHTS}{_CLIPPED}{_COMBINED.rstrip(",")}
SELECT {_GROUP_SQL}, {_RESPONSE_SQL}, combined.position, combined.logp,
       combined.centre AS reference_1, combined.radius
FROM combined JOIN {HOME}.{JUDGED} USING (grp)""",
    ),
    Macro(
        "agreement",
        "a := NULL, b := NULL",
        "per group: the share of pairs that two references order alike, and Kendall's tau-b",
        (*_GROUP, "pairs", "agreement", "tau"),
        "[coalesce(a, every_reference[1]), coalesce(b, list_filter(every_reference, lambda name: "
        "name != find_reference(coalesce(a, every_reference[1])))[1], "
        "error('agreement needs two references'))]",
        f"""{_USABLE}{_AGREED}
SELECT {_GROUP_SQL}, agreed.pairs, agreed.agreement, agreed.tau
FROM agreed JOIN {HOME}.{JUDGED} USING (grp)""",
    ),
)  # fmt: skip


def macro_statements(order: Sequence[str], spellings: Mapping[str, str]) -> list[str]:
    """CREATE MACRO for each macro, after what they build on.

    Args:
        order: every reference by its label; the macros' default.
        spellings: what else a user may write for a label.
    """
    listed = literal(f" in this cache ({', '.join(order) or 'none yet'})")
    find = (
        "CREATE MACRO find_reference(name) AS coalesce("
        f"map_extract_value(MAP({text_list(list(spellings))}, "
        f"{text_list(list(spellings.values()))}), name::VARCHAR), "
        f"error('no reference ' || coalesce(name::VARCHAR, 'NULL') || {listed}))"
    )
    return [_JUDGED, find, *(_statement(macro, text_list(order)) for macro in MACROS)]


def _statement(macro: Macro, order: str) -> str:
    names = macro.named.replace("every_reference", order)
    return f"""CREATE MACRO {macro.name}({macro.arguments}) AS TABLE
WITH named AS MATERIALIZED (
    SELECT k::TINYINT AS k, find_reference(wanted) AS reference
    FROM (SELECT unnest(names) AS wanted, generate_subscripts(names, 1) AS k
          FROM (SELECT ({names})::VARCHAR[] AS names))
),{macro.body}"""
