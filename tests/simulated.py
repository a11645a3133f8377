"""A model that is none: the code path of precompute with made-up, repeatable numbers."""

from __future__ import annotations

import os
import time
import zlib
from array import array
from pathlib import Path
from typing import Any

from mrpo_tools.scorer.loaded import LoadedReference, load_reference
from mrpo_tools.scorer.scorer import ROUTES
from mrpo_tools.scorer.self_check import Checked
from mrpo_tools.scorer.trees import Row, batches, plan_rows


def simulated_logp(response: Any) -> float:
    """Between −1 and −3 nats a token, decided by the ids alone."""
    return -len(response) * (1 + zlib.crc32(array("q", response).tobytes()) / 2**31)


class Simulation(LoadedReference):
    """What phase 1 asks of a loaded reference; `Simulation().load` is passed as `load`.

    Args:
        log: every response that is computed is written there at once, a digit sequence per line.
        seconds: that each batch takes.
        shift: added to every number.

    Attributes:
        loads: how often a model was asked for.
    """

    attention, packed, shares = "none", True, True

    def __init__(self, log: Path | None = None, seconds: float = 0.0, shift: float = 0.0) -> None:
        self.log, self.seconds, self.shift = log, seconds, shift
        self.loads = 0

    @property
    def where(self) -> str:
        return str(self.device)

    def load(self, _resolved: object, _dtype: str, device: Any) -> LoadedReference:
        self.device = device
        self.loads += 1
        return self

    def self_check(self, _rows: object) -> Checked:
        return Checked(ROUTES[0])

    def batches(self, trees: list[Row], max_tokens: int | None) -> list[list[Row]]:
        return batches(plan_rows(trees, hidden_size=64), max_tokens or 2048)

    def logps(self, rows: list[Row]) -> list[float]:
        responses = [ids for row in rows for ids in row.responses]
        log_computed(self.log, responses)
        time.sleep(self.seconds)
        return [simulated_logp(ids) + self.shift for ids in responses]

    def plain_logps(self, rows: list[Row]) -> list[list[float]]:
        return [self.logps([row]) for row in rows]


class Spoiled(LoadedReference):
    """A real model whose batches begin with these numbers instead of its own."""

    numbers: tuple[float, ...] = (float("nan"),)

    def logps(self, rows: list[Row]) -> list[float]:
        return [*self.numbers, *super().logps(rows)[len(self.numbers) :]]


class Logged(LoadedReference):
    """A real model that writes what it computes to a file, as a `Simulation` does."""

    log: Path

    def logps(self, rows: list[Row]) -> list[float]:
        log_computed(self.log, [ids for row in rows for ids in row.responses])
        return super().logps(rows)


def loading(kind: type[LoadedReference], **attributes: Any) -> Any:
    """A function that loads a reference's own model as another kind of `LoadedReference`."""
    kind = type(kind.__name__, (kind,), attributes)

    def load(*arguments: Any) -> LoadedReference:
        honest = load_reference(*arguments)
        return kind(honest.scorer, honest.device)

    return load


def log_computed(log: Path | None, responses: list[Any]) -> None:
    """Append the responses in one write, which a kill cannot halve."""
    if log is not None:
        marks = [f"{zlib.crc32(array('q', ids).tobytes())} {len(ids)}\n" for ids in responses]
        handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, "".join(marks).encode())
        os.close(handle)
