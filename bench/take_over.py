"""What is computed twice where who is done takes over, by processes of simulated speeds.

    python bench/take_over.py

Writes docs/take_over.json. Each process is a thread with a model that sleeps for the tokens it
gets, on the demo's data; rows, parts and listings are real. All begin their first batch together.
One that dies loses the batch at hand; what it had collected is written, as after SIGTERM.

    seconds    from the first batch to the last process's end
    ideal      the work divided by the speeds of all that are there, while they are
    without    what the slowest process takes with its own part alone; nothing where rows would be
               missing
    twice      rows that two processes have written, as a share of all
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
OUTPUT = ROOT / "docs" / "take_over.json"
SECONDS = 60.0
"""That the whole work takes, divided by the speeds of all."""
TINY = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1}  # fmt: skip
sys.path.insert(0, str(ROOT / "tests"))

from simulated import Simulation, simulated_logp  # noqa: E402

from mrpo_tools.cache import Cache  # noqa: E402
from mrpo_tools.config import Reference  # noqa: E402
from mrpo_tools.precomputing.precompute import precompute  # noqa: E402
from mrpo_tools.scorer.self_check import Checked  # noqa: E402
from mrpo_tools.sources import load_groups  # noqa: E402


@dataclass
class Case:
    """Some processes.

    Attributes:
        speeds: relative, of each.
        absent: those that never begin.
        dying: those that die when half of the ideal time of all is over.
        sweep: batches that are drawn before the numbers of the first are given, as by an engine
            that streams its layers.
        batch_tokens: of a batch.
    """

    speeds: list[float]
    absent: list[int] = field(default_factory=list)
    dying: list[int] = field(default_factory=list)
    sweep: int = 1
    batch_tokens: int = 256

    def ideal(self, seconds: float) -> float:
        """See above.

        Args:
            seconds: the work divided by the speeds of all that begin.
        """
        left = 1 - sum(self.speeds[n] for n in self.dying) / self.lasting
        return seconds if not self.dying else seconds / 2 + seconds / 2 / left

    @property
    def lasting(self) -> float:
        """The speeds of all that begin."""
        return sum(speed for n, speed in enumerate(self.speeds) if n not in self.absent)

    def without(self, ideal: float) -> float | None:
        """See above."""
        if self.absent or self.dying:
            return None
        return ideal * self.lasting / len(self.speeds) / min(self.speeds)


CASES = {
    "2 alike": Case([1] * 2),
    "2, one absent": Case([1] * 2, absent=[1]),
    "4 alike": Case([1] * 4),
    "4, one of a quarter's speed": Case([1, 1, 1, 0.25]),
    "4, one absent": Case([1] * 4, absent=[2]),
    "4, one dies": Case([1] * 4, dying=[2]),
    "4 alike, sweeps of 8 batches": Case([1] * 4, sweep=8),
    "4, one dies, sweeps of 8 batches": Case([1] * 4, dying=[2], sweep=8),
    "16 alike": Case([1] * 16),
    "16 of 0.5 to 1.25": Case([0.5 + 0.05 * n for n in range(16)]),
    "16, one absent": Case([1] * 16, absent=[7]),
    "16, two die": Case([1] * 16, dying=[3, 11]),
    "16 alike, batches of a quarter": Case([1] * 16, batch_tokens=64),
    "16, two die, batches of a quarter": Case([1] * 16, dying=[3, 11], batch_tokens=64),
}


class Death(BaseException):
    """Nothing of the package expects it."""


class Paced(Simulation):
    """Sleeps for the tokens it gets, and dies at a moment."""

    def __init__(self, tokens_a_second: float, case: Case, start: Start, dies: float) -> None:
        super().__init__()
        self.pace, self.case, self.start, self.dies = tokens_a_second, case, start, dies

    def self_check(self, rows: object) -> Checked:
        self.start.wait()
        return super().self_check(rows)

    def computed(self, batches: Iterable[Any], _tell: object = None) -> Iterator[Any]:
        drawn = iter(batches)
        while sweep := list(islice(drawn, self.case.sweep)):
            yield from [(batch, self.logps(batch)) for batch in sweep]

    def logps(self, rows: list[Any]) -> list[float]:
        time.sleep(sum(map(len, rows)) / self.pace)
        if time.monotonic() >= self.start.moment + self.dies:
            raise Death
        return [simulated_logp(ids) for row in rows for ids in row.responses]


class Start:
    """The moment at which all are ready.

    Args:
        count: of those who wait for it.
    """

    def __init__(self, count: int) -> None:
        self.moment = math.inf
        self._barrier = threading.Barrier(count, self._is_now)

    def wait(self) -> None:
        self._barrier.wait()

    def _is_now(self) -> None:
        self.moment = time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="cases that are measured anew; all by default")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        trial = Trial(Path(scratch), options.seconds)
        rows = {name: trial.row(name) for name in options.names or CASES}
    if options.names and options.output.exists():
        before = json.loads(options.output.read_text(encoding="utf-8"))["rows"]
        rows = {row["case"]: row for row in before} | rows
    said = {"command": "python bench/take_over.py", "seconds": options.seconds,
            "processors": os.cpu_count(),
            "rows": [rows[name] for name in CASES if name in rows]}  # fmt: skip
    options.output.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


def table(rows: list[dict[str, Any]]) -> str:
    """The page's table."""
    head = "| processes | computed twice | taken over | seconds | ideal | without |"
    lines = [
        f"| {row['case']} | {row['computed twice']} ({row['twice']:.1%}) | {row['taken over']} | "
        f"{row['seconds']} | {row['ideal']} | {row['without'] or 'rows missing'} |"
        for row in rows
    ]
    return "\n".join([head, "|---|---|---|---|---|---|", *lines])


