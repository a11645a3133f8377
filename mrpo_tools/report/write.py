"""`mrpo report`: everything about some runs on one page, and each picture as a file."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from mrpo_tools.errors import ResourceError, UsageError
from mrpo_tools.report.curves import (
    accuracy_picture,
    learning_rate_picture,
    logps_picture,
    loss_picture,
    margin_picture,
)
from mrpo_tools.report.differing import differing_tables
from mrpo_tools.report.facts import (
    about_table,
    cost_table,
    differences_table,
    hardly_moved,
    runs_table,
    summary,
    verdict,
)
from mrpo_tools.report.outcomes import answers_table, frontier_picture, outcomes_table
from mrpo_tools.report.palette import DARK, LIGHT
from mrpo_tools.report.references import (
    choices_picture,
    clipping_picture,
    ranking_picture,
    weights_picture,
)
from mrpo_tools.runs.caption import caption
from mrpo_tools.runs.compare import NOT_COMPARABLE, Comparison, compare
from mrpo_tools.runs.formats import cells_of, header, percentages, render
from mrpo_tools.runs.methods import by_method
from mrpo_tools.runs.read import read_results

PAGE = "report.html"
MARKDOWN = "report.md"
PICTURES = (
    (frontier_picture, "no run has outcomes with KL (mrpo evaluate RUN --rule MODULE:FUNCTION)"),
    (ranking_picture, "no run was compared with references"),
    (loss_picture, "no run has a log of training"),
    (learning_rate_picture, "no run has a log of its learning rate"),
    (margin_picture, "no run has a log of training"),
    (logps_picture, "no run has a log of training"),
    (choices_picture, "no two methods of one loss differ in ε or α"),
    (weights_picture, "no method weights several references by group"),
    (clipping_picture, "no method has several references"),
    (accuracy_picture, "no run has a log of training"),
)
"""What draws each picture, and why it would not be there; what is not comparable is the last."""


def report(
    paths: Sequence[Path], output: Path, split: str = "test", baselines: Sequence[str] = ()
) -> list[Path]:
    """Write a report of runs.

    The same runs give the same bytes: nothing in it depends on the time or on where it is made.

    Args:
        paths: runs, or directories of runs.
        output: a directory, made if it is not there; files of an earlier report are replaced.
        split: of the evaluations.
        baselines: labels; none means DPO with a single reference.

    Returns:
        The files written: the page, the same as Markdown, the pictures as PNG (light).

    Raises:
        UsageError: no finished and evaluated run, or `output` is a file.
        ResourceError: it cannot be written.
    """
    if output.is_file():
        raise UsageError(f"{output} is a file; a report needs a directory", "--output DIR")
    results = read_results(paths, split)
    comparison = compare(results, split, baselines)
    methods = by_method(results)
    drawn = [(draw(methods), reason) for draw, reason in PICTURES]
    pictures = [picture for picture, _ in drawn if picture is not None]
    answered = [
        outcomes_table(methods),
        answers_table(methods, split),
        *differing_tables(methods, split),
    ]
    words: dict[str, object] = {
        "verdict": verdict(comparison),
        "summary": " ".join(filter(None, [summary(methods, split), hardly_moved(methods)])),
        "pictures": pictures,
        "facts": [
            *(table for table in answered if table is not None),
            about_table(methods),
            runs_table(methods),
        ],
        "tables": [differences_table(methods), cost_table(methods)],
        "missing": sorted({reason for picture, reason in drawn if picture is None}),
    }
    text = _template(MARKDOWN).render(table=render(comparison, "markdown"), **words)
    files = {PAGE: _page(comparison, words).encode(), MARKDOWN: text.encode()}
    files |= {f"{picture.name}.png": picture.light for picture in pictures}
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (output / name).write_bytes(content)
    except OSError as error:
        raise ResourceError(f"{output} cannot be written: {error}", "--output DIR") from None
    return [output / name for name in files]


def _page(comparison: Comparison, words: dict[str, object]) -> str:
    return _template("page.html").render(
        comparison=comparison,
        header=header(comparison),
        caption=caption(comparison).replace("`", ""),
        cells_of=cells_of,
        percentages=percentages,
        note=NOT_COMPARABLE,
        light=LIGHT,
        dark=DARK,
        **words,
    )


def _template(name: str) -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inline"] = _inline
    environment.filters["cell"] = _cell
    return environment.get_template(name)


def _cell(text: str) -> str:
    """A text as a cell of a Markdown table shows it, whoever wrote it."""
    for mark in ("\\", "|", "`", "*", "["):
        text = text.replace(mark, f"\\{mark}")
    return html.escape(text, quote=False).replace("\n", "<br>")


def _inline(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
