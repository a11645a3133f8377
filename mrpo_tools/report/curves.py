"""What happened over training: means over seeds with bands of one standard deviation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from mrpo_tools.maths.statistics import mean_and_std
from mrpo_tools.report.canvas import Picture, chance_line, legend, legend_height, look, picture
from mrpo_tools.report.palette import Palette
from mrpo_tools.runs.methods import MethodRuns
from mrpo_tools.runs.read import LogEntry

MOST_LINES = 10
SIDES = ("chosen", "rejected")
FALLING = (
    "The log-prob of the chosen responses may fall although training goes well: the loss asks only "
    "for the difference between chosen and rejected, so both may lose probability to texts that "
    "are neither, as long as the rejected lose more."
)


@dataclass(frozen=True)
class Curve:
    """A logged number over the steps.

    Attributes:
        label: of the method.
        steps: at which every run of the method logged it.
        means: over its runs.
        stds: sample standard deviations; None for one run.
    """

    label: str
    steps: list[int]
    means: list[float]
    stds: list[float] | None


def curve(method: MethodRuns, key: str) -> Curve | None:
    """A method's curve of one logged number; None where no step has it in every run."""
    values: dict[int, list[float]] = defaultdict(list)
    for run in method.runs:
        for entry in run.history:
            if key in entry.values and entry.step is not None and not _tied(entry, key):
                values[entry.step].append(entry.values[key])
    steps = sorted(step for step, seeds in values.items() if len(seeds) == len(method.runs))
    if not steps:
        return None
    summary = [mean_and_std(values[step]) for step in steps]
    stds = [std for _, std in summary if std is not None]
    return Curve(method.label, steps, [mean for mean, _ in summary], stds or None)


def _tied(entry: LogEntry, key: str) -> bool:
    """Whether an accuracy is 0 only because the policy is still its own reference."""
    before, accuracies, _ = key.partition("rewards/accuracies")
    margins = entry.values.get(f"{before}rewards/margins")
    return bool(accuracies) and entry.values[key] == 0 and margins == 0


def curves(methods: Sequence[MethodRuns], key: str) -> list[Curve]:
    """Of as many methods as a picture holds: the first of every loss, then the second, …"""
    lines = [(method.loss, line) for method in methods if (line := curve(method, key)) is not None]
    so_far: dict[str, int] = defaultdict(int)
    order = []
    for place, (loss, _) in enumerate(lines):
        order.append((so_far[loss], place))
        so_far[loss] += 1
    drawn = sorted(place for _, place in sorted(order)[:MOST_LINES])
    return [lines[place][1] for place in drawn]


def measured(methods: Sequence[MethodRuns], key: str) -> tuple[list[Curve], str]:
    """Curves of a figure, and the groups they are of: those of one split where runs measured it
    while training (`eval_steps`; the split that most methods did), else the training batches."""
    key_of_split = f"eval_{key}"
    by_split: dict[str, list[MethodRuns]] = defaultdict(list)
    for method in methods:
        splits = {result.run.recipe.eval_split for result in method.runs}
        if len(splits) == 1 and curve(method, key_of_split) is not None:
            by_split[splits.pop()].append(method)
    if not by_split:
        return curves(methods, key), "the training batches"
    split = max(sorted(by_split), key=lambda name: len(by_split[name]))
    return curves(by_split[split], key_of_split), f"split {split}"


def accuracy_picture(methods: Sequence[MethodRuns]) -> Picture | None:
    """MRPO's Figures 1 and 2."""
    return _curves_picture(
        methods,
        "rewards/accuracies",
        "accuracy",
        title="Preference accuracy over training",
        quantity="preference accuracy",
        text="Share of pairs in {where} whose better response has the larger reward, mean over "
        "seeds, with a band of ± one standard deviation where there are several. The reward is the "
        "method's own, so levels are not comparable between methods; rises are. The dotted line is "
        "chance. A policy that is its own reference ties every pair before the first step; that "
        "step is not drawn.",
        chance=True,
    )


def margin_picture(methods: Sequence[MethodRuns]) -> Picture | None:
    """MRPO's Figure 3."""
    return _curves_picture(
        methods,
        "rewards/margins",
        "margin",
        title="Reward margin over training",
        quantity="reward margin",
        text="Mean reward of the chosen responses less that of the rejected ones in {where}, mean "
        "over seeds, ± one standard deviation where there are several. Rewards of different losses "
        "have different units.",
    )


