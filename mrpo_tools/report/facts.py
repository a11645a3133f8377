"""The report in words: the verdict, what was run, each run's numbers, costs and differences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mrpo_tools.runs.columns import LOGP
from mrpo_tools.runs.compare import Comparison, Row
from mrpo_tools.runs.formats import cell_text, difference_text, p_text
from mrpo_tools.runs.marks import BETTER, FEWEST_PAIRS, WORSE
from mrpo_tools.runs.methods import MethodRuns, differing, setting_text
from mrpo_tools.runs.read import Result
from mrpo_tools.runs.record import HARDLY_MOVED, Estimate, RunRecord

RECIPE = (
    "finetuning", "quantization", "learning_rate", "lr_scheduler_type", "warmup_ratio",
    "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "lora_r", "max_length", "seed",
)  # fmt: skip
"""The main keys of a recipe; what methods differ in has a table of its own."""
MOST_VALUES = 4


@dataclass(frozen=True)
class Table:
    """A table of text; the first column names the row."""

    name: str
    title: str
    text: str
    header: list[str]
    rows: list[list[str]]


def cost_table(methods: Sequence[MethodRuns]) -> Table:
    """Time and memory of each method (MRPO's Table 9)."""
    rows = []
    for method in methods:
        metrics = [run.metrics for run in method.runs]
        seconds = [run.train_seconds for run in metrics if run.train_seconds]
        speeds = [
            run.steps / run.train_seconds for run in metrics if run.train_seconds and run.steps
        ]
        peaks = [run.peak_memory_bytes for run in metrics if run.peak_memory_bytes]
        precompute = precompute_seconds(method)
        rows.append(
            [
                method.label,
                "–" if precompute is None else duration(precompute),
                spread([duration(end) for end in _ends(seconds)]),
                spread([f"{end:.2f}" for end in _ends(speeds)]),
                f"{max(peaks) / 1e9:.2f} GB" if peaks else "–",
            ]
        )
    return Table(
        "cost",
        "Time and memory",
        "Precompute: log-probs of the data under all of the method's references, once for all runs "
        "that share them. Training and its speed: from the fastest to the slowest seed. Memory: "
        "the most that any seed's process held.",
        ["method", "precompute", "training", "steps per second", "peak memory"],
        rows,
    )


def precompute_seconds(method: MethodRuns) -> float | None:
    """Seconds that the log-probs of a method's references took; None where it is not recorded."""
    for run in method.runs:
        seconds = run.evaluation.precompute_seconds if run.evaluation else []
        measured = [second for second in seconds if second is not None]
        if measured and len(measured) == len(seconds):
            return sum(measured)
    return None


def differences_table(methods: Sequence[MethodRuns]) -> Table:
    """Every setting in which the methods differ."""
    keys = differing([method.settings for method in methods])
    return Table(
        "differences",
        "What differs between the methods",
        "Every setting that is not the same in all runs, defaults resolved; a dash where a setting "
        "means nothing.",
        ["method", *keys],
        [
            [method.label, *(setting_text(method.settings.get(key)) for key in keys)]
            for method in methods
        ],
    )


def verdict(comparison: Comparison) -> str:
    """One sentence of who is better than the baselines, and whether that can be said."""
    key, by = comparison.marked.key, _judged_by(comparison)
    means = {row.label: row.cells[key].mean for row in comparison.rows}
    rows = [row for row in comparison.rows if means[row.label] is not None]
    if not rows:
        return f"No method was measured by {by}: nothing can be said of which is best."
    rows.sort(key=lambda row: -(means[row.label] or 0.0))
    if len(rows) == 1:
        return f"{_score(rows[0], comparison)} by {by}; there is nothing to compare it with."
    others = [row for row in rows if not row.baseline]
    baselines = [row for row in rows if row.baseline]
    if not baselines or not others:
        return (
            f"{_score(rows[0], comparison)} by {by}, the most of {len(rows)} methods; no baseline "
            "stands beside them."
        )
    first, baseline = _score(others[0], comparison), _score(baselines[0], comparison)
    return f"{_against(others, comparison)}: {first} by {by}, {baseline}."


def _against(others: Sequence[Row], comparison: Comparison) -> str:
    """Which methods are better than every baseline; the best of them stands first."""
    cells = [row.cells[comparison.marked.key] for row in others]
    better = [row for row, cell in zip(others, cells, strict=True) if cell.mark == BETTER]
    first = cells[0]
    seeds = f"{others[0].pairs} seeds" if others[0].pairs != 1 else "1 seed"
    beside = f"({difference_text(first, comparison.marked)}, p {p_text(first.p)}, {seeds})"
    if better:
        labels = ", ".join(row.label for row in better)
        return f"Better than every baseline: {labels} {beside}"
    if not comparison.pairs or comparison.pairs[-1] < FEWEST_PAIRS:
        return f"{seeds} cannot say whether any method is better, {FEWEST_PAIRS} can"
    if all(cell.mark == WORSE for cell in cells):
        return f"Every method is worse than every baseline {beside}"
    return f"No method is shown to be better than every baseline {beside}"


def _judged_by(comparison: Comparison) -> str:
    """What a sentence calls the marked column."""
    title = comparison.marked.title
    return "its own log-prob" if comparison.marked.key == LOGP else f"the {title}"


def _score(row: Row, comparison: Comparison) -> str:
    """`mrpo 87.3 ± 0.6 %`."""
    column = comparison.marked
    unit = " %" if column.scale != 1.0 else ""
    return f"{row.label} {cell_text(row.cells[column.key], column)}{unit}"


def hardly_moved(methods: Sequence[MethodRuns]) -> str:
    """A sentence of the methods that training left where they were; empty without any."""
    labels = [
        method.label
        for method in methods
        if any(run.evaluation and run.evaluation.hardly_moved for run in method.runs)
    ]
    if not labels:
        return ""
    return (
        f"Hardly moved from the untrained policy (less than {HARDLY_MOVED} nats a token): "
        f"{', '.join(labels)}. More steps or a larger learning_rate move a policy."
    )


def about_table(methods: Sequence[MethodRuns]) -> Table:
    """What was run: the data, the models, when, by what, and the recipe's main keys."""
    runs = [run for method in methods for run in method.runs]
    records = [run.run.record for run in runs]
    facts: dict[str, Iterable[object]] = {
        "data set": (record.dataset and record.dataset.source for record in records),
        "trained on": (f"{run.metrics.groups:,} groups of split {run.run.recipe.split}"
                       for run in runs if run.metrics.groups),
        "policy": (record.policy.model for record in records),
        "references": (" + ".join(run.reference_names) for run in runs),
        "date": (record.created and record.created[:10] for record in records),
        "versions": (_versions(record) for record in records),
        "command": ["mrpo train --config RUN/recipe.yaml --output DIR"],
        **{key: [getattr(run.run.recipe, key) for run in runs] for key in RECIPE},
    }  # fmt: skip
    return Table(
        "about",
        "What was run",
        "Of all runs together; a dash where nothing was recorded. The command repeats a run.",
        ["", "value"],
        [[what, _together(values)] for what, values in facts.items()],
    )


def _versions(record: RunRecord) -> str | None:
    """Of the tool and of the libraries that compute."""
    named = [name for name in ("mrpo-tools", "torch", "transformers") if name in record.versions]
    return " · ".join(f"{name} {record.versions[name]}" for name in named) or None


def _together(values: Iterable[object]) -> str:
    """The different values, in their order, the last of many left out."""
    texts = list(dict.fromkeys(_text(value) for value in values)) or ["–"]
    more = len(texts) - MOST_VALUES
    return ", ".join(texts[:MOST_VALUES]) + (f" and {more} more" if more > 0 else "")


def _text(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value)


def runs_table(methods: Sequence[MethodRuns]) -> Table:
    """Each run's accuracies with their intervals, and of how many groups they are."""
    return Table(
        "runs",
        "Each run",
        "Accuracies in % with 95 % intervals, by bootstrap over prompts, of the number of groups "
        "that stands beside them.",
        ["method", "seed", "groups", "log-prob", "log-prob, untrained", "per token",
         "vs reference 1", "own reward"],
        [_run_row(method, run) for method in methods for run in method.runs],
    )  # fmt: skip


def _run_row(method: MethodRuns, run: Result) -> list[str]:
    evaluation = run.evaluation
    if evaluation is None:
        return [method.label, str(run.seed), *["–"] * 6]
    metrics = ("accuracies_logp", "accuracies_logp_step0", "accuracies_logp_per_token",
               "accuracies_reference_1", "accuracies")  # fmt: skip
    return [
        method.label,
        str(run.seed),
        "–" if evaluation.groups is None else f"{evaluation.groups:,}",
        *(with_ends(evaluation.estimate(metric)) for metric in metrics),
    ]


def with_ends(estimate: Estimate | None) -> str:
    """`87.3 (85.1 to 89.4)`, in %; a dash without a value."""
    if estimate is None or estimate.value is None:
        return "–"
    value = f"{100 * estimate.value:.1f}"
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def summary(methods: Sequence[MethodRuns], split: str) -> str:
    """One sentence of what is compared."""
    runs = sum(len(method.runs) for method in methods)
    seeds = sorted({len(method.runs) for method in methods})
    each = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    groups = {run.evaluation.groups or 0 for m in methods for run in m.runs if run.evaluation}
    measured = f"{max(groups):,} groups of split {split}" if groups else "no groups yet"
    return (
        f"{len(methods)} method{'s' * (len(methods) != 1)}, {runs} run{'s' * (runs != 1)} "
        f"({each} seed{'s' * (seeds[-1] != 1)} each), measured on {measured}."
    )


def duration(seconds: float) -> str:
    """`48 s`, `3.2 min`, `1.5 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.2f} h"


def spread(ends: Sequence[str]) -> str:
    """`48 to 52 s`-like: both ends, or one where they read alike."""
    if not ends:
        return "–"
    return ends[0] if ends[0] == ends[-1] else f"{ends[0]} to {ends[-1]}"


def _ends(values: Sequence[float]) -> list[float]:
    return [min(values), max(values)] if values else []
