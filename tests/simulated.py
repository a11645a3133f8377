"""A scorer that needs no model: the code path of precompute with made-up, repeatable numbers."""

from __future__ import annotations

import os
import time
import zlib
from array import array
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from mrpo_tools.precomputing import run as forward
from mrpo_tools.scorer.scorer import ROUTES
from mrpo_tools.scorer.trees import Row, batches, plan_rows


class SimulatedScorer(torch.nn.Module):
    """What `forward` asks of a `ResponseScorer`, without a model in it."""

    route = ROUTES[0]
    config = SimpleNamespace(_attn_implementation="none")

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.zeros(1))

    def batches(self, trees: list[Row], max_tokens: int | None = None) -> list[list[Row]]:
        return batches(plan_rows(trees, hidden_size=64), max_tokens or 2048)


def simulated_logp(response: Any) -> float:
    """Between −1 and −3 nats a token, decided by the ids alone."""
    return -len(response) * (1 + zlib.crc32(array("q", response).tobytes()) / 2**31)


class Simulation:
    """Stands in for the model in `forward`.

    Args:
        log: every response that is scored is written there at once, a digit sequence per line.
        seconds: that each batch takes.
        shift: added to every number.
    """

    def __init__(self, log: Path | None = None, seconds: float = 0.0, shift: float = 0.0) -> None:
        self.log, self.seconds, self.shift = log, seconds, shift
        self.loads = 0

    def load(self, *_: object) -> SimulatedScorer:
        self.loads += 1
        return SimulatedScorer()

    def score(self, _: object, rows: list[Row], __: object) -> list[float]:
        responses = [one for row in rows for one in row.responses]
        log_scored(self.log, responses)
        time.sleep(self.seconds)
        return [simulated_logp(one) + self.shift for one in responses]

    def install(self, patch: Any = setattr) -> Simulation:
        """Put in place, by `patch(object, name, value)`."""
        patch(forward, "load_scorer", self.load)
        patch(forward, "score", self.score)
        patch(forward, "plain_logps", lambda one, row, device: self.score(one, [row], device))
        patch(forward, "self_check", lambda *_: 0.0)
        return self


def log_scored(log: Path | None, responses: list[Any]) -> None:
    """Append the responses in one write, which a kill cannot halve."""
    if log is not None:
        marks = [f"{zlib.crc32(array('q', one).tobytes())} {len(one)}\n" for one in responses]
        handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, "".join(marks).encode())
        os.close(handle)
