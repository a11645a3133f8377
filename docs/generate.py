"""Write docs/methods.md and docs/data.md from their .in.md and the tables in the code.

`python docs/generate.py`

The table of runs at the end of methods.md comes from docs/objectives_on_demo.json, which
`python bench/objectives.py` measures.
"""

from __future__ import annotations

import json
from pathlib import Path

from mrpo_tools.methods.method import LOSSES, describe
from mrpo_tools.sources import ADAPTERS, COUNTS, KNOWN
from mrpo_tools.sources.export import FORMS

DOCS = Path(__file__).parent


def page() -> str:
    """The whole page: the prose of methods.in.md around the two tables."""
    prose = (DOCS / "methods.in.md").read_text(encoding="utf-8")
    return prose.replace("{{objectives}}", _objectives()).replace("{{runs}}", _runs())


def data_page() -> str:
    """docs/data.md: the prose of data.in.md around the tables of formats and data sets."""
    prose = (DOCS / "data.in.md").read_text(encoding="utf-8")
    tables = {"formats": _formats, "named": _named, "forms": _forms, "counts": _counts}
    for name, table in tables.items():
        prose = prose.replace("{{" + name + "}}", table())
    return prose


def _table(*rows: tuple[str, ...]) -> str:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def _formats() -> str:
    rows = []
    for adapter in ADAPTERS.values():
        columns = ", ".join(
            f"`{column}`" if shape.words == "text" else f"`{column}`: {shape.words}"
            for column, shape in adapter.columns.items()
        )
        kinds = f"; `--score` {', '.join(adapter.scores)}" if adapter.scores else ""
        rows.append((f"`{adapter.name}`", columns, adapter.about + kinds))
    return _table(("adapter", "columns (text where nothing is said)", "what it is"), *rows)


def _named() -> str:
    rows = [
        (f"`{name}`", data.hub_id + (f", {data.config}" if data.config else ""), data.about)
        for name, data in KNOWN.items()
    ]
    return _table(("name", "on the hub", "what it is"), *rows)


def _forms() -> str:
    rows = [(f"`{name}`", form.about, f"`{form.adapter}`") for name, form in FORMS.items()]
    return _table(("`--to`", "what it is", "read back by"), *rows)


def _counts() -> str:
    return _table(("count", "of"), *((f"`{name}`", of) for name, of in COUNTS.items()))


def _objectives() -> str:
    table = ["| name | loss of a group | source | needs | defaults |", "|---|---|---|---|---|"]
    for row in (describe(name) for name in LOSSES):
        defaults = ", ".join(f"{key} {value}" for key, value in row.defaults.items())
        cells = (f"`{row.name}`", row.formula, row.source, row.needs, defaults)
        table.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(table)


def _runs() -> str:
    path = DOCS / "objectives_on_demo.json"
    if not path.exists():
        return ""
    measured = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        "## 9. All of them on the demo's data",
        "",
        f"{measured['what']} Made by `{measured['command']}` on {measured['date']} with "
        f"{measured['versions']}.",
        "",
        "| name | references | loss, first epoch | loss, last epoch "
        "| log-prob accuracy before | after | right before | after | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in measured["rows"]:
        lines.append(
            f"| `{row['loss']}` | {row['references']} | {row['first']:.4f} | {row['last']:.4f} "
            f"| {row['logp_before']:.3f} | {row['logp_after']:.3f} | {row['right_before']:.3f} "
            f"| {row['right_after']:.3f} | {row['seconds']:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    (DOCS / "methods.md").write_text(page(), encoding="utf-8")
    (DOCS / "data.md").write_text(data_page(), encoding="utf-8")
