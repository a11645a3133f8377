"""Run directories of others: no byte in them runs, whatever reads it."""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
from trained import ADAPTER, cut_short, recipe

from mrpo_tools.cli import run as mrpo
from mrpo_tools.errors import UsageError
from mrpo_tools.runs.checkpoints import seal
from mrpo_tools.training.train import train

PICKLES = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"]
WORDS = recipe(loss="dpo", refs=["llama"], max_steps=2, save_steps=1)


@pytest.fixture(scope="module")
def fit(references, some_groups, cached):
    return partial(train, groups=some_groups, cache=cached, references=references)


class Canary:
    """Unpickled by an ordinary unpickler, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def plant(path: Path, canary: Path) -> None:
    torch.save({"canary": Canary(canary)}, path)


def test_the_canary_sings(tmp_path):
    """What the other tests plant runs wherever pickles are trusted."""
    plant(tmp_path / "planted", tmp_path / "sung")
    torch.load(tmp_path / "planted", weights_only=False)
    assert (tmp_path / "sung").exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "planted", weights_only=True)


@pytest.mark.parametrize("name", PICKLES)
def test_no_file_of_a_checkpoint_runs(name, fit, tmp_path):
    """With a seal that agrees, as whoever plants it can make one."""
    run = fit(WORDS, output=tmp_path / "run").path
    cut_short(run, "metrics.json", ADAPTER, "checkpoint-2")
    plant(run / "checkpoint-1" / name, tmp_path / "sung")
    (run / "checkpoint-1" / "seal.json").unlink()
    seal(run / "checkpoint-1")
    if name == "training_args.bin":
        assert fit(WORDS, output=run, resume=True).metrics.steps == 2, "nobody reads it"
    else:
        with pytest.raises(UsageError, match=f"checkpoint-1.*cannot be loaded.*{name}"):
            fit(WORDS, output=run, resume=True)
    assert not (tmp_path / "sung").exists()


@pytest.mark.parametrize(
    "command",
    ["evaluate {run} --split all", "report {run} -o {page}", "compare {run} --split all",
     "merge {run} --output {page}"],
)  # fmt: skip
def test_no_file_of_a_run_runs(command, fit, some_groups, cached, tmp_path, monkeypatch, capsys):
    """Pickles of every name beside its weights, read by those who read runs."""
    from stores import write_lines

    data = write_lines(tmp_path / "data.jsonl", (group.as_dict() for group in some_groups))
    run = fit(WORDS, output=tmp_path / "run").path
    for name in [*PICKLES, "pytorch_model.bin", "adapter_model.bin"]:
        plant(run / name, tmp_path / "sung")
    monkeypatch.chdir(tmp_path)
    if "evaluate" not in command and "merge" not in command:
        mrpo(f"evaluate {run} --split all --dataset {data} --cache {cached.path}".split())
    words = command.format(run=run, page=tmp_path / "page").split()
    mrpo(
        words + (["--dataset", str(data), "--cache", str(cached.path)] if "eval" in command else [])
    )
    assert not (tmp_path / "sung").exists(), capsys.readouterr()
