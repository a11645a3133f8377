"""A checkpoint with a file that is cut, edited, swapped or gone is passed over by name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from trained import ADAPTER, METRICS, cut_short, recipe, weights_of

from mrpo_tools.runs.checkpoints import SEAL, keep, last_whole, seal
from mrpo_tools.runs.run import Stage, stage_of
from mrpo_tools.training.train import train

WORDS = recipe(save_steps=3)
STATE = "trainer_state.json"


@pytest.fixture(scope="module")
def fit(references, some_groups, cached):
    """`train` on what the session has."""
    return partial(train, WORDS, groups=some_groups, cache=cached, references=references)


@pytest.fixture(scope="module")
def whole(fit, tmp_path_factory) -> Path:
    """A finished run with checkpoints 3 and 6; treat it as read-only."""
    return fit(output=tmp_path_factory.mktemp("whole") / "run").path


@pytest.fixture
def stopped(whole, tmp_path) -> Path:
    """The same run, killed after its last step."""
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    cut_short(run, METRICS, ADAPTER)
    return run


def edited(file: Path) -> None:
    """Another last letter: of JSON still JSON, of tensors still tensors."""
    content = bytearray(file.read_bytes())
    place = max(place for place, byte in enumerate(content) if chr(byte).isalnum())
    content[place] ^= 1
    file.write_bytes(content)


def swapped(file: Path) -> None:
    """The file of the other step; where the two are equal, that of no step at all."""
    other = (file.parent.with_name("checkpoint-3") / file.name).read_bytes()
    file.write_bytes(other if other != file.read_bytes() else b"{}")


def a_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def endless(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


HARM: dict[str, Callable[[Path], object]] = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "empty": lambda file: file.write_bytes(b""),
    "gone": Path.unlink,
    "edited": edited,
    "swapped": swapped,
    "a directory": a_directory,
    "a pipe": a_pipe,
    "endless": endless,
}


@pytest.mark.parametrize("harm", HARM)
def test_each_file_of_a_checkpoint_in_turn(harm, stopped, tmp_path, capsys):
    """Whichever it is, its name is told and checkpoint 3 is the one to go on from."""
    sound = Path(shutil.copytree(stopped / "checkpoint-6", tmp_path / "sound"))
    names = {path.name for path in sound.iterdir()}
    assert {ADAPTER, STATE, SEAL, "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= names
    assert last_whole(stopped) == stopped / "checkpoint-6"
    for name in sorted(names):
        capsys.readouterr()
        HARM[harm](stopped / "checkpoint-6" / name)
        assert last_whole(stopped) == stopped / "checkpoint-3", name
        told, goes_on = capsys.readouterr().err.splitlines()
        assert told.startswith(f"warning: {stopped / 'checkpoint-6'} is passed over: ")
        assert name in told or (name == SEAL and told.endswith("it is the checkpoint of step 3"))
        assert goes_on == f"training goes on from {stopped / 'checkpoint-3'}"
        shutil.rmtree(stopped / "checkpoint-6")
        shutil.copytree(sound, stopped / "checkpoint-6")


@pytest.mark.parametrize(
    ("harm", "name"),
    [("cut", STATE), ("edited", STATE), ("swapped", STATE), ("swapped", ADAPTER),
     ("edited", "optimizer.pt"), ("a directory", ADAPTER), ("gone", SEAL)],
)  # fmt: skip
def test_the_run_ends_as_if_nothing_had_happened(harm, name, fit, whole, stopped):
    """Six steps, and the weights of a run that was not stopped; the bad one is replaced."""
    HARM[harm](stopped / "checkpoint-6" / name)
    assert fit(output=stopped, resume=True).metrics.steps == 6
    expected, resumed = weights_of(whole), weights_of(stopped)
    assert expected.keys() == resumed.keys()
    for key, weights in expected.items():
        torch.testing.assert_close(resumed[key], weights, rtol=0, atol=0)
    assert last_whole(stopped) == stopped / "checkpoint-6"


def test_a_whole_checkpoint_of_another_step_or_with_more_in_it(stopped, capsys):
    """Its name says 6, its seal 3; or it holds weights that nobody saved."""
    shutil.rmtree(stopped / "checkpoint-6")
    shutil.copytree(stopped / "checkpoint-3", stopped / "checkpoint-6")
    assert last_whole(stopped) == stopped / "checkpoint-3"
    assert "it is the checkpoint of step 3" in capsys.readouterr().err
    (stopped / "checkpoint-3" / "model.safetensors").write_bytes(b"")
    assert last_whole(stopped) is None
    assert "model.safetensors was not saved with it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"beta": 0.5}, "beta, hyper"),
        ({"seed": 7}, "seed"),
        ({"logging_steps": 2}, "logging_steps"),
    ],
)
def test_a_checkpoint_of_another_recipe_is_named(others, words, references, some_groups, cached,
                                                 stopped, tmp_path, capsys):  # fmt: skip
    """Whole in its own run, and the later one here; training goes on from this run's own."""
    words_of_it = WORDS.model_copy(update=others)
    other = train(words_of_it, some_groups, cached, references, tmp_path / "other").path
    shutil.rmtree(stopped / "checkpoint-6")
    assert last_whole(other) == other / "checkpoint-6"
    shutil.copytree(other / "checkpoint-6", stopped / "checkpoint-6")
    capsys.readouterr()
    assert last_whole(stopped) == stopped / "checkpoint-3"
    named = f"{stopped / 'checkpoint-6'} is passed over: it is of a run with another {words}\n"
    assert named in capsys.readouterr().err


