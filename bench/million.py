"""How long a training run of very many groups takes until its first step, and in how much memory.

    python bench/million.py make FOLDER [--groups 1000000] [--wide 0]
    python bench/million.py start FOLDER [--loss mrpo] [--runs 2]
    python bench/million.py combine [--groups 1000000]

`make` writes a project: a JSONL of groups of four scored responses of about 40 characters, a tiny
Llama, and a cache with the numbers of three references. Those of the first groups are the model's
own, so that the check before the first step finds what it should; the others are made up, with the
hashes of the real tokens. `--wide` adds a group of so many responses.

`start` trains one step, as often as asked for, each time in a process of its own, and prints a line
of JSON for each: seconds and the most resident memory from the start of the process to the end of
the first step, and by phase. The first start reads the JSONL; later ones find it read.

`combine` combines made-up log-probs, [G, 4, 3].
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

BEGUN = time.perf_counter()
NAMES = ("llama", "mistral", "qwen")
REAL = 64
"""Groups whose numbers are the model's own: more than the check of step 0 looks at."""
RESPONSES = 4
BATCH = 4
PART_ROWS = 4096
PHASES = {
    "read_groups": "reading the data",
    "look_up": "looking the log-probs up",
    "_encode": "tokenising everything",
    "_unfit": "checking tokens",
    "_check_tokens": "checking tokens",
    "combine": "the reference combination",
    "_usable": "which groups are usable",
    "reference_accuracies": "the references' accuracies",
    "about_data": "doubts about the data",
    "run_record": "the run's record",
    "tell_saturated": "is the loss flat",
    "check_step0": "step 0",
    "_recompute_activations": "do activations fit",
    "scorer_of": "loading the policy",
    "_run": "the first step",
    "prepare": "the rest of the preparation",
    "train": "the rest of training",
    "main": "imports and the rest",
}
"""Functions by which a moment is counted, the innermost of them."""


def texts(count: int, rng: random.Random, words: int) -> list[str]:
    """So many distinct lines."""
    vocabulary = ["".join(rng.choices("abcdefghijklmnoprstuvwy", k=5)) for _ in range(2048)]
    return [" ".join(rng.choices(vocabulary, k=words)) + f" {n}" for n in range(count)]


def rows(count: int, wide: int) -> Iterator[dict]:
    """The rows of the data set, the wide one last."""
    rng = random.Random(0)
    questions, answers = texts(4096, rng, 6), texts(8192, rng, 6)
    for number in range(count):
        chosen = rng.sample(answers, RESPONSES)
        yield _row(f"{number}: {rng.choice(questions)}", chosen, rng)
    if wide:
        yield _row("the wide one", rng.sample(answers, wide), rng)


def _row(prompt: str, answers: list[str], rng: random.Random) -> dict:
    responses = [{"content": text, "score": round(rng.uniform(0, 10), 2)} for text in answers]
    return {"prompt": prompt, "responses": responses}


