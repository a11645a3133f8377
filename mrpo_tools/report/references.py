"""What the references are like: ranking, weights, distances, and what ε and α do."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from matplotlib.axes import Axes

from mrpo_tools.maths.statistics import mean_and_std
from mrpo_tools.report.canvas import (
    FONT,
    MARKERS,
    Picture,
    chance_line,
    legend,
    legend_height,
    picture,
    short,
)
from mrpo_tools.report.curves import plus_minus
from mrpo_tools.report.palette import Palette
from mrpo_tools.runs.compare import LONGER
from mrpo_tools.runs.methods import COMBINATION, MethodRuns, differing
from mrpo_tools.runs.read import Result, plain_names
from mrpo_tools.runs.record import Estimate, EvaluationRecord, Histograms

MOST_PANELS = 3


@dataclass(frozen=True)
class Ranked:
    """A preference accuracy without training, with its 95 % interval."""

    name: str
    value: float
    low: float
    high: float


def ranking_picture(methods: Sequence[MethodRuns]) -> Picture | None:
    """Each reference's own accuracy with its interval, and always the longer."""
    rows = ranking(methods)
    if not rows:
        return None
    split = next(evaluation.split for _, evaluation in _evaluated(methods))

    def draw(axes: Sequence[Axes], palette: Palette) -> None:
        (chart,) = axes
        for place, row in enumerate(reversed(rows)):
            chart.errorbar(
                row.value, place, xerr=[[row.value - row.low], [row.high - row.value]], fmt="o",
                capsize=4, markersize=7, linewidth=1.8, color=palette.lines[0],
            )  # fmt: skip
        chart.set_yticks(range(len(rows)), [short(row.name) for row in reversed(rows)])
        chart.set_ylim(-0.6, len(rows) - 0.4)
        chance_line(chart.axvline, palette)
        chart.set_xlabel("preference accuracy")

    values = ", ".join(f"{row.name} {row.value:.3f} ({row.low:.3f} to {row.high:.3f})"
                       for row in rows)  # fmt: skip
    return picture(
        "references",
        "References alone",
        f"Share of pairs of split {split} that each reference ranks right by its summed log-prob, "
        "without any training, with 95 % bootstrap intervals. The dotted line is chance.",
        f"Dot chart of preference accuracies with 95 % intervals: {values}.",
        draw,
        height=1.1 + 0.38 * len(rows),
    )


def ranking(methods: Sequence[MethodRuns]) -> list[Ranked]:
    """Each reference alone and always the longer, as the first run that has them measured them."""
    names = plain_names(name for m in methods for run in m.runs for name in run.references)
    rows: dict[str, Ranked] = {}
    for _, evaluation in _evaluated(methods):
        accuracies = [(names[name], alone) for name, alone in evaluation.references_alone()]
        accuracies.append((LONGER, evaluation.estimate("accuracies_longer") or Estimate()))
        for name, accuracy in accuracies:
            if accuracy.value is not None and name not in rows:
                low = accuracy.value if accuracy.low is None else accuracy.low
                high = accuracy.value if accuracy.high is None else accuracy.high
                rows[name] = Ranked(name, accuracy.value, low, high)
    return sorted(rows.values(), key=lambda row: (-row.value, row.name))


def _evaluated(methods: Sequence[MethodRuns]) -> list[tuple[Result, EvaluationRecord]]:
    """The runs that were evaluated, with what was measured."""
    runs = [run for method in methods for run in method.runs]
    return [(run, run.evaluation) for run in runs if run.evaluation is not None]


@dataclass(frozen=True)
class Panel:
    """A picture's part for one kind of method.

    Attributes:
        title: above it.
        names: of the references, reference 1 first.
        histograms: of the first evaluated run.
    """

    title: str
    names: list[str]
    histograms: Histograms


