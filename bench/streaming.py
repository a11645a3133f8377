"""A model four times the memory of its process, and what sweeps of other sizes cost.

    python bench/streaming.py limit FOLDER [--megabytes 1000]
    python bench/streaming.py sweeps FOLDER [--rounds 3]
    python bench/streaming.py draw

`limit` makes a Llama of four times so many megabytes in float32 and computes log-probs of a few
groups three times: without a limit and in memory; in a control group that allows so many megabytes,
by itself a layer at a time; and there again in memory, which is refused. It needs root and control
groups of memory (version 1 or 2).

`sweeps` computes 32,768 tokens by a smaller model, in memory and a layer at a time in sweeps of
2,048, 8,192 and 32,768 tokens, by turns, and takes medians: once as fast as the disk and the page
cache give the weights, and twice with readings that wait, as if a disk gave the weights in the time
that 4,096 and 16,384 tokens take to compute.

Both write docs/streaming.json; `draw` makes docs/streaming.png of it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
OUTPUT = ROOT / "docs" / "streaming.json"
PICTURE = ROOT / "docs" / "streaming.png"
TIMES = 4
WIDTH, INNER, HEADS = 1024, 2816, 16
SMALL = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 16,
         "num_attention_heads": 6}  # fmt: skip
TOKENS, SWEEPS = 32_768, (2048, 8192, 32_768)
BREAK_EVENS = (4096, 16_384)
GROUPS = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    limit = commands.add_parser("limit")
    limit.add_argument("folder", type=Path)
    limit.add_argument("--megabytes", type=int, default=1000)
    sweeps = commands.add_parser("sweeps")
    sweeps.add_argument("folder", type=Path)
    sweeps.add_argument("--rounds", type=int, default=3)
    commands.add_parser("draw")
    options = parser.parse_args()
    if options.command == "draw":
        draw(json.loads(OUTPUT.read_text(encoding="utf-8"))["sweeps"])
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.command == "limit":
        keep("limit", under_a_limit(options.folder, options.megabytes * 10**6))
    else:
        keep("sweeps", sweeps_of(options.folder, options.rounds))


def keep(name: str, found: dict[str, Any]) -> None:
    """Put what was measured into the file, beside the rest of it."""
    kept = json.loads(OUTPUT.read_text(encoding="utf-8")) if OUTPUT.exists() else {}
    command = " ".join(["python", "bench/streaming.py", name, "FOLDER"])
    kept[name] = {"command": command, "date": datetime.date.today().isoformat(), **found}
    OUTPUT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(kept[name], indent=1))


# a limit of memory


def under_a_limit(folder: Path, allowed: int) -> dict[str, Any]:
    """One model, with and without the memory for it."""
    data = folder / "data.jsonl"
    write_data(data)
    model = folder / "model"
    if not model.exists():
        write_large(model, TIMES * allowed)
    size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    line = [sys.executable, "-m", "mrpo_tools", "precompute", "--ref", f"large={model}",
            "--dtype", "float32", "--dataset", str(data)]  # fmt: skip
    whole = timed([*line, "--cache", str(folder / "whole"), "--no-stream-layers"])
    layers = timed([*line, "--cache", str(folder / "layers")], allowed)
    refused = timed([*line, "--cache", str(folder / "refused"), "--no-stream-layers"], allowed)
    from mrpo_tools.cache import Cache

    caches = [Cache(folder / name).find("large") for name in ("whole", "layers")]
    tables = [{row["response_id"]: row for row in each.table().to_pylist()} for each in caches]
    apart = max(
        abs(row["logp"] - tables[1][key]["logp"]) / row["num_tokens"]
        for key, row in tables[0].items()
    )
    return {
        "limit_bytes": allowed,
        "weights_bytes": size,
        "rows": len(tables[0]),
        "rows_of_both": len(tables[0].keys() & tables[1].keys()),
        "same_identity": caches[0].identity == caches[1].identity,
        "largest_difference": apart,
        "in_memory": whole,
        "a_layer_at_a_time": layers,
        "refused": refused,
    }


def write_data(path: Path) -> None:
    """Some of the demo's groups."""
    lines = (ROOT / "data" / "demo.jsonl").read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(lines[:GROUPS]) + "\n", encoding="utf-8")


