"""Processes that sample, killed at random moments. Prints JSON.

    python tests/kill_generate.py here|server KILLS MODEL DATA FOLDER

Imports once and forks for everything else. `here` draws with the model in small batches, `server`
asks a fake server with faults. In each round a process is killed, what is on the disk is looked at,
and another one goes on from there; the last one finishes. It says how many answers were lost,
doubled or other than those of a process that was never killed, and how many were drawn again.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from fake_server import Completer, FakeServer, mixed
from kill_server import fork, wait

from mrpo_tools.config import Reference
from mrpo_tools.files import whole_lines
from mrpo_tools.groups import Group
from mrpo_tools.references.resolved import renderer_of, resolve, resolve_reader
from mrpo_tools.sampling import Sampler, Sampling, prompts_of
from mrpo_tools.sampling.answers import Answer, Asked
from mrpo_tools.sampling.kept import KeptAnswers
from mrpo_tools.sampling.served import ServedSampler
from mrpo_tools.server import Client, Server
from mrpo_tools.sources import load_groups

SAMPLING = Sampling(4, 1.0, max_new_tokens=8, seed=1)
BATCH_TOKENS, CONCURRENCY = 256, 4
PATH = "/v1/completions"


class Logged:
    """An engine that notes each answer before it hands it over."""

    def __init__(self, engine: Any, log: Path) -> None:
        self.engine, self.log = engine, log

    @property
    def identity(self) -> dict[str, object]:
        return self.engine.identity

    def draw(self, asked: Sequence[Asked], sampling: Sampling) -> Iterator[list[Answer]]:
        for batch in self.engine.draw(asked, sampling):
            with self.log.open("a") as file:
                file.write("".join(f"{each.prompt_id}:{each.index}\n" for each in batch))
            yield batch


class Kills:
    def __init__(self, kind: str, model: Path, data: Path, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.reference = Reference(model=str(model), dtype="float32")
        self.groups: list[Group] = load_groups(data).groups
        self.log, self.home = folder / "drawn", folder / "home"
        self.url = ""

    def import_everything(self) -> None:
        """What the children would import one by one."""
        from transformers import LlamaForCausalLM

        assert LlamaForCausalLM
        prompt = self.groups[0].prompt
        assert renderer_of(resolve("m", self.reference)).encode_prompt(prompt)

    def work(self, home: Path) -> None:
        """Everything that is missing."""
        if self.kind == "here":
            sampler = Sampler(resolve("m", self.reference), batch_tokens=BATCH_TOKENS)
            KeptAnswers(home, Logged(sampler, self.log), SAMPLING).complete(prompts_of(self.groups))
            return
        server = Server(
            self.url, concurrency=CONCURRENCY, attempts=20, first_wait=0.002, timeout=0.5
        )
        with Client(server, {}) as client:
            served = ServedSampler(resolve_reader("m", self.reference), client)
            KeptAnswers(home, Logged(served, self.log), SAMPLING).complete(prompts_of(self.groups))

    def run(self, kills: int) -> dict[str, Any]:
        rng = random.Random(kills)
        child = fork(lambda: self.work(self.folder / "whole"))
        while not self.log.exists() and is_running(child):
            time.sleep(0.001)
        started = time.monotonic()
        wait(child)
        seconds = time.monotonic() - started
        whole, at_hand = rows_of(self.folder / "whole"), 0
        self.log.unlink()
        counts: Counter[str] = Counter()
        for _ in range(kills):
            noted = size(self.log)
            child = fork(lambda: self.work(self.home))
            while size(self.log) == noted and is_running(child):  # the first batch is drawn
                time.sleep(0.001)
            time.sleep(rng.random() * seconds / kills)
            before = rows_of(self.home)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            left = rows_of(self.home)
            counts["forgotten"] += len(before.keys() - left.keys())
            counts["midway"] += 0 < len(left) < len(whole)
            drawn = Counter(self.log.read_text().split()) if self.log.exists() else Counter()
            at_hand = max(at_hand, drawn.total() - len(left) - counts["drawn again"])
            counts["drawn again"] = drawn.total() - len(left)
        wait(fork(lambda: self.work(self.home)))
        finished = rows_of(self.home)
        log = Counter(self.log.read_text().split())
        return {
            **counts,
            "answers": len(finished),
            "lost": len(whole.keys() - finished.keys()),
            "foreign": len(finished.keys() - whole.keys()),
            "different": sum(texts[0] != whole[key][0] for key, texts in finished.items()),
            "doubled": sum(len(texts) - 1 for texts in finished.values()),
            "drawn again": log.total() - len(log),
            "at hand": at_hand,
        }


def is_running(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def rows_of(home: Path) -> dict[str, list[str]]:
    """The texts of each answer on the disk, by prompt and number."""
    rows: dict[str, list[str]] = {}
    for path in home.rglob("*.jsonl"):
        for line in whole_lines(path):
            row = json.loads(line)
            rows.setdefault(f"{row['prompt_id']}:{row['index']}", []).append(row["content"])
    return rows


def serve(pipe: int, folder: Path) -> None:
    """A fake server in a process of its own, until the parent makes the file `end`; then it says
    what it answered."""
    with FakeServer({PATH: Completer()}, faults=mixed(1, 0.3), late=0.6, down=0.05) as server:
        os.write(pipe, server.url.encode())
        while os.getppid() != 1 and not (folder / "end").exists():
            time.sleep(0.02)
        bodies = [body for body in server.answered(PATH) if body["max_tokens"] > 1]
        keys = ["\n".join(str(body[name]) for name in ("prompt", "seed")) for body in bodies]
        (folder / "answered").write_text(json.dumps([len(keys), len(set(keys))]))


def main() -> None:
    kind, count, model, data, folder = sys.argv[1:]
    torch.set_num_threads(1)
    kills = Kills(kind, Path(model), Path(data), Path(folder))
    child = None
    if kind == "server":
        reading, writing = os.pipe()
        child = fork(lambda: serve(writing, kills.folder))
        kills.url = os.read(reading, 100).decode()
    kills.import_everything()
    figures = kills.run(int(count))
    if child is not None:
        (kills.folder / "end").touch()
        wait(child)
        answered, distinct = json.loads((kills.folder / "answered").read_text())
        figures["answered again"] = answered - 2 * distinct  # once for the process never killed
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
