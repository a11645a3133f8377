"""Make the runs of the study.

    python bench/study/run.py WORK [--replicates 10] [--share 0/2]
    python bench/study/run.py WORK --split-beliefs --replicates 6    the second design

WORK holds models, caches and a JSON file for each run that is done, so the same command goes on
where it stopped. Replicates are the outer loop: whatever is finished is balanced over arms. The
arms of the primary contrasts (`first` of arms.yaml) are made for all replicates, then the others.
Training is `mrpo_tools.train`, one run after another in this process.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from arms import FILE, SPLIT_FILE, WAVES, Arms, load_arms
from replicate import ROUND_ONE, Replicate, Size
from sampled import measure

from mrpo_tools import train
from mrpo_tools.errors import MrpoError
from mrpo_tools.references.loading import quiet_libraries

UNTRAINED = "untrained"
SPLIT = "split"
COOLED = "cooled"
"""The base at lower temperatures, which stand where learning rates do."""
SECONDS_KEPT = 2


def main() -> None:
    """Run every planned run that has no result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--replicates", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--share", default="0/1", help="I/N: every N-th replicate, from the I-th")
    parser.add_argument("--waves", default=",".join(WAVES))
    parser.add_argument("--measured", default="test", help="the split whose prompts are answered")
    parser.add_argument("--split-beliefs", action="store_true", help="the second design")
    parser.add_argument("--arms", type=Path, help="another arms.yaml")
    options = parser.parse_args()
    torch.set_num_threads(1)
    quiet_libraries()
    mine, shares = map(int, options.share.split("/"))
    seeds = range(options.first_seed + mine, options.first_seed + options.replicates, shares)
    work = options.work / SPLIT if options.split_beliefs else options.work
    arms = load_arms(options.arms or (SPLIT_FILE if options.split_beliefs else FILE))
    size = Size(measured=options.measured, split_beliefs=options.split_beliefs)
    make(work, arms, list(seeds), size, options.waves.split(","))


def make(work: Path, arms: Arms, seeds: list[int], size: Size, waves: list[str]) -> None:
    """All runs of some replicates, wave by wave."""
    for wave in waves:
        for seed in seeds:
            folder = work / f"replicate-{seed}"
            todo = [
                (arm, rate)
                for arm in arms.waves[wave]
                for rate in arms.rates
                if not _result(folder, arm, rate).exists()
            ]
            cooler = [
                temperature
                for temperature in arms.temperatures
                if not _result(folder, COOLED, temperature).exists()
            ]
            if todo or cooler:
                with _quiet(folder):
                    replicate = Replicate(folder, seed, size)
                    _untrained(replicate)
                gc.collect()
                gc.freeze()  # what is loaded by now is never garbage
                for arm, rate in todo:
                    _run(replicate, arms, arm, rate)
                for temperature in cooler:
                    _cooled(replicate, temperature)


def _result(folder: Path, arm: str, rate: float) -> Path:
    return folder / "results" / f"{arm}@{rate:g}.json"


def _run(replicate: Replicate, arms: Arms, arm: str, rate: float) -> None:
    """Train and measure one run, and keep its result alone."""
    output = replicate.folder / "runs" / f"{arm}@{rate:g}"
    shutil.rmtree(output, ignore_errors=True)
    begun = time.monotonic()
    result: dict[str, Any] = {"arm": arm, "learning_rate": rate, "seed": replicate.seed}
    with _quiet(replicate.folder):
        recipe = arms.recipe(arm, rate, replicate.seed)
        groups = replicate.second_round() if arms.is_round_two(arm) else replicate.groups
        try:
            trained = train(recipe, groups, replicate.cache, replicate.references, output)
        except MrpoError as error:
            result["error"] = str(error)
        else:
            metrics = trained.metrics
            result |= {
                "clipped": metrics.clipped_fraction,
                "weights": metrics.mean_weights,
                "distance": metrics.mean_distance_from_reference_1_nats,
                "train_seconds": round(metrics.train_seconds or 0, SECONDS_KEPT),
                "total_seconds": round(metrics.total_seconds or 0, SECONDS_KEPT),
                **_measured(replicate, output),
            }
    result["seconds"] = round(time.monotonic() - begun, SECONDS_KEPT)
    _write(_result(replicate.folder, arm, rate), result)
    if (arm, rate) == arms.round_one and "error" not in result:
        _keep_round_one(replicate, output)
    shutil.rmtree(output, ignore_errors=True)
    shown = {key: result.get(key) for key in ("score", "kl", "error", "seconds")}
    print(f"{replicate.folder.name} {arm} {rate:g}: {shown}", flush=True)


def _keep_round_one(replicate: Replicate, output: Path) -> None:
    """The policy of the first round becomes a model like others."""
    place = replicate.models / ROUND_ONE
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for file in output.iterdir():
        if file.name in WHAT_A_MODEL_IS:
            shutil.copy(file, place)


WHAT_A_MODEL_IS = (
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
)  # fmt: skip


def _measured(replicate: Replicate, path: Path) -> dict[str, float]:
    """Outcomes on the prompts that the study measures."""
    policy, prompts = replicate.load(path.resolve()), replicate.prompts(replicate.size.measured)
    sampled = measure(policy, replicate.base, replicate.tokenizer, prompts, replicate.seed)
    return sampled.as_dict()


def _cooled(replicate: Replicate, temperature: float) -> None:
    """The base itself at a lower temperature: sharper, and nothing learned."""
    file = _result(replicate.folder, COOLED, temperature)
    if not file.exists():
        sampled = measure(
            replicate.base, replicate.base, replicate.tokenizer,
            replicate.prompts(replicate.size.measured), replicate.seed, temperature,
        )  # fmt: skip
        about = {"arm": COOLED, "learning_rate": temperature, "seed": replicate.seed}
        _write(file, {**about, **sampled.as_dict()})


def _untrained(replicate: Replicate) -> None:
    """The base's own outcome: every frontier begins there."""
    file = _result(replicate.folder, UNTRAINED, 0.0)
    if not file.exists():
        measured = _measured(replicate, replicate.models / "base")
        _write(file, {"arm": UNTRAINED, "learning_rate": 0.0, "seed": replicate.seed, **measured})


def _write(file: Path, result: dict[str, Any]) -> None:
    file.parent.mkdir(exist_ok=True)
    whole = file.with_suffix(".writing")
    whole.write_text(json.dumps(result) + "\n", encoding="utf-8")
    os.replace(whole, file)


@contextlib.contextmanager
def _quiet(folder: Path) -> Iterator[None]:
    """What the product says goes into a file of the replicate."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        yield
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "said.log").open("a", encoding="utf-8") as file:
        file.write(said.getvalue())


if __name__ == "__main__":
    sys.exit(main())