def loss_picture(methods: Sequence[MethodRuns]) -> Picture | None:
    """What training lowers."""
    return _curves_picture(
        methods,
        "loss",
        "loss",
        title="Loss over training",
        quantity="loss",
        text="Mean loss of the usable groups in {where}, mean over seeds, ± one standard deviation "
        "where there are several. Losses of different objectives are not of one kind.",
    )


def learning_rate_picture(methods: Sequence[MethodRuns]) -> Picture | None:
    """What the scheduler made of the recipe's learning rate."""
    lines = curves(methods, "learning_rate")
    if not lines:
        return None

    def draw(axes: Sequence[Axes], palette: Palette) -> None:
        (chart,) = axes
        _plot(chart, palette, lines)
        chart.set_xlabel("step")
        chart.set_ylabel("learning rate")
        chart.set_ylim(bottom=0)
        legend(chart, palette)

    peaks = ", ".join(f"{line.label} {max(line.means):.3g}" for line in lines)
    return picture(
        "learning_rate",
        "Learning rate over training",
        "The learning rate of each logged step; lines of one schedule lie over each other.",
        f"Line chart of the learning rate over training steps. At its largest: {peaks}.",
        draw,
        height=3.5 + legend_height([line.label for line in lines]),
    )


def logps_picture(methods: Sequence[MethodRuns]) -> Picture | None:
    """Chosen and rejected log-probs, in two rows."""
    (chosen, where), (rejected, _) = (measured(methods, f"logps/{side}") for side in SIDES)
    rows = [chosen, rejected]
    if not chosen or not rejected:
        return None

    def draw(axes: Sequence[Axes], palette: Palette) -> None:
        for chart, side, lines in zip(axes, SIDES, rows, strict=True):
            _plot(chart, palette, lines)
            chart.set_ylabel(f"{side} (nats)")
        axes[1].set_xlabel("step")
        legend(axes[1], palette)

    ends = [f"{side}: {_ends(lines, '.2f')}" for side, lines in zip(SIDES, rows, strict=True)]
    return picture(
        "logps",
        "Log-probs of chosen and rejected responses",
        "Mean log-prob of the chosen (above) and the rejected responses (below) of "
        f"{where} under the policy. {FALLING}",
        f"Two line charts over training steps. At the last step, {'; '.join(ends)}.",
        draw,
        height=5.4 + legend_height([line.label for line in rejected]),
        rows=2,
    )


def _curves_picture(
    methods: Sequence[MethodRuns], key: str, name: str, *, title: str, quantity: str, text: str,
    chance: bool = False,
) -> Picture | None:  # fmt: skip
    lines, where = measured(methods, key)
    if not lines:
        return None
    text = text.format(where=where)

    def draw(axes: Sequence[Axes], palette: Palette) -> None:
        (chart,) = axes
        _plot(chart, palette, lines)
        if chance:
            chance_line(chart.axhline, palette)
        chart.set_xlabel("step")
        chart.set_ylabel(quantity)
        legend(chart, palette)

    if len(lines) < len(methods):
        text += f" {len(lines)} of {len(methods)} methods are drawn; the table has all of them."
    alt = f"Line chart of the {quantity} over training steps. At the last step: {_ends(lines)}."
    height = 3.5 + legend_height([line.label for line in lines])
    return picture(name, title, text, alt, draw, height=height)


def _plot(chart: Axes, palette: Palette, lines: Sequence[Curve]) -> None:
    alpha = min(0.15, 0.6 / max(len(lines), 1))  # bands lie over each other
    for place, line in enumerate(lines):
        style = look(place, palette)
        chart.plot(line.steps, line.means, label=line.label, **style)
        if line.stds is None:
            continue
        low = [mean - std for mean, std in zip(line.means, line.stds, strict=True)]
        high = [mean + std for mean, std in zip(line.means, line.stds, strict=True)]
        chart.fill_between(line.steps, low, high, color=style["color"], alpha=alpha, linewidth=0)


def _ends(lines: Sequence[Curve], form: str = ".3f") -> str:
    return ", ".join(
        f"{line.label} {plus_minus(line.means[-1], line.stds[-1] if line.stds else None, form)}"
        for line in lines
    )


def plus_minus(mean: float, std: float | None, form: str) -> str:
    """`0.753 ± 0.014`; one seed has no deviation."""
    return f"{mean:{form}}" if std is None else f"{mean:{form}} ± {std:{form}}"
