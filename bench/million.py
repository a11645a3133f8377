"""How long a training run of very many groups takes until its first step, and in how much memory.

    python bench/million.py make FOLDER [--groups 1000000] [--wide 0] [--processes 2]
    python bench/million.py start FOLDER [--loss mrpo] [--runs 2]
    python bench/million.py combine [--groups 1000000]

`make` writes a project: a JSONL of groups of four scored responses of about 40 characters, a tiny
Llama, and a cache with the numbers of three references. Those of the first groups are the model's
own, so that the check before the first step finds what it should; the others are made up, with the
hashes of the real tokens. `--wide` adds a group of so many responses. The groups are also kept with
the values that the first reading of the JSONL keeps: `--unread` leaves that to the first start.

`start` trains one step, as often as asked for, each time in a process of its own, and prints a line
of JSON for each: seconds and the most resident memory from the start of the process to the end of
the first step, and by phase.

`combine` combines made-up log-probs, [G, 4, 3].
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

BEGUN = time.perf_counter()
NAMES = ("llama", "mistral", "qwen")
REAL = 64
"""Groups whose numbers are the model's own: more than the check of step 0 looks at."""
RESPONSES = 4
BATCH = 4
REASON = "columns prompt: text or [message, …], responses: [{content}, …]"
CHUNK = 8192
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
    """So many distinct lines of ASCII."""
    vocabulary = ["".join(rng.choices("abcdefghijklmnoprstuvwy", k=5)) for _ in range(2048)]
    return [" ".join(rng.choices(vocabulary, k=words)) + f" {n}" for n in range(count)]


QUESTIONS, ANSWERS = texts(4096, random.Random(1), 6), texts(8192, random.Random(2), 6)


