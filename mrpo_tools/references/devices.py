"""The device of this process: which it is, what it holds, how fast it is, when it is full."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from mrpo_tools.errors import ResourceError


def pick_device() -> torch.device:
    """The accelerator of this process, or the CPU."""
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator() or torch.device("cpu")
    if "LOCAL_RANK" not in os.environ:
        return kind
    index = int(os.environ["LOCAL_RANK"]) % torch.accelerator.device_count()
    torch.accelerator.set_device_index(index)
    return torch.device(kind.type, index)


def wait_for_everyone() -> None:
    """Under torchrun or accelerate: until every process has come here."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        state = PartialState(cpu=pick_device().type == "cpu", backend=process_backend())
        state.wait_for_everyone()


def process_backend() -> str | None:
    """How processes talk to each other where torch does not know it by itself: gloo on CPUs."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return "gloo" if several and pick_device().type == "cpu" else None


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out; on a CPU torch has no class of its own for it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error)
        for words in ("can't allocate memory", "not enough memory", "out of memory")
    )


def default_dtype(device: torch.device | None = None) -> str:
    """bfloat16 on an accelerator; float32 on a CPU, where bf16 products are far slower."""
    return "float32" if (device or pick_device()).type == "cpu" else "bfloat16"


@contextlib.contextmanager
def memory_errors(doing: str, hint: str) -> Iterator[None]:
    """Turn running out of memory into the promised error.

    Raises:
        ResourceError: in place of any error that means it.
    """
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise ResourceError(f"out of memory while {doing}", hint) from None


def reset_peak_memory(device: torch.device) -> None:
    """Start measuring `peak_memory_bytes` anew, where the system can (CUDA; a CPU under Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak of `getrusage`; no library does it


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory held since the last reset: on the accelerator, or resident on a CPU.

    On a CPU it is the process's maximum resident set, shared libraries counted. Under Linux that
    is at least the one of the process that started this one, as `getrusage` has it.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def free_bytes(device: torch.device) -> int:
    """Memory not in use: of the accelerator, its allocator's idle blocks counted, or of this
    machine."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return int(psutil.virtual_memory().available)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a matrix product here, measured in a fraction of a second."""
    if not dtype.is_floating_point or (device.type == "cpu" and dtype != torch.float32):
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    size = 1024 if device.type == "cpu" else 8192
    square = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        product = square @ square
        product[0, 0].item()  # waits for an accelerator
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
