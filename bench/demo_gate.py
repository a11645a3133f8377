"""Can the demo tell references apart? `python bench/demo_gate.py DEMO_DIRECTORY`.

DEMO_DIRECTORY is one that `mrpo demo` made. Beside llama stands an oracle, whose log-probs are high
where an answer's content is right, then its opposite; each trains one MRPO policy by the demo's
own recipe. Their marks must differ, or the demo is blind to what a reference knows. Writes
docs/demo_gate.json.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from pathlib import Path

from mrpo_tools.cli import run
from mrpo_tools.demo import tasks
from mrpo_tools.demo.demo import MAX_NEW_TOKENS, RADIUS
from mrpo_tools.demo.results import RULES, rows_of
from mrpo_tools.sources import load_groups

OUTPUT = Path(__file__).parent.parent / "docs" / "demo_gate.json"
LEAST_NATS, OFF_FORM_NATS, WRONG_NATS = 1.0, 2.0, 5.0
"""What an answer costs at least, and what a form not asked for and a wrong content add."""


def oracle_nats(prompt: list[dict[str, str]], answer: str, *, opposite: bool) -> float:
    """Log-prob of an answer under the oracle, or under one that prefers wrong content."""
    content = tasks.content(prompt, answer)
    off_form = OFF_FORM_NATS * (1 - tasks.form(prompt, answer))
    return -LEAST_NATS - off_form - WRONG_NATS * (content if opposite else 1 - content)


def write_numbers(name: str) -> None:
    """`NAME.jsonl`, as `mrpo cache import` reads it."""
    with Path(f"{name}.jsonl").open("w", encoding="utf-8") as lines:
        for group in load_groups("demo.jsonl").groups:
            prompt = [turn.as_dict() for turn in group.prompt]
            for key, response in zip(group.response_ids, group.responses, strict=True):
                nats = oracle_nats(prompt, response.content, opposite=name == "opposite")
                row = {"response_id": key, "logp": nats, "num_tokens": 1}
                lines.write(json.dumps(row) + "\n")


def typed(line: str) -> None:
    """Run a command of `mrpo`; stop where it fails."""
    if code := run(shlex.split(line)):
        sys.exit(code)


def main(directory: str) -> None:
    """Train with both, answer, write what came out."""
    rules = " ".join(f"--rule {rule}" for rule in RULES)
    with contextlib.chdir(directory):
        for name in ("oracle", "opposite"):
            write_numbers(name)
            typed(f"cache import {name}.jsonl --ref {name} --origin 'bench/demo_gate.py {name}'")
            again = "--resume" if Path("gate", name).exists() else ""
            typed(f"train --config recipe.yaml --loss mrpo --refs llama,{name} "
                  f"{shlex.join(RADIUS)} --output gate/{name} {again}")  # fmt: skip
            typed(f"evaluate gate/{name} {rules} --max-new-tokens {MAX_NEW_TOKENS}")
        rows = rows_of([Path("gate/oracle"), Path("gate/opposite")])
    measured = {
        "command": "python bench/demo_gate.py demo",
        "rows": [
            {"reference_2": row.references.rpartition(",")[2], "marks": row.marks.value,
             "marks_low": row.marks.low, "marks_high": row.marks.high, "content": row.right_content,
             "form": row.right_form, "kl_nats": row.kl_nats, "clipped": row.clipped}
            for row in rows
        ],
    }  # fmt: skip
    OUTPUT.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    print(OUTPUT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main(sys.argv[1])
