"""The device of this process: which it is, what it holds, how fast it is, when it is full."""

from __future__ import annotations

import contextlib
import datetime
import gc
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mrpo_tools.errors import ResourceError
from mrpo_tools.progress import rank_and_count
from mrpo_tools.references.limits import free_memory_bytes


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


def wait_for_everyone(patience: datetime.timedelta | None = None) -> None:
    """Under torchrun, accelerate or srun: until every process has come here.

    Args:
        patience: how long processes wait for each other, from the first time this is asked; None
            takes torch's own, some minutes.
    """
    if _several():
        from accelerate import PartialState

        words: dict[str, Any] = {} if patience is None else {"timeout": patience}
        state = PartialState(cpu=only_cpu(), backend=process_backend(), **words)
        state.wait_for_everyone()


def process_backend() -> str | None:
    """How processes talk to each other where torch does not know it by itself: gloo on CPUs."""
    return "gloo" if _several() and pick_device().type == "cpu" else None


def only_cpu() -> bool:
    """Whether accelerate is to be told that it has a CPU alone. It would leave DeepSpeed out then,
    which asks for its own device."""
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    return pick_device().type == "cpu" and not deepspeed


def _several() -> bool:
    _, count = rank_and_count()
    return count > 1


def visible_gpus(
    count: int | None = None, environment: Mapping[str, str] = os.environ
) -> list[str]:
    """The CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES names them.

    Args:
        count: how many torch sees; None asks it.
        environment: where CUDA_VISIBLE_DEVICES may be restricted already, by number or by name.
    """
    count = torch.cuda.device_count() if count is None else count
    given = environment.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else map(str, range(count))
    return [name.strip() for name in names][:count]


def idle_gpus(command: str, gpus: Sequence[str], used: int = 1) -> str | None:
    """A word for who uses some of several GPUs, with what uses all; None where none lies idle.

    Args:
        command: of mrpo, which several processes share.
        gpus: from `visible_gpus`.
        used: of them, by this process.
    """
    sets = len(gpus) // used
    if sets < 2 or _several():
        return None
    if used == 1:
        launcher = f"torchrun --nproc-per-node {len(gpus)} -m mrpo_tools"
        return f"one of {len(gpus)} GPUs is used; all of them: {launcher} {command} …"
    first = ",".join(gpus[:used])
    return (
        f"{used} of {len(gpus)} GPUs are used; all of them: {sets} processes, the first by "
        f"CUDA_VISIBLE_DEVICES={first} mrpo {command} --shard 1/{sets} …"
    )


def cards_of(device: torch.device) -> list[torch.device]:
    """The GPUs over which a process on this device may spread a model: those that it sees."""
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    return [torch.device("cuda", index) for index in range(count)]


def local_processes(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes of this machine work together, each on a device of its own."""
    _, count = rank_and_count(environment)
    if count == 1 or "LOCAL_RANK" not in environment:
        return 1
    return int(environment.get("LOCAL_WORLD_SIZE", count))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out; on a CPU torch has no class of its own for it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error)
        for words in ("can't allocate memory", "not enough memory", "out of memory")
    )


def default_dtype(
    device: torch.device | None = None,
    has_bfloat16: Callable[..., bool] = torch.cuda.is_bf16_supported,
) -> str:
    """The arithmetic of a model that names none.

    bfloat16 on an accelerator; float16 on a CUDA card older than it (before Ampere), where it would
    be emulated; float32 on a CPU, where 16-bit products are far slower.

    Args:
        device: None takes this process's.
        has_bfloat16: asks the card, with `including_emulation`.
    """
    device = device or pick_device()
    if device.type == "cpu":
        return "float32"
    old = device.type == "cuda" and not has_bfloat16(including_emulation=False)
    return "float16" if old else "bfloat16"


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


def free_memory() -> None:
    """Give a model's memory back before the next is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def reset_peak_memory(device: torch.device) -> None:
    """Start measuring `peak_memory_bytes` anew, where the system can (CUDA; a CPU under Linux).

    Metal keeps no peak; giving its idle blocks back lowers what it holds.
    """
    for card in _asked(device):
        torch.cuda.reset_peak_memory_stats(card)
    if device.type == "mps":
        torch.mps.empty_cache()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak of `getrusage`; no library does it


def _asked(device: torch.device) -> list[torch.device]:
    """The GPUs that a device stands for: `cuda` without a number for all of them."""
    if device.type != "cuda":
        return []
    return cards_of(device) if device.index is None else [device]


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory held since the last reset: on the accelerator, or resident on a CPU.

    Of several GPUs, which a process that was started alone may use, it is the sum of what each held
    at most, each at its own time.

    On a CPU it is the process's maximum resident set, shared libraries counted. Under Linux that
    is at least the one of the process that started this one, as `getrusage` has it. With Metal it
    is what the driver has given out, idle blocks counted: it seldom takes any back.
    """
    if device.type == "cuda":
        return sum(int(torch.cuda.max_memory_allocated(card)) for card in _asked(device))
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def free_bytes(device: torch.device) -> int:
    """Memory that may be taken: of the accelerator, its allocator's idle blocks counted, or of
    this machine. Metal shares the machine's; what it recommends as a limit is taken for its
    size."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return free_memory_bytes()


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a matrix product here, measured in a fraction of a second."""
    if device.type == "cpu" or not dtype.is_floating_point:
        dtype = getattr(torch, default_dtype(device))
    size = 1024 if device.type == "cpu" else 8192
    square = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        product = square @ square
        product[0, 0].item()  # waits for an accelerator
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
