"""Feed damaged data to every reader and adapter; anything but an error of ours is a find.

    pip install mrpo-tools[fuzz]
    python tests/fuzz_data.py CORPUS -max_total_time=600

CORPUS is a folder; it is filled with a sample of every adapter in every kind of file. The first
byte of an input chooses the kind of file, the second an adapter (or that detection chooses), the
rest is the file. Or it chooses the rows that hypothesis makes in test_any_data.py: then the rest
is what hypothesis draws from. Prints what libFuzzer prints, and now and then what came of the
inputs.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

import atheris
from small_data import lines

with atheris.instrument_imports(include=["mrpo_tools"]):
    from mrpo_tools.sources import ADAPTERS

import test_any_data

KINDS = (".jsonl", ".json", ".jsonl.gz", ".parquet", ".csv", "rows")
REPORT_EVERY = 10_000
NAMES = (None, *ADAPTERS)
SEEN: Counter[str] = Counter()


def feed(data: bytes) -> None:
    """One input: it becomes groups that can be written and named, or an error of ours."""
    if len(data) < 3:
        return
    kind = KINDS[data[0] % len(KINDS)]
    SEEN[kind] += 1
    if sum(SEEN[name] for name in KINDS) % REPORT_EVERY == 0:
        print(f"inputs: {dict(SEEN)}", flush=True)
    if kind == "rows":
        test_any_data.test_rows_of_anything.hypothesis.fuzz_one_input(data[1:])
        return
    path = Path(f"input{kind}")
    path.write_bytes(gzip.compress(data[2:], 1) if kind.endswith(".gz") else data[2:])
    adapter = NAMES[data[1] % len(NAMES)]
    SEEN["groups" if test_any_data.check_file(path, adapter) else "refused"] += 1


def table(rows: list[dict[str, object]]) -> bytes:
    """Rows as CSV, with what is no text as JSON."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    for row in rows:
        cells = (
            (key, value if isinstance(value, str) else json.dumps(value))
            for key, value in row.items()
        )
        writer.writerow(dict(cells))
    return text.getvalue().encode()


def seeds(folder: Path) -> None:
    """A sample of every adapter in every kind of file, where the adapter is detected."""
    import pyarrow as pa
    from test_adapters import SAMPLES
    from test_bad_input import packed_parquet

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(16):
        (folder / f"rows-{number}").write_bytes(
            bytes([len(KINDS) - 1, *random.Random(number).randbytes(400)])
        )
    for name, (rows, _) in SAMPLES.items():
        contents = {
            ".jsonl": lines(rows),
            ".json": json.dumps(rows, indent=1).encode(),
            ".jsonl.gz": lines(rows),
            ".parquet": packed_parquet(pa.Table.from_pylist(rows[:1])),
            ".csv": table(rows),
        }
        for number, kind in enumerate(KINDS[:-1]):
            (folder / f"{name}{kind}").write_bytes(bytes([number, 0]) + contents[kind])


def main() -> None:
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        corpus = Path(sys.argv[1]).resolve()
        seeds(corpus)
        sys.argv[1] = str(corpus)
    fast = Path("/dev/shm")
    os.chdir(tempfile.mkdtemp(prefix="fuzz-", dir=fast if fast.is_dir() else None))
    atheris.Setup(sys.argv, feed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
