"""Time and memory of `mrpo sql` over millions of cached rows.

    python bench/sql_speed.py --rows 5000000 --output docs/sql_speed.json

Writes a synthetic cache of two references (random ids and numbers, parts of the usual size, groups
of four with a short text) and runs each query as a user would, in a process of its own: its wall
time and peak memory include starting Python, verifying every byte and looking for duplicate rows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from mrpo_tools.cache import GROUPS_SCHEMA, LOGPS_SCHEMA, PART_ROWS, Cache, datasets
from mrpo_tools.references.identity import Identity

REFERENCES = ("llama", "mistral")
GROUP_SIZE = 4
QUERIES = {
    "grouped by reference and status": "SELECT reference, status, count(*), avg(logp), "
    "sum(logp) / sum(num_tokens) FROM logps GROUP BY reference, status",
    "grouped by prompt": "SELECT count(*), avg(spread) FROM (SELECT prompt_id, "
    "max(logp) - min(logp) AS spread FROM logps GROUP BY prompt_id)",
    "log-probs side by side": "SELECT count(*), corr(llama, mistral) FROM logps_wide",
    "accuracy of each reference": "SELECT reference, avg(accuracy) FROM margins() GROUP BY ALL",
    "virtual reference": "SELECT count(*), avg(logp - reference_1) FROM virtual_reference(0.1)",
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rows", type=int, default=5_000_000, help="of both references together")
    options.add_argument("--cache", type=Path, help="keep the cache here, or use the one there")
    options.add_argument("--repeat", type=int, default=3, help="the median counts")
    options.add_argument("--memory-limit", default="2GB")
    options.add_argument("--output", type=Path, help="write the figures as JSON")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path = given.cache or Path(scratch) / "cache"
        if not path.is_dir():
            build(path, given.rows // len(REFERENCES))
        figures = {
            name: measure(path, query, given.repeat, given.memory_limit)
            for name, query in QUERIES.items()
        }
    for name, figure in figures.items():
        print(f"{name:34} {figure['seconds']:6.2f} s {figure['megabytes']:7.0f} MB")
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        record = {"rows": given.rows, "cpus": os.cpu_count(), "figures": figures}
        given.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def measure(cache: Path, query: str, repeat: int, memory_limit: str) -> dict[str, float]:
    """Median wall seconds and largest peak memory of whole processes."""
    command = [sys.executable, "-m", "mrpo_tools", "sql", query, "--cache", str(cache)]
    command += ["--memory-limit", memory_limit, "--format", "csv"]
    seconds, peaks = [], []
    for _ in range(repeat):
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        peak = 0
        while process.poll() is None:
            peak = max(peak, peak_bytes(process.pid))
            time.sleep(0.01)
        if process.returncode:
            raise SystemExit(f"failed with exit code {process.returncode}: {query}")
        seconds.append(time.monotonic() - started)
        peaks.append(peak / 1e6)
    return {"seconds": round(sorted(seconds)[repeat // 2], 3), "megabytes": round(max(peaks))}


def peak_bytes(pid: int) -> int:
    """Most memory a process has held so far; what `wait4` says counts its parent's too."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    held = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    return int(held[0]) * 1024 if held else 0


def build(path: Path, responses: int) -> None:
    """A cache of `responses` rows per reference."""
    random = np.random.default_rng(0)
    responses -= responses % GROUP_SIZE
    response_ids = ids(random, responses)
    prompt_ids = ids(random, responses // GROUP_SIZE)
    cache = Cache(path)
    for name in REFERENCES:
        store = cache.store(name, Identity({"model": f"synthetic/{name}", "dtype": "bfloat16"}))
        for place, table in enumerate(parts(random, response_ids, prompt_ids)):
            store.write(table, float(place), [{}])
    cache.groups_path.mkdir(parents=True)
    groups = group_table(random, response_ids, prompt_ids)
    datasets.write(cache.groups_path, groups, 0.0, "")


def parts(
    random: np.random.Generator, response_ids: np.ndarray, prompt_ids: np.ndarray
) -> Iterator[pa.Table]:
    for start in range(0, len(response_ids), PART_ROWS):
        chosen = response_ids[start : start + PART_ROWS]
        count = len(chosen)
        tokens = random.integers(5, 400, count)
        places = np.arange(start, start + count) // GROUP_SIZE
        columns = {
            "response_id": strings(chosen),
            "prompt_id": strings(prompt_ids[places]),
            "logp": pa.array(-random.random(count) * tokens),
            "num_tokens": pa.array(tokens, pa.int32()),
            "num_bytes": pa.array(tokens * 4, pa.int32()),
            "status": pa.array(["ok"] * count),
            "truncated": pa.array(np.zeros(count, bool)),
            "token_hash": strings(ids(random, count)[:, :16]),
        }
        yield pa.table(columns, schema=LOGPS_SCHEMA)


def group_table(
    random: np.random.Generator, response_ids: np.ndarray, prompt_ids: np.ndarray
) -> pa.Table:
    count = len(prompt_ids)
    content = strings(response_ids)
    scores = pa.array(random.random(len(response_ids)))
    nothing = pa.nulls(len(response_ids))
    judged = {field.name: field.type for field in GROUPS_SCHEMA.field("responses").type.value_type}
    values = [content, content, scores, nothing, nothing]
    responses = pa.StructArray.from_arrays(
        [one.cast(kind) for one, kind in zip(values, judged.values(), strict=True)], list(judged)
    )
    turns = pa.StructArray.from_arrays(
        [pa.array(["user"] * count), strings(prompt_ids)], ["role", "content"]
    )
    columns = {
        "group_id": strings(ids(random, count)),
        "prompt_id": strings(prompt_ids),
        "dataset": pa.array(["synthetic"] * count),
        "split": pa.array(["train"] * count),
        "source_id": pa.nulls(count, pa.string()),
        "prompt": lists(turns, 1),
        "responses": lists(responses, GROUP_SIZE),
    }
    return pa.table(columns, schema=GROUPS_SCHEMA)


def ids(random: np.random.Generator, count: int) -> np.ndarray:
    """[count, 32] hexadecimal digits as bytes."""
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    return digits[random.integers(0, 16, (count, 32), dtype=np.uint8)]


def strings(characters: np.ndarray) -> pa.StringArray:
    """Rows of bytes as texts, without a Python loop."""
    count, width = characters.shape
    ends = np.arange(0, (count + 1) * width, width, dtype=np.int32)
    data = np.ascontiguousarray(characters)
    return pa.StringArray.from_buffers(count, pa.py_buffer(ends), pa.py_buffer(data))


def lists(values: pa.Array, size: int) -> pa.ListArray:
    ends = np.arange(0, len(values) + 1, size, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), values)


if __name__ == "__main__":
    main()
