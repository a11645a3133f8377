"""Write docs/methods.md from methods.in.md and the table of objectives.

`python docs/generate.py`

The table of runs at its end comes from docs/objectives_on_demo.json, which
`python bench/objectives.py` measures.
"""

from __future__ import annotations

import json
from pathlib import Path

from mrpo_tools.methods import LOSSES, describe

DOCS = Path(__file__).parent


def page() -> str:
    """The whole page: the prose of methods.in.md around the two tables."""
    prose = (DOCS / "methods.in.md").read_text(encoding="utf-8")
    return prose.replace("{{objectives}}", _objectives()).replace("{{runs}}", _runs())


def _objectives() -> str:
    table = ["| name | loss of a group | source | needs | defaults |", "|---|---|---|---|---|"]
    for row in (describe(name) for name in LOSSES):
        defaults = ", ".join(f"{key} {value}" for key, value in row["defaults"].items())
        cells = (f"`{row['name']}`", row["formula"], row["source"], row["needs"], defaults)
        table.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(table)


def _runs() -> str:
    path = DOCS / "objectives_on_demo.json"
    if not path.exists():
        return ""
    measured = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        "## All of them on the demo's data",
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
