"""A comparison as Markdown, LaTeX, CSV or JSON: no dates and no paths, equal for equal runs."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from mrpo_tools.runs.caption import caption
from mrpo_tools.runs.columns import LOGP, PER_TOKEN, Column
from mrpo_tools.runs.compare import NOT_COMPARABLE, TIES, Cell, Comparison, Row, Untrained
from mrpo_tools.runs.marks import BETTER, WORSE
from mrpo_tools.words import TableFormat

LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": "$<$", "≥": r"$\ge$", "±": r"$\pm$", "−": "$-$", "∞": r"$\infty$",
    "ε": r"$\epsilon$", "β": r"$\beta$", "–": "--", "…": r"\dots{}",
}  # fmt: skip
SYMBOLS = "±≥−∞–<"
"""What stands in numbers and captions, where `LATEX` has another form of it."""
EFFECTS = ("difference", "p", "d")
MarkedText: TypeAlias = tuple[str, str | None]
"""What a cell says, and its mark."""


def cell_text(cell: Cell, column: Column, plus_minus: str = " ± ") -> str:
    """`86.4 ± 0.3`, without the deviation for one seed, a dash without a value."""
    if cell.mean is None:
        return TIES if cell.tied else "–"
    mean = f"{cell.mean * column.scale:.{column.decimals}f}"
    if cell.std is None:
        return mean
    return f"{mean}{plus_minus}{cell.std * column.scale:.{column.decimals}f}"


def effects(row: Row, comparison: Comparison) -> list[str]:
    """What tells a method from the best baseline in the marked column: the columns `EFFECTS`."""
    cell = row.cells[comparison.marked.key]
    return [difference_text(cell, comparison.marked), p_text(cell.p), effect_text(cell)]


def difference_text(cell: Cell, column: Column) -> str:
    """`+1.2 (+0.3 to +2.1)`, the interval only where pairs differ from each other."""
    if cell.difference is None:
        return "–"
    one = cell.difference
    mean, *ends = [
        None if value is None else f"{value * column.scale:+.{column.decimals}f}"
        for value in (one.mean, one.low, one.high)
    ]
    return f"{mean}" if None in ends else f"{mean} ({ends[0]} to {ends[1]})"


def p_text(p: float | None) -> str:
    """`0.012`, a dash where nothing is marked."""
    if p is None:
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def effect_text(cell: Cell) -> str:
    """Cohen's d."""
    d = cell.d
    if d is None:
        return "–"
    return f"{d:+.2f}" if math.isfinite(d) else ("∞" if d > 0 else "−∞")


def percentages(row: Untrained) -> list[str]:
    """Both accuracies, a dash without one."""
    return ["–" if value is None else f"{100 * value:.1f}" for value in (row.summed, row.per_token)]


def label_text(row: Row) -> str:
    """A method's label, with a star where it is a baseline."""
    return f"{row.label} *" if row.baseline else row.label


def header(comparison: Comparison) -> list[str]:
    """The titles of the columns."""
    first, *others = (column.title for column in comparison.columns)
    return ["method", "seeds", first, *EFFECTS, *others]


def cells_of(row: Row, comparison: Comparison, plus_minus: str = " ± ") -> list[MarkedText]:
    """The texts of a row behind its label and seeds, each with its mark."""
    texts: list[MarkedText] = []
    for column in comparison.columns:
        cell = row.cells[column.key]
        texts.append((cell_text(cell, column, plus_minus), cell.mark))
    return [texts[0], *((text, None) for text in effects(row, comparison)), *texts[1:]]


def markdown(comparison: Comparison) -> str:
    """Tables for a README or an issue, with what the marks mean."""
    marks = {BETTER: "**{}**", WORSE: "*{}*", None: "{}"}
    titles = header(comparison)
    lines = [_bar(titles), "|---|" + "---:|" * (len(titles) - 1)]
    for row in comparison.rows:
        label = f"`{row.label}`" + (" \\*" if row.baseline else "")
        cells = [marks[mark].format(text) for text, mark in cells_of(row, comparison)]
        lines.append(_bar([label, str(len(row.seeds)), *cells]))
    lines += ["", caption(comparison).replace("(*)", "(\\*)"), "", NOT_COMPARABLE, ""]
    lines += ["| without any training | log-prob | per token |", "|---|---:|---:|"]
    lines += [_bar([row.what, *percentages(row)]) for row in comparison.untrained]
    return "\n".join(lines) + "\n"


