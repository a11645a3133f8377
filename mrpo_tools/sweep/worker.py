"""How a process of a sweep begins: it takes a GPU before any library has looked for one.

Nothing heavy is imported here at the start: libraries ask for GPUs as they are imported, and what
CUDA_VISIBLE_DEVICES says afterwards changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from multiprocessing.context import SpawnContext
from multiprocessing.queues import SimpleQueue


def turns(gpus: Sequence[str], jobs: int, context: SpawnContext) -> SimpleQueue[str]:
    """The GPU of each of so many processes, in the order in which they ask; none without GPUs."""
    queue: SimpleQueue[str] = context.SimpleQueue()
    for job in range(jobs):
        queue.put(gpus[job % len(gpus)] if gpus else "")
    return queue


def start_worker(threads: int, gpus: SimpleQueue[str]) -> None:
    """Begin a process: its share of the cores, and the GPU whose turn it is."""
    gpu = gpus.get()
    if gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    import torch

    from mrpo_tools.references.loading import quiet_libraries

    torch.set_num_threads(threads)
    quiet_libraries()
