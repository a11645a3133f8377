"""The report's tables beside the comparison: what training cost, and how the methods differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mrpo_tools.runs.methods import MethodRuns, differing, setting_text


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
