"""Processes of `precompute`: killed at random moments, or several at once. Prints JSON.

    python tests/kill_server.py simulated|real KILLS MODEL DATA FOLDER
    python tests/kill_server.py together|sharded PROCESSES MODEL DATA FOLDER
    python tests/kill_server.py outlived|outlived-real KILLS MODEL DATA FOLDER

Imports once and forks for everything else, so that a process costs as long as its work does.
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from simulated import Logged, Simulation, loading

from mrpo_tools.cache import Cache, upkeep
from mrpo_tools.config import Reference
from mrpo_tools.precomputing.precompute import precompute
from mrpo_tools.references.resolved import renderer_of, resolve
from mrpo_tools.sources import load_groups

ROWS_OF_A_PART = 16


def main() -> None:
    kind, count, model, data, folder = sys.argv[1:]
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    rounds = Rounds(kind, Path(model), Path(data), Path(folder))
    run = rounds.at_once
    if kind in ("simulated", "real"):
        run = rounds.kill
    if kind.startswith("outlived"):
        run = rounds.outlive
    rounds.import_everything()
    print(json.dumps(run(int(count))))


class Rounds:
    """Kill, look, resume, look, again and again."""

    def __init__(self, kind: str, model: Path, data: Path, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.reference = Reference(model=str(model), dtype="float32", batch_tokens=64)
        self.data, self.log = data, folder / "scored"
        simulation = Simulation(self.log, seconds=0.002)
        self.load = loading(Logged, log=self.log) if kind.endswith("real") else simulation.load

    def at_once(self, processes: int) -> dict[str, Any]:
        """Several writers of one cache while readers read, then one alone."""
        path, alone = self.folder / "several", self.folder / "alone"
        shards = [(index, processes) for index in range(processes)]
        if self.kind == "together":
            shards = [(0, 1)] * processes
        children = [fork(lambda shard=shard: self.precompute(path, shard)) for shard in shards]
        reads, look = 0, os.WEXITED | os.WNOHANG | os.WNOWAIT
        while os.waitid(os.P_PID, children[0], look) is None:
            in_fork(lambda: rows_of(path))
            in_fork(lambda: len(upkeep.compact(Cache(path))) if path.is_dir() else 0)
            in_fork(lambda: len(upkeep.repair(Cache(path))) if path.is_dir() else 0)
            reads += 1
        for child in children:
            wait(child)
        wait(fork(lambda: self.precompute(alone, (0, 1))))
        written, whole = in_fork(lambda: rows_of(path)), in_fork(lambda: rows_of(alone))
        return {
            "lost": len(whole.keys() - written.keys()),
            "foreign": len(written.keys() - whole.keys()),
            "difference": max(apart(rows, whole[key]) for key, rows in written.items()),
            "repeated": sum(len(rows) - 1 for rows in written.values()),
            "damaged": in_fork(lambda: damage(path)),
            "reads": reads,
        }

    def kill(self, kills: int) -> dict[str, Any]:
        generator = random.Random(kills)
        started = time.time()
        wait(fork(lambda: self.precompute(self.folder / "whole")))
        seconds = time.time() - started
        scoring = time.time() - (self.folder / "whole" / "references").stat().st_mtime
        whole = in_fork(lambda: rows_of(self.folder / "whole"))
        once = Counter(self.log.read_text().split("\n"))
        counts: Counter[str] = Counter()
        worst, again = 0.0, 0
        for number in range(kills):
            path = self.folder / f"killed-{number}"
            self.log.unlink(missing_ok=True)
            child = fork(lambda path=path: self.precompute(path))
            if number % 4:  # one in four at any moment, the others after the first batch
                while not self.log.exists():
                    time.sleep(0.001)
                time.sleep(generator.random() * scoring)
            else:
                time.sleep(generator.random() * seconds)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            left = in_fork(lambda path=path: rows_of(path))
            counts["midway"] += 0 < len(left) < len(whole)
            wait(fork(lambda path=path: self.precompute(path)))
            resumed = in_fork(lambda path=path: rows_of(path))
            twice = Counter(self.log.read_text().split("\n")) - once
            again = max(again, sum(twice.values()))
            counts["lost"] += len(whole.keys() - resumed.keys())
            counts["duplicated"] += sum(len(rows) - 1 for rows in resumed.values())
            counts["damaged"] += in_fork(lambda path=path: damage(path))
            counts["temporaries left"] += any(path.rglob(".tmp-*"))
            for by_key in (left, resumed):
                worst = max([worst, *(apart(rows, whole[key]) for key, rows in by_key.items())])
            shutil.rmtree(path)
        return {**counts, "difference": worst, "scored again": again}

    def outlive(self, kills: int) -> dict[str, Any]:
        """One of two processes is killed each time while both work; in the first round nobody
        takes over."""
        generator = random.Random(kills)
        alone = self.folder / "alone"
        wait(fork(lambda: self.precompute(alone)))
        whole = in_fork(lambda: rows_of(alone))
        scoring = time.time() - (alone / "references").stat().st_mtime
        counts: Counter[str] = Counter(responses=len(whole))
        worst = 0.0
        for number in range(kills + 1):
            path, takes = self.folder / f"outlived-{number}", number > 0
            self.log.unlink(missing_ok=True)
            killed, other = (
                fork(lambda path=path, n=n, takes=takes: self.precompute(path, (n, 2), takes))
                for n in (1, 0)
            )
            while not self.log.exists():
                time.sleep(0.001)
            time.sleep(generator.random() * scoring / 2)
            os.kill(killed, signal.SIGKILL)
            counts["midway"] += os.WIFSIGNALED(os.waitpid(killed, 0)[1])
            wait(other)
            rows = in_fork(lambda path=path: rows_of(path))
            counts["lost" if takes else "lost without"] += len(whole.keys() - rows.keys())
            counts["foreign"] += len(rows.keys() - whole.keys())
            counts["repeated"] += sum(len(several) - 1 for several in rows.values())
            counts["damaged"] += in_fork(lambda path=path: damage(path))
            worst = max([worst, *(apart(several, whole[key]) for key, several in rows.items())])
            shutil.rmtree(path)
        return {**counts, "difference": worst}

    def import_everything(self) -> None:
        """What the children would import one by one."""
        import pandas
        from transformers import LlamaForCausalLM

        assert LlamaForCausalLM
        assert pandas
        renderer_of(resolve("llama", self.reference)).encode(load_groups(self.data).groups[0])
        gc.collect()
        gc.freeze()

    def precompute(
        self, path: Path, shard: tuple[int, int] = (0, 1), take_over: bool = False
    ) -> None:
        groups = load_groups(self.data).groups
        cache, references = Cache(path), {"llama": self.reference}
        precompute(references, groups, cache, "data", shard=shard, load=self.load,
                   part_rows=ROWS_OF_A_PART, take_over=take_over)  # fmt: skip


Rows = dict[str, list[list[float]]]


def rows_of(path: Path) -> Rows:
    """[log-prob, tokens] by response, once for each time it stands in a part."""
    rows: Rows = {}
    stores = Cache(path).references() if path.is_dir() else []
    for table in (part.table for store in stores for part in store.parts()):
        columns = (table[name].to_pylist() for name in ("response_id", "logp", "num_tokens"))
        for key, logp, count in zip(*columns, strict=True):
            rows.setdefault(key, []).append([logp, count])
    return rows


def damage(path: Path) -> int:
    cache = Cache(path)
    return len(upkeep.damaged(cache)) + len(upkeep.foreign(cache))


def apart(some: list[list[float]], expected: list[list[float]]) -> float:
    """The largest difference, nats per token."""
    (logp, tokens), *_ = expected
    return max(abs(other - logp) / tokens for other, _ in some)


def fork(work: Callable[[], object]) -> int:
    """The id of a child that does some work and ends."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def wait(child: int) -> None:
    """Refuse a child that failed or was killed."""
    if os.waitpid(child, 0)[1]:
        raise SystemExit("a child failed")


def in_fork(work: Callable[[], Any]) -> Any:
    """The result of work that is done in a child: this process stays without threads."""
    reading, writing = os.pipe()

    def answer() -> None:
        with os.fdopen(writing, "w") as pipe:
            json.dump(work(), pipe)

    child = fork(answer)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        result = json.load(pipe)
    wait(child)
    return result


if __name__ == "__main__":
    main()
