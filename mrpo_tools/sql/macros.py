"""The reference mathematics of `mrpo_tools.maths` as SQL table macros.

A macro takes names of references, reference 1 first. A response takes part when it has a number
(`status` is `ok`) under every reference that is named; a group appears once all of its responses
have been scored by them, so what it shows is what training would use.

A macro's body is a chain of common table expressions. The chains share their links, which stand
below in the order of the computation: MRPO Eq. 10, 9, 8 and Proposition 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mrpo_tools.sql.names import literal, text_list

JUDGED = "judged_groups"
"""The table the macros read beside `logps`: groups without their text."""


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


# Responses of groups, and the numbers of the references that are named.
_NUMBERS = f"""
judged AS (
    SELECT grp, labelled, scored, size, place AS position, response.response_id AS response_id,
           response.score AS score, response.chosen AS chosen
    FROM (SELECT grp, labelled, scored, size, unnest(responses) AS response,
                 generate_subscripts(responses, 1) - 1 AS place FROM {JUDGED})
),
numbers AS (
    SELECT judged.*, named.k, logps.logp, logps.status = 'ok' AS ok,
           greatest(logps.num_tokens, 1) AS tokens, greatest(logps.num_bytes, 1) AS bytes
    FROM judged JOIN logps USING (response_id) JOIN named USING (reference)
),"""

# Only groups that are scored completely; only responses with a number under every reference.
_USABLE = f"""{_NUMBERS}
members AS (
    SELECT grp, position, any_value(size) AS size, bool_and(ok) AS usable, count(*) AS found
    FROM numbers GROUP BY grp, position
),
complete AS (
    SELECT grp FROM members GROUP BY grp
    HAVING sum(found) = any_value(size) * (SELECT count(*) FROM named)
),
usable AS (
    SELECT numbers.* FROM numbers JOIN members USING (grp, position)
    SEMI JOIN complete ON numbers.grp = complete.grp WHERE members.usable
),"""

# Eq. 10 for N responses: the mean of |r_i - r_j| over pairs; its constant cancels.
_WEIGHTS = """
spreads AS (
    SELECT one.grp, one.k, sum(abs(one.logp - other.logp)) AS spread
    FROM usable AS one JOIN usable AS other
      ON one.grp = other.grp AND one.k = other.k AND one.position < other.position
    GROUP BY one.grp, one.k
),
weighed AS (
    SELECT grp, k, reference,
           CASE WHEN sum(spread) OVER of_group > 0
                THEN coalesce(spread, 0) / sum(spread) OVER of_group
                ELSE 1::DOUBLE / (SELECT count(*) FROM named) END AS weight
    FROM complete CROSS JOIN named LEFT JOIN spreads USING (grp, k)
    WINDOW of_group AS (PARTITION BY grp)
),"""

# Eq. 9.
_RADII = """
sums AS (
    SELECT grp, position, any_value(response_id) AS response_id, abs(sum(logp)) AS size
    FROM usable GROUP BY grp, position
),
radii AS (
    SELECT grp, position, response_id,
           eps_max::DOUBLE * CASE WHEN sum(size) OVER of_group > 0
                                  THEN size / sum(size) OVER of_group
                                  ELSE 1::DOUBLE / count(*) OVER of_group END AS radius
    FROM sums WINDOW of_group AS (PARTITION BY grp)
),"""

# Eq. 8.
_CLIPPED = f"""{_RADII}
centred AS (
    SELECT usable.*, radii.radius, first.logp AS centre, radii.radius * abs(first.logp) AS room
    FROM usable
    JOIN (SELECT grp, position, logp FROM usable WHERE k = 1) AS first USING (grp, position)
    JOIN radii USING (grp, position)
),
bounded AS (
    SELECT *, CASE WHEN k = 1 THEN logp
                   ELSE least(greatest(logp, centre - room), centre + room) END AS clipped
    FROM centred
),"""

# Proposition 1, harmonic: -logsumexp_k(log weight - clipped).
_COMBINED = """
combined AS (
    SELECT grp, position, response_id, radius, centre,
           -(list_max(terms)
             + ln(list_sum(list_transform(terms, lambda t: exp(t - list_max(terms)))))) AS logp
    FROM (SELECT grp, position, any_value(response_id) AS response_id,
                 any_value(radius) AS radius, any_value(centre) AS centre,
                 list(ln(weight) - clipped) AS terms
          FROM bounded JOIN weighed USING (grp, k) WHERE weight > 0 GROUP BY grp, position)
),"""

# A group's chosen and rejected responses: its labels, or else scores against their mean.
_SIDES = f"""{_NUMBERS}
whole AS (
    SELECT grp, k FROM numbers GROUP BY grp, k HAVING count(*) = any_value(size)
),
sides AS (
    SELECT grp, k, position, labelled, score, logp, logp / tokens AS per_token,
           logp / bytes AS per_byte,
           CASE WHEN labelled THEN chosen
                WHEN scored THEN score - avg(score) OVER of_group
                                 > 1e-9 * greatest(1, max(abs(score)) OVER of_group)
           END AS positive
    FROM numbers SEMI JOIN whole USING (grp, k) WHERE ok
    WINDOW of_group AS (PARTITION BY grp, k)
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
      AND best.position <> worst.position
    WHERE CASE WHEN best.labelled THEN best.positive AND NOT worst.positive
               ELSE best.score > worst.score END
    GROUP BY best.grp, best.k
),"""

_AGREED = """
signs AS (
    SELECT one.grp, sign(one.logp - other.logp) AS first, sign(one.second - other.second) AS second
    FROM both_numbers AS one JOIN both_numbers AS other
      ON one.grp = other.grp AND one.position < other.position
),
agreed AS (
    SELECT grp, count(*) AS pairs, avg((first = second)::INTEGER) AS agreement,
           sum(first * second) / nullif(sqrt(sum(abs(first)) * sum(abs(second))), 0) AS tau
    FROM signs GROUP BY grp
)"""

_BOTH = """
both_numbers AS (
    SELECT one.grp, one.position, one.logp, other.logp AS second
    FROM usable AS one JOIN usable AS other
      ON one.grp = other.grp AND one.position = other.position AND one.k = 1 AND other.k = 2
),"""

_REFS = "CASE WHEN refs IS NULL THEN every_reference ELSE refs END"
_GROUP = ("group_id", "prompt_id", "dataset", "split")
_GROUP_SQL = ", ".join(f"{JUDGED}.{column}" for column in _GROUP)

MACROS = (
    Macro(
        "margins",
        "ref := NULL",
        "per group: how far a reference (or each) holds chosen above rejected, "
        "and the share of pairs it ranks right",
        ("reference", *_GROUP, "responses", "pairs", "margin", "accuracy", "accuracy_per_token",
         "accuracy_per_byte"),
        "CASE WHEN ref IS NULL THEN every_reference ELSE [ref] END",
        f"""{_SIDES}
