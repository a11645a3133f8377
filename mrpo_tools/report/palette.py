"""Colours of the page and of its pictures, once for light and once for dark."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Palette:
    """Colours as `#rrggbb`.

    Text reaches a contrast of 4.5 on both backgrounds, and lines do too, so that a line's label can
    have its colour.
    """

    name: str
    background: str
    panel: str
    text: str
    quiet: str
    rule: str
    link: str
    lines: tuple[str, ...]


LIGHT = Palette(
    "light",
    background="#ffffff",
    panel="#f4f5f7",
    text="#1b1f24",
    quiet="#525a64",
    rule="#c9ced6",
    link="#0b57a4",
    lines=(
        "#0b5cad", "#a84300", "#00704f", "#86358d", "#7a5c00", "#b0174a", "#176a7c", "#565c66",
    ),
)  # fmt: skip
DARK = Palette(
    "dark",
    background="#14171c",
    panel="#1d2128",
    text="#e8eaee",
    quiet="#aab2bd",
    rule="#3c434e",
    link="#7fbcff",
    lines=(
        "#6cb6ff", "#ff9f5a", "#4cc9a0", "#d79be6", "#e3c04c", "#ff86a3", "#78c9d8", "#b9c0ca",
    ),
)  # fmt: skip
BOTH = (LIGHT, DARK)


def contrast(first: str, second: str) -> float:
    """WCAG 2 contrast ratio of two colours, 1 to 21."""
    lighter, darker = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
