"""Machines: several processes of several launchers, several GPUs, old cards, Apple's."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from mrpo_tools.cli.srun import first_host, torchrun_variables
from mrpo_tools.progress import rank_and_count
from mrpo_tools.references.devices import (
    cards_of,
    default_dtype,
    free_bytes,
    idle_gpus,
    peak_memory_bytes,
    reset_peak_memory,
    visible_gpus,
)
from mrpo_tools.sweep.worker import turns

CPU, CUDA, MPS = map(torch.device, ("cpu", "cuda", "mps"))

# What Slurm 22.05 set on a machine named `vm`; what no test could depend on is left out.
JOB = {"SLURM_JOB_NODELIST": "vm", "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS": "2",
       "SLURM_NPROCS": "2", "SLURM_NODEID": "0", "SLURMD_NODENAME": "vm"}  # fmt: skip
SRUN = JOB | {
    "SLURM_JOB_ID": "2", "SLURM_STEP_ID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1",
    "SLURM_STEP_NODELIST": "vm", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_TASKS_PER_NODE": "2",
    "SLURM_LOCALID": "1", "SLURM_GTIDS": "0,1", "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
}  # fmt: skip
"""The second task of `srun -n 2` inside a batch script."""
ALONE = {
    "sbatch -n 2, the script itself":
        JOB | {"SLURM_JOB_ID": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_GTIDS": "0"},
    "salloc -n 2, its shell": JOB | {"SLURM_JOB_ID": "6"},
    "salloc -n 2, its shell as an interactive step":
        SRUN | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0",
                "SLURM_LOCALID": "0", "SLURM_GTIDS": "0", "SLURM_STEP_TASKS_PER_NODE": "1",
                "SLURM_PTY_PORT": "32923"},
    "srun -n 1":
        SRUN | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0",
                "SLURM_LOCALID": "0", "SLURM_GTIDS": "0", "SLURM_STEP_TASKS_PER_NODE": "1"},
    "torchrun inside srun -n 2": SRUN | {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"},
    "no Slurm": {},
}  # fmt: skip


def test_srun_is_told_in_the_words_of_torchrun():
    """RANK etc. are the task's; the port is 10,000 + 100 · job 2 + step 1."""
    assert torchrun_variables(SRUN) == {
        "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "vm", "MASTER_PORT": "10201",
    }  # fmt: skip
    assert rank_and_count(torchrun_variables(SRUN)) == (1, 2)


@pytest.mark.parametrize("environment", ALONE.values(), ids=ALONE)
def test_one_process_of_slurm_stays_one(environment):
    """SLURM_PROCID and SLURM_NTASKS stand in all of these; torchrun's own words are kept."""
    assert torchrun_variables(environment) == {}


def test_what_the_user_or_a_scheduler_set():
    """A chosen meeting place stands; RANK or WORLD_SIZE alone is not torchrun's word."""
    place = {"MASTER_ADDR": "login", "MASTER_PORT": "29500"}
    assert torchrun_variables(SRUN | place).items() >= place.items()
    assert torchrun_variables(SRUN | {"RANK": "7"})["RANK"] == "1"
    assert torchrun_variables(SRUN | {"WORLD_SIZE": "9"})["WORLD_SIZE"] == "2"


@pytest.mark.parametrize(("gpus", "local_rank"), [("1", "0"), ("0,1", "1"), ("", "1")])
def test_a_task_with_a_gpu_of_its_own_finds_it(gpus, local_rank):
    """`srun -n 2 --gpus-per-task=1` shows task 1 one GPU alone, `--gpus=2` shows it both."""
    told = torchrun_variables(SRUN | {"CUDA_VISIBLE_DEVICES": gpus})
    assert (told["RANK"], told["LOCAL_RANK"]) == ("1", local_rank)


def test_ports_of_steps_and_jobs_differ():
    """64 steps of 100 jobs, one after another: no two meet at the same port, none is privileged."""
    ports = [
        int(torchrun_variables(SRUN | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)})[
            "MASTER_PORT"])
        for job in range(7_654_321, 7_654_421) for step in range(64)
    ]  # fmt: skip
    assert len(set(ports)) == 6400
    assert min(ports) >= 1024
    assert max(ports) < 32768


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("vm", "vm"), ("n[01-03,05],other", "n01"), ("a,b[1-2]", "a"), ("n1-a[0-3]", "n1-a0"),
     ("rack[1-2]node[07-09,11],login", "rack1node07"), ("a01.example.org,b", "a01.example.org"),
     ("gpu-a100-[003,007-009]", "gpu-a100-003")],
)  # fmt: skip
def test_the_first_host_of_a_list(nodes, first):
    """As `scontrol show hostnames` has it."""
    assert first_host(nodes) == first


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_the_command_line_knows_srun(rank, lines):
    """The first process says that it is one of two; the second says nothing."""
    plain = {name: value for name, value in os.environ.items()
             if not name.startswith("SLURM_") and name not in ("RANK", "WORLD_SIZE")}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "mrpo_tools", "--version"], capture_output=True, text=True,
        check=True, env=plain | SRUN | {"SLURM_PROCID": rank},
    )  # fmt: skip
    assert done.stderr.count("process 1 of the 2 that srun started") == lines
    assert done.stdout.startswith("mrpo")