def latex(comparison: Comparison) -> str:
    """A `tabular` with booktabs' rules."""
    marks = {BETTER: r"\textbf{{{}}}", WORSE: r"\textit{{{}}}", None: "{}"}
    titles = header(comparison)
    lines = [
        r"\begin{tabular}{l" + "r" * (len(titles) - 1) + "}",
        r"\toprule",
        _row([_escaped(title) for title in titles]),
        r"\midrule",
    ]
    for row in comparison.rows:
        cells = [marks[mark].format(_in_latex(text)) for text, mark in cells_of(row, comparison)]
        lines.append(_row([_escaped(label_text(row)), str(len(row.seeds)), *cells]))
    lines += [r"\midrule"]
    for alone in comparison.untrained:
        texts = dict(zip((LOGP, PER_TOKEN), percentages(alone), strict=True))
        shown = [_in_latex(texts.get(column.key, "")) for column in comparison.columns]
        empty = [""] * len(EFFECTS)
        lines.append(_row([_escaped(alone.what), "", shown[0], *empty, *shown[1:]]))
    text = _in_latex(caption(comparison)).replace(" %", r" \%")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", f"% {text}", f"% {NOT_COMPARABLE}",
                      ""])  # fmt: skip


def comma_separated(comparison: Comparison) -> str:
    """A line for each method and metric, unrounded: for other programs."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "baseline", "metric", "seeds", "mean", "std", "cohens_d", "mark",
                     "difference", "low", "high", "pairs", "p"])  # fmt: skip
    for row in comparison.rows:
        for column in comparison.columns:
            cell = row.cells[column.key]
            writer.writerow([row.label, int(row.baseline), column.key, len(cell.values),
                             cell.mean, cell.std, cell.d, cell.mark,
                             *_difference(cell).values(), cell.p])  # fmt: skip
    for alone in comparison.untrained:
        empty = [None] * 8
        writer.writerow([alone.what, 0, "accuracy", 0, alone.summed, *empty])
        if alone.per_token is not None:
            writer.writerow([alone.what, 0, "accuracy_per_token", 0, alone.per_token, *empty])
    return text.getvalue()


def _difference(cell: Cell) -> dict[str, float | None]:
    """The paired difference to the best baseline, part by part; None without one."""
    one = cell.difference
    parts = (None,) * 4 if one is None else (one.mean, one.low, one.high, one.pairs)
    return dict(zip(("mean", "low", "high", "pairs"), parts, strict=True))


def as_json(comparison: Comparison) -> str:
    """Everything, every seed's value included; an infinite d is null."""
    values = {
        "split": comparison.split,
        "marked": comparison.marked.key,
        "caption": caption(comparison),
        "note": NOT_COMPARABLE,
        "methods": [
            {
                "method": row.label,
                "baseline": row.baseline,
                "seeds": list(row.seeds),
                "metrics": {
                    key: {
                        "values": list(cell.values),
                        "mean": cell.mean,
                        "std": cell.std,
                        "cohens_d": cell.d if cell.d is None or math.isfinite(cell.d) else None,
                        "difference": _difference(cell) if cell.difference else None,
                        "p": cell.p,
                        "mark": cell.mark,
                        "tied": cell.tied,
                    }
                    for key, cell in row.cells.items()
                },
            }
            for row in comparison.rows
        ],
        "untrained": {row.what: row.summed for row in comparison.untrained},
        "untrained_per_token": {
            row.what: row.per_token for row in comparison.untrained if row.per_token is not None
        },
    }
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


FORMATS: dict[TableFormat, tuple[str, Callable[[Comparison], str]]] = {
    "markdown": ("md", markdown),
    "latex": ("tex", latex),
    "csv": ("csv", comma_separated),
    "json": ("json", as_json),
}
"""Name: (file ending, writer)."""


def render(comparison: Comparison, name: TableFormat) -> str:
    """The text of a comparison in one of `FORMATS`."""
    return FORMATS[name][1](comparison)


def _bar(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _escaped(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)


def _in_latex(text: str) -> str:
    """Numbers and prose: signs have their form, everything else stays."""
    return "".join(LATEX[letter] if letter in SYMBOLS else letter for letter in text)
