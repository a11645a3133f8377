"""How much time and memory reading preference data takes.

    python bench/data.py FOLDER [--gigabytes 2] [--groups 1000000] [--characters 1900]

Writes a JSONL of groups with scores into FOLDER, each with so many characters of text. Then runs
`mrpo data validate` and `mrpo data convert` on it, indexes as many small groups (every id, a
split for every prompt), and reads a sixth of the large ones as one JSON array, piece by piece and
by `json.loads`; each in a process of its own. Prints seconds of wall clock and of processor, and
the peak of resident memory.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

MRPO = [sys.executable, "-m", "mrpo_tools"]
INDEX = """
import sys
from mrpo_tools.sources import GroupStream, Options
splits = {}
for group in GroupStream(sys.argv[1], Options(test_size=0.1)):
    group.group_id, group.response_ids
    splits[group.split] = splits.get(group.split, 0) + 1
print(splits)
"""
WHOLE = """
import json, sys
print(len(json.loads(open(sys.argv[1], "rb").read())))
"""


def write(path: Path, characters: int, groups: int, seed: int = 0) -> None:
    """So many groups of two responses with scores, and so many characters of text in each group."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyzäé☃", k=6)) for _ in range(4096)]

    def draw(length: int) -> str:
        return " ".join(rng.choices(words, k=max(1, length // 7)))

    pool = [draw(characters // 3) for _ in range(512)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(groups):
            prompt, *answers = (f"{number} {piece}" for piece in rng.sample(pool, k=3))
            responses = [{"content": text, "score": rng.randint(0, 10)} for text in answers]
            row = {"prompt": prompt, "responses": responses}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_array(path: Path, lines: Path, share: int) -> None:
    """The first rows of a JSONL, one part in `share` of its bytes, as a JSON array."""
    room = lines.stat().st_size // share
    with lines.open(encoding="utf-8") as rows, path.open("w", encoding="utf-8") as file:
        comma = "[\n"
        for row in rows:
            file.write(f"{comma}{row}")
            comma, room = ",\n", room - len(row.encode())
            if room < 0:
                break
        file.write("]\n")


def measure(what: str, command: list[str]) -> dict[str, object]:
    """Wall and processor seconds and peak memory of a command that must succeed."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read().strip()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{what} failed: {output}")
    return {
        "what": what,
        "seconds": round(time.perf_counter() - begun, 1),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_megabytes": round(used.ru_maxrss * 1024 / 1e6),
        "said": output,
    }


def main() -> None:
    """Write the files, measure, delete them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--groups", type=int, default=1_000_000)
    parser.add_argument("--characters", type=int, default=1900)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    large, small = options.folder / "large.jsonl", options.folder / "small.jsonl"
    array, target = options.folder / "array.json", options.folder / "converted.jsonl"
    write(large, options.characters, int(options.gigabytes * 1e9 / (options.characters + 140)))
    write(small, 300, options.groups)
    write_array(array, large, share=6)
    print(json.dumps({"large_bytes": large.stat().st_size, "small_bytes": small.stat().st_size}))
    for what, command in (
        ("validate", [*MRPO, "data", "validate", str(large)]),
        ("convert", [*MRPO, "data", "convert", str(large), str(target)]),
        ("index", [sys.executable, "-c", INDEX, str(small)]),
        ("array", [*MRPO, "data", "validate", str(array)]),
        ("array as a whole", [sys.executable, "-c", WHOLE, str(array)]),
    ):
        print(json.dumps(measure(what, command)), flush=True)
    for path in (large, small, array, target):
        path.unlink()


if __name__ == "__main__":
    main()
