"""Small data sets and scripts for the tests of reading."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def pairs(*prompts: str) -> list[dict[str, Any]]:
    """A pair for each prompt, with texts of its own."""
    return [{"prompt": text, "chosen": f"{text}+", "rejected": f"{text}-"} for text in prompts]


def numbered(count: int) -> list[dict[str, Any]]:
    """So many pairs with the prompts `0`, `1`, …"""
    return pairs(*map(str, range(count)))


def lines(rows: Iterable[object]) -> bytes:
    """Rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write_lines(path: Path, rows: Iterable[object]) -> Path:
    path.write_bytes(lines(rows))
    return path


def prompts(source: Any) -> list[str]:
    """The last message of every group's prompt."""
    return [group.prompt[-1].content for group in source.groups]


def splits_of(source: Any) -> Counter[str]:
    """How many groups are in each split."""
    return Counter(group.split for group in source.groups)


def run_script(script: str, folder: Path = Path()) -> list[str]:
    """The lines that a script prints in a process of its own; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


PRINT_PEAK = """
from pathlib import Path
status = Path("/proc/self/status").read_text()
print(int(status.partition("VmHWM:")[2].split()[0]) // 1024)
"""
"""Prints the most memory that a script's process has held, in MiB; `ru_maxrss` would count what
the process was before it became the script."""
