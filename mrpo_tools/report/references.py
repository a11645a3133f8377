"""What the references are like: ranking, weights, distances, and what ε and α do."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from mrpo_tools.maths.statistics import mean_and_std
from mrpo_tools.report.canvas import FONT, MARKERS, Picture, legend, legend_height, picture, short
from mrpo_tools.report.curves import plus_minus
from mrpo_tools.report.palette import Palette
from mrpo_tools.runs.methods import COMBINATION, MethodRuns, differing
from mrpo_tools.runs.read import plain_names

MOST_PANELS = 3


def ranking_picture(methods: Sequence[MethodRuns]) -> Picture | None:
    """Each reference's own accuracy with its interval, and always the longer."""
    rows = _ranking(methods)
    if not rows:
        return None
    split = next(run.evaluation["split"] for m in methods for run in m.runs if run.evaluation)

    def draw(axes: Any, palette: Palette) -> None:
        for place, (_, value, low, high) in enumerate(reversed(rows)):
            axes.errorbar(
                value, place, xerr=[[value - low], [high - value]], fmt="o", capsize=4,
                markersize=7, linewidth=1.8, color=palette.lines[0],
            )  # fmt: skip
        axes.set_yticks(range(len(rows)), [short(name) for name, *_ in reversed(rows)])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.axvline(0.5, color=palette.quiet, linestyle=":", linewidth=1.4)
        axes.set_xlabel("preference accuracy")

    values = ", ".join(f"{name} {value:.3f} ({low:.3f} to {high:.3f})"
                       for name, value, low, high in rows)  # fmt: skip
    return picture(
        "references",
        "References alone",
        f"Share of pairs of split {split} that each reference ranks right by its summed log-prob, "
        "without any training, with 95 % bootstrap intervals. The dotted line is chance.",
        f"Dot chart of preference accuracies with 95 % intervals: {values}.",
        draw,
        1.1 + 0.38 * len(rows),
    )


def _ranking(methods: Sequence[MethodRuns]) -> list[tuple[str, float, float, float]]:
    found: dict[str, tuple[float, float, float]] = {}
    runs = [run for method in methods for run in method.runs]
    shown = plain_names(name for run in runs for name in run.references)
    for run in runs:
        evaluation = run.evaluation or {}
        alone = evaluation.get("reference_accuracies", {}).get("summed") or []
        ends = evaluation.get("intervals", {}).get("reference_accuracies", {}).get("summed") or []
        names = [*(shown[name] for name in run.references), "always the longer"]
        longer = evaluation.get("accuracies_longer")
        ends = [*(ends or [None] * len(alone)),
                evaluation.get("intervals", {}).get("accuracies_longer")]  # fmt: skip
        for name, value, interval in zip(names, [*alone, longer], ends, strict=False):
            if value is not None:
                low, high = interval or (value, value)
                found.setdefault(name, (value, low, high))
    return sorted(
        ((name, *one) for name, one in found.items()), key=lambda row: (-row[1], row[0])
    )  # fmt: skip


def weights_picture(methods: Sequence[MethodRuns]) -> Picture | None:
    """Histograms of each group's weights, one panel for each way of weighting."""
    panels = [
        panel
        for panel in _panels(methods, "weights", lambda m: f"{m.settings['weights']} weights")
        if any(max(one) < sum(one) for one in panel[2])
    ][:MOST_PANELS]
    if not panels:
        return None

    def draw(axes: Any, palette: Palette) -> None:
        many = axes if isinstance(axes, list) else [axes]
        for one, (title, names, counts, _) in zip(many, panels, strict=True):
            _histogram(one, palette, counts, names, 0.0, 1.0)
            one.set_title(title, loc="left", color=palette.text, fontsize=FONT)
            one.set_ylabel("groups")
        many[-1].set_xlabel("weight")
        legend(many[-1], palette)

    alt = "; ".join(
        f"{title}: mean weights " + ", ".join(
            f"{name} {_histogram_mean(one, 0.0, 1.0):.2f}"
            for name, one in zip(names, counts, strict=True))
        for title, names, counts, _ in panels)  # fmt: skip
    return picture(
        "weights",
        "Weights of the references",
        "How the weights α that a method gives its references are spread over the evaluated "
        "groups. Weights that are the same for every group are not drawn.",
        f"Histograms of weights from 0 to 1. {alt}.",
        draw,
        2.4 * len(panels) + 0.6 + legend_height(panels[-1][1]),
        rows=len(panels),
    )


