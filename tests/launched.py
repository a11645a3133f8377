"""Several processes of torchrun or accelerate, started from tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--config_file"]


def launcher(name: str) -> list[str]:
    """Words that start two processes: torchrun, or accelerate with a file of recipes/accelerate."""
    with socket.socket() as opened:
        opened.bind(("localhost", 0))
        port = str(opened.getsockname()[1])
    if name == "torchrun":
        return [*TORCHRUN, "--master-port", port]
    return [*ACCELERATE, str(ROOT / "recipes" / "accelerate" / name), "--main_process_port", port]


def started(name: str, *arguments: object) -> subprocess.Popen[str]:
    """Two processes of a module or a script; what they print is one text."""
    return subprocess.Popen(
        [sys.executable, *launcher(name), *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
