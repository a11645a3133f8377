"""kill -9 at random steps and in the middle of a checkpoint: the run ends as if it had not been."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from kill_training import FILES, STEPS
from test_durability import ENVIRONMENT, HERE

from mrpo_tools.cache import Cache
from mrpo_tools.precomputing.precompute import precompute

KEPT = Path(__file__).parent.parent / "docs" / "kills.json"


@pytest.fixture
def project(tmp_path, tiny_models, references, some_groups) -> Path:
    """Models, a cache of their numbers, and data of which every fourth group is the test split."""
    (tmp_path / "models").symlink_to(tiny_models["llama"].parent)
    groups = [group.with_split("train" if place % 4 else "test")
              for place, group in enumerate(some_groups)]  # fmt: skip
    lines = (json.dumps(group.as_dict()) + "\n" for group in groups)
    (tmp_path / "data.jsonl").write_text("".join(lines))
    precompute(references, groups, Cache(tmp_path / "cache"), "some")
    return tmp_path


@pytest.mark.parametrize(
    ("steps", "writes"), [(1, 2), pytest.param(20, 100, marks=pytest.mark.long)]
)
@pytest.mark.timeout(3600)
def test_a_killed_run_ends_bit_for_bit_as_one_that_was_not(steps, writes, project):
    """Parameters, optimizer, scheduler, generators, log and metrics, in every file that is left."""
    command = [sys.executable, str(HERE / "kill_training.py"), str(steps), str(writes), project]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    kills = json.loads(done.stdout)
    if "MRPO_KILLS" in os.environ:
        noted = json.loads(KEPT.read_text(encoding="utf-8"))
        noted[f"{steps} {writes}"] = {**kills, **machine()}
        KEPT.write_text(json.dumps(noted, indent=1) + "\n", encoding="utf-8")
    check(kills, steps, writes)


def check(kills: dict, steps: int, writes: int) -> None:
    assert kills["differing"] == {}
    assert len(set(kills["killed at a step"])) == steps
    assert kills["left an unsealed checkpoint"] == kills["unsealed and named"] >= writes
    assert sum(kills["resumed from"].values()) == steps + kills["killed at a write"]
    assert set(map(int, kills["resumed from"])) <= set(range(0, STEPS + 1, 2))


def machine() -> dict:
    names = ("torch", "transformers", "peft", "accelerate")
    return {
        "command": "MRPO_KILLS=1 pytest -m long tests/test_killed_training.py",
        "machine": f"{os.cpu_count()} processors, {platform.machine()}, Python "
        + ", ".join([platform.python_version(), *(f"{name} {version(name)}" for name in names)]),
    }


def test_the_kills_that_the_page_speaks_of():
    """docs/scaling.md and its committed figures: 20 at steps and 100 in checkpoints without a seal,
    most of them empty; then 60 that had from none to all of their ten files. Nothing differs."""
    page = " ".join((KEPT.parent / "scaling.md").read_text(encoding="utf-8").split())
    for key, kills in json.loads(KEPT.read_text(encoding="utf-8")).items():
        check(kills, *map(int, key.split()))
        assert f"{kills['killed at a write']} times" in page
        assert f"{files_of(kills)} of the {kills['left an unsealed checkpoint']}" in page


def files_of(kills: dict) -> str:
    """How far the checkpoints had come."""
    files = {int(count): times for count, times in kills["files of the unsealed"].items()}
    some = sum(times for count, times in files.items() if 0 < count < FILES)
    every = sum(times for count, times in files.items() if count >= FILES)
    return f"{files.get(0, 0)} with no file, {some} with some, {every} with all ten"
