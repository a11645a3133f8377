"""Matplotlib, set up once: the same picture in light and in dark, the same bytes every time."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mrpo_tools.report.palette import BOTH, Palette

WIDTH = 5.6
"""Inches; a page shows a picture at up to 100 pixels an inch, on a telephone at 65."""
FONT = 11
"""Points."""
LABEL = 32
"""Letters of a label that are shown."""
DPI = 150
CHANCE = 0.5
"""The accuracy of guessing between two."""
STYLES = ("-", (0, (4, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

Draw = Callable[[Sequence[Axes], Palette], None]
"""What draws a picture: takes its axes, from the top, and the palette."""


@dataclass(frozen=True)
class Picture:
    """A picture of a report.

    Attributes:
        name: of its file.
        title: above it.
        text: beneath it: what is shown and how to read it.
        alt: what it shows, in words and numbers, for those who cannot see it.
        light: PNG.
        dark: PNG.
        size: width and height in pixels.
    """

    name: str
    title: str
    text: str
    alt: str
    light: bytes
    dark: bytes
    size: tuple[int, int]


def picture(
    name: str,
    title: str,
    text: str,
    alt: str,
    draw: Draw,
    *,
    height: float,
    rows: int = 1,
) -> Picture:
    """Draw a picture in both palettes.

    Args:
        name: of its file.
        title: above it.
        text: beneath it.
        alt: what it shows, in words and numbers.
        draw: draws it.
        height: inches.
        rows: of axes, one above the other.
    """
    light, dark = (_png(draw, palette, height, rows) for palette in BOTH)
    return Picture(name, title, text, alt, light, dark, (round(WIDTH * DPI), round(height * DPI)))


def _png(draw: Draw, palette: Palette, height: float, rows: int) -> bytes:
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
        figure.set_facecolor(palette.background)
        axes: list[Axes] = list(figure.subplots(rows, 1, squeeze=False)[:, 0])
        for chart in axes:
            dress(chart, palette)
        draw(axes, palette)
        buffer = io.BytesIO()
        png: Any = FigureCanvasAgg(figure)  # whose print_png has no types
        png.print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def dress(axes: Axes, palette: Palette) -> None:
    """Quiet axes: two spines, a light grid, text of the palette."""
    axes.set_facecolor(palette.background)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(palette.quiet)
    axes.tick_params(colors=palette.text, labelsize=FONT)
    axes.grid(color=palette.rule, linewidth=0.6, alpha=0.7)
    axes.set_axisbelow(True)
    for label in (axes.xaxis.label, axes.yaxis.label, axes.title):
        label.set_color(palette.text)
        label.set_fontsize(FONT)


def chance_line(line: Callable[..., object], palette: Palette) -> None:
    """Where guessing would be, drawn by `axhline` or `axvline` of a chart."""
    line(CHANCE, color=palette.quiet, linestyle=":", linewidth=1.4)


def legend(axes: Axes, palette: Palette) -> None:
    """A legend below the picture, where it covers nothing; each label once."""
    handles, labels = axes.get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))
    axes.figure.legend(
        entries.values(), map(short, entries), loc="outside lower center", frameon=False,
        fontsize=FONT, ncols=_columns(labels), labelcolor=palette.text, handlelength=2.8,
        columnspacing=1.4,
    )  # fmt: skip


def short(label: str) -> str:
    """A label that leaves room for the picture."""
    return label if len(label) <= LABEL else f"{label[: LABEL - 1]}…"


def legend_height(labels: Sequence[str]) -> float:
    """Inches that `legend` needs."""
    return 0.23 * -(-len(labels) // _columns(labels)) + 0.15


def _columns(labels: Sequence[str]) -> int:
    """As many as fit side by side, at about 12 letters an inch."""
    longest = max(map(len, map(short, labels)), default=0)
    return max(1, min(4, len(labels), int(12 * WIDTH) // (longest + 6)))


def look(place: int, palette: Palette) -> dict[str, Any]:
    """Colour, line style, marker and width of the line at a place.

    Later lines are thinner and every second one is dashed, so that lines which coincide are all
    seen.
    """
    colour = place % len(palette.lines)
    return {
        "color": palette.lines[colour],
        "linestyle": STYLES[place % 2],
        "marker": MARKERS[colour],
        "markersize": max(6.5 - 0.3 * place, 4),
        "linewidth": max(3.7 - 0.26 * place, 1.4),
    }
