"""vLLM of an environment of its own, on the CPU, from its start to its end."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

PYTHON = os.environ.get("MRPO_VLLM_PYTHON", "")
START_SECONDS = 1800
"""Some 20 on an idle machine."""
NAME = "tiny"


@contextlib.contextmanager
def running(model: Path, log: Path, *words: str, dtype: str = "float32") -> Iterator[str]:
    """The URL of a vLLM that serves a model as `NAME`.

    Args:
        model: a directory.
        log: a file for what it says.
        words: of its command line, besides.
        dtype: of weights and products.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
               "--served-model-name", NAME, "--dtype", dtype, "--max-model-len", "1024",
               "--enforce-eager", "--host", "127.0.0.1", "--port", str(port), *words]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    url, started = f"http://127.0.0.1:{port}", time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        try:
            while not is_up(url):
                assert process.poll() is None, log.read_text()[-4000:]
                assert time.monotonic() - started < START_SECONDS, log.read_text()[-4000:]
                time.sleep(0.5)
            print(f"\nvLLM answered after {time.monotonic() - started:.0f} s")
            yield url
        finally:
            process.terminate()
            process.wait(60)


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=5) as reply:
            return json.load(reply)["data"][0]["id"] == NAME
    except OSError:
        return False


def metric(url: str, name: str) -> float:
    """The sum of one of vLLM's counters."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    values = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{")]
    assert values, name
    return sum(values)