def clipping_picture(methods: Sequence[MethodRuns]) -> Picture | None:
    """How far the other references are from reference 1, and the trust region."""
    every = sorted(_panels(methods, "distances", _region), key=_mean_radius)
    if not every:
        return None
    panels = every if len(every) <= MOST_PANELS else [every[0], every[len(every) // 2], every[-1]]

    def draw(axes: Any, palette: Palette) -> None:
        many = axes if isinstance(axes, list) else [axes]
        for one, (title, names, counts, found) in zip(many, panels, strict=True):
            radius = found["mean_radius"]
            if radius is not None:
                room = min(radius, 1.0)
                one.axvspan(-room, room, color=palette.quiet, alpha=0.25, linewidth=0,
                            label="trust region")  # fmt: skip
            _histogram(one, palette, counts, names[1:], -1.0, 1.0, first=1)
            one.set_title(title, loc="left", color=palette.text, fontsize=FONT)
            one.set_ylabel("responses")
        many[-1].set_xlabel("distance from reference 1, as a share of its log-prob")
        legend(many[-1], palette)

    alt = "; ".join(
        f"{title}: " + ", ".join(f"{name} {share:.0%} clipped" for name, share in
                                 zip(names[1:], found["clipped"], strict=True))
        for title, names, _, found in every)  # fmt: skip
    drawn = "" if len(every) == len(panels) else f" {len(panels)} of these {len(every)} are drawn."
    return picture(
        "clipping",
        "Distances and the trust region",
        "(r_k − r_1) / |r_1| of each response before clipping; what is beyond ±1 stands in the "
        "outer bins. The shaded band is the trust region's mean radius: what lies outside it is "
        f"clipped to its edge. {alt[0].upper()}{alt[1:]}.{drawn}",
        f"Histograms of relative distances from reference 1. {alt}.",
        draw,
        2.4 * len(panels) + 0.6 + legend_height(panels[-1][1]),
        rows=len(panels),
    )


def _mean_radius(panel: tuple[Any, ...]) -> float:
    found = panel[3]["mean_radius"]
    return math.inf if found is None else float(found)


def _region(method: MethodRuns) -> str:
    settings = method.settings
    if settings["trust_region"] == "none":
        return "no trust region"
    return f"{settings['trust_region']} trust region, ε_max {settings['epsilon_max']:g}"


def _panels(methods: Sequence[MethodRuns], key: str, title: Any) -> list[tuple[Any, ...]]:
    """(title, names, counts, histograms) of every kind of method that has them."""
    found: dict[str, tuple[Any, ...]] = {}
    for method in methods:
        run = next((run for run in method.runs if run.evaluation), None)
        histograms = (run.evaluation or {}).get("histograms") if run else None
        if run is None or not histograms:
            continue
        same = json.dumps([title(method), run.reference_names])
        names = run.reference_names
        found.setdefault(same, (title(method), names, histograms[key], histograms))
    orders = {tuple(panel[1]) for panel in found.values()}
    panels = [
        (f"{panel[0]} ({' + '.join(panel[1])})" if len(orders) > 1 else panel[0], *panel[1:])
        for panel in found.values()
    ]
    return panels


def _histogram(
    axes: Any, palette: Palette, counts: Sequence[Sequence[int]], names: Sequence[str],
    low: float, high: float, first: int = 0,
) -> None:  # fmt: skip
    for place, (name, one) in enumerate(zip(names, counts, strict=True), first):
        width = (high - low) / len(one)
        edges = [low + width * index for index in range(len(one) + 1)]
        colour = palette.lines[place % len(palette.lines)]
        axes.stairs(one, edges, color=colour, linewidth=1.8, label=name)
        axes.stairs(one, edges, color=colour, alpha=0.12, fill=True)


def _histogram_mean(counts: Sequence[int], low: float, high: float) -> float:
    width = (high - low) / len(counts)
    total = sum(counts)
    return sum((low + (i + 0.5) * width) * one for i, one in enumerate(counts)) / max(total, 1)


def choices_picture(methods: Sequence[MethodRuns]) -> Picture | None:
    """Methods of one loss that differ in how references are combined, beside DPO."""
    rows = [one for one in methods if _varies(one, methods)]
    if not rows:
        return None
    rows = [one for one in methods if one.baseline] + rows
    points = [(one, mean_and_std(values)) for one in rows if (values := _logp_accuracies(one))]
    if len(points) < 2:
        return None
    regions = sorted({_kind(one) for one, _ in points})

    def draw(axes: Any, palette: Palette) -> None:
        for place, (one, (mean, std)) in enumerate(points):
            kind = regions.index(_kind(one))
            axes.errorbar(
                mean, place, xerr=std, fmt=MARKERS[kind], capsize=4, markersize=6,
                linewidth=1.8, color=palette.lines[kind % len(palette.lines)],
                label=regions[kind],
            )  # fmt: skip
        axes.set_yticks(range(len(points)), [short(one.label) for one, _ in points])
        axes.set_ylim(len(points) - 0.4, -0.6)
        axes.set_xlabel("log-prob accuracy")
        legend(axes, palette)

    said = ", ".join(f"{one.label} {plus_minus(*summary, '.3f')}" for one, summary in points)
    return picture(
        "choices",
        "Adaptive against fixed ε and α",
        "The same loss with different trust regions (ε) and weights (α), by the accuracy of the "
        "policy's own log-prob, which is comparable between methods: mean ± one standard deviation "
        "over seeds.",
        f"Dot chart of log-prob accuracies: {said}.",
        draw,
        1.2 + 0.36 * len(points) + legend_height(regions),
    )


def _logp_accuracies(method: MethodRuns) -> list[float]:
    found = [(run.evaluation or {}).get("accuracies_logp") for run in method.runs]
    return [one for one in found if one is not None]


def _varies(method: MethodRuns, methods: Sequence[MethodRuns]) -> bool:
    same = [one.settings for one in methods if one.loss == method.loss]
    return bool(set(differing(same)) & set(COMBINATION))


def _kind(method: MethodRuns) -> str:
    if method.baseline:
        return "one reference"
    return f"{method.settings['trust_region']} ε, {method.settings['weights']} α"
