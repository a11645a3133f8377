"""Runs of `train`: killed at random steps, and while a checkpoint is being written. Prints JSON.

    python tests/kill_training.py STEPS WRITES PROJECT

PROJECT holds `models/NAME` and a `cache` of three references, and `data.jsonl` with two splits.
Each run is killed once, goes on with `resume`, and is compared, file by file, with one that was
left alone. Imports once and forks for everything else.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from kill_server import fork, in_fork, wait
from trained import NAMES, recipe
from transformers import TrainerCallback

from mrpo_tools.cache import Cache
from mrpo_tools.config import Reference
from mrpo_tools.references.loading import quiet_libraries
from mrpo_tools.runs.checkpoints import SEAL, checkpoints, is_sealed
from mrpo_tools.sources import load_groups
from mrpo_tools.training.train import train

STEPS, SAVE_STEPS = 24, 2
WORDS = recipe(
    split="train", max_steps=STEPS, save_steps=SAVE_STEPS, save_total_limit=2, eval_steps=3,
    eval_split="test", pairing="best_random", lora_dropout=0.1, learning_rate=1e-3,
)  # fmt: skip
"""Three micro-batches of one epoch and two of a step, pairs and dropout drawn at random."""
UNEQUAL = {
    "created", "seconds", "train_seconds", "total_seconds", "peak_memory_bytes", SEAL,
}  # fmt: skip
"""What two runs never have in common: the clock's, and digests of files that hold it."""
TRIES = 5
"""For each kill that is to hit a write: one that comes too late has hit nothing."""


