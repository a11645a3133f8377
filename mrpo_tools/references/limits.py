"""What this process may still take of the machine's memory: a container or a shell may allow less
than there is."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

PROC = Path("/proc/self/cgroup")
ROOT = Path("/sys/fs/cgroup")


class Files(NamedTuple):
    """Names of a control group's files: the limit, what is used, and the word of `memory.stat` for
    file pages that are given back first."""

    limit: str
    used: str
    idle: str


VERSIONS = {
    "": Files("memory.max", "memory.current", "inactive_file"),
    "memory": Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""What a line of /proc/self/cgroup calls the controller, which is its folder too -> its files: of
version 2, which names none, and of version 1."""


def free_memory_bytes(groups: Path = PROC, root: Path = ROOT) -> int:
    """The least of what is available on the machine, in each control group around this process,
    and below the limits of its address space and of its data.

    Args:
        groups: lists the control groups of a process, as /proc does.
        root: where they lie.
    """
    free = [int(psutil.virtual_memory().available)]
    taken = psutil.Process().memory_info()
    data = getattr(taken, "data", taken.rss)  # Linux alone tells it
    for kind, used in ((resource.RLIMIT_AS, taken.vms), (resource.RLIMIT_DATA, data)):
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            free.append(limit - int(used))
    free += _free_in_groups(groups, root)
    return max(0, min(free))


def _free_in_groups(groups: Path, root: Path) -> Iterator[int]:
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = groups.read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller, files in VERSIONS.items():
            if controller in controllers.split(","):
                yield from _free(root / controller / path.lstrip("/"), root / controller, files)


def _free(group: Path, root: Path, files: Files) -> Iterator[int]:
    """Of a group and of those around it that have a limit."""
    for place in (group, *group.parents):
        with contextlib.suppress(OSError, ValueError):
            limit = int((place / files.limit).read_text())
            used = int((place / files.used).read_text())
            words = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
            yield limit - used + int(words.get(files.idle, 0))
        if place == root:
            return