def card(*, native: bool) -> Callable[..., bool]:
    """torch's question to a card that has bfloat16, or only emulates it."""

    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return native or including_emulation

    return is_bf16_supported


def test_arithmetic_by_default():
    """A card without bfloat16 gets float16, though torch can emulate bfloat16 on it."""
    assert default_dtype(CUDA, card(native=True)) == "bfloat16"
    assert default_dtype(CUDA, card(native=False)) == "float16"
    assert default_dtype(CPU, card(native=True)) == "float32"
    assert default_dtype(MPS, card(native=False)) == "bfloat16"


@pytest.mark.parametrize(
    ("count", "given", "gpus"),
    [(3, None, ["0", "1", "2"]), (2, "5,7", ["5", "7"]), (1, "GPU-8a, GPU-9b", ["GPU-8a"]),
     (0, None, []), (0, "", []), (0, "-1", [])],
)  # fmt: skip
def test_gpus_that_this_process_may_use(count, given, gpus):
    """A restriction stands, by number or by name; what torch does not see is left out."""
    environment = {} if given is None else {"CUDA_VISIBLE_DEVICES": given}
    assert visible_gpus(count, environment) == gpus


def test_idle_gpus_are_told(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert idle_gpus("train", []) is None
    assert idle_gpus("train", ["0"]) is None
    assert idle_gpus("train", ["0", "1", "5"]) == (
        "one of 3 GPUs is used; all of them: torchrun --nproc-per-node 3 -m mrpo_tools train …"
    )
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert idle_gpus("train", ["0", "1", "5"]) is None


def test_jobs_take_gpus_in_turn():
    """Five processes on two GPUs; without GPUs nothing is said of them."""
    context = multiprocessing.get_context("spawn")
    queues = [turns(gpus, 5, context) for gpus in (["3", "GPU-a"], [])]
    given = [[queue.get() for _ in range(5)] for queue in queues]
    assert given == [["3", "GPU-a", "3", "GPU-a", "3"], [""] * 5]
    for queue in queues:
        queue.close()


def test_a_job_takes_its_gpu_before_libraries_look_for_one():
    """bitsandbytes asks for GPUs at its import, and training imports it."""
    code = "import mrpo_tools.sweep.worker, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_memory_of_apples_gpus(monkeypatch):
    """Metal's limit less what tensors hold; the driver's blocks are the peak, until given back."""
    held = {"tensors": 3, "driver": 10}
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 100)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: held["tensors"])
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: held["driver"])
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: held.update(driver=4))
    assert free_bytes(MPS) == 97
    assert peak_memory_bytes(MPS) == 10
    reset_peak_memory(MPS)
    assert peak_memory_bytes(MPS) == 4


def test_memory_of_several_gpus_is_that_of_all(monkeypatch):
    """A process that was started alone may have used any of them; one of several has its own."""
    peaks, reset = {0: 30, 1: 12}, []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda, "max_memory_allocated", lambda card: peaks[torch.device(card).index]
    )
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    assert peak_memory_bytes(torch.device("cuda")) == 42
    assert peak_memory_bytes(torch.device("cuda", 1)) == 12
    reset_peak_memory(torch.device("cuda"))
    assert reset == cards_of(torch.device("cuda")) == [torch.device("cuda", n) for n in (0, 1)]
    assert cards_of(torch.device("cpu")) == []


def test_gpus_that_a_model_leaves_idle_are_told_in_sets():
    assert idle_gpus("precompute", ["0", "1", "2"], 2) is None
    assert idle_gpus("precompute", ["0", "1", "4", "5"], 2) == (
        "2 of 4 GPUs are used; all of them: 2 processes, the first by CUDA_VISIBLE_DEVICES=0,1 "
        "mrpo precompute --shard 1/2 …"
    )
