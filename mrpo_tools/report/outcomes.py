"""What the policies answer: outcome against distance, each run's outcomes, three prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from mrpo_tools.maths.statistics import mean_and_std
from mrpo_tools.report.canvas import Picture, legend, legend_height, look, picture
from mrpo_tools.report.facts import Table
from mrpo_tools.report.palette import Palette
from mrpo_tools.runs.answers import TRAINED, Judged, Prompted, answers_file, read_answers
from mrpo_tools.runs.methods import MethodRuns
from mrpo_tools.runs.outcomes import Outcome
from mrpo_tools.runs.read import Result
from mrpo_tools.runs.record import Estimate

ALONG = ("learning_rate", "beta")
"""Settings along which a method moves on its frontier, and how labels begin with them."""
ALONG_WORDS = ("lr=", "β=")
MOST_LINES = 10
SHOWN = 400
"""Characters of a prompt and of an answer."""


@dataclass(frozen=True)
class Point:
    """A method at one learning rate and β.

    Attributes:
        kl: nats, mean over its runs.
        mean: marks, mean over its runs.
        kl_ends: below and above `kl`: one standard deviation over runs, or the interval of one run.
        mean_ends: the same of `mean`.
    """

    kl: float
    mean: float
    kl_ends: tuple[float, float]
    mean_ends: tuple[float, float]


@dataclass(frozen=True)
class Frontier:
    """A method along its learning rates or β, by its distance."""

    label: str
    points: list[Point]


def frontier_picture(methods: Sequence[MethodRuns]) -> Picture | None:
    """Outcome against KL(π‖reference 1): what a method gives for the distance that it goes."""
    key = measured_key(methods)
    if key is None:
        return None
    every = frontiers(methods, key)
    lines = every[:MOST_LINES]
    untrained = _untrained(methods, key)

    def draw(axes: Sequence[Axes], palette: Palette) -> None:
        (chart,) = axes
        _plot(chart, palette, lines, untrained)

    text = (
        f"Mean marks of answers ({key}) against how far the policy went for them: KL(π‖reference "
        "1), estimated from the same answers. Each curve is a method along its learning rates or "
        "β; bars are ± one standard deviation over seeds, or the 95 % interval of a single run. "
        "Compare methods at equal KL: higher is better."
    )
    text += " The dotted line is the untrained policy." if untrained is not None else ""
    if len(lines) < len(every):
        text += f" {len(lines)} of {len(every)} methods are drawn."
    alt = "; ".join(
        f"{line.label} "
        + ", ".join(f"{point.mean:.3g} at {point.kl:.3g} nats" for point in line.points)
        for line in lines
    )
    return picture(
        "frontier",
        "Outcome against distance",
        text,
        f"Line chart of mean marks against KL from reference 1: {alt}.",
        draw,
        height=3.7 + legend_height([line.label for line in lines]),
    )


def _plot(
    chart: Axes, palette: Palette, lines: Sequence[Frontier], untrained: float | None
) -> None:
    for place, line in enumerate(lines):
        style = look(place, palette)
        kls, means = [point.kl for point in line.points], [point.mean for point in line.points]
        chart.plot(kls, means, label=line.label, **style)
        chart.errorbar(
            kls, means, fmt="none", ecolor=style["color"], elinewidth=1.2, capsize=3,
            xerr=_bars([point.kl_ends for point in line.points]),
            yerr=_bars([point.mean_ends for point in line.points]),
        )  # fmt: skip
    if untrained is not None:
        chart.axhline(untrained, color=palette.quiet, linestyle=":", linewidth=1.4)
    chart.set_xlabel("KL(π‖reference 1), nats an answer")
    chart.set_ylabel("mean marks")
    legend(chart, palette)


def measured_key(methods: Sequence[MethodRuns]) -> str | None:
    """The first outcome that has a KL beside it; None without any."""
    every = [outcome for method in methods for run in method.runs for outcome in outcomes_of(run)]
    return next((outcome.key for outcome in every if outcome.kl_nats is not None), None)


def frontiers(methods: Sequence[MethodRuns], key: str) -> list[Frontier]:
    """Methods that differ in nothing but learning rate and β as one, their points by KL."""
    curves: dict[str, list[tuple[str, Point]]] = {}
    for method in methods:
        point = _point(method, key)
        if point is not None:
            rest = {name: value for name, value in method.settings.items() if name not in ALONG}
            together = json.dumps(rest, sort_keys=True)
            curves.setdefault(together, []).append((method.label, point))
    return [
        Frontier(_without_along(curve[0][0]), sorted((p for _, p in curve), key=lambda p: p.kl))
        for curve in curves.values()
    ]


def _without_along(label: str) -> str:
    return " ".join(word for word in label.split() if not word.startswith(ALONG_WORDS))


def _point(method: MethodRuns, key: str) -> Point | None:
    """Where a method lies; None where no run of it was measured."""
    measured = [outcome for run in method.runs for outcome in outcomes_of(run)
                if outcome.key == key and None not in (outcome.kl_nats, outcome.mean)]  # fmt: skip
    if not measured:
        return None
    kl, kl_ends = _spread([outcome.estimate("kl_nats") for outcome in measured])
    mean, mean_ends = _spread([outcome.estimate("mean") for outcome in measured])
    return Point(kl, mean, kl_ends, mean_ends)


def _spread(estimates: Sequence[Estimate]) -> tuple[float, tuple[float, float]]:
    """The mean over runs, and how far to both sides."""
    mean, std = mean_and_std([estimate.value or 0.0 for estimate in estimates])
    if std is not None:
        return mean, (std, std)
    only = estimates[0]
    low, high = (mean if end is None else end for end in (only.low, only.high))
    return mean, (max(mean - low, 0.0), max(high - mean, 0.0))


def _bars(ends: Sequence[tuple[float, float]]) -> list[list[float]]:
    """As the library takes them: all below, all above."""
    return [[low for low, _ in ends], [high for _, high in ends]]


def _untrained(methods: Sequence[MethodRuns], key: str) -> float | None:
    """The mean marks of the untrained policy, where it is the same for all runs."""
    means = {
        outcome.mean
        for method in methods
        for run in method.runs
        if run.outcomes is not None
        for outcome in run.outcomes.untrained
        if outcome.key == key
    }
    return means.pop() if len(means) == 1 else None


def outcomes_of(run: Result) -> list[Outcome]:
    """A run's outcomes; none where nothing was generated."""
    return [] if run.outcomes is None else run.outcomes.outcomes


