"""What two processes do together, for tests/test_sharding.py: `sharded_runs.py FOLDER [raise]`.

Each run is one that a single process has made too. Every process writes what it found to a file.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerState

from mrpo_tools.cache import Cache
from mrpo_tools.config import Recipe, Reference
from mrpo_tools.references.loading import load_model
from mrpo_tools.references.locate import locate
from mrpo_tools.scorer.scorer import ResponseScorer
from mrpo_tools.scorer.trees import Row
from mrpo_tools.sources import load_groups
from mrpo_tools.training.callbacks import FiniteGuard
from mrpo_tools.training.train import train
from mrpo_tools.training.wrapping import layers_of

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
"""What `accelerate launch` says of a file that asks for FSDP2."""
LIMIT = timedelta(seconds=4)
ROW = Row([1, 2, 3], [[4, 5], [6]], [0, 1])


def fit(folder: Path, name: str, *callbacks: TrainerCallback, resume: bool = False) -> None:
    """One of the runs that are asked for."""
    asked = json.loads((folder / "asked.json").read_text())
    words = asked["runs"][name.replace("raising", "resumed")]
    os.environ.update(FSDP if name.startswith("fsdp") else {})
    references = {key: Reference(**each) for key, each in asked["references"].items()}
    groups = load_groups(folder / "data.jsonl").groups
    train(
        Recipe(**words), groups, Cache(asked["cache"]), references, folder / name,
        resume=resume, callbacks=callbacks,
    )  # fmt: skip
    os.environ.pop("ACCELERATE_USE_FSDP", None)


def applied(model: Path) -> ResponseScorer:
    """A scorer to which nothing but torch's own `fully_shard` is applied, in a group of processes
    that give up after `LIMIT`."""
    group = distributed.new_group(timeout=LIMIT)
    mesh = DeviceMesh.from_group(group, "cpu")
    reference = Reference(model=str(model))
    scorer = ResponseScorer(load_model(locate(reference), reference, "float32"))
    for layer in layers_of(scorer):
        fully_shard(layer, mesh=mesh)
    fully_shard(scorer, mesh=mesh)
    return scorer


def gradients(model: Path, *, padded: bool) -> dict[str, object]:
    """One pass in the first process and three in the second, with the gradient of all of them, or
    how long it took to give up."""
    scorer = applied(model)
    count = (1, 3)[distributed.get_rank()]
    device = torch.device("cpu")
    empty = [scorer.empty_batch(device)] * (3 - count if padded else 0)
    began = time.monotonic()
    try:
        batch = scorer.collate([ROW])
        logps = scorer([batch] * count, 2, empty)
        logps.sum().backward()
    except RuntimeError as error:
        return {"failed": str(error), "seconds": time.monotonic() - began}
    grads = {
        name: weights.grad.full_tensor().norm().item()
        for name, weights in scorer.named_parameters()
        if isinstance(weights, DTensor)
    }
    return {"logps": logps.tolist(), "gradients": grads, "dropped": is_dropped(scorer)}


def is_dropped(scorer: ResponseScorer) -> bool:
    """Whether one number that is not finite, in one process, takes every gradient of all."""
    first = next(scorer.parameters())
    if distributed.get_rank() == 1:
        first.grad.to_local().view(-1)[:1] = float("nan")
    FiniteGuard().on_pre_optimizer_step(None, TrainerState(), None, model=scorer)
    return all(weights.grad is None for weights in scorer.parameters())


class RaiseAlone(TrainerCallback):
    """An error in the second process alone, between what all do together."""

    def on_step_begin(self, args, state, control, **_) -> None:
        if state.global_step == 1 and distributed.get_rank() == 1:
            print("raises", flush=True)
            raise RuntimeError("planted")


def main(folder: Path, *words: str) -> None:
    rank = int(os.environ["RANK"])
    if words == ("raise",):
        fit(folder, "fsdp_raising", RaiseAlone())
    asked = json.loads((folder / "asked.json").read_text())
    model = Path(asked["references"]["llama"]["model"])
    found: dict[str, object] = {}
    for name in asked["runs"]:
        fit(folder, name, resume=name.endswith("resumed"))
    for name, task in (
        ("padded", partial(gradients, model, padded=True)),
        ("unpadded", partial(gradients, model, padded=False)),  # the last: it ends in disorder
    ):
        found[name] = task()
    (folder / f"found-{rank}.json").write_text(json.dumps(found))
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