def weights_picture(methods: Sequence[MethodRuns]) -> Picture | None:
    """Histograms of each group's weights, one panel for each way of weighting."""
    panels = [
        panel
        for panel in _panels(methods, lambda method: f"{method.settings['weights']} weights")
        if any(max(counts) < sum(counts) for counts in panel.histograms.weights)
    ][:MOST_PANELS]
    if not panels:
        return None

    def draw(axes: Sequence[Axes], palette: Palette) -> None:
        for chart, panel in zip(axes, panels, strict=True):
            _histogram(chart, palette, panel.histograms.weights, panel.names, low=0.0)
            chart.set_title(panel.title, loc="left", color=palette.text, fontsize=FONT)
            chart.set_ylabel("groups")
        axes[-1].set_xlabel("weight")
        legend(axes[-1], palette)

    alt = "; ".join(
        f"{panel.title}: mean weights " + ", ".join(
            f"{name} {_mean_weight(counts):.2f}"
            for name, counts in zip(panel.names, panel.histograms.weights, strict=True))
        for panel in panels)  # fmt: skip
    return picture(
        "weights",
        "Weights of the references",
        "How the weights α that a method gives its references are spread over the evaluated "
        "groups. Weights that are the same for every group are not drawn.",
        f"Histograms of weights from 0 to 1. {alt}.",
        draw,
        height=2.4 * len(panels) + 0.6 + legend_height(panels[-1].names),
        rows=len(panels),
    )