def write_large(folder: Path, size: int) -> None:
    """A Llama of random weights in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = demo_tokenizer()
    layer = 4 * (4 * WIDTH**2 + 3 * WIDTH * INNER + 2 * WIDTH)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=INNER,
                         num_hidden_layers=-(-size // layer), num_attention_heads=HEADS,
                         max_position_embeddings=2048)  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="500MB")
    tokenizer.save_pretrained(folder)


def demo_tokenizer() -> Any:
    """Made of the demo's texts."""
    from mrpo_tools.demo.tiny_tokenizers import TOKENIZERS
    from mrpo_tools.sources import load_groups

    groups = load_groups(ROOT / "data" / "demo.jsonl").groups[:300]
    texts = [text.content for group in groups for text in (*group.responses, *group.prompt)]
    return TOKENIZERS["llama"](texts)


def timed(command: Sequence[str], allowed: int | None = None) -> dict[str, Any]:
    """Seconds, exit code, the most resident memory, and the last words of a process."""
    if "--cache" in command:
        shutil.rmtree(command[command.index("--cache") + 1], ignore_errors=True)
    with limited(allowed) as enter:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            preexec_fn=enter, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"},
        )  # fmt: skip
        said = process.stderr.read() if process.stderr else ""
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
    lines = [text for text in said.splitlines() if text.startswith(("large", "reference", "error"))]
    print(*said.splitlines()[-3:], sep="\n", file=sys.stderr)
    return {
        "seconds": round(seconds, 1),
        "exit": os.waitstatus_to_exitcode(status),
        "peak_resident_bytes": usage.ru_maxrss * 1024,
        "said": lines,
    }


@contextlib.contextmanager
def limited(allowed: int | None) -> Iterator[Callable[[], None] | None]:
    """What a child calls to be in a group of so much memory."""
    if allowed is None:
        yield None
        return
    first = Path("/sys/fs/cgroup/memory")
    group = (first if first.exists() else first.parent) / "mrpo-streaming"
    group.mkdir(exist_ok=True)
    limit = "memory.limit_in_bytes" if first.exists() else "memory.max"
    (group / limit).write_text(str(allowed))
    if (group / "memory.swap.max").exists():
        (group / "memory.swap.max").write_text("0")

    def enter() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))

    try:
        yield enter
    finally:
        time.sleep(1)
        group.rmdir()


# sweeps


