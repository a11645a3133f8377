"""kill -9 while a server is asked: nothing is lost or doubled, and little is paid for twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lying_server import CONTEXT, Teller, serving
from stores import write_groups

from mrpo_tools.precomputing.run import SERVED_ROWS

HERE = Path(__file__).parent


class Quick(Teller):
    """No model, but like one: numbers of a place depend on all tokens before it."""

    def __init__(self, vocabulary: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.embedded = torch.randn(vocabulary, 16, generator=generator)
        self.head = torch.randn(16, vocabulary, generator=generator)
        self.context, self.most, self.asked = CONTEXT, 20, 0

    def __call__(self, body):
        return self.reply(body, self.logps(body["prompt"], body))

    def logits(self, ids, body):
        return torch.tanh(self.embedded[ids].cumsum(0)) @ self.head


@pytest.mark.parametrize(
    ("kills", "groups", "check_rows", "concurrency", "part_rows"),
    [(2, 40, 16, 4, 16), pytest.param(10, 300, 64, 16, 64, marks=pytest.mark.long)],
)
def test_a_killed_precompute_pays_little_twice(
    tiny_models, demo_groups, tmp_path, kills, groups, check_rows, concurrency, part_rows
):
    """At a kill the numbers that are paid for and not on the disk are those since the last check,
    those that came while it was made (twice the concurrency), those on their way, and half of
    the rows of a part."""
    data = write_groups(tmp_path / "data.jsonl", demo_groups[:groups])
    model = tiny_models["llama"]
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    with serving(Quick(vocabulary)) as server:
        words = [server.url, model, data, tmp_path, kills, check_rows, concurrency, part_rows]
        done = subprocess.run(
            [sys.executable, str(HERE / "kill_served.py"), *map(str, words)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    counts = json.loads(done.stdout)
    print(f"\n{counts}", file=sys.__stdout__)
    for what in ("forgotten", "lost", "foreign", "doubled", "other"):
        assert counts[what] == 0
    assert counts["midway"] > 0.2 * kills
    assert counts["at hand"] <= check_rows + 3 * concurrency + min(part_rows, SERVED_ROWS) // 2
    assert counts["paid again"] <= kills * counts["at hand"]