class Chunk(NamedTuple):
    """Groups that are made together, each with as many responses: the texts and scores of them."""

    start: int
    prompts: list[str]
    answers: list[list[int]]
    scores: list[list[float]]

    @classmethod
    def of(cls, start: int, count: int, width: int) -> Chunk:
        """Groups from `start` on; what they hold depends on the number of the first alone."""
        rng = random.Random(start)
        first = [rng.randrange(len(ANSWERS)) for _ in range(count)]
        stride = [2 * rng.randrange(len(ANSWERS) // 2) + 1 for _ in range(count)]
        return cls(
            start,
            [f"{start + n}: {rng.choice(QUESTIONS)}" for n in range(count)],
            [
                [(a + s * n) % len(ANSWERS) for n in range(width)]
                for a, s in zip(first, stride, strict=True)
            ],
            [[round(rng.uniform(0, 10), 2) for _ in range(width)] for _ in range(count)],
        )

    def rows(self) -> list[dict]:
        """As a JSONL has them."""
        return [
            {
                "prompt": prompt,
                "responses": [
                    {"content": ANSWERS[answer], "score": score}
                    for answer, score in zip(answers, scores, strict=True)
                ],
            }
            for prompt, answers, scores in zip(self.prompts, self.answers, self.scores, strict=True)
        ]

    def ids(self) -> tuple[list[bytes], list[bytes], list[bytes]]:
        """Of groups, prompts and responses: the canonical JSON written out, as nothing in these
        texts needs an escape."""
        groups, prompts, responses = [], [], []
        for text, answers, scores in zip(self.prompts, self.answers, self.scores, strict=True):
            messages = f'[{{"content":"{text}","role":"user"}}]'
            prompt = _digest(messages)
            own = [
                _digest(f'{{"content":"{ANSWERS[answer]}","prompt":{messages}}}')
                for answer in answers
            ]
            judged = sorted(
                [key.hex(), score, None] for key, score in zip(own, scores, strict=True)
            )
            value = {"prompt_id": prompt.hex(), "responses": judged}
            groups.append(_digest(json.dumps(value, separators=(",", ":"))))
            prompts.append(prompt)
            responses += own
        return groups, prompts, responses


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]


def chunks(count: int, wide: int) -> list[tuple[int, int, int]]:
    """Where each chunk starts, its groups, and their responses; the wide group comes last."""
    every = [(start, min(CHUNK, count - start), RESPONSES) for start in range(0, count, CHUNK)]
    return [*every, *([(count, 1, wide)] if wide else [])]


def make(folder: Path, count: int, wide: int, processes: int, *, unread: bool) -> None:
    """Write the project."""
    from models import make_model

    from mrpo_tools.cache import Cache
    from mrpo_tools.cache.mapped import SCHEMA
    from mrpo_tools.cache.reading import keep_groups
    from mrpo_tools.config import Dataset, Reference
    from mrpo_tools.precomputing.precompute import precompute
    from mrpo_tools.sources import COUNTS, Source

    folder.mkdir(parents=True)
    make_model(
        folder / "model", [*QUESTIONS, *ANSWERS], hidden_size=64, intermediate_size=128,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    reference = Reference(model=str(folder / "model"), dtype="float32")
    cache = Cache(folder / "cache")
    first = Chunk.of(*chunks(count, wide)[0]).rows()[:REAL]
    precompute(dict.fromkeys(NAMES, reference), groups_of(first), cache, "first")
    for saved in (folder / "cache" / "groups").iterdir():
        saved.unlink()
    kept_path = folder / "kept.arrow"
    work = [(folder, *chunk) for chunk in chunks(count, wide)]
    with (
        multiprocessing.get_context("spawn").Pool(processes) as pool,
        (folder / "data.jsonl").open("w", encoding="utf-8") as lines,
        kept_path.open("wb") as file,
        pa.ipc.new_file(file, SCHEMA) as kept,
    ):
        for text, batch in pool.imap(_written, work):
            lines.write(text)
            kept.write_batch(pa.ipc.read_record_batch(batch, SCHEMA))
    if unread:
        kept_path.unlink()
        return
    total = count + bool(wide)
    counts = {**dict.fromkeys(COUNTS, 0), "rows": total, "groups": total}
    source = Source("data", [], "canonical", REASON, counts, drawn=0)
    keep_groups(cache.path, Dataset(source=str(folder / "data.jsonl")), source, kept_path)


def groups_of(rows: list[dict]) -> list:
    """Groups of rows."""
    from mrpo_tools.groups import group_from_dict

    return [group_from_dict({**row, "split": "train"}) for row in rows]


def _written(work: tuple[Path, int, int, int]) -> tuple[str, pa.Buffer]:
    """Writes the numbers of a chunk's responses into the cache; its JSONL and its kept groups."""
    folder, *where = work
    chunk = Chunk.of(*where)
    groups, prompts, responses = chunk.ids()
    [known] = groups_of(chunk.rows()[:1])
    assert [groups[0].hex(), responses[0].hex()] == [known.group_id, known.response_ids[0]]
    text = "".join(json.dumps(row) + "\n" for row in chunk.rows())
    batch = _batch(chunk, groups, prompts, responses)
    _numbers(folder, chunk, prompts, responses)
    return text, batch.serialize()


def _batch(chunk: Chunk, groups: list, prompts: list, responses: list) -> pa.RecordBatch:
    """The groups as a file of read groups has them."""
    from mrpo_tools.cache.mapped import SCHEMA

    count, width = len(chunk.prompts), len(chunk.answers[0])
    texts_of = [ANSWERS[answer] for answers in chunk.answers for answer in answers]
    said = pa.StructArray.from_arrays(
        [
            pa.array(responses, pa.binary(16)), pa.array(texts_of),
            pa.array([score for scores in chunk.scores for score in scores]),
            pa.nulls(len(texts_of), pa.bool_()), pa.nulls(len(texts_of), pa.string()),
            *[pa.nulls(len(texts_of), pa.string())] * 2,
            pa.array([len(text) for text in texts_of], pa.int64()),
        ],
        fields=list(SCHEMA.field("responses").type.value_type),
    )  # fmt: skip
    asked = pa.StructArray.from_arrays(
        [pa.array(["user"] * count), pa.array(chunk.prompts)],
        fields=list(SCHEMA.field("prompt").type.value_type),
    )
    ends = range(count + 1)
    columns = [
        pa.array(groups, pa.binary(16)), pa.array(prompts, pa.binary(16)),
        pa.array(["train"] * count), pa.nulls(count, pa.string()),
        pa.ListArray.from_arrays(pa.array(ends, pa.int32()), asked),
        pa.array([len(text) for text in chunk.prompts], pa.int64()),
        pa.ListArray.from_arrays(pa.array([width * n for n in ends], pa.int32()), said),
        pa.nulls(count, pa.string()),
    ]  # fmt: skip
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _numbers(folder: Path, chunk: Chunk, prompts: list[bytes], responses: list[bytes]) -> None:
    """Parts of made-up numbers under each reference, but for those that the model computed."""
    from mrpo_tools.cache import LOGPS_SCHEMA, Cache, WriterRecord

    width, rng = len(chunk.answers[0]), np.random.default_rng(chunk.start)
    lengths, hashes = _tokens(folder, chunk)
    base = -8.0 * np.array(lengths) * rng.uniform(0.9, 1.1, len(lengths))
    columns = {
        "response_id": [key.hex() for key in responses],
        "prompt_id": [key.hex() for key in prompts for _ in range(width)],
        "logp": base,
        "num_tokens": lengths,
        "num_bytes": [len(ANSWERS[answer]) for answers in chunk.answers for answer in answers],
        "status": ["ok"] * len(lengths),
        "truncated": [False] * len(lengths),
        "token_hash": hashes,
    }
    table = pa.table(columns, schema=LOGPS_SCHEMA)
    for store in map(Cache(folder / "cache").find, NAMES):
        logps = pa.array(base * rng.uniform(0.97, 1.03, len(base)))
        own = table.set_column(2, LOGPS_SCHEMA.field("logp"), logps)
        for start in range(0 if chunk.start else REAL * width, len(own), PART_ROWS):
            part = own.slice(start, PART_ROWS)
            store.write(part, time.time(), [WriterRecord(device="made up")])


@functools.cache
def _renderer(folder: Path):
    from mrpo_tools.config import Reference
    from mrpo_tools.references.resolved import renderer_of, resolve

    return renderer_of(resolve("llama", Reference(model=str(folder / "model"), dtype="float32")))


@functools.cache
def _answer_ids(folder: Path) -> list[list[int]]:
    """The ids of every answer, whatever the prompt: the template breaks the text before it."""
    backend = _renderer(folder).tokenizer.backend_tokenizer
    written = [f"{text}</s>\n" for text in ANSWERS]
    return [each.ids for each in backend.encode_batch(written, add_special_tokens=False)]


def _tokens(folder: Path, chunk: Chunk) -> tuple[list[int], list[str]]:
    """How many tokens each response has, and their hashes, by the template written out; for the
    first group the renderer must say the same."""
    from mrpo_tools.references.rendering import token_hash

    renderer, answer_ids = _renderer(folder), _answer_ids(folder)
    written = [f"<s><|user|>\n{text}</s>\n<|assistant|>\n" for text in chunk.prompts]
    backend = renderer.tokenizer.backend_tokenizer
    every = [each.ids for each in backend.encode_batch(written, add_special_tokens=False)]
    lengths = [len(answer_ids[answer]) for answers in chunk.answers for answer in answers]
    hashes = [
        token_hash(prompt, answer_ids[answer])
        for prompt, answers in zip(every, chunk.answers, strict=True)
        for answer in answers
    ]
    known = renderer.encode(groups_of(chunk.rows()[:1])[0])
    assert [response.token_hash for response in known.responses] == hashes[: len(known.responses)]
    return lengths, hashes


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
    before, started, used = status("VmHWM"), time.perf_counter(), time.process_time()
    combine(logps, mask, Combination())
    told = {
        "groups": count,
        "seconds": round(time.perf_counter() - started, 2),
        "processor_seconds": round(time.process_time() - used, 2),
        "grown_megabytes": status("VmHWM") - before,
    }
    print(json.dumps(told))


def main() -> None:
    """Make a project, or measure starts of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("what", choices=("make", "start", "combine", "measure"))
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--groups", type=int, default=1_000_000)
    parser.add_argument("--wide", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--unread", action="store_true")
    parser.add_argument("--loss", default="mrpo")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--run", default="run")
    options = parser.parse_args()
    if options.what == "combine":
        combination(options.groups)
    elif options.what == "make":
        make(
            options.folder.resolve(),
            options.groups,
            options.wide,
            options.processes,
            unread=options.unread,
        )
    elif options.what == "measure":
        measure(options.folder.resolve(), options.loss, options.run)
    else:
        for number in range(options.runs):
            words = ["--loss", options.loss, "--run", f"run-{time.time_ns()}-{number}"]
            command = [sys.executable, __file__, "measure", str(options.folder), *words]
            subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})


if __name__ == "__main__":
    main()