def outcomes_table(methods: Sequence[MethodRuns]) -> Table | None:
    """Each run's outcomes before training and after; None without any."""
    rows = [
        [method.label, str(run.seed), *_cells(run, outcome)]
        for method in methods
        for run in method.runs
        for outcome in outcomes_of(run)
    ]
    return Table(
        "outcomes",
        "Outcomes",
        "Marks of generated answers with 95 % intervals, by bootstrap over prompts; the gain is "
        "paired by prompt. KL(π‖reference 1) is of the sampled answers, nats a whole answer. A "
        "benchmark's intervals are by its standard errors, its prompts its own.",
        ["method", "seed", "scorer", "answers", "prompts", "untrained", "trained", "gain",
         "full marks, %", "KL", "cut, %"],
        rows,
    ) if rows else None  # fmt: skip


def _cells(run: Result, outcome: Outcome) -> list[str]:
    before = run.outcomes.before(outcome) if run.outcomes is not None else None
    return [
        outcome.scorer,
        outcome.way,
        f"{outcome.prompts:,}",
        "–" if before is None or before.mean is None else f"{before.mean:.3f}",
        _with_ends(outcome.estimate("mean")),
        _with_ends(outcome.estimate("gain")),
        "–" if outcome.full is None else f"{100 * outcome.full:.1f}",
        _with_ends(outcome.estimate("kl_nats")),
        "–" if outcome.truncated is None else f"{100 * outcome.truncated:.0f}",
    ]


def _with_ends(estimate: Estimate) -> str:
    if estimate.value is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def answers_table(methods: Sequence[MethodRuns], split: str) -> Table | None:
    """Three prompts with the greedy answers before and after; None where no run kept any.

    Of the method with the largest mean marks its first run; of its prompts the first, the one that
    gained most and the one that lost most: they are no sample, and nobody chose them.
    """
    judged = [(outcome.mean, method, run) for method in methods for run in method.runs
              for outcome in outcomes_of(run)[:1]
              if outcome.mean is not None and outcome.kind != "benchmark"]  # fmt: skip
    if not judged:
        return None
    _, method, _ = max(judged, key=lambda each: each[0])
    run = next(run for _, of, run in judged if of is method)
    rows = chosen(read_answers(answers_file(run.path, split)))
    if not rows:
        return None
    return Table(
        "answers",
        "Three prompts, before and after",
        f"Greedy answers of {method.label}, seed {run.seed}, which has the largest mean marks. "
        "The prompts are the first of the split, the one whose marks rose most and the one whose "
        f"marks fell most; of equal ones the first. Texts are cut at {SHOWN} characters.",
        ["", "prompt", "before", "marks", "after", "marks"],
        [
            [which, cut(row.group.prompt[-1].content), cut(before.content),
             f"{before.score:g}", cut(after.content), f"{after.score:g}"]
            for which, (row, before, after) in rows.items()
        ],
    )  # fmt: skip


def chosen(rows: Sequence[Prompted]) -> dict[str, tuple[Prompted, Judged, Judged]]:
    """The first prompt, the largest gain and the largest loss, with both greedy answers."""
    pairs = []
    for row in rows:
        greedy = [answer for answer in row.answers if answer.decoding == "greedy"]
        after = next((each for each in greedy if each.model == TRAINED), None)
        before = next((each for each in greedy if each.model != TRAINED), None)
        if before is not None and after is not None:
            pairs.append((row, before, after))
    if not pairs:
        return {}
    gains = [after.score - before.score for _, before, after in pairs]
    named = {"the first": pairs[0]}
    if max(gains) > 0:
        named[f"largest gain ({max(gains):+g})"] = pairs[gains.index(max(gains))]
    if min(gains) < 0:
        named[f"largest loss ({min(gains):+g})"] = pairs[gains.index(min(gains))]
    return named


def cut(text: str) -> str:
    """A text as a table shows it."""
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