def sweeps_of(folder: Path, rounds: int) -> dict[str, Any]:
    """Throughput by the size of sweeps and the speed of the disk, against the model in memory."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = folder / "small"
    LlamaForCausalLM(LlamaConfig(vocab_size=512, **SMALL)).save_pretrained(model)
    whole, layers = engines(model)
    trees = rows(TOKENS)
    batches = whole.batches(trees, 2048)
    size = sum(layers.layered.layer_bytes)
    in_memory = [seconds_of(whole, batches) for _ in range(2)][1:]
    token = in_memory[0] / TOKENS
    disks: dict[str, float | None] = {"page cache": None}
    disks |= {f"{each:,}": size / (each * token) for each in BREAK_EVENS}
    found: dict[tuple[str, int], list[float]] = {}
    truth = dict(pairs(whole, batches))
    for _ in range(rounds):
        in_memory.append(seconds_of(whole, batches))
        for disk, speed in disks.items():
            for sweep in SWEEPS:
                seconds, numbers, break_even = streamed(model, layers, batches, sweep, speed)
                assert numbers == truth
                found.setdefault((disk, sweep), []).append(seconds)
                print(f"{disk} {sweep} {seconds:.1f} s, T* {break_even:,.0f}", file=sys.stderr)
    median = statistics.median(in_memory[1:])
    return {
        "tokens": TOKENS,
        "layers_bytes": size,
        "rounds": rounds,
        "in_memory_seconds": round(median, 2),
        "in_memory_tokens_a_second": round(TOKENS / median),
        "points": [
            point(disk, sweep, statistics.median(seconds), median, size, disks[disk])
            for (disk, sweep), seconds in found.items()
        ],
    }


def point(
    disk: str, sweep: int, seconds: float, in_memory: float, size: int, speed: float | None
) -> dict[str, Any]:
    """A row: measured, and what the law says of a disk whose speed is known."""
    made: dict[str, Any] = {
        "disk": disk,
        "sweep_tokens": sweep,
        "seconds": round(seconds, 2),
        "share_of_in_memory": round(in_memory / seconds, 3),
    }
    if speed is not None:
        reading, token = size / speed, in_memory / TOKENS
        law = TOKENS / sweep * max(reading, sweep * token)
        made |= {
            "bytes_a_second": round(speed),
            "break_even": round(reading / token),
            "law_seconds": round(law, 2),
            "law_share": round(in_memory / law, 3),
        }
    return made


def engines(model: Path) -> tuple[Any, Any]:
    """The model in memory, and a layer at a time."""
    import torch

    from mrpo_tools.config import Reference
    from mrpo_tools.references.identity import Identity
    from mrpo_tools.references.model_files import ModelFiles
    from mrpo_tools.references.resolved import ResolvedReference
    from mrpo_tools.scorer.loaded import load_reference
    from mrpo_tools.scorer.streamed import StreamedReference

    reference = Reference(model=str(model), dtype="float32")
    resolved = ResolvedReference("it", reference, ModelFiles(model), "float32", Identity({}), ())
    device = torch.device("cpu")
    both = (
        load_reference(resolved, "float32", device),
        StreamedReference(resolved, "float32", device),
    )
    for engine in both:
        engine.self_check(rows(512))
    return both


def rows(tokens: int) -> list[Any]:
    """Prompts of 64 tokens with two responses of 32."""
    import torch

    from mrpo_tools.scorer.trees import Row

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 512, (tokens // 128, 128), generator=generator).tolist()
    return [
        Row(line[:64], [line[64:96], line[96:]], [2 * place, 2 * place + 1])
        for place, line in enumerate(ids)
    ]


def pairs(engine: Any, batches: Any) -> list[tuple[int, float]]:
    """(key, log-prob) of every response."""
    return [
        (key, logp)
        for batch, logps in engine.computed(batches)
        for key, logp in zip((key for row in batch for key in row.keys), logps, strict=True)
    ]


def seconds_of(engine: Any, batches: Any) -> float:
    started = time.perf_counter()
    pairs(engine, batches)
    return time.perf_counter() - started


def streamed(
    model: Path, layers: Any, batches: Any, sweep: int, speed: float | None
) -> tuple[float, dict[int, float], float]:
    """Seconds and numbers in sweeps of a size, from a disk of a speed."""
    from mrpo_tools.scorer.pace import Pace

    layered = layers.layered
    layers.pace = Pace(sum(layered.layer_bytes), sweep)
    honest = layered.read

    def slow(place: int) -> Any:
        started = time.perf_counter()
        tensors = honest(place)
        if speed is not None:
            left = layered.layer_bytes[place] / speed - (time.perf_counter() - started)
            time.sleep(max(0.0, left))
        return tensors

    layered.read = slow
    started = time.perf_counter()
    try:
        numbers = dict(pairs(layers, batches))
    finally:
        del layered.read
    return time.perf_counter() - started, numbers, layers.pace.break_even


def draw(found: dict[str, Any]) -> None:
    """Share of the speed in memory by the size of a sweep, and the law."""
    from mrpo_tools.report.canvas import legend, picture

    slowed = [point for point in found["points"] if "break_even" in point]
    names = list(dict.fromkeys(point["disk"] for point in slowed))

    def paint(axes: Any, palette: Any) -> None:
        [chart] = axes
        ends = (1 / 16, 16)
        steps = [ends[0] * (ends[1] / ends[0]) ** (place / 60) for place in range(61)]
        chart.plot(steps, [min(1.0, step) for step in steps], color=palette.quiet, linewidth=1.4,
                   label="law: min(1, T / T*)")  # fmt: skip
        for name, marker in zip(names, "os", strict=False):
            own = [point for point in slowed if point["disk"] == name]
            chart.plot(
                [point["sweep_tokens"] / point["break_even"] for point in own],
                [point["share_of_in_memory"] for point in own],
                marker, color=palette.text, markersize=8, fillstyle="none" if marker == "s" else
                "full", label=f"measured, T* = {own[0]['break_even']:,} tokens",
            )  # fmt: skip
        chart.set_xscale("log", base=2)
        chart.set_yscale("log", base=2)
        chart.set_xticks([2.0**power for power in range(-4, 5)],
                         ["1/16", "1/8", "1/4", "1/2", "1", "2", "4", "8", "16"])  # fmt: skip
        chart.set_yticks([1 / 16, 1 / 8, 1 / 4, 1 / 2, 1], ["1/16", "1/8", "1/4", "1/2", "1"])
        chart.set_xlabel("tokens of a sweep / T*")
        chart.set_ylabel("share of the speed in memory")
        legend(chart, palette)

    made = picture("streaming", "", "", "", paint, height=4.2)
    PICTURE.write_bytes(made.light)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
