"""Seconds that dry runs foretell against those that happen, on real chat data.

    python bench/dry_run.py --data DIR [--cases 1 2 ...]

DIR holds the files that `FILES` names. Models have random weights: a tiny one and one of 34 million
parameters. Each case is a dry run and then the work itself, one after the other, in one process.
Both are in seconds of the processor, so that what others do on the machine meanwhile counts on
neither side; set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from models import make_model
from transformers import TrainerCallback

import mrpo_tools.precomputing.estimate as phase1
import mrpo_tools.references.devices as devices
import mrpo_tools.scorer.speed as speed
from mrpo_tools.cache import Cache
from mrpo_tools.config import Recipe, Reference
from mrpo_tools.groups import Group
from mrpo_tools.precomputing.estimate import estimate
from mrpo_tools.precomputing.precompute import precompute
from mrpo_tools.references.loading import quiet_libraries
from mrpo_tools.references.resolved import resolve
from mrpo_tools.sources import load_groups
from mrpo_tools.training.estimate import estimate_training
from mrpo_tools.training.prepare import prepare
from mrpo_tools.training.train import train

CHAT, SCORED = FILES = ("chat_pairs_sharegpt.json", "vicuna_scored4.jsonl")
TINY = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4}  # fmt: skip
CASES = (
    ("log-probs", "tiny", CHAT, 150, {}),
    ("log-probs", "tiny", SCORED, 40, {}),
    ("log-probs", "34 M", CHAT, 12, {}),
    ("log-probs", "34 M", SCORED, 6, {}),
    ("LoRA", "tiny", CHAT, 40, {}),
    ("full", "tiny", SCORED, 24, {"finetuning": "full", "loss": "mpo"}),
    ("LoRA", "34 M", CHAT, 6, {}),
)
"""What, model, file, groups, keys of the recipe."""


def scored(reference: Reference, groups: Sequence[Group], folder: Path) -> tuple[float, float]:
    """Seconds foretold and happened of phase 1, loading counted in both."""
    cache = Cache(folder / "cache")
    foretold = estimate(resolve("model", reference), groups, cache)
    started = time.process_time()
    precompute({"model": reference}, groups, cache, "data")
    return foretold.seconds + foretold.loading_seconds, time.process_time() - started


class Steps(TrainerCallback):
    """Notes when the steps begin and end."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.times.append(time.process_time())

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.times.append(time.process_time())


def trained(
    reference: Reference, groups: Sequence[Group], folder: Path, keys: dict
) -> tuple[float, float]:
    """Seconds foretold and happened of the steps of phase 2."""
    cache, references = Cache(folder / "cache"), {"model": reference}
    precompute(references, groups, cache, "data")
    recipe = Recipe.model_validate({"loss": "dpo", "refs": ["model"], "split": "all", **keys})
    foretold = estimate_training(recipe, prepare(recipe, groups, cache, references))
    steps = Steps()
    train(recipe, groups, cache, references, folder / "run", callbacks=[steps])
    return foretold.seconds, steps.times[1] - steps.times[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cases", type=int, nargs="*", default=range(1, len(CASES) + 1))
    words = parser.parse_args()
    quiet_libraries()
    devices.time = speed.time = phase1.time = SimpleNamespace(perf_counter=time.process_time)
    every = {name: load_groups(words.data / name).groups for name in FILES}
    texts = [answer.content for group in every[CHAT] for answer in group.responses]
    print("| what | model | data | groups | foretold s | happened s | ratio |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as root:
        models = {"tiny": Path(root, "tiny"), "34 M": Path(root, "larger")}
        make_model(models["tiny"], texts, **TINY)
        make_model(models["34 M"], texts)
        for case in words.cases:
            what, name, file, count, keys = CASES[case - 1]
            folder = Path(root, str(case))
            groups, reference = every[file][:count], Reference(model=str(models[name]))
            if what == "log-probs":
                foretold, happened = scored(reference, groups, folder)
            else:
                foretold, happened = trained(reference, groups, folder, keys)
            print(
                f"| {what} | {name} | {file} | {count} | {foretold:.1f} | {happened:.1f} "
                f"| {foretold / happened:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
