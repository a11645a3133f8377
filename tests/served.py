"""References behind the servers of `lying_server`, and what is cached of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fake_server import FakeServer

from mrpo_tools.cache import Cache
from mrpo_tools.config import Reference
from mrpo_tools.references.resolved import ResolvedReference, resolve
from mrpo_tools.scorer.served import ServedReference
from mrpo_tools.server import Client, Server

WAITS = {"attempts": 3, "first_wait": 0.01, "timeout": 20.0}
NAME = "served"


def reference_of(folder: Path, server: FakeServer, **words: Any) -> Reference:
    """The words of a reference whose weights a server has."""
    return Reference(
        model=str(folder),
        server=server.url,
        **{"dtype": "float32", "max_length": 500, "concurrency": 4, **words},
    )


def loading_with(**words: Any) -> Any:
    """A `load` whose client waits as these tests can; words of `Server` and `ServedReference`."""
    own = {name: words.pop(name) for name in ("check_rows", "check_seconds", "clock")
           if name in words}  # fmt: skip

    def load(resolved: ResolvedReference, _dtype: str, _device: Any) -> ServedReference:
        reference = resolved.reference
        server = Server(
            str(reference.server),
            reference.server_model,
            reference.concurrency or 4,
            **{**WAITS, **words},
        )
        return ServedReference(resolved, Client(server, {}), **own)

    return load


def engine_of(folder: Path, server: FakeServer, **words: Any) -> ServedReference:
    """A server that is ready to be calibrated."""
    resolved = resolve(NAME, reference_of(folder, server, **words))
    engine: ServedReference = loading_with()(resolved, "", None)
    return engine


def numbers(cache: Cache) -> dict[str, tuple[str, float | None, int]]:
    """(status, nats, tokens) by response of the served reference; each response once."""
    if not cache.path.is_dir():
        return {}
    found: dict[str, tuple[str, float | None, int]] = {}
    columns = ("response_id", "status", "logp", "num_tokens")
    for part in (part for store in cache.named(NAME) for part in store.parts()):
        for key, *rest in zip(*(part.table[name].to_pylist() for name in columns), strict=True):
            assert key not in found, "a response is stored twice"
            found[key] = tuple(rest)
    return found


def of_the_library(folder: Path, lines: Any, dtype: torch.dtype = torch.float32) -> list[float]:
    """Log-probs of (ids, where the response begins) from the library's own model, nats."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    sums = []
    with torch.no_grad():
        for ids, start in lines:
            logps = model(torch.tensor([ids])).logits[0].float().log_softmax(-1).double()
            sums.append(float(sum(logps[n - 1, ids[n]] for n in range(start, len(ids)))))
    return sums