def test_a_checkpoint_of_other_groups_is_named(references, some_groups, cached, stopped, tmp_path,
                                               capsys):  # fmt: skip
    other = train(WORDS, some_groups[:30], cached, references, tmp_path / "other").path
    shutil.rmtree(stopped / "checkpoint-6")
    shutil.copytree(other / "checkpoint-6", stopped / "checkpoint-6")
    capsys.readouterr()
    assert last_whole(stopped) == stopped / "checkpoint-3"
    assert "it is of a run with another groups_hash" in capsys.readouterr().err


def test_a_checkpoint_that_says_no_run_is_an_older_one(stopped):
    file = stopped / "checkpoint-6" / SEAL
    sealed = json.loads(file.read_text())
    del sealed["run"]
    file.write_text(json.dumps(sealed))
    assert last_whole(stopped) == stopped / "checkpoint-6"


def test_without_a_whole_checkpoint_the_run_begins_anew(fit, whole, stopped, capsys):
    for step in (3, 6):
        HARM["empty"](stopped / f"checkpoint-{step}" / STATE)
    assert stage_of(stopped) is Stage.INTERRUPTED
    assert fit(output=stopped, resume=True).metrics.steps == 6
    assert "no whole checkpoint is left: training begins anew" in capsys.readouterr().err
    expected = weights_of(whole)
    assert all((expected[name] == weights).all() for name, weights in weights_of(stopped).items())


def test_a_checkpoint_goes_when_a_later_one_is_sealed(tmp_path):
    """Of steps 1 to 4, and a 9 that was passed over: two are kept."""
    for step in (1, 2, 3, 4, 9):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / STATE).write_text("{}")
        seal(folder)
    (tmp_path / "checkpoint-mine").mkdir()
    keep(tmp_path, tmp_path / "checkpoint-4", None)
    assert names(tmp_path) == {"checkpoint-mine", *(f"checkpoint-{step}" for step in (1, 2, 3, 4))}
    keep(tmp_path, tmp_path / "checkpoint-4", 2)
    assert names(tmp_path) == {"checkpoint-mine", "checkpoint-3", "checkpoint-4"}
    keep(tmp_path, tmp_path / "checkpoint-4", 1)
    assert names(tmp_path) == {"checkpoint-mine", "checkpoint-4"}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("finetuning", ["lora", "full"])
def test_files_of_a_run_have_one_mode(finetuning, references, some_groups, cached, tmp_path):
    """That of any file that this process makes."""
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    words = WORDS.model_copy(update={"finetuning": finetuning, "max_steps": 3})
    run = train(words, some_groups, cached, references, tmp_path / "run").path
    files = [path for path in run.rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in files)
    modes = {path.relative_to(run).as_posix(): oct(path.stat().st_mode) for path in files}
    assert set(modes.values()) == {oct(ordinary.stat().st_mode)}, modes
    state = json.loads((run / STATE).read_text())
    assert state["global_step"] == 3
