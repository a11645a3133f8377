"""Which part of the prompts is this process's: as the option says, or as its scheduler does."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import click
from click.shell_completion import CompletionItem

from mrpo_tools.errors import UsageError
from mrpo_tools.progress import rank_and_count

Shard = tuple[int, int]
Environment = Mapping[str, str]
AUTO = "auto"
PODS, NODES = "an indexed job of Kubernetes", "nodes of SkyPilot"
PROCESSES = "torchrun, accelerate or srun"
MACHINES = (PODS, NODES)
LOOKED_FOR = {
    "a Slurm array": ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"),
    PODS: ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"),
    "jobs of a SkyPilot pool": ("SKYPILOT_JOB_RANK", "SKYPILOT_NUM_JOBS"),
    NODES: ("SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES"),
    PROCESSES: ("RANK", "WORLD_SIZE"),
}
"""Who divides work, the widest first, and where each says which piece this is, and of how many."""
ONCE_MORE = "or name the part: --shard 1/4"
NO_GAPS = f"submit an array without gaps, sbatch --array=0-3, {ONCE_MORE}"
BY_HAND = {
    "JOB_COMPLETIONS": "Kubernetes tells a pod its index and not how many there are: write "
    "JOB_COMPLETIONS, the job's `completions`, into its `env` "
    f"(recipes/kubernetes/precompute.yaml), {ONCE_MORE}",
}
"""What to do where a variable is missing that a scheduler does not set by itself."""


def _completed(_ctx: click.Context, _param: click.Parameter, begun: str) -> list[CompletionItem]:
    return [CompletionItem(AUTO)] if AUTO.startswith(begun) else []


shard_option = click.option(
    "--shard", metavar="auto|I/N", shell_complete=_completed,
    help="A part of the prompts: auto, as Slurm, Kubernetes, SkyPilot or torchrun say, or the "
    "I-th of N, I from 1.  [default: under torchrun or srun, this process's part]",
)  # fmt: skip


def shard_of(text: str | None, environment: Environment = os.environ) -> Shard:
    """`3/16` -> (2, 16); `auto` -> what the scheduler says; None -> this process's of torchrun's.

    Args:
        text: of the option.
        environment: of this process, with torchrun's variables where srun started it.

    Raises:
        UsageError: it is no such part, or the scheduler's variables say none.
    """
    if text is None:
        return rank_and_count(environment)
    if text == AUTO:
        return scheduled(environment)
    index, _, count = text.partition("/")
    if not (_is_count(index) and _is_count(count) and 1 <= int(index) <= int(count)):
        raise UsageError(
            f"--shard {text}: I/N with I from 1 to N is needed, or auto", "--shard 1/4"
        )
    return int(index) - 1, int(count)


def scheduled(environment: Environment) -> Shard:
    """The part that all schedulers together give this process.

    Each that is there divides the pieces of those before it: two processes of torchrun in each of
    three tasks of an array are six parts. Processes that span machines, as LOCAL_WORLD_SIZE (or its
    absence) says, have counted the machines already.

    Raises:
        UsageError: none is there, or one says what cannot be.
    """
    process = _of(environment, *LOOKED_FOR[PROCESSES])
    spanning = process is not None and process[1] > _number(environment, "LOCAL_WORLD_SIZE", "1")
    places = [
        _of(environment, *names)
        for who, names in LOOKED_FOR.items()
        if who != PROCESSES and not (spanning and who in MACHINES)
    ]
    found = [place for place in (*places, process) if place is not None]
    if not found:
        names = "; ".join(f"{who}: {' and '.join(pair)}" for who, pair in LOOKED_FOR.items())
        raise UsageError(
            f"--shard auto: no scheduler says which part is this process's (looked for {names})",
            "--shard 1/4, the first of four parts",
        )
    index, count = 0, 1
    for piece, pieces in found:
        index, count = index * pieces + piece, count * pieces
    return index, count


def _of(environment: Environment, index_name: str, count_name: str) -> Shard | None:
    """(which, of how many) by two variables; None where neither is there.

    RANK or WORLD_SIZE alone, which others set too, means nothing.
    """
    there = {index_name, count_name} & environment.keys()
    if not there or (len(there) == 1 and index_name == "RANK"):
        return None
    if len(there) == 1:
        (absent,) = {index_name, count_name} - there
        raise UsageError(
            f"--shard auto: {there.pop()} is set, and {absent} is not",
            BY_HAND.get(absent, f"set {absent} in the job's file, {ONCE_MORE}"),
        )
    index, count = _number(environment, index_name), _number(environment, count_name)
    in_array = index_name == "SLURM_ARRAY_TASK_ID"
    if in_array:
        index = _place_in_array(environment, index)
    if index >= count:
        values = f"{index_name}={environment[index_name]}, {count_name}={environment[count_name]}"
        raise UsageError(
            f"--shard auto: {values}: that is no piece of so many",
            NO_GAPS if in_array else f"correct {index_name} or {count_name}, {ONCE_MORE}",
        )
    return index, count


def _place_in_array(environment: Environment, task: int) -> int:
    """Which task of the array this is, from 0: `--array=10-18:4` has 10, 14 and 18."""
    first = _number(environment, "SLURM_ARRAY_TASK_MIN")
    step = _number(environment, "SLURM_ARRAY_TASK_STEP", "1")
    if step == 0 or task < first or (task - first) % step:
        raise UsageError(
            f"--shard auto: SLURM_ARRAY_TASK_ID={task} is no task of an array that begins at "
            f"SLURM_ARRAY_TASK_MIN={first} with SLURM_ARRAY_TASK_STEP={step}",
            NO_GAPS,
        )
    return (task - first) // step


def _number(environment: Environment, name: str, default: str | None = None) -> int:
    value = environment.get(name, default)
    if value is None or not _is_count(value):
        what = "is not set" if value is None else f"is {value!r}, no whole number from 0"
        raise UsageError(
            f"--shard auto: {name} {what}", f"set {name} in the job's file, {ONCE_MORE}"
        )
    return int(value)


def _is_count(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,9}", text) is not None
