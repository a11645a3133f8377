"""The study's pictures: frontiers, and differences from DPO at equal KL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from claims import compare
from frontier import score_at
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from results import KLS, Study

from mrpo_tools.report.palette import LIGHT

GRID = [step / 40 for step in range(129)]
"""Roots of KL at which a mean frontier is drawn."""
FRONTIERS = (
    ("References", ("oracle", "mrpo", "wrong_ids", "dpo_stretched", "cooled", "dpo_base", "placebo",
                    "anti_oracle")),
    ("Sets, combinations, radius", ("mrpo", "geometric", "fixed_quarter", "dpo_base", "mpo",
                                    "round_mrpo", "round_dpo")),
)  # fmt: skip
SECOND = (
    ("The second design", ("oracle", "mrpo", "dpo_base", "mpo", "placebo", "wrong_ids",
                           "anti_oracle", "cooled")),
)  # fmt: skip
DASHED = ("cooled", "placebo", "wrong_ids", "dpo_left", "dpo_right", "fixed_quarter", "round_dpo")


def draw(study: Study, second: Study, folder: Path) -> None:
    """Write `frontiers.png`, `split.png` of the second design, and `differences.png`."""
    folder.mkdir(exist_ok=True)
    _save(_frontiers(study, FRONTIERS), folder / "frontiers.png")
    _save(_frontiers(second, SECOND), folder / "split.png")
    _save(_differences(study), folder / "differences.png")


def _save(figure: Figure, file: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(file, dpi=130, metadata={"Software": None})


def _frontiers(study: Study, panels: Sequence[tuple[str, Sequence[str]]]) -> Figure:
    figure = Figure(figsize=(5.5 * len(panels), 5), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for place, (title, arms) in zip(axes, panels, strict=True):
        for number, arm in enumerate(arms):
            _frontier(place, study, arm, LIGHT.lines[number % len(LIGHT.lines)])
        place.set_title(title)
        place.set_xlabel("KL to the untrained policy, nats an answer (root scale)")
        ticks = [0, 0.25, 1, 2, 3, 5, 8, 12]
        place.set_xticks([math.sqrt(tick) for tick in ticks], [f"{tick:g}" for tick in ticks])
        place.set_xlim(0, GRID[-1])
        for kl in KLS:
            place.axvline(math.sqrt(kl), color=LIGHT.rule, linewidth=1, zorder=0)
        place.legend(fontsize=8, frameon=False)
    axes[0].set_ylabel("mean rule score, of 10")
    return figure


def _frontier(axes: Axes, study: Study, arm: str, colour: str) -> None:
    """Where every finished replicate has the KL: the mean; each run as a faint dot."""
    curves = [study.points(arm, seed) or [] for seed in study.finished(arm)]
    if not curves:
        return
    seen = [point for points in curves for point in points if point.kl < GRID[-1] ** 2]
    axes.plot([math.sqrt(max(point.kl, 0)) for point in seen], [point.score for point in seen],
              ".", color=colour, alpha=0.25, markersize=4)  # fmt: skip
    line = [
        (root, [score for points in curves if (score := score_at(points, root * root)) is not None])
        for root in GRID
    ]
    whole = [(root, fmean(scores)) for root, scores in line if len(scores) == len(curves)]
    style = "--" if arm in DASHED else "-"
    axes.plot(*zip(*whole, strict=True), style, color=colour, label=arm, linewidth=1.8)


def _differences(study: Study) -> Figure:
    """Every arm minus `dpo_base` at both KLs, with 95 % intervals."""
    arms = [arm for arm in ordered_arms(study) if arm != "dpo_base" and study.finished(arm)]
    figure = Figure(figsize=(9, 0.26 * len(arms) + 1.2), layout="constrained")
    axes = figure.subplots()
    for number, kl in enumerate(KLS):
        for place, arm in enumerate(arms):
            made = compare(study, (arm, "dpo_base"), kl)
            if made.mean is None:
                continue
            height = place + 0.18 * (2 * number - 1)
            colour = LIGHT.lines[number]
            if made.intervals:
                axes.plot(made.intervals[0], [height] * 2, color=colour, linewidth=1.4)
            axes.plot([made.mean], [height], "os"[number], color=colour, markersize=4,
                      label=f"at {kl:g} nat{'s' * (kl != 1)}" if place == 0 else None)  # fmt: skip
    axes.axvline(0, color=LIGHT.quiet, linewidth=1)
    axes.set_yticks(range(len(arms)), arms)
    axes.set_ylim(len(arms) - 0.4, -0.6)
    axes.set_xlabel("mean rule score minus that of dpo_base at the same KL, of 10; 95 % intervals")
    axes.legend(frameon=False)
    return figure


def ordered_arms(study: Study) -> Sequence[str]:
    """As arms.yaml has them."""
    return [arm for wave in study.arms.waves.values() for arm in wave]
