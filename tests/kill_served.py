"""`precompute` of a reference behind a server, killed at random moments. Prints JSON.

    python tests/kill_served.py URL MODEL DATA FOLDER KILLS CHECK_ROWS CONCURRENCY PART_ROWS

Imports once and forks for everything else. In each round a process is killed, what is on the disk
is looked at, and another one goes on from there; the last one finishes. It says how many numbers
were lost, doubled or other than those of a process that was never killed, and how many were paid
for without being on the disk at a kill, at most.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from kill_server import fork, in_fork, rows_of, wait
from simulated import log_computed

from mrpo_tools.cache import Cache
from mrpo_tools.config import Reference
from mrpo_tools.precomputing.precompute import precompute
from mrpo_tools.references.resolved import renderer_of, resolve
from mrpo_tools.scorer.consistency import Line
from mrpo_tools.scorer.served import ServedReference
from mrpo_tools.server import About, Client, Server
from mrpo_tools.sources import load_groups


class Logged(ServedReference):
    """Notes every number of a response as it comes."""

    log: Path

    def _logp(self, line: Line) -> float:
        logp = super()._logp(line)
        log_computed(self.log, [line.ids])
        return logp


class Kills:
    def __init__(self, url: str, model: Path, data: Path, folder: Path, *sizes: str) -> None:
        self.kills, self.check_rows, concurrency, self.part_rows = map(int, sizes)
        self.folder = folder
        self.reference = Reference(
            model=str(model), dtype="float32", max_length=500, server=url, calibration="server",
            concurrency=concurrency,
        )  # fmt: skip
        self.data, self.log, self.home = data, folder / "paid", folder / "cache"

    def import_everything(self) -> None:
        import pandas
        from transformers import LlamaForCausalLM

        assert LlamaForCausalLM
        assert pandas
        resolved = resolve("m", self.reference, ask=lambda _: About("0", "tiny"))
        renderer_of(resolved).encode(load_groups(self.data).groups[0])

    def work(self, home: Path) -> None:
        class Here(Logged):
            log = self.log

        def load(resolved: Any, _dtype: str, _device: Any) -> ServedReference:
            server = Server(str(self.reference.server), None, self.reference.concurrency or 1,
                            first_wait=0.01)  # fmt: skip
            return Here(resolved, Client(server, {}), check_rows=self.check_rows)

        groups = load_groups(self.data).groups
        precompute({"m": self.reference}, groups, Cache(home), "data", load=load,
                   part_rows=self.part_rows)  # fmt: skip

    def paid(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0

    def run(self) -> dict[str, Any]:
        whole_path = self.folder / "whole"
        wait(fork(lambda: self.work(whole_path)))
        whole = in_fork(lambda: rows_of(whole_path))
        assert self.paid() == len(whole)
        self.log.unlink()
        rng, counts, at_hand, again = random.Random(self.kills), Counter[str](), 0, 0
        for _ in range(self.kills):
            noted = self.paid()
            child = fork(lambda: self.work(self.home))
            some = self.check_rows + self.part_rows
            until = noted + rng.randint(some, 2 * some)
            look = os.WEXITED | os.WNOHANG | os.WNOWAIT
            while self.paid() < until and os.waitid(os.P_PID, child, look) is None:
                time.sleep(0.002)
            before = in_fork(lambda: rows_of(self.home))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            left = in_fork(lambda: rows_of(self.home))
            counts["forgotten"] += len(before.keys() - left.keys())
            counts["midway"] += 0 < len(left) < len(whole)
            at_hand = max(at_hand, self.paid() - len(left) - again)
            again = self.paid() - len(left)
        wait(fork(lambda: self.work(self.home)))
        finished = in_fork(lambda: rows_of(self.home))
        return {
            **counts,
            "rows": len(whole),
            "lost": len(whole.keys() - finished.keys()),
            "foreign": len(finished.keys() - whole.keys()),
            "doubled": sum(len(rows) - 1 for rows in finished.values()),
            "other": sum(rows != whole[key] for key, rows in finished.items()),
            "at hand": at_hand,
            "paid again": self.paid() - len(finished),
        }


def main() -> None:
    url, model, data, folder, *sizes = sys.argv[1:]
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    kills = Kills(url, Path(model), Path(data), Path(folder), *sizes)
    kills.import_everything()
    print(json.dumps(kills.run()))


if __name__ == "__main__":
    main()
