"""Queries worth keeping: `mrpo sql --saved NAME`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from mrpo_tools.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class SavedQuery:
    """A query with a name.

    Attributes:
        name: as `--saved` takes it.
        about: the question it answers.
        sql: the query.
        params: defaults of its parameters.
    """

    name: str
    about: str
    sql: str
    params: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))


SAVED = (
    SavedQuery(
        "best-reference",
        "which reference ranks the pairs best, by summed log-prob, per token and per byte",
        """\
SELECT reference, count(accuracy) AS groups, sum(pairs) AS pairs,
       avg(accuracy) AS accuracy, avg(accuracy_per_token) AS accuracy_per_token,
       avg(accuracy_per_byte) AS accuracy_per_byte, avg(margin) AS margin
FROM margins()
GROUP BY reference
ORDER BY accuracy DESC, reference
""",
    ),
    SavedQuery(
        "disagreements",
        "in which groups two references disagree most",
        """\
SELECT worst.group_id, worst.pairs, worst.agreement, worst.tau, left(groups.prompt, 200) AS prompt
FROM (SELECT * FROM agreement($a, $b) ORDER BY agreement, pairs DESC, group_id LIMIT $n) AS worst
JOIN groups USING (group_id)
ORDER BY worst.agreement, worst.pairs DESC, worst.group_id
""",
        MappingProxyType({"a": None, "b": None, "n": 20}),
    ),
    SavedQuery(
        "clipped",
        "what share of the log-probs the trust region moves at eps, and how far",
        """\
SELECT reference, count(*) AS responses, avg(moved::INTEGER) AS clipped_share,
       avg(abs(logp - clipped)) AS mean_move_nats, max(abs(logp - clipped)) AS max_move_nats
FROM trust_region($eps)
GROUP BY reference
ORDER BY reference
""",
        MappingProxyType({"eps": 0.1}),
    ),
    SavedQuery(
        "outliers",
        "the longest responses, and the oddest: least likely per byte",
        """\
WITH tops AS (
    SELECT reference, 'longest' AS kind,
           max({key: num_tokens::DOUBLE, response_id: response_id}, $n) AS ends
    FROM logps GROUP BY reference
    UNION ALL
    SELECT reference, 'oddest' AS kind,
           min({key: logp / greatest(num_bytes, 1), response_id: response_id}, $n) AS ends
    FROM logps WHERE status = 'ok' GROUP BY reference
), picked AS (
    SELECT reference, kind, place, extreme.response_id AS response_id
    FROM (SELECT reference, kind, unnest(ends) AS extreme, generate_subscripts(ends, 1) AS place
          FROM tops)
), texts AS (
    SELECT response_id, any_value(left(content, 200)) AS content
    FROM responses SEMI JOIN picked USING (response_id) GROUP BY response_id
)
SELECT reference, kind, place, response_id, num_tokens, num_bytes,
       logp / greatest(num_bytes, 1) AS nats_per_byte, status, truncated, content
FROM picked JOIN logps USING (reference, response_id) LEFT JOIN texts USING (response_id)
ORDER BY reference, kind, place
""",
        MappingProxyType({"n": 5}),
    ),
    SavedQuery(
        "scores",
        "whether better scored responses are more likely: correlations of scores and log-probs",
        """\
SELECT reference, count(*) AS responses, corr(score, logp) AS score_logp,
       corr(score, logp / greatest(num_tokens, 1)) AS score_logp_per_token,
       corr(score, num_tokens) AS score_length, corr(logp, num_tokens) AS logp_length
FROM responses JOIN logps USING (response_id)
WHERE score IS NOT NULL AND status = 'ok'
GROUP BY reference
ORDER BY reference
""",
    ),
)


def find_saved(name: str) -> SavedQuery:
    """The saved query of a name.

    Raises:
        UsageError: there is none; the nearest names are the hint.
    """
    by_name = {saved.name: saved for saved in SAVED}
    if name not in by_name:
        raise UsageError(f"no saved query {name!r}", did_you_mean(name, by_name))
    return by_name[name]