def clipping_picture(methods: Sequence[MethodRuns]) -> Picture | None:
    """How far the other references are from reference 1, and the trust region."""
    every = sorted(_panels(methods, _region), key=_mean_radius)
    if not every:
        return None
    panels = every if len(every) <= MOST_PANELS else [every[0], every[len(every) // 2], every[-1]]

    def draw(axes: Sequence[Axes], palette: Palette) -> None:
        for chart, panel in zip(axes, panels, strict=True):
            if panel.histograms.mean_radius is not None:
                room = min(panel.histograms.mean_radius, 1.0)
                chart.axvspan(-room, room, color=palette.quiet, alpha=0.25, linewidth=0,
                              label="trust region")  # fmt: skip
            _histogram(chart, palette, panel.histograms.distances, panel.names[1:], low=-1.0,
                       first=1)  # fmt: skip
            chart.set_title(panel.title, loc="left", color=palette.text, fontsize=FONT)
            chart.set_ylabel("responses")
        axes[-1].set_xlabel("distance from reference 1, as a share of its log-prob")
        legend(axes[-1], palette)

    alt = "; ".join(
        f"{panel.title}: " + ", ".join(
            f"{name} {share:.0%} clipped"
            for name, share in zip(panel.names[1:], panel.histograms.clipped, strict=True))
        for panel in every)  # fmt: skip
    drawn = "" if len(every) == len(panels) else f" {len(panels)} of these {len(every)} are drawn."
    return picture(
        "clipping",
        "Distances and the trust region",
        "(r_k − r_1) / |r_1| of each response before clipping; what is beyond ±1 stands in the "
        "outer bins. The shaded band is the trust region's mean radius: what lies outside it is "
        f"clipped to its edge. {alt[0].upper()}{alt[1:]}.{drawn}",
        f"Histograms of relative distances from reference 1. {alt}.",
        draw,
        height=2.4 * len(panels) + 0.6 + legend_height(panels[-1].names),
        rows=len(panels),
    )


def _mean_radius(panel: Panel) -> float:
    radius = panel.histograms.mean_radius
    return math.inf if radius is None else radius


def _region(method: MethodRuns) -> str:
    combination = method.runs[0].run.record.combination
    if combination.trust_region == "none":
        return "no trust region"
    return f"{combination.trust_region} trust region, ε_max {combination.epsilon_max:g}"


def _panels(methods: Sequence[MethodRuns], title: Callable[[MethodRuns], str]) -> list[Panel]:
    """A panel of every kind of method that has histograms."""
    panels: dict[str, Panel] = {}
    for method in methods:
        for run, evaluation in _evaluated([method])[:1]:
            if evaluation.histograms is not None:
                panel = Panel(title(method), run.reference_names, evaluation.histograms)
                panels.setdefault(json.dumps([panel.title, panel.names]), panel)
    if len({tuple(panel.names) for panel in panels.values()}) < 2:
        return list(panels.values())
    return [
        replace(panel, title=f"{panel.title} ({' + '.join(panel.names)})")
        for panel in panels.values()
    ]


def _histogram(
    chart: Axes, palette: Palette, histograms: Sequence[Sequence[int]], names: Sequence[str],
    *, low: float, first: int = 0,
) -> None:  # fmt: skip
    """Histograms over [low, 1] in equal bins, in the colours from the place `first` on."""
    for place, (name, counts) in enumerate(zip(names, histograms, strict=True), first):
        width = (1.0 - low) / len(counts)
        edges = [low + width * index for index in range(len(counts) + 1)]
        colour = palette.lines[place % len(palette.lines)]
        chart.stairs(counts, edges, color=colour, linewidth=1.8, label=name)
        chart.stairs(counts, edges, color=colour, alpha=0.12, fill=True)


def _mean_weight(counts: Sequence[int]) -> float:
    """Of a histogram over [0, 1], by the middles of its bins."""
    width = 1.0 / len(counts)
    total = sum((place + 0.5) * width * count for place, count in enumerate(counts))
    return total / max(sum(counts), 1)


def choices_picture(methods: Sequence[MethodRuns]) -> Picture | None:
    """Methods of one loss that differ in how references are combined, beside DPO."""
    varied = [method for method in methods if _varies(method, methods)]
    points = _logp_accuracies([*(method for method in methods if method.baseline), *varied])
    if not varied or len(points) < 2:
        return None
    kinds = sorted({_kind(method) for method, _ in points})

    def draw(axes: Sequence[Axes], palette: Palette) -> None:
        (chart,) = axes
        for place, (method, (mean, std)) in enumerate(points):
            kind = kinds.index(_kind(method))
            chart.errorbar(
                mean, place, xerr=std, fmt=MARKERS[kind], capsize=4, markersize=6,
                linewidth=1.8, color=palette.lines[kind % len(palette.lines)],
                label=kinds[kind],
            )  # fmt: skip
        chart.set_yticks(range(len(points)), [short(method.label) for method, _ in points])
        chart.set_ylim(len(points) - 0.4, -0.6)
        chart.set_xlabel("log-prob accuracy")
        legend(chart, palette)

    values = ", ".join(
        f"{method.label} {plus_minus(mean, std, '.3f')}" for method, (mean, std) in points
    )
    return picture(
        "choices",
        "Adaptive against fixed ε and α",
        "The same loss with different trust regions (ε) and weights (α), by the accuracy of the "
        "policy's own log-prob, which is comparable between methods: mean ± one standard deviation "
        "over seeds.",
        f"Dot chart of log-prob accuracies: {values}.",
        draw,
        height=1.2 + 0.36 * len(points) + legend_height(kinds),
    )


def _logp_accuracies(
    methods: Sequence[MethodRuns],
) -> list[tuple[MethodRuns, tuple[float, float | None]]]:
    """The methods that were evaluated, with mean and standard deviation over their runs."""
    points = []
    for method in methods:
        measured = [evaluation.accuracies_logp for _, evaluation in _evaluated([method])]
        accuracies = [accuracy for accuracy in measured if accuracy is not None]
        if accuracies:
            points.append((method, mean_and_std(accuracies)))
    return points


def _varies(method: MethodRuns, methods: Sequence[MethodRuns]) -> bool:
    same = [other.settings for other in methods if other.loss == method.loss]
    return bool(set(differing(same)) & set(COMBINATION))


def _kind(method: MethodRuns) -> str:
    if method.baseline:
        return "one reference"
    return f"{method.settings['trust_region']} ε, {method.settings['weights']} α"
