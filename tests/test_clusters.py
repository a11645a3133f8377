"""The files for Slurm and SkyPilot: the programs take their commands; a job that was stopped is put
back, one that failed is not."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from test_docs import blocks, script
from torch.distributed.run import get_args_parser

from mrpo_tools.cli import cli

RECIPES = Path(__file__).parent.parent / "recipes"
PAGE = RECIPES.parent / "docs" / "scaling.md"
SLURM = sorted((RECIPES / "slurm").glob("*.sbatch"))
SKYPILOT = sorted((RECIPES / "skypilot").glob("*.yaml"))
FILES = pytest.mark.parametrize("path", [*SLURM, *SKYPILOT], ids=lambda path: path.name)
LAUNCHERS = {"torchrun": get_args_parser(), "accelerate launch": launch_command_parser()}
CODES = {0: False, 1: False, 2: False, 5: False, 75: True, 143: True}
"""Exit codes of `srun mrpo`, and whether more of the same is wanted."""


def bash_of(path: Path) -> str:
    """What the shell runs."""
    text = path.read_text(encoding="utf-8")
    return yaml.safe_load(text)["run"] if path.suffix == ".yaml" else text


def commands(bash: str) -> list[list[str]]:
    """The lines that start mrpo, as words; what the shell fills in is a 1."""
    lines = re.sub(r"^#.*", "", bash, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    lines = [line for line in lines if re.search(r"\bmrpo(_tools)? (train|precompute)", line)]
    assert lines
    filled = [re.sub(r"\$\(\(.*?\)\)|\$\(.*?\)|\$\{?\w+\}?", "1", line) for line in lines]
    return [shlex.split(line.replace("bash -c '", "").split("' ")[0]) for line in filled]


def check(words: list[str]) -> None:
    """Refuse words that the launchers or mrpo do not take."""
    place = next(index for index, word in enumerate(words) if word in ("mrpo", "mrpo_tools"))
    name, *rest = words[place + 1 :]
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    command.make_context(name, rest)
    before = shlex.join(words[:place])
    for launcher, parser in LAUNCHERS.items():
        if launcher in before:
            options = shlex.split(before.split(launcher)[1])
            parser.parse_args([*options, "mrpo_tools"])
            return
    assert words[place] == "mrpo"


@FILES
def test_the_commands_are_taken(path):
    bash = bash_of(path)
    subprocess.run(["bash", "-n"], input=bash, text=True, check=True)
    for words in commands(bash):
        check(words)
        assert ("--resume" if "train" in words else "--shard") in words
    for name in re.findall(r"recipes/(?:slurm|skypilot)/[\w.]+", path.read_text()):
        assert (RECIPES.parent / name).is_file(), name


def test_the_commands_of_the_page_are_taken():
    """docs/scaling.md's; of a job its script."""
    for line in "".join(blocks(PAGE.read_text(encoding="utf-8"), "bash")).splitlines():
        words = shlex.split(line)
        if words[0] == "sbatch":
            assert any((RECIPES.parent / word).is_file() for word in words[1:]), line
        else:
            check(words)


def test_the_plan_is_the_script_s():
    """The tables of docs/scaling.md are what bench/plan.py prints, and its sums are these by hand:
    185.1 + 4 · 305.3 tokens a group; 2 · 6,979,321,856 operations a token and 2 · 4096 · 32768 a
    response token; 4 · 4096 · 32 for each pair of tokens."""
    plan = script("bench/plan.py")
    usual = plan.Plan()
    assert plan.table(usual, [1, 8, 64]) in PAGE.read_text(encoding="utf-8")
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    pairs = 185.1**2 / 2 + 4 * (305.3 * 185.1 + 305.3**2 / 2)
    operations = 2 * 32 * layer * 1406.3 + 2 * 4096 * 32768 * 1221.2 + 4 * 4096 * 32 * pairs
    hours = 61_135 * operations / (0.4 * 989e12) / 3600
    assert usual.phase1_hours(8) == pytest.approx(3 * hours / 8)
    assert usual.phase2_hours("lora", 1) == pytest.approx(3 * hours)
    assert usual.full_gigabytes(1) == pytest.approx(131.7)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("--resume", "--restart"), ("--num_machines", "--num_nodes"), ("train", "fit"),
     ("--output", "--out-dir")],
)  # fmt: skip
def test_a_wrong_word_is_found(right, wrong):
    """Both sides of what `train_sharded.sbatch` starts."""
    (words,) = commands(bash_of(RECIPES / "slurm" / "train_sharded.sbatch"))
    check(words)
    with pytest.raises((click.UsageError, AssertionError, SystemExit)):
        check([wrong if word == right else word for word in words])


@pytest.mark.parametrize("path", SLURM, ids=lambda path: path.name)
def test_a_job_may_be_put_back_and_is_told_before_its_time_is_over(path):
    said = re.findall(r"^#SBATCH (--\S+)", path.read_text(), re.MULTILINE)
    assert "--requeue" in said
    assert "--open-mode=append" in said
    assert any(re.fullmatch(r"--signal=TERM@\d+", option) for option in said)


def batch(path: Path, folder: Path, srun: str) -> tuple[int, bool]:
    """The exit code of a batch script whose `srun` does this, and whether it puts the job back."""
    for name, does in {"srun": srun, "scontrol": 'echo "$@" >> requeued'}.items():
        program = folder / name
        program.write_text(f"#!/bin/bash\n{does}\n")
        program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7",
                   "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "1",
                   "SLURM_JOB_NODELIST": "n"}  # fmt: skip
    done = subprocess.run(["bash", path, "a", "run"], cwd=folder, env=environment, check=False)
    told = folder / "requeued"
    return done.returncode, told.exists() and "requeue 7" in told.read_text().splitlines()


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("path", [path for path in SLURM if "sharded" not in path.name],
                         ids=lambda path: path.name)  # fmt: skip
def test_what_was_stopped_is_put_back(path, code, tmp_path):
    assert batch(path, tmp_path, f"exit {code}") == (code, CODES[code])


@pytest.mark.parametrize(
    ("does", "back"),
    [("mkdir -p run/checkpoint-6 && touch run/checkpoint-6/seal.json; exit 1", True),
     ("mkdir -p run/checkpoint-6; exit 1", False),
     ("touch run/checkpoint-2/seal.json run/metrics.json", False),
     ("mkdir -p run/checkpoint-12; touch run/checkpoint-12/seal.json; exit 1", True),
     ("exit 2", False)],
    ids=["a later checkpoint", "one without a seal", "finished", "twelve is after six", "nothing"],
)  # fmt: skip
def test_behind_a_launcher_the_checkpoints_say_whether_it_gets_on(does, back, tmp_path):
    """The launcher's exit code is 1 for a failure and for a job that was stopped."""
    for step in (2, 4):
        (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
        (tmp_path / "run" / f"checkpoint-{step}" / "seal.json").touch()
    _, requeued = batch(RECIPES / "slurm" / "train_sharded.sbatch", tmp_path, does)
    assert requeued is back


@pytest.mark.parametrize("path", SKYPILOT, ids=lambda path: path.name)
def test_skypilot_takes_the_files(path):
    """Where it is installed: its own schema, with every resource and bucket."""
    schemas = pytest.importorskip("sky.utils.schemas")
    validate = pytest.importorskip("sky.utils.common_utils").validate_schema
    task = yaml.safe_load(path.read_text(encoding="utf-8"))
    validate(task, schemas.get_task_schema(), path.name)
    validate(task["resources"], schemas.get_resources_schema(), path.name)
    for place in task.get("file_mounts", {}).values():
        validate(place, schemas.get_storage_schema(), path.name)