answer AS (SELECT * FROM margined LEFT JOIN ranked USING (grp, k))
SELECT named.reference, {_GROUP_SQL}, answer.responses, coalesce(answer.pairs, 0) AS pairs,
       answer.margin, answer.accuracy, answer.accuracy_per_token, answer.accuracy_per_byte
FROM answer JOIN named USING (k) JOIN {JUDGED} USING (grp)""",
    ),
    Macro(
        "weights",
        "refs := NULL",
        "per group and reference: the confidence weight (MRPO Eq. 10)",
        (*_GROUP, "reference", "weight"),
        _REFS,
        f"""{_USABLE}{_WEIGHTS.rstrip(",")}
SELECT {_GROUP_SQL}, weighed.reference, weighed.weight FROM weighed JOIN {JUDGED} USING (grp)""",
    ),
    Macro(
        "radius",
        "eps_max := 0.1, refs := NULL",
        "per response: the adaptive radius of the trust region (Eq. 9)",
        (*_GROUP, "response_id", "position", "radius"),
        _REFS,
        f"""{_USABLE}{_RADII.rstrip(",")}
SELECT {_GROUP_SQL}, radii.response_id, radii.position, radii.radius
FROM radii JOIN {JUDGED} USING (grp)""",
    ),
    Macro(
        "trust_region",
        "eps_max := 0.1, refs := NULL",
        "per response and reference: the log-prob before and after clipping (Eq. 8)",
        (*_GROUP, "response_id", "position", "reference", "logp", "clipped", "moved"),
        _REFS,
        f"""{_USABLE}{_CLIPPED.rstrip(",")}
SELECT {_GROUP_SQL}, bounded.response_id, bounded.position, named.reference, bounded.logp,
       bounded.clipped, bounded.logp <> bounded.clipped AS moved
FROM bounded JOIN named USING (k) JOIN {JUDGED} USING (grp)""",
    ),
    Macro(
        "virtual_reference",
        "eps_max := 0.1, refs := NULL",
        "per response: the one log-prob that MRPO trains against "
        "(harmonic, confidence weights, adaptive radius)",
        (*_GROUP, "response_id", "position", "logp", "reference_1", "radius"),
        _REFS,
        f"""{_USABLE}{_WEIGHTS}{_CLIPPED}{_COMBINED.rstrip(",")}
SELECT {_GROUP_SQL}, combined.response_id, combined.position, combined.logp,
       combined.centre AS reference_1, combined.radius
FROM combined JOIN {JUDGED} USING (grp)""",
    ),
    Macro(
        "agreement",
        "a := NULL, b := NULL",
        "per group: the share of pairs that two references order alike, and Kendall's tau-b",
        (*_GROUP, "pairs", "agreement", "tau"),
        "[coalesce(a, every_reference[1]), coalesce(b, every_reference[2])]",
        f"""{_USABLE}{_BOTH}{_AGREED}
SELECT {_GROUP_SQL}, agreed.pairs, agreed.agreement, agreed.tau
FROM agreed JOIN {JUDGED} USING (grp)""",
    ),
)


def macro_statements(order: Sequence[str], spellings: Mapping[str, str]) -> list[str]:
    """CREATE MACRO for each macro.

    Args:
        order: every reference by its label; the macros' default.
        spellings: what else a user may write for a label.
    """
    known = literal(f" in this cache ({', '.join(order) or 'none yet'})")
    find = (
        "CREATE MACRO find_reference(name) AS coalesce("
        f"map_extract_value(MAP({text_list(list(spellings))}, "
        f"{text_list(list(spellings.values()))}), name::VARCHAR), "
        f"error('no reference ' || coalesce(name::VARCHAR, 'NULL') || {known}))"
    )
    return [find, *(_statement(macro, text_list(order)) for macro in MACROS)]


def _statement(macro: Macro, order: str) -> str:
    names = macro.named.replace("every_reference", order)
    return f"""CREATE MACRO {macro.name}({macro.arguments}) AS TABLE
WITH named AS MATERIALIZED (
    SELECT k, find_reference(wanted) AS reference
    FROM (SELECT unnest(names) AS wanted, generate_subscripts(names, 1) AS k
          FROM (SELECT ({names})::VARCHAR[] AS names))
),{macro.body}"""
