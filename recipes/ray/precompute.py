"""Phase 1 on a Ray cluster: each task computes a part of the prompts into one cache.

    python recipes/ray/precompute.py --parts 64 --ref llama,mistral,qwen

On a node of the cluster, in a directory that all nodes have: every word that is not an option of
this script goes to `mrpo precompute`, which runs there. Ray does the rest: it begins a task again
where its node or its worker dies, and its autoscaler brings nodes for the tasks that wait. More
parts than nodes balance the load; each loads the model once more. If the head dies, the same
command computes what is missing.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import subprocess
import sys

import ray

PR_SET_PDEATHSIG = 1
STOPPED = (75, 143, -signal.SIGTERM, -signal.SIGKILL)
"""Exit codes of one that was preempted, or killed for memory."""


class Stopped(Exception):
    """What was computed is in the cache; the rest is wanted."""


def main() -> None:
    """Hand the parts to Ray, and say what becomes of each; exit code 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", type=int, required=True, help="tasks")
    parser.add_argument("--gpus", type=float, default=1, help="of a task")
    parser.add_argument("--cpus", type=float, default=8, help="of a task")
    parser.add_argument("--retries", type=int, default=20, help="of a task")
    options, words = parser.parse_known_args()
    ray.init()
    task = part.options(
        num_gpus=options.gpus,
        num_cpus=options.cpus,
        max_retries=options.retries,
        retry_exceptions=[Stopped],
    )
    shards = [f"{number}/{options.parts}" for number in range(1, options.parts + 1)]
    waiting = {task.remote(shard, words, os.getcwd()): shard for shard in shards}
    failed = []
    while waiting:
        (done,), _ = ray.wait(list(waiting))
        shard = waiting.pop(done)
        try:
            print(f"part {shard} is done, by {ray.get(done)}", flush=True)
        except ray.exceptions.RayError as error:
            failed.append(shard)
            print(f"part {shard} failed: {error}", file=sys.stderr, flush=True)
    if failed:
        sys.exit(f"{len(failed)} of {len(shards)} parts failed: the same command tries them again")


@ray.remote
def part(shard: str, words: list[str], folder: str) -> str:
    """Compute a part; the node that did it.

    Raises:
        Stopped: more of the same is wanted.
        RuntimeError: it failed, and would again.
    """
    command = ["mrpo", "precompute", "--shard", shard, *words]
    code = subprocess.run(command, cwd=folder, preexec_fn=_die_with_parent, check=False).returncode
    if code in STOPPED:
        raise Stopped(f"exit code {code}")
    if code:
        raise RuntimeError(f"`{' '.join(command)}` ended with exit code {code}")
    return ray.get_runtime_context().get_node_id()


def _die_with_parent() -> None:
    """SIGTERM for the command where Ray's worker dies: no one would count what it did."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    main()
