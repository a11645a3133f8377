"""The demo's policies on a local task of the language-model harness, for docs/benchmarks.md.

    pip install 'mrpo-tools[eval]'
    mrpo demo
    python bench/harness_demo.py demo

The task is the demo's test split as a benchmark would ask it: a question, and four answers of which
the one with the most marks is right.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

from mrpo_tools.cli import run
from mrpo_tools.groups import in_split
from mrpo_tools.sources import load_groups

TASK = """\
task: demo
dataset_path: json
dataset_kwargs: {data_files: {test: tasks/demo.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{label}}"
doc_to_choice: "{{choices}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""


def write_task() -> None:
    """The task's two files, in the working directory."""
    folder = Path("tasks")
    folder.mkdir(exist_ok=True)
    rows = []
    for group in in_split(load_groups("demo.jsonl").groups, "test"):
        scores = [response.score or 0.0 for response in group.responses]
        turns = [turn.content for turn in group.prompt]
        choices = [response.content for response in group.responses]
        rows.append({"question": "\n".join(turns), "choices": choices,
                     "label": scores.index(max(scores))})  # fmt: skip
    (folder / "demo.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "demo.yaml").write_text(TASK)


def main(demo: Path) -> int:
    """Ask each run and its untrained policy."""
    with contextlib.chdir(demo):
        write_task()
        return run(["evaluate", "runs/dpo", "runs/mrpo", "--harness", "demo",
                    "--harness-tasks", "tasks"])  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
