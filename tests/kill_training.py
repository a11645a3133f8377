"""Runs of `train`: killed at random steps, and while a checkpoint is being written. Prints JSON.

    python tests/kill_training.py STEPS WRITES PROJECT

PROJECT holds `models/NAME` and a `cache` of three references, and `data.jsonl` with two splits.
Each run is killed up to five times, goes on with `resume` each time, and is compared in the end,
file by file, with one that was left alone. Imports once and forks for everything else.
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
OF_A_RUN = 5
"""Kills of one run, before it is left to end."""
FILES = 10
"""Of a checkpoint, beside its seal."""
TRIES = 5
"""For each kill that is to hit a write: one that comes too late has hit nothing."""


class Steps(TrainerCallback):
    """Writes the number of every step that begins to a file, as a byte."""

    def __init__(self, file: Path) -> None:
        self.file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        os.write(self.file, bytes([state.global_step + 1]))


class Kills:
    """Kill, look, resume, again and again; then compare."""

    def __init__(self, project: Path, kills: int) -> None:
        self.project, self.draw = project, random.Random(kills)
        self.groups = load_groups(project / "data.jsonl").groups
        self.step = self.write = 0.0
        self.killed_at: list[int] = []
        self.unsealed: list[int] = []
        self.resumed_from: Counter[int] = Counter()
        self.named = self.runs = 0
        self.differing: dict[str, list[str]] = {}

    def run(self, steps: int, writes: int) -> dict[str, Any]:
        whole = self.project / "whole"
        self.measure(whole)
        self.expected = in_fork(lambda: contents(whole))
        self.compare(self.life("undisturbed"))
        numbers = self.draw.sample(range(1, STEPS + 1), steps)
        for first in range(0, steps, OF_A_RUN):
            self.chain(self.at_a_step, numbers[first : first + OF_A_RUN])
        at_steps, self.killed_at = self.killed_at, []
        self.unsealed, self.named = [], 0
        while len(self.unsealed) < writes and len(self.killed_at) < TRIES * writes:
            saved = range(SAVE_STEPS, STEPS + 1, SAVE_STEPS)
            wanted = min(OF_A_RUN, writes - len(self.unsealed))
            self.chain(self.in_a_write, self.draw.sample(saved, wanted))
        return {
            "runs": self.runs,
            "killed at a step": at_steps,
            "killed at a write": len(self.killed_at),
            "left an unsealed checkpoint": len(self.unsealed),
            "unsealed and named": self.named,
            "files of the unsealed": dict(sorted(Counter(self.unsealed).items())),
            "resumed from": dict(sorted(self.resumed_from.items())),
            "differing": self.differing,
            "step seconds": round(self.step, 4),
            "write seconds": round(self.write, 4),
        }

    def measure(self, run: Path) -> None:
        """The run that is left alone: seconds of a step that saves nothing, and of a checkpoint
        from its directory to its seal."""
        child, steps, writes = self.start(run), [], []
        for number in range(SAVE_STEPS, STEPS + 1, SAVE_STEPS):
            self.wait_for_step(run, number - 1)
            began = time.monotonic()
            self.wait_for_step(run, number)
            steps.append(time.monotonic() - began)
            place = run / f"checkpoint-{number}"
            wait_for(place.is_dir)
            began = time.monotonic()
            wait_for(lambda place=place: is_sealed(place))
            writes.append(time.monotonic() - began)
        wait(child)
        self.step, self.write = statistics.median(steps), statistics.median(writes)

    def chain(self, kill: Callable[[Path, int], None], numbers: list[int]) -> None:
        """One run, killed at or in each of these steps, and then left to end."""
        self.runs += 1
        for number in sorted(numbers):
            run = self.life(f"run-{self.runs}", lambda run, number=number: kill(run, number))
        self.compare(self.life(run.name))

    def life(self, name: str, kill: Callable[[Path], None] | None = None) -> Path:
        """One process of a run, begun or resumed, to its end or to its kill."""
        run = self.project / name
        resumes, before = run.exists(), unsealed(run)
        child = self.start(run)
        if kill is None:
            wait(child)
        else:
            kill(run)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            self.unsealed += [len(list(place.iterdir())) for place in unsealed(run)]
        if resumes:
            steps = run.with_suffix(".steps").read_bytes()
            self.resumed_from[steps[0] - 1 if steps else STEPS] += 1
        said = run.with_suffix(".err").read_text()
        self.named += sum(f"{path} is passed over: it has no {SEAL}" in said for path in before)
        return run

    def compare(self, run: Path) -> None:
        """Note what is not as in the run that was left alone."""
        found = in_fork(lambda: contents(run))
        names = self.expected.keys() | found.keys()
        unequal = [key for key in sorted(names) if self.expected.get(key) != found.get(key)]
        if unequal:
            self.differing[run.name] = unequal
        else:
            shutil.rmtree(run)

    def at_a_step(self, run: Path, number: int) -> None:
        """Wait for a random moment of a step."""
        self.killed_at.append(number)
        self.wait_for_step(run, number)
        time.sleep(self.draw.random() * self.step)

    def in_a_write(self, run: Path, number: int) -> None:
        """Wait for a random moment between a checkpoint's directory and its seal: by the number of
        files that are there, as a busy machine stops the writer for longer than it writes."""
        self.killed_at.append(number)
        self.wait_for_step(run, number)
        place, files = run / f"checkpoint-{number}", self.draw.randint(0, FILES)
        wait_for(lambda: place.is_dir() and len(list(place.iterdir())) >= files)
        time.sleep(self.draw.random() * self.write / FILES)

    def wait_for_step(self, run: Path, number: int) -> None:
        file = run.with_suffix(".steps")
        wait_for(lambda: file.exists() and number in file.read_bytes())

    def start(self, run: Path) -> int:
        """A process that trains."""
        for ending in (".steps", ".err"):
            run.with_suffix(ending).unlink(missing_ok=True)
        return fork(lambda: self.train(run))

    def train(self, run: Path) -> None:
        said = os.open(run.with_suffix(".err"), os.O_WRONLY | os.O_CREAT)
        os.dup2(said, sys.stderr.fileno())
        references = {name: Reference(model=str(self.project / "models" / name), dtype="float32")
                      for name in NAMES}  # fmt: skip
        train(WORDS, self.groups, Cache(self.project / "cache"), references, run, resume=True,
              callbacks=[Steps(run.with_suffix(".steps"))])  # fmt: skip


def unsealed(run: Path) -> list[Path]:
    """Checkpoints that were not written to their end."""
    return [path for path in checkpoints(run) if not is_sealed(path)]


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
