"""Which checkpoints a run goes on from, with what processes and which engine."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mrpo_tools.errors import UsageError
from mrpo_tools.training.step_size import check_goes_on, groups_a_step


class Canary:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def arguments(micro_batch: int = 2, accumulated: int = 1, processes: int = 2) -> SimpleNamespace:
    return SimpleNamespace(
        per_device_train_batch_size=micro_batch, gradient_accumulation_steps=accumulated,
        world_size=processes,
    )  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """Of two processes and four groups a step, by the engine that every wrapping but DeepSpeed's
    has."""
    folder = tmp_path / "run" / "checkpoint-2"
    folder.mkdir(parents=True)
    kept = {"StepSize": {"args": {}, "attributes": {"groups": 4}}}
    (folder / "trainer_state.json").write_text(json.dumps({"stateful_callbacks": kept}))
    for name in ("optimizer.pt", "rng_state_0.pth", "rng_state_1.pth"):
        torch.save({}, folder / name)
    return folder


@pytest.mark.parametrize("sizes", [(2, 1, 2), (1, 2, 2), (4, 1, 1), (2, 2, 1), (1, 1, 4)])
def test_as_many_groups_a_step_go_on(sizes, checkpoint):
    assert groups_a_step(arguments(*sizes)) == 4
    check_goes_on(checkpoint, arguments(*sizes), deepspeed=False)


@pytest.mark.parametrize(
    ("sizes", "hint"),
    [((2, 1, 1), "--set gradient_accumulation_steps=2"),
     ((2, 4, 2), "--set gradient_accumulation_steps=1"),
     ((2, 1, 3), "a number of processes that divides it")],
)  # fmt: skip
def test_other_steps_are_refused_with_the_way_out(sizes, hint, checkpoint):
    with pytest.raises(UsageError, match="is of 4 groups") as error:
        check_goes_on(checkpoint, arguments(*sizes), deepspeed=False)
    assert hint in str(error.value.hint)


def test_a_checkpoint_from_before_steps_were_kept_goes_on(checkpoint):
    (checkpoint / "trainer_state.json").write_text("{}")
    check_goes_on(checkpoint, arguments(processes=7), deepspeed=False)


def test_another_engines_states_are_refused(checkpoint):
    with pytest.raises(UsageError, match="written by another engine, and DeepSpeed engine"):
        check_goes_on(checkpoint, arguments(), deepspeed=True)
    (checkpoint / "optimizer.pt").unlink()
    with pytest.raises(UsageError, match="written by DeepSpeed engine, and another engine"):
        check_goes_on(checkpoint, arguments(), deepspeed=False)


def test_deepspeeds_states_are_of_as_many_processes(checkpoint):
    (checkpoint / "optimizer.pt").unlink()
    (checkpoint / "rng_state_1.pth").unlink()
    with pytest.raises(UsageError, match="are of 1 processes, here are 2"):
        check_goes_on(checkpoint, arguments(), deepspeed=True)


def test_a_planted_pickle_does_not_reach_deepspeed(checkpoint, tmp_path):
    """Its own records are read; what touches a file is refused by name, and has not run."""
    scaler = pytest.importorskip("deepspeed.runtime.fp16.loss_scaler").LossScaler
    (checkpoint / "optimizer.pt").unlink()
    states = checkpoint / "global_step2"
    states.mkdir()
    torch.save({"loss_scaler": scaler(1.0)}, states / "optim_states.pt")
    check_goes_on(checkpoint, arguments(), deepspeed=True)
    torch.save({"state": Canary(tmp_path / "canary")}, states / "planted.pt")
    with pytest.raises(UsageError, match=r"more than tensors and plain values is in planted\.pt"):
        check_goes_on(checkpoint, arguments(), deepspeed=True)
    assert not (tmp_path / "canary").exists()
