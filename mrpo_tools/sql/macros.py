"""The reference mathematics of `mrpo_tools.maths` as SQL table macros.

A macro takes names of references, reference 1 first. A response takes part when it has a number
(`status` is `ok`) under every reference named; a group appears once every one of its responses has
been scored by them, so what it shows is what training would use.

Each macro is a chain of common table expressions; the chains share their links, which stand below
in the order of the computation (MRPO Eq. 8-10 and Proposition 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mrpo_tools.sql.names import Label, literal


@dataclass(frozen=True)
class Macro:
    """A table macro as a user meets it."""

    name: str
    arguments: str
    about: str
    columns: tuple[str, ...]
    body: str


_NUMBERS = """
judged AS (
    SELECT grp, position, response.response_id AS response_id, response.score AS score,
           response.chosen AS chosen, labelled, scored, size
    FROM (SELECT grp, unnest(responses) AS response,
                 generate_subscripts(responses, 1) - 1 AS position, len(responses) AS size,
                 list_bool_and(list_transform(responses, lambda r: r.chosen IS NOT NULL)) AS labelled,
                 list_bool_and(list_transform(responses, lambda r: r.score IS NOT NULL)) AS scored
          FROM judged_groups)
),
numbers AS (
    SELECT judged.*, k, logps.logp, logps.status = 'ok' AS ok,
           greatest(logps.num_tokens, 1) AS tokens, greatest(logps.num_bytes, 1) AS bytes
    FROM judged JOIN logps USING (response_id) JOIN named USING (reference)
)"""

_USABLE = (
    _NUMBERS
    + """,
members AS (
    SELECT grp, position, any_value(size) AS size, bool_and(ok) AS usable, count(*) AS found
    FROM numbers GROUP BY grp, position
),
complete AS (
    SELECT grp FROM members GROUP BY grp
    HAVING sum(found) = any_value(size) * (SELECT count(*) FROM named)
),
usable AS (
    SELECT numbers.* FROM numbers JOIN members USING (grp, position) SEMI JOIN complete USING (grp)
    WHERE usable
)"""
)

_WEIGHTS = """,
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
)"""

_RADII = """,
sums AS (SELECT grp, position, abs(sum(logp)) AS size FROM usable GROUP BY grp, position),
radii AS (
    SELECT grp, position, eps_max::DOUBLE * CASE WHEN sum(size) OVER of_group > 0
           THEN size / sum(size) OVER of_group ELSE 1::DOUBLE / count(*) OVER of_group END AS radius
    FROM sums WINDOW of_group AS (PARTITION BY grp)
)"""

_CLIPPED = """,
centred AS (
    SELECT usable.*, first.logp AS centre, radius * abs(first.logp) AS room
    FROM usable JOIN (SELECT grp, position, logp FROM usable WHERE k = 1) AS first
      USING (grp, position) JOIN radii USING (grp, position)
),
clipped AS (
    SELECT *, CASE WHEN k = 1 THEN logp
              ELSE least(greatest(logp, centre - room), centre + room) END AS clipped
    FROM centred
)"""

_COMBINED = """,
terms AS (
    SELECT grp, position, any_value(response_id) AS response_id, any_value(centre) AS reference_1,
           list(ln(weight) - clipped) FILTER (weight > 0) AS terms
    FROM clipped JOIN weighed USING (grp, k) GROUP BY grp, position
)"""

_SIDES = """,
own AS (
    SELECT * FROM numbers WHERE ok
    QUALIFY count(*) OVER (PARTITION BY grp, k) > 0
),
sided AS (
    SELECT grp, k, position, logp, logp / tokens AS per_token, logp / bytes AS per_byte,
           labelled, score,
           CASE WHEN labelled THEN chosen
                WHEN scored THEN score - avg(score) OVER of_group
                                 > 1e-9 * greatest(1, max(abs(score)) OVER of_group)
           END AS positive
    FROM numbers SEMI JOIN whole USING (grp, k) WHERE ok
    WINDOW of_group AS (PARTITION BY grp, k)
)"""
