"""The cache as SQL views: what they are called and what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mrpo_tools.sql.names import identifier, literal


@dataclass(frozen=True)
class View:
    """A view as a user meets it."""

    name: str
    about: str
    columns: tuple[str, ...]


VIEWS = (
    View(
        "responses",
        "a row per response of each group; its reasoning and calls are in the content too",
        ("group_id", "prompt_id", "response_id", "dataset", "split", "position", "content",
         "score", "chosen", "model", "tool_calls", "reasoning_content"),
    ),
    View(
        "groups",
        "a row per group; the prompt as text",
        ("group_id", "prompt_id", "dataset", "split", "source_id", "prompt", "turns", "responses",
         "tools"),
    ),
    View(
        "datasets",
        "a row per data set and group, also where several data sets hold the group",
        ("dataset", "split", "group_id"),
    ),
    View(
        "logps",
        "a row per reference and response; logp in nats, NULL unless status is ok",
        ("reference", "response_id", "prompt_id", "logp", "num_tokens", "num_bytes", "status",
         "truncated"),
    ),
    View(
        "logps_wide",
        "a row per response, a column of log-probs per reference",
        ("response_id", "…"),
    ),
    View(
        "refs",
        "a row per reference",
        ("reference", "name", "identity", "model", "revision", "dtype", "quantization",
         "max_length", "rows", "ok", "overlong", "nonfinite", "truncated", "parts", "bytes",
         "created", "updated"),
    ),
    View(
        "scores",
        "a row per scorer and response; score is NULL unless status is ok",
        ("scorer", "response_id", "prompt_id", "score", "num_tokens", "status", "truncated",
         "reason"),
    ),
    View(
        "verdicts",
        "a row per judge and question; preference for the response shown first, −1 to 1",
        ("judge", "verdict_id", "prompt_id", "first_id", "second_id", "repeat", "preference",
         "label", "status", "reasoning", "prompt_tokens", "completion_tokens"),
    ),
    View(
        "runs",
        "a row per training run below --runs",
        ("run", "path", "loss", "objective", "reference_names", "policy", "dataset", "split",
         "seed", "finished", "recipe", "record"),
    ),
    View(
        "metrics",
        "a row per number that a run's training or evaluation measured, with the step in its log",
        ("run", "step", "metric", "value"),
    ),
)  # fmt: skip

_RESPONSES = """
SELECT group_id, prompt_id, response.response_id AS response_id, dataset, split, position,
       response.content AS content, response.score AS score, response.chosen AS chosen,
       response.model AS model,
       json_extract(structured, '$.responses[' || position || '].tool_calls') AS tool_calls,
       json_extract_string(structured, '$.responses[' || position || '].reasoning_content')
           AS reasoning_content
FROM (SELECT group_id, prompt_id, dataset, split, structured, unnest(responses) AS response,
             generate_subscripts(responses, 1) - 1 AS position
      FROM stored_groups)"""

_COUNTED = f"""
SELECT * EXCLUDE (counted) REPLACE (counted AS score, NULL::BOOLEAN AS chosen)
FROM ({_RESPONSES}) LEFT JOIN stored_counting USING (response_id)"""
"""The same by the scores of a scorer."""

_GROUPS = """
CREATE VIEW groups AS
SELECT group_id, prompt_id, dataset, split, source_id,
       CASE WHEN len(prompt) = 1 THEN prompt[1].content
            ELSE array_to_string(
                list_transform(prompt, lambda turn: turn.role || ': ' || turn.content),
                chr(10) || chr(10))
       END AS prompt,
       len(prompt) AS turns, len(responses) AS responses,
       json_extract(structured, '$.tools') AS tools
FROM stored_groups"""

_DATASETS = """
CREATE VIEW datasets AS SELECT DISTINCT dataset, split, group_id FROM stored_datasets"""

_REFS = """
CREATE VIEW refs AS
SELECT reference, name, identity, model, revision, dtype, quantization, max_length,
       coalesce(rows, 0) AS rows, coalesce(ok, 0) AS ok, coalesce(overlong, 0) AS overlong,
       coalesce(nonfinite, 0) AS nonfinite, coalesce(truncated, 0) AS truncated,
       parts, bytes, created, updated
FROM stored_refs LEFT JOIN (
    SELECT reference, count(*) AS rows, count(*) FILTER (status = 'ok') AS ok,
           count(*) FILTER (status = 'overlong') AS overlong,
           count(*) FILTER (status = 'nonfinite') AS nonfinite,
           count(*) FILTER (truncated) AS truncated
    FROM logps GROUP BY reference) USING (reference)
ORDER BY place"""


def view_statements(labels: Sequence[str], *, counted: bool = False) -> list[str]:
    """CREATE VIEW for each view; `stored_logps_0` … hold the rows of the labels.

    Args:
        labels: of references.
        counted: `stored_counting` holds the scores that count in place of the data's own.
    """
    return [
        f"CREATE VIEW responses AS {_COUNTED if counted else _RESPONSES}",
        _GROUPS,
        _DATASETS,
        f"CREATE VIEW logps AS {_logps(labels)}",
        f"CREATE VIEW logps_wide AS {_logps_wide(labels)}",
        _REFS,
        "CREATE VIEW scores AS SELECT * FROM stored_scores",
        "CREATE VIEW verdicts AS SELECT * FROM stored_verdicts",
        "CREATE VIEW runs AS SELECT * REPLACE (recipe::JSON AS recipe, record::JSON AS record) "
        "FROM stored_runs",
        "CREATE VIEW metrics AS SELECT * FROM stored_metrics",
    ]


def _logps(labels: Sequence[str]) -> str:
    columns = "response_id, prompt_id, logp, num_tokens, num_bytes, status, truncated"
    selects = [
        f"SELECT {literal(label)} AS reference, {columns} FROM stored_logps_{place}"
        for place, label in enumerate(labels)
    ]
    return " UNION ALL ".join(
        selects or [f"SELECT NULL::VARCHAR AS reference, {columns} FROM stored_logps_none"]
    )


def _logps_wide(labels: Sequence[str]) -> str:
    """A chain of full joins: every row of every reference, in a third of a GROUP BY's time."""
    if not labels:
        return "SELECT response_id FROM stored_logps_none"
    columns = [f"r{place}.logp AS {identifier(label)}" for place, label in enumerate(labels)]
    tables = [f"stored_logps_{place} AS r{place}" for place in range(len(labels))]
    joined = tables[0] + "".join(f" FULL JOIN {table} USING (response_id)" for table in tables[1:])
    return f"SELECT response_id, {', '.join(columns)} FROM {joined}"
