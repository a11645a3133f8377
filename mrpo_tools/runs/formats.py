"""A comparison as Markdown, LaTeX, CSV or JSON: no dates and no paths, equal for equal runs."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence

from mrpo_tools.runs.compare import (
    BEST,
    NOT_COMPARABLE,
    SECOND,
    Cell,
    Column,
    Comparison,
    Row,
    Untrained,
)
from mrpo_tools.words import TableFormat

LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "ε": r"$\epsilon$", "β": r"$\beta$", "–": "--", "…": r"\dots{}",
}  # fmt: skip


def caption(comparison: Comparison) -> str:
    """What the numbers and marks are."""
    return (
        f"Split {comparison.split}: mean ± sample std over seeds; accuracies in %. Reference 1 is "
        "the method's own: of a single-reference baseline, that reference. `d`: Cohen's d of the "
        "log-prob accuracy against the best baseline (*). That accuracy and the one per token are "
        "comparable between all methods; the first is marked: bold is the best if it is better by "
        "d ≥ 0.5, italics the second best. Untrained, a policy that is its own reference ties "
        "every pair (–)."
    )


def cell_text(cell: Cell, column: Column, plus_minus: str = " ± ") -> str:
    """`86.4 ± 0.3`, without the deviation for one seed, a dash without a value."""
    if cell.mean is None:
        return "–"
    mean = f"{cell.mean * column.scale:.{column.decimals}f}"
    if cell.std is None:
        return mean
    return f"{mean}{plus_minus}{cell.std * column.scale:.{column.decimals}f}"


def effect_text(row: Row) -> str:
    """Cohen's d of the accuracy that is comparable between methods."""
    d = row.cells["accuracies_logp"].d
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
    return ["method", "seeds", first, "d", *others]


def markdown(comparison: Comparison) -> str:
    """Tables for a README or an issue, with what the marks mean."""
    marks = {BEST: "**{}**", SECOND: "*{}*", None: "{}"}
    lines = [_bar(header(comparison)), "|---|" + "---:|" * (len(comparison.columns) + 2)]
    for row in comparison.rows:
        cells = [
            marks[row.cells[column.key].mark].format(cell_text(row.cells[column.key], column))
            for column in comparison.columns
        ]
        label = f"`{row.label}`" + (" \\*" if row.baseline else "")
        cells.insert(1, effect_text(row))
        lines.append(_bar([label, str(len(row.seeds)), *cells]))
    lines += ["", caption(comparison).replace("(*)", "(\\*)"), "", NOT_COMPARABLE, ""]
    lines += ["| without any training | log-prob | per token |", "|---|---:|---:|"]
    lines += [_bar([row.what, *percentages(row)]) for row in comparison.untrained]
    return "\n".join(lines) + "\n"


def latex(comparison: Comparison) -> str:
    """A `tabular` with booktabs' rules."""
    marks = {BEST: r"\textbf{{{}}}", SECOND: r"\textit{{{}}}", None: "{}"}
    lines = [
        r"\begin{tabular}{l" + "r" * (len(comparison.columns) + 2) + "}",
        r"\toprule",
        _row([_escaped(title) for title in header(comparison)]),
        r"\midrule",
    ]
    for row in comparison.rows:
        cells = [
            marks[row.cells[column.key].mark].format(
                cell_text(row.cells[column.key], column, r" $\pm$ ").replace("–", "--")
            )
            for column in comparison.columns
        ]
        effect = effect_text(row).replace("–", "--").replace("−", "-").replace("∞", r"$\infty$")
        cells.insert(1, effect)
        lines.append(_row([_escaped(label_text(row)), str(len(row.seeds)), *cells]))
    lines += [r"\midrule"]
    for alone in comparison.untrained:
        summed, per_token = (text.replace("–", "--") for text in percentages(alone))
        empty = [""] * (len(comparison.columns) - 2)
        lines.append(_row([_escaped(alone.what), "", summed, "", per_token, *empty]))
    text = caption(comparison).replace("`d`", "$d$").replace("±", r"$\pm$").replace("≥", r"$\ge$")
    text = text.replace(" %", r" \%").replace("(–)", "(--)")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", f"% {text}", f"% {NOT_COMPARABLE}",
                      ""])  # fmt: skip


def comma_separated(comparison: Comparison) -> str:
    """A line for each method and metric, unrounded: for other programs."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "baseline", "metric", "seeds", "mean", "std", "cohens_d", "mark"])
    for row in comparison.rows:
        for column in comparison.columns:
            cell = row.cells[column.key]
            writer.writerow([row.label, int(row.baseline), column.key, len(cell.values),
                             cell.mean, cell.std, cell.d, cell.mark])  # fmt: skip
    for alone in comparison.untrained:
        writer.writerow([alone.what, 0, "accuracy", 0, alone.summed, None, None, None])
        if alone.per_token is not None:
            writer.writerow(
                [alone.what, 0, "accuracy_per_token", 0, alone.per_token, None, None, None]
            )
    return text.getvalue()


def as_json(comparison: Comparison) -> str:
    """Everything, every seed's value included; an infinite d is null."""
    values = {
        "split": comparison.split,
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
                        "mark": cell.mark,
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