class Trial:
    """The data, a model that is a name alone, and how many tokens there are."""

    def __init__(self, folder: Path, seconds: float) -> None:
        from models import make_model

        self.folder, self.seconds = folder, seconds
        self.groups = load_groups(ROOT / "data" / "demo.jsonl").groups
        texts = [turn.content for group in self.groups for turn in group.prompt]
        make_model(folder / "model", texts, **TINY)
        self.reference = Reference(model=str(folder / "model"), dtype="float32")
        alone = Paced(1e9, Case([1]), Start(1), math.inf)
        whole = self.compute(Cache(folder / "whole"), (0, 1), alone)
        self.tokens = whole[0].tokens

    def compute(self, cache: Cache, shard: tuple[int, int], model: Paced) -> Any:
        sized = self.reference.model_copy(update={"batch_tokens": model.case.batch_tokens})
        return precompute({"one": sized}, self.groups, cache, "demo", shard=shard,
                          load=model.load, take_over=True)  # fmt: skip

    def row(self, name: str) -> dict[str, Any]:
        """One case: what was computed twice, and how long it took."""
        case, count = CASES[name], len(CASES[name].speeds)
        unit = self.tokens / self.seconds / case.lasting
        cache, start = Cache(self.folder / name), Start(count - len(case.absent))
        taken_over = [0] * count

        def work(index: int) -> None:
            dies = self.seconds / 2 if index in case.dying else math.inf
            model = Paced(unit * case.speeds[index], case, start, dies)
            with contextlib.suppress(Death):
                [summary] = self.compute(cache, (index, count), model)
                taken_over[index] = summary.taken_over

        threads = [threading.Thread(target=work, args=(index,)) for index in range(count)
                   if index not in case.absent]  # fmt: skip
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.monotonic() - start.moment
        store = cache.find("one")
        rows = sum(part.table.num_rows for part in store.parts())
        every = {key for group in self.groups for key in group.response_ids}
        assert store.keys() == every
        without = case.without(self.seconds)
        measured = {
            "case": name,
            "responses": len(every),
            "computed twice": rows - len(every),
            "twice": round((rows - len(every)) / len(every), 4),
            "taken over": sum(taken_over),
            "seconds": round(took, 1),
            "ideal": round(case.ideal(self.seconds), 1),
            "without": without and round(without, 1),
            "parts": len(store.part_paths()),
        }
        print(measured, flush=True)
        return measured


if __name__ == "__main__":
    main()