def make(folder: Path, count: int, wide: int) -> None:
    """Write the project."""
    from models import make_model

    from mrpo_tools.cache import Cache
    from mrpo_tools.config import Reference
    from mrpo_tools.groups import group_from_dict
    from mrpo_tools.precomputing.precompute import precompute
    from mrpo_tools.references.resolved import renderer_of, resolve

    folder.mkdir(parents=True)
    with (folder / "data.jsonl").open("w", encoding="utf-8") as file:
        for row in rows(count, wide):
            file.write(json.dumps(row) + "\n")
    sample = [row for _, row in zip(range(2000), rows(count, 0), strict=False)]
    spoken = [row["prompt"] for row in sample]
    spoken += [response["content"] for row in sample for response in row["responses"]]
    make_model(
        folder / "model", spoken, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    reference = Reference(model=str(folder / "model"), dtype="float32")
    cache = Cache(folder / "cache")
    first = [group_from_dict({**row, "split": "train"}) for row in sample[:REAL]]
    precompute(dict.fromkeys(NAMES, reference), first, cache, "first")
    for saved in (folder / "cache" / "groups").iterdir():
        saved.unlink()
    renderer = renderer_of(resolve("llama", reference))
    stores = [cache.find(name) for name in NAMES]
    groups = (group_from_dict(row) for n, row in enumerate(rows(count, wide)) if n >= REAL)
    _fill(stores, renderer, groups)


def _fill(stores, renderer, groups) -> None:
    """Rows of made-up numbers for every response, in parts as a writer makes them."""
    rng = random.Random(1)
    numbers = {name: random.Random(name) for name in NAMES}
    ids_of: dict[str, list[int]] = {}
    while some := list(islice(groups, PART_ROWS // RESPONSES)):
        cells = _cells(renderer, some, ids_of)
        base = [-8.0 * len_ * rng.uniform(0.9, 1.1) for len_ in cells["num_tokens"]]
        for store in stores:
            own = numbers[store.name]
            logps = [value * own.uniform(0.97, 1.03) for value in base]
            _write(store, {**cells, "logp": logps})


def _write(store, cells) -> None:
    import pyarrow as pa

    from mrpo_tools.cache import LOGPS_SCHEMA, WriterRecord

    count = len(cells["logp"])
    columns = {**cells, "status": ["ok"] * count, "truncated": [False] * count}
    table = pa.table(columns, schema=LOGPS_SCHEMA)
    store.write(table, time.time(), [WriterRecord(device="made up")])


def _cells(renderer, groups, ids_of) -> dict[str, list]:
    """What a part holds beside the numbers. All prompts are tokenised in one call, by the template
    written out, and the first one by the renderer too."""
    from mrpo_tools.references.rendering import token_hash

    prompts = [group.prompt[0].content for group in groups]
    written = [f"<s><|user|>\n{text}</s>\n<|assistant|>\n" for text in prompts]
    every = renderer.tokenizer(written, add_special_tokens=False)["input_ids"]
    assert every[0] == renderer.encode_prompt(groups[0].prompt)
    cells: dict[str, list] = {
        name: [] for name in ("response_id", "prompt_id", "num_tokens", "num_bytes", "token_hash")
    }
    for group, prompt in zip(groups, every, strict=True):
        if any(response.content not in ids_of for response in group.responses):
            encoded = renderer.encode(group)
            assert encoded.prompt_ids == prompt
            for response, ids in zip(group.responses, encoded.responses, strict=True):
                assert ids_of.setdefault(response.content, ids.ids) == ids.ids
        texts = [response.content for response in group.responses]
        cells["response_id"] += group.response_ids
        cells["prompt_id"] += [group.prompt_id] * len(texts)
        cells["num_tokens"] += [len(ids_of[text]) for text in texts]
        cells["num_bytes"] += [len(text) for text in texts]
        cells["token_hash"] += [token_hash(prompt, ids_of[text]) for text in texts]
    return cells


class Phases:
    """Looks twenty times a second what the main thread does, and how much memory is resident."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.processor: dict[str, float] = defaultdict(float)
        self.resident: dict[str, int] = defaultdict(int)
        self._main = threading.main_thread().ident
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        before, used = time.perf_counter(), time.process_time()
        while True:
            time.sleep(0.05)
            now, then = time.perf_counter(), time.process_time()
            frame, phase = sys._current_frames().get(self._main), "imports and the rest"
            while frame is not None:
                if frame.f_code.co_name in PHASES and "mrpo_tools" in frame.f_code.co_filename:
                    phase = PHASES[frame.f_code.co_name]
                    break
                frame = frame.f_back
            self.seconds[phase] += now - before
            self.processor[phase] += then - used
            self.resident[phase] = max(self.resident[phase], status("VmRSS"))
            before, used = now, then


def status(field: str) -> int:
    """Megabytes of a line of the process's status."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{field}:")[2].split()[0]) * 1024 // 10**6


def measure(folder: Path, loss: str, run: str) -> None:
    """One training step as `mrpo train` makes it; prints what it took."""
    phases = Phases()
    from transformers import TrainerCallback

    from mrpo_tools.cache import Cache
    from mrpo_tools.cli.options import read_groups
    from mrpo_tools.config import Dataset, Recipe, Reference
    from mrpo_tools.references.loading import quiet_libraries
    from mrpo_tools.training.train import train

    quiet_libraries()
    told: dict[str, object] = {}

    class FirstStep(TrainerCallback):
        """Notes the end of the first step."""

        def on_step_end(self, *_: object, **__: object) -> None:
            told.update(
                groups=len(groups),
                seconds=round(time.perf_counter() - BEGUN, 1),
                processor_seconds=round(time.process_time(), 1),
                peak_megabytes=status("VmHWM"),
                phases={name: round(value, 1) for name, value in phases.seconds.items()},
                phase_processor_seconds={
                    name: round(value, 1) for name, value in phases.processor.items()
                },
                resident_megabytes=dict(phases.resident),
            )

    recipe = Recipe(
        loss=loss, refs=list(NAMES), split="all", max_steps=1, lora_r=4,
        per_device_train_batch_size=BATCH, logging_steps=1,
    )  # fmt: skip
    cache, dataset = Cache(folder / "cache"), Dataset(source=str(folder / "data.jsonl"))
    try:
        groups = read_groups(dataset, cache).groups
    except TypeError:  # before data were kept
        groups = read_groups(dataset).groups
    references = {"llama": Reference(model=str(folder / "model"), dtype="float32")}
    train(recipe, groups, cache, references, folder / run, dataset, callbacks=[FirstStep()])
    print(json.dumps(told))


def combination(count: int) -> None:
    """Seconds and memory of `combine` alone, after one group to warm up."""
    import torch

    from mrpo_tools.methods.combination import Combination, combine

    logps = -torch.rand(count, RESPONSES, len(NAMES), dtype=torch.float64) * 100
    mask = torch.ones(count, RESPONSES, dtype=torch.bool)
    combine(logps[:1], mask[:1], Combination())
    before, started = status("VmHWM"), time.perf_counter()
    combine(logps, mask, Combination())
    seconds = round(time.perf_counter() - started, 2)
    told = {"groups": count, "seconds": seconds, "grown_megabytes": status("VmHWM") - before}
    print(json.dumps(told))


def main() -> None:
    """Make a project, or measure starts of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("what", choices=("make", "start", "combine", "measure"))
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--groups", type=int, default=1_000_000)
    parser.add_argument("--wide", type=int, default=0)
    parser.add_argument("--loss", default="mrpo")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--run", default="run")
    options = parser.parse_args()
    if options.what == "combine":
        combination(options.groups)
    elif options.what == "make":
        make(options.folder.resolve(), options.groups, options.wide)
    elif options.what == "measure":
        measure(options.folder.resolve(), options.loss, options.run)
    else:
        for number in range(options.runs):
            words = ["--loss", options.loss, "--run", f"run-{time.time_ns()}-{number}"]
            command = [sys.executable, __file__, "measure", str(options.folder), *words]
            subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})


if __name__ == "__main__":
    main()