class Steps(TrainerCallback):
    """Writes a byte when a step begins."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        os.write(self.pipe, b".")


class Kills:
    """Kill, look, resume, compare, again and again."""

    def __init__(self, project: Path, kills: int) -> None:
        self.project, self.draw = project, random.Random(kills)
        self.steps = self.draw.sample(range(1, STEPS + 1), STEPS)
        self.groups = load_groups(project / "data.jsonl").groups
        self.counts: Counter[str] = Counter()
        self.files: Counter[int] = Counter()
        self.killed_at: list[int] = []
        self.resumed_from: Counter[int] = Counter()
        self.differing: dict[str, list[str]] = {}

    def run(self, steps: int, writes: int) -> dict[str, Any]:
        whole = self.project / "whole"
        (step, write), self.expected = self.measured(whole), in_fork(lambda: contents(whole))
        self.compare(self.again("undisturbed", lambda child, ticks, run: None))
        for number in range(steps):
            self.once(f"step-{number}", lambda *words: self.at_a_step(*words, step))
        hits, tries = 0, 0
        while hits < writes and tries < TRIES * writes:
            tries += 1
            hits += self.once(f"write-{tries}", lambda *words: self.in_a_write(*words, write))
        return {
            "at a step": steps,
            "at steps": self.killed_at,
            "at a write": tries,
            "left an unsealed checkpoint": hits,
            **self.counts,
            "resumed from": dict(sorted(self.resumed_from.items())),
            "files of the unsealed": dict(sorted(self.files.items())),
            "differing": self.differing,
            "step seconds": round(step, 4),
            "write seconds": round(write, 4),
        }

    def measured(self, run: Path) -> tuple[float, float]:
        """The run that is left alone: seconds of a step, and of a checkpoint from its directory to
        its seal."""
        child, ticks = self.start(run)
        steps, writes, before = [], [], 0.0
        for number in range(1, STEPS + 1):
            os.read(ticks, 1)
            now = time.monotonic()
            if number % SAVE_STEPS == 0:
                steps.append(now - before)  # of the one before, which saves nothing
                place = run / f"checkpoint-{number}"
                wait_for(place.is_dir)
                began = time.monotonic()
                wait_for(lambda place=place: is_sealed(place))
                writes.append(time.monotonic() - began)
            before = now
        wait(child)
        os.close(ticks)
        return statistics.median(steps), statistics.median(writes)

    def again(self, name: str, meet: Callable[[int, int, Path], None]) -> Path:
        """A run whose process meets something on its way."""
        run = self.project / name
        child, ticks = self.start(run)
        meet(child, ticks, run)
        status = os.waitpid(child, 0)[1]
        os.close(ticks)
        self.counts["killed"] += os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        return run

    def once(self, name: str, kill: Callable[[int, int, Path], None]) -> int:
        """One run: killed, looked at, resumed, compared; how many checkpoints had no seal."""
        run = self.again(name, kill)
        unsealed = [path for path in checkpoints(run) if not is_sealed(path)]
        self.files.update(sum(path.is_file() for path in place.rglob("*")) for place in unsealed)
        child, ticks = self.start(run)
        wait(child)
        self.resumed_from[STEPS - len(os.read(ticks, STEPS))] += 1
        os.close(ticks)
        said = run.with_suffix(".err").read_text()
        named = [path for path in unsealed if f"{path} is passed over: it has no {SEAL}" in said]
        self.counts["named"] += len(named)
        self.compare(run)
        return len(unsealed)

    def compare(self, run: Path) -> None:
        """Note what is not as in the run that was left alone."""
        found = in_fork(lambda: contents(run))
        names = self.expected.keys() | found.keys()
        unequal = [key for key in sorted(names) if self.expected.get(key) != found.get(key)]
        if unequal:
            self.differing[run.name] = unequal
        else:
            shutil.rmtree(run)

    def at_a_step(self, child: int, ticks: int, run: Path, step: float) -> None:
        """Kill at a random moment of a random step."""
        number = self.steps.pop()
        self.killed_at.append(number)
        for _ in range(number):
            os.read(ticks, 1)
        time.sleep(self.draw.random() * step)
        os.kill(child, signal.SIGKILL)

    def in_a_write(self, child: int, ticks: int, run: Path, write: float) -> None:
        """Kill at a random moment between a checkpoint's directory and its seal."""
        number = self.draw.randrange(SAVE_STEPS, STEPS + 1, SAVE_STEPS)
        wait_for((run / f"checkpoint-{number}").is_dir)
        time.sleep(self.draw.random() * write)
        os.kill(child, signal.SIGKILL)

    def start(self, run: Path) -> tuple[int, int]:
        """A process that trains, and where it writes a byte a step."""
        reading, writing = os.pipe()
        child = fork(lambda: self.train(run, writing))
        os.close(writing)
        return child, reading

    def train(self, run: Path, ticks: int) -> None:
        said = os.open(run.with_suffix(".err"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, sys.stderr.fileno())
        references = {name: Reference(model=str(self.project / "models" / name), dtype="float32")
                      for name in NAMES}  # fmt: skip
        train(WORDS, self.groups, Cache(self.project / "cache"), references, run, resume=True,
              callbacks=[Steps(ticks)])  # fmt: skip


def wait_for(state: Callable[[], bool], seconds: float = 120) -> None:
    """Look every tenth of a millisecond."""
    began = time.monotonic()
    while not state():
        if time.monotonic() - began > seconds:
            raise SystemExit("what was waited for did not come")
        time.sleep(1e-4)


def contents(run: Path) -> dict[str, Any]:
    """Every file of a run: the digest of its bytes, or the values of its JSON that ought to be
    equal."""
    return dict(_contents(run))


def _contents(run: Path) -> Iterator[tuple[str, Any]]:
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if path.is_dir() or path.name in UNEQUAL:
            yield name, "there"
        elif path.suffix == ".json" and path.name != "tokenizer.json":
            yield name, json.loads(path.read_text(), object_hook=comparable)
        else:
            yield name, hashlib.sha256(path.read_bytes()).hexdigest()


def comparable(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in UNEQUAL}


def import_everything() -> None:
    """What the children would import one by one."""
    for name in ("pandas", "peft", "transformers.models.llama.modeling_llama"):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def main() -> None:
    steps, writes, project = sys.argv[1:]
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    quiet_libraries()
    kills = Kills(Path(project), int(steps) + int(writes))
    import_everything()
    print(json.dumps(kills.run(int(steps), int(writes))))


if __name__ == "__main__":
    main()
