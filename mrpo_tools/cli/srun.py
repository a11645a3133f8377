"""Processes that `srun` starts, in the words of torchrun, which all libraries read."""

from __future__ import annotations

import re
from collections.abc import Mapping


def torchrun_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """What torchrun would have set, where `srun` alone started several processes; else nothing.

    Only a step of Slurm counts. In a batch script and in an interactive shell SLURM_PROCID and
    SLURM_NTASKS are set too, though one process runs; SLURM_STEP_NUM_TASKS is absent or 1 there.
    A MASTER_ADDR or MASTER_PORT of the user's stands. Where each task sees GPUs of its own, as with
    `--gpus-per-task`, LOCAL_RANK counts among these.

    Args:
        environment: of this process.
    """
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks == 1 or {"RANK", "WORLD_SIZE"} <= environment.keys():
        return {}
    job, step = int(environment["SLURM_JOB_ID"]), int(environment["SLURM_STEP_ID"])
    gpus = environment.get("CUDA_VISIBLE_DEVICES")
    neighbours = len(environment.get("SLURM_GTIDS", "").split(","))
    local_rank = int(environment["SLURM_LOCALID"])
    rendezvous = {
        "MASTER_ADDR": first_host(environment["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": str(10_000 + (100 * job + step) % 20_000),  # below those handed out freely
    }
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": str(local_rank % len(gpus.split(",")) if gpus else local_rank),
        "LOCAL_WORLD_SIZE": str(neighbours),
        **{name: environment.get(name, value) for name, value in rendezvous.items()},
    }


def first_host(nodes: str) -> str:
    """`rack1node07` of `rack[1-2]node[07-09,11],login`, a list in Slurm's notation."""
    outermost = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", outermost[0] if outermost else nodes)
