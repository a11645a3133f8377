"""Write docs/methods.md, data.md, families.md, training.md, rounds.md and large_references.md from
.in.md and tables.

`python docs/generate.py`

The tables are made of the code, but for these: that of runs at the end of methods.md comes from
docs/objectives_on_demo.json, which `python bench/objectives.py` measures, those of false alarms
from docs/false_alarms.json (`python bench/false_alarms.py`), that of simulated rankings from
docs/rank_simulated.json (`python bench/rank.py`), families.md from docs/families.json
(`python bench/families.py`), and large_references.md from docs/large_references.json
(`python bench/large_references.py --json > docs/large_references.json`, some minutes).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrpo_tools.cli.recipe import recipe_text
from mrpo_tools.methods.method import LOSSES, describe
from mrpo_tools.rounds.plan import RoundPlan
from mrpo_tools.sources import ADAPTERS, COUNTS, KNOWN
from mrpo_tools.sources.export import FORMS
from mrpo_tools.training.arguments import LOGGERS, OTHER_PLACES, REFUSED, engine_keys

DOCS = Path(__file__).parent
SAMPLES = ("single", "several")
FAMILY_HEADS = (
    "family", "route", *SAMPLES, "in bfloat16", "rms", "bias", "refused, and why",
)  # fmt: skip


def page() -> str:
    """The whole page: the prose of methods.in.md around the two tables."""
    prose = (DOCS / "methods.in.md").read_text(encoding="utf-8")
    tables = {
        "objectives": _objectives, "ranked": _ranked, "runs": _runs, "false alarms": _alarms,
        "found": _found,
    }  # fmt: skip
    for name, table in tables.items():
        prose = prose.replace("{{" + name + "}}", table())
    return prose


def _alarms() -> str:
    """How often something is marked in sweeps without an effect."""
    heads = ("seeds", "baselines", "methods", "shared", "`compare` marks", "d ≥ 0.5 would")
    rows = [
        (
            *(f"{row[key]:g}" for key in ("seeds", "baselines", "methods", "shared")),
            _share(row["compare"]),
            _share(row["mrpos_rule"]),
        )
        for row in _simulated()
        if "compare" in row
    ]
    return _table(heads, *rows)


def _found() -> str:
    """How often a method that is better is marked."""
    rows = [
        (f"{row['effect']:g}", str(row["seeds"]), str(row["baselines"]), _share(row["found"]))
        for row in _simulated()
        if "found" in row
    ]
    return _table(("standard deviations", "seeds", "baselines", "marked"), *rows)


def _simulated() -> list[dict[str, Any]]:
    measured = json.loads((DOCS / "false_alarms.json").read_text(encoding="utf-8"))
    return list(measured["rows"])


def _share(rate: dict[str, float]) -> str:
    """`57.4 % (55.2 to 59.6)`."""
    percent = [100 * rate[key] for key in ("rate", "low", "high")]
    return f"{percent[0]:.1f} % ({percent[1]:.1f} to {percent[2]:.1f})"


def data_page() -> str:
    """docs/data.md: the prose of data.in.md around the tables of formats and data sets."""
    prose = (DOCS / "data.in.md").read_text(encoding="utf-8")
    tables = {"formats": _formats, "named": _named, "forms": _forms, "counts": _counts}
    for name, table in tables.items():
        prose = prose.replace("{{" + name + "}}", table())
    return prose


def training_page() -> str:
    """docs/training.md: the prose of training.in.md around the keys of a recipe."""
    prose = (DOCS / "training.in.md").read_text(encoding="utf-8")
    tables = {
        "keys": recipe_text().rstrip(),
        "elsewhere": _table(("`trainer` key", "said by"), *_pairs(OTHER_PLACES, code=True)),
        "refused": _table(("`trainer` key", "why"), *_pairs(REFUSED)),
        "engine": ", ".join(f"`{key}`" for key in engine_keys()),
        "loggers": ", ".join(f"`{name}`" for name in LOGGERS),
    }
    for name, table in tables.items():
        prose = prose.replace("{{" + name + "}}", table)
    return prose


def _pairs(told: Mapping[str, str], *, code: bool = False) -> list[tuple[str, str]]:
    pairs = []
    for key, words in told.items():
        places = " and ".join(f"`{word}`" for word in words.split(" and "))
        pairs.append((f"`{key}`", places if code else words))
    return pairs


def rounds_page() -> str:
    """docs/rounds.md: the prose of rounds.in.md around keys, measured rounds, and hours."""
    prose = (DOCS / "rounds.in.md").read_text(encoding="utf-8")
    measured = json.loads((DOCS / "rounds_on_demo.json").read_text(encoding="utf-8"))
    keys = (
        (f"`{name}`", f"`{_default(field)}`", str(field.description))
        for name, field in RoundPlan.model_fields.items()
    )
    parts = {
        "round keys": _table(("key of `rounds:`", "default", ""), *keys),
        "demo rounds": "\n\n".join(
            f"References: {references}.\n\n{_table(table['header'], *table['rows'])}"
            for references, table in measured["tables"].items()
        ),
        "round hours": subprocess.run(
            [sys.executable, DOCS.parent / "bench" / "round_hours.py"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.rstrip(),
    }
    for name, text in parts.items():
        prose = prose.replace("{{" + name + "}}", text)
    return prose


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def families_page() -> str:
    """docs/families.md: the prose of families.in.md around what was measured."""
    prose = (DOCS / "families.in.md").read_text(encoding="utf-8")
    measured = json.loads((DOCS / "families.json").read_text(encoding="utf-8"))
    for name, words in _families(measured).items():
        prose = prose.replace("{{" + name + "}}", words)
    return prose


def large_references_page() -> str:
    """docs/large_references.md: the prose of large_references.in.md around computed tables."""
    prose = (DOCS / "large_references.in.md").read_text(encoding="utf-8")
    computed = json.loads((DOCS / "large_references.json").read_text(encoding="utf-8"))
    for name, table in computed.items():
        prose = prose.replace("{{" + name + "}}", table)
    return prose


def _families(measured: dict[str, Any]) -> dict[str, str]:
    rows, absent = measured["rows"], measured["absent"]
    routes = Counter(row["several"]["route"] for row in rows)
    coarse = Counter(row["bfloat16"]["route"] for row in rows)
    tokens = rows[0]["bfloat16"]["tokens"]
    return {
        **{route: f"{routes[route]} | {coarse[route]}" for route in {*routes, *coarse} - {None}},
        **{name: measured[name] for name in ("command", "date", "versions")},
        "names": str(len({row["name"].split(",")[0] for row in rows} | absent.keys())),
        "absent names": str(len(absent)),
        "worst": f"{max(row[kind]['worst'] for row in rows for kind in SAMPLES):.1e}",
        "tokens": str(tokens),
        "root": f"{tokens**0.5:.0f}",
        "families": _table(FAMILY_HEADS, *map(_family, sorted(rows, key=lambda row: row["name"]))),
        "absent": _table(("name", "why"), *((f"`{name}`", why) for name, why in absent.items())),
    }


def _family(row: dict[str, Any]) -> tuple[str, ...]:
    coarse = row["bfloat16"]
    routes = list(dict.fromkeys(row[kind]["route"] for kind in SAMPLES))
    refused = row["several"]["refused"] or {
        f"{name} in bfloat16": why for name, why in coarse["refused"].items()
    }
    noise = ["–"] * 2
    if coarse["route"]:
        values = [coarse[name] for name in ("rms", "bias")]
        noise = [f"{value:.4f}" if abs(value) > 1e-4 else "0" for value in values]
    return (
        row["name"],
        ", ".join(f"`{route}`" for route in routes),
        *(f"{row[kind]['worst']:.0e}" for kind in SAMPLES),
        f"`{coarse['route']}`" if coarse["route"] else "–",
        *noise,
        "; ".join(f"{name}: {_shortened(why)}" for name, why in refused.items()),
    )


def _shortened(reason: str) -> str:
    """A reason without the noise it was compared with, in at most 80 characters of one line."""
    reason = re.sub(r", and noise explains .*", "", reason)
    reason = re.sub(
        r"a response of (\d+) tokens is (\S+) nats apart", r"\2 nats in \1 tokens", reason
    )
    reason = reason.replace("|", "\\|").replace("`", "").replace("*", "\\*")
    return reason if len(reason) <= 80 else reason[:79].rsplit(" ", 1)[0] + " …"


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


def _ranked() -> str:
    """How often the advice of `mrpo rank` is right where the truth is known."""
    measured = json.loads((DOCS / "rank_simulated.json").read_text(encoding="utf-8"))
    verdicts = ("right", "cannot tell", "wrong")
    rows = [
        (
            row["scenario"],
            *(
                " / ".join(f"{row[kind].get(word, 0) / measured['seeds']:.0%}" for word in verdicts)
                for kind in ("first", "combination")
            ),
            f"{row['advised'] / measured['seeds']:.0%}",
        )
        for row in measured["rows"]
    ]
    said = "right / cannot tell / wrong"
    heads = ("references", f"which is first: {said}", f"combining: {said}", "a combination advised")
    return (
        f"On simulated caches of known truth ({measured['groups']} groups each, "
        f"{measured['seeds']} seeds; `{measured['command']}`, {measured['date']}), judged on fresh "
        f"groups in which no length is liked:\n\n{_table(heads, *rows)}"
    )


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
        "| log-prob accuracy before | after | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in measured["rows"]:
        lines.append(
            f"| `{row['loss']}` | {row['references']} | {row['first']:.4f} | {row['last']:.4f} "
            f"| {row['logp_before']:.3f} | {row['logp_after']:.3f} "
            f"| {row['seconds']:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    (DOCS / "methods.md").write_text(page(), encoding="utf-8")
    (DOCS / "data.md").write_text(data_page(), encoding="utf-8")
    (DOCS / "families.md").write_text(families_page(), encoding="utf-8")
    (DOCS / "training.md").write_text(training_page(), encoding="utf-8")
    (DOCS / "rounds.md").write_text(rounds_page(), encoding="utf-8")
    (DOCS / "large_references.md").write_text(large_references_page(), encoding="utf-8")
