"""The demo's policies judged by a server that follows its rule: the table of docs/judging.md.

    mrpo demo
    python bench/judge_demo.py demo

The judge is a real HTTP server, and knows what a rule knows: so its win rates can be checked, and
what is left of doubt is that of 200 prompts.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from fake_server import FakeServer, Judging

from mrpo_tools.cli import run
from mrpo_tools.demo.tasks import score

CONTESTANTS = ("runs/mrpo", "runs/dpo", "llama")


def by_rule(prompt: str, first: str, second: str) -> str:
    """The label of the answer with more marks."""
    turns = [{"role": "user", "content": prompt}]
    if "\n\nuser: " in prompt:
        parts = (part.partition(": ") for part in prompt.split("\n\n"))
        turns = [{"role": role, "content": text} for role, _, text in parts]
    one, other = score(turns, first), score(turns, second)
    return "tie" if one == other else "A" if one > other else "B"


def main(demo: Path) -> int:
    """Ask the judge about every two of the contestants."""
    server = FakeServer({"/v1/chat/completions": Judging(by_rule)}, models=("rule",))
    with server, contextlib.chdir(demo):
        return run(["judge", *CONTESTANTS, "--judge", f"{server.url}#rule",
                    "--max-new-tokens", "32"])  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
