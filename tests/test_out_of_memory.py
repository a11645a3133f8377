"""Memory runs out in the middle of a run: what to type is said, and the run ends as it would."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from stores import write_groups
from trained import log_of, recipe, weights_of
from transformers import TrainerCallback

from mrpo_tools.config import Dataset
from mrpo_tools.errors import ResourceError, UsageError
from mrpo_tools.runs.run import read_recipe
from mrpo_tools.sources import load_groups
from mrpo_tools.training.resume import memory_errors_of
from mrpo_tools.training.train import train

STEPS = 7
GROUPS = 14
"""Four steps of four groups make an epoch, of which the last has two."""
WHOLE = {
    "pairing": "best_random", "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1,
    "max_steps": STEPS, "save_steps": 2, "eval_steps": 3, "eval_split": "all",
    "learning_rate": 1e-3,
}  # fmt: skip


class Full(TrainerCallback):
    """A device that is full once a step has begun."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **_) -> None:
        if state.global_step == self.step - 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.fixture(scope="module")
def data(some_groups, tmp_path_factory) -> Path:
    return write_groups(tmp_path_factory.mktemp("data") / "data.jsonl", some_groups[:GROUPS])


@pytest.fixture(scope="module")
def fit(references, cached, data):
    """`train` on that file."""

    def fit(words, output, **more):
        groups, dataset = load_groups(data).groups, Dataset(source=str(data))
        return train(words, groups, cached, references, output, dataset, **more)

    return fit


@pytest.fixture(scope="module")
def whole(fit, tmp_path_factory) -> Path:
    """The run that never stopped."""
    return fit(recipe(**WHOLE), tmp_path_factory.mktemp("whole") / "run").path


def losses_of(run: Path) -> dict[int, float]:
    return {entry["step"]: entry["loss"] for entry in log_of(run) if "loss" in entry}


def hint_of(error: pytest.ExceptionInfo[ResourceError]) -> str:
    assert error.value.exit_code == 4
    assert error.value.what == "out of memory while training"
    return error.value.hint


@pytest.mark.parametrize("step", [4, 6])
def test_the_command_that_is_printed_ends_the_run_as_it_would_have(
    step, fit, whole, tmp_path, mrpo
):
    """In its first epoch and in its second. Four groups at once, then two and two, then one by one:
    the losses, the measurements and the adapter of the run that never stopped."""
    run = tmp_path / "run"
    with pytest.raises(ResourceError) as error:
        fit(recipe(**WHOLE), run, callbacks=[Full(step)])
    command = re.search(r"mrpo (train [^;]*)", hint_of(error))[1]
    assert command == (
        f"train --resume --output {run} --per-device-train-batch-size 2 "
        "--gradient-accumulation-steps 2"
    )
    words = {**WHOLE, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    with pytest.raises(ResourceError) as error:
        fit(recipe(**words), run, resume=True, callbacks=[Full(step)])
    command = re.search(r"mrpo (train [^;]*)", hint_of(error))[1]
    assert command.endswith("--per-device-train-batch-size 1 --gradient-accumulation-steps 4")
    went_on = mrpo(command).err
    assert "passed over" not in went_on, "and so from its checkpoint"
    assert "begins anew" not in went_on
    expected, losses = losses_of(whole), losses_of(run)
    assert set(losses) == set(expected) == set(range(1, STEPS + 1))
    assert losses == pytest.approx(expected, abs=1e-6)
    assert all(abs(expected[n] - expected[n + 1]) > 1e-3 for n in range(1, STEPS)), "others differ"
    measured = [[e["eval_loss"] for e in log_of(path) if "eval_loss" in e] for path in (run, whole)]
    assert measured[0] == pytest.approx(measured[1], abs=1e-6)
    for name, weights in weights_of(whole).items():
        torch.testing.assert_close(weights_of(run)[name], weights, rtol=0, atol=1e-5)
    assert read_recipe(run).gradient_accumulation_steps == 4, "the next resume needs no options"


@pytest.mark.parametrize(
    ("batch", "recomputed", "ways"),
    [
        (
            6,
            "auto",
            ["batch-size 3 --gradient-accumulation-steps 4", "gradient_checkpointing=true"],
        ),
        (9, True, ["batch-size 3 --gradient-accumulation-steps 6"]),
        (1, False, ["more time: mrpo train --resume --output "]),
        (1, True, ["nothing smaller makes the same steps; a new run: quantization: nf4"]),
    ],
)
def test_what_is_left_to_try(batch, recomputed, ways):
    """The smallest divisor where a half is none; then activations; then another run."""
    words = {"per_device_train_batch_size": batch, "gradient_checkpointing": recomputed}
    with pytest.raises(ResourceError) as error, memory_errors_of(recipe(**words), Path("run")):
        raise MemoryError
    hint = hint_of(error)
    assert all(way in hint for way in ways)
    assert ("--per-device" in hint) == (batch > 1)
    assert ("gradient_checkpointing=true" in hint) == (recomputed is not True)


def test_another_number_of_groups_a_step_is_another_run(fit, tmp_path):
    with pytest.raises(ResourceError):
        fit(recipe(**WHOLE), tmp_path / "run", callbacks=[Full(4)])
    before = (tmp_path / "run/recipe.yaml").read_bytes()
    for words in ({"per_device_train_batch_size": 2}, {"gradient_accumulation_steps": 2}):
        with pytest.raises(UsageError, match=r"a step of .* is of \d+ groups; with 1 processes"):
            fit(recipe(**{**WHOLE, **words}), tmp_path / "run", resume=True)
        assert (tmp_path / "run/recipe.yaml").read_bytes() == before
