"""The command line as a user meets it: with a project and without one, errors, exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
import yaml
from small_data import write_lines

from mrpo_tools.cli import COMMANDS, cli, run
from mrpo_tools.config import Recipe, parse


@pytest.fixture
def project(here, some_groups) -> Path:
    """An empty working directory with a data file."""
    write_lines(here / "data.jsonl", (group.as_dict() for group in some_groups))
    return here


@pytest.fixture
def llama(tiny_models) -> str:
    """A reference as `--ref` takes it."""
    return f"llama={tiny_models['llama']}"


@pytest.fixture
def blocked(tmp_path) -> dict[str, str]:
    """An environment in which importing torch fails."""
    package = tmp_path / "blocked" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('torch is blocked')\n")
    return {**os.environ, "PYTHONPATH": str(package.parent)}


def process(*arguments: str, env: dict[str, str]) -> str:
    """What a command prints in a process of its own; it must succeed."""
    command = [sys.executable, "-m", "mrpo_tools", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_by_hand_with_a_project(project, tiny_models, mrpo):
    """init, precompute, train, evaluate, sql, generate: the README's commands."""
    refs = " ".join(f"--ref {name}={path}" for name, path in tiny_models.items())
    mrpo(f"init --dataset data.jsonl --test-size 0.3 {refs}")
    assert "dtype: float32" in Path("mrpo.yaml").read_text()
    mrpo("precompute --ref mistral")
    mrpo("precompute --ref llama,qwen")
    assert [row["scored"] for row in json.loads(mrpo("precompute --json").out)] == [0, 0, 0]
    train = "train --loss mrpo --refs llama,mistral,qwen --output runs/mrpo --set max_steps=2"
    dry = mrpo("precompute --dry-run").out
    assert "nothing to compute, as every response has its number in the cache: llama" in dry
    assert "next: mrpo rank" in mrpo("precompute").out
    assert "references: llama (the project's" in mrpo("train --loss dpo --dry-run").err
    several = mrpo("train --dry-run").err
    assert "references: llama, mistral, qwen (the project's; --refs takes others)" in several
    assert "did you mean llama?" in mrpo("train --refs lama --dry-run", 3).err
    assert "next: mrpo evaluate runs/mrpo" in mrpo(train).out
    metrics = json.loads(mrpo("evaluate runs/mrpo --split train --json").out)
    for name in ("accuracies", "accuracies_step0", "accuracies_reference_1", "accuracies_logp"):
        assert 0 <= metrics[name] <= 1
    assert "not comparable between methods" in mrpo("evaluate runs/mrpo --split train").out
    twice = mrpo("evaluate runs/mrpo runs/mrpo --split train").out
    assert twice.count("always the longer") == 2
    assert twice.endswith("mrpo report runs/mrpo runs/mrpo\n")
    printed = mrpo("evaluate runs/mrpo runs/mrpo --split train --json").out
    assert json.loads(printed) == [metrics, metrics]
    ranked = mrpo("rank --dataset data.jsonl").out
    assert ranked == mrpo("rank --dataset data").out
    assert "\nnext: mrpo train --loss " in ranked
    mrpo(ranked.split("next: mrpo ")[1].strip() + "-ranked --set max_steps=1")
    query = "SELECT reference, count(*) AS n FROM logps GROUP BY 1 ORDER BY 1"
    rows = json.loads(mrpo(f"sql '{query}' --format json").out)
    assert [row["reference"] for row in rows] == ["llama", "mistral", "qwen"]
    printed = mrpo("generate runs/mrpo --split train --max-new-tokens 4").out
    answers = [json.loads(line) for line in printed.splitlines()]
    assert answers
    assert all({"prompt", "responses", "split", "sampler"} <= set(answer) for answer in answers)


def test_by_hand_without_a_project(project, tiny_models, mrpo):
    """--ref NAME=PATH --dataset FILE --cache DIR; the cache says where reference 1's model is."""
    common = "--dataset data.jsonl --cache elsewhere"
    mrpo(f"precompute --ref a={tiny_models['llama']} --ref b={tiny_models['qwen']} {common}")
    mrpo(f"train --loss mrpo --refs a,b {common} --output run --set max_steps=1")
    placed = f"--refs a={tiny_models['llama']},b={tiny_models['qwen']}"
    mrpo(f"train --loss mrpo {placed} {common} --dry-run")
    mrpo("evaluate run --split train")
    record = json.loads(Path("run/run.json").read_text())
    assert record["policy"]["model"] == str(tiny_models["llama"])
    assert not Path("mrpo.yaml").exists()


def snapshot(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


TRAIN = "train --output run --dataset data.jsonl"
BAD = {
    "unknown command": ("precmopute", 2, "no command is named 'precmopute'; did you mean"),
    "unknown alias": ("precompute --ref lama --dataset data.jsonl", 2,
        "no reference is named 'lama'\nnext:  did you mean llama?"),
    "no reference": ("precompute --dataset data.jsonl", 2, "no reference is named"),
    "an empty reference":
        ("precompute --ref '' --dataset data.jsonl", 2, "--ref names no reference"),
    "only a comma": ("precompute --ref , --dataset data.jsonl", 2, "--ref names no reference"),
    "no data": ("precompute --ref a=model", 2, "no data set is named"),
    "reference without a model": ("precompute --ref a=", 2, "no model after '='"),
    "one of two without a model":
        ("precompute --ref mistral,llama= --dataset data.jsonl", 2, "no model after '='"),
    "model that is not there": ("precompute --ref a=./nowhere --dataset data.jsonl", 2,
        "no directory ./nowhere"),
    "data that is not there": ("precompute --ref a=./nowhere --dataset nowhere.jsonl", 2,
        "nowhere.jsonl"),
    **{f"shard {shard}": (f"precompute --ref llama --dataset data.jsonl --shard {shard}", 2,
        f"--shard {shard}: I/N with I from 1 to N is needed")
       for shard in ("4/3", "²/3", "1/³", "0/2", "x")},
    "no cache": (f"{TRAIN} --refs llama --cache none", 3,
        "no cache at none\nnext:  mrpo precompute --ref NAME"),
    "unknown loss": (f"{TRAIN} --loss mrop --refs a --cache cached", 2,
        "no loss is named 'mrop'\nnext:  did you mean mrpo"),
    "unknown key": (f"{TRAIN} --refs a --set lr=1", 2,
        "recipe: lr: unknown key\nnext:  did you mean learning_rate?"),
    "several unknown keys": (
        f"{TRAIN} --refs a --set epochs=1 --set batch_size=1 --set lora_rank=1", 2,
        "next:  epochs: did you mean num_train_epochs?; batch_size: did you mean "
        "per_device_train_batch_size?; lora_rank: did you mean lora_r?"),
    "recipe that is not there": (f"{TRAIN} --refs a --config nope.yaml", 2,
        "no file nope.yaml\nnext:  there are: dpo, mpo, mrpo; mrpo recipe > recipe.yaml"),
    "reference not cached": (f"{TRAIN} --refs nobody --cache cached", 3,
        "reference 'nobody' has no log-probs in cached (cached: none yet)\n"
        "next:  create them with: mrpo precompute --ref nobody"),
    "run that is not there": ("evaluate nowhere", 2, "nowhere holds no run"),
    "unknown objective": ("losses dppo", 2, "no loss is named 'dppo'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_writes_nothing(case, project, mrpo):
    line, code, message = BAD[case]
    Path("cached/references").mkdir(parents=True)
    before = snapshot(project)
    printed = mrpo(line, code)
    assert message in printed.err
    assert printed.out == ""
    assert "Traceback" not in printed.err
    assert "unexpected" not in printed.err
    assert snapshot(project) == before
    assert not Path("cache").exists()


def test_a_recipe_with_every_key_is_one(project, mrpo):
    """What `mrpo recipe` prints reads as the defaults, says something of every key, and explains
    one with the names to choose among."""
    text = mrpo("recipe").out
    assert parse(Recipe, yaml.safe_load(text), "it") == Recipe()
    assert set(re.findall(r"^(?:# )?(\w+):(?=.*# \S)", text, re.MULTILINE)) == {
        *Recipe.model_fields
    }
    assert "one of:   adaptive, fixed, none" in mrpo("recipe trust_region").out
    assert json.loads(mrpo("recipe beta --json").out)["default"] is None
    assert "did you mean learning_rate?" in mrpo("recipe lr", 2).err


def test_missing_rows_are_counted_with_the_command(project, llama, mrpo):
    """A reference that has scored something else: 0 of N."""
    Path("other.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    mrpo(f"precompute --ref {llama} --dataset other.jsonl")
    error = mrpo(f"{TRAIN} --refs llama --loss dpo", 3).err
    assert "reference 'llama' has log-probs for 0 of" in error
    assert "next:  create them with: mrpo precompute --ref llama" in error
    assert not Path("run").exists()


def test_two_identities_of_one_name(project, llama, mrpo):
    for length in (100, 200):
        mrpo(f"precompute --ref {llama} --dataset data.jsonl --max-length {length}")
    train = "train --loss dpo --dataset data.jsonl --set max_steps=1"
    error = mrpo(f"{train} --refs llama --output run", 3).err
    assert "they differ in max_length" in error
    name = error.rsplit("name the one you mean; ", 1)[1].split()[0]
    mrpo(f"{train} --refs {name} --output run")
    both = ",".join(f"llama@{path.name[-12:]}" for path in Path("cache/references").iterdir())
    assert "a reference is named twice" in mrpo(f"{train} --refs {both} --output both", 2).err
    mrpo(f"rank --refs {both} --split all")  # rank compares them


def test_one_model_under_two_names_is_two_references_in_sql(project, tiny_models, mrpo):
    llama = tiny_models["llama"]
    mrpo(f"precompute --ref one={llama},two={llama} --dataset data.jsonl")
    for refs, count in (("one,two", 2), ("one,one", 1), ("two", 1)):
        printed = mrpo(f"sql 'SELECT reference FROM refs' --refs {refs} --format csv").out
        assert len(printed.split()) == 1 + count


def test_the_project_tells_which_identity_is_meant(project, tiny_models, mrpo):
    """A setting changes: what is there is refused, the hint is followed, and the name alone then
    means the new numbers, for training and for rank; the old ones stay and are told of."""

    def settings(max_length: int) -> None:
        words = f"model: {tiny_models['llama']}, dtype: float32, max_length: {max_length}"
        Path("mrpo.yaml").write_text(f"dataset: data.jsonl\nreferences:\n  llama: {{{words}}}\n")

    train = "train --loss dpo --set max_steps=1"
    settings(100)
    mrpo("precompute")
    (old,) = Path("cache/references").iterdir()
    settings(200)
    for line in (f"{train} --refs llama --output run", "rank --split all"):
        error = mrpo(line, 3).err
        assert "max_length was 100, is now 200" in error
        assert "mrpo precompute --ref llama" in error
    assert (
        "of another identity: max_length was 100, is now 200" in mrpo("precompute --ref llama").err
    )
    mrpo(f"{train} --refs llama --output run")
    assert json.loads(Path("run/run.json").read_text())["policy"]["max_length"] == 200
    assert len(json.loads(mrpo("rank --split all --json").out)["references"]) == 1
    error = mrpo(f"{train} --refs {old.name.replace('-', '@')} --output other", 3).err
    assert "then 'llama', without digits, means the new numbers" in error


def test_a_damaged_part_is_named_and_repaired(project, llama, mrpo):
    precompute = f"precompute --ref {llama} --dataset data.jsonl"
    mrpo(precompute)
    part = next(Path("cache").rglob("part-*.parquet"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 4
    part.write_bytes(content)
    train = f"{TRAIN} --refs llama --loss dpo --set max_steps=1"
    for line in (train, "sql 'SELECT 1'", "cache verify"):
        error = mrpo(line, 3).err
        assert part.name in error
        assert "mrpo cache repair" in error
    for line in ("cache repair", precompute, "cache verify", train):
        mrpo(line)


def test_help_is_quick_and_needs_no_torch(blocked):
    times = []
    for _ in range(3):
        started = time.monotonic()
        printed = process("--help", env=blocked)
        times.append(time.monotonic() - started)
    assert all(name in printed for name in COMMANDS)
    assert min(times) < 1.0  # under 0.5 s on an idle machine; the tests share theirs


def test_sql_and_cache_need_no_torch(blocked, cached):
    query = "SELECT reference, count(*) AS n FROM logps GROUP BY 1 ORDER BY 1"
    place = ("--cache", str(cached.path))
    printed = process("sql", query, *place, "--format", "csv", env=blocked)
    assert printed.splitlines()[1].startswith("llama,")
    assert "mistral" in process("cache", "status", *place, env=blocked)


def commands(group: click.Group, path: tuple[str, ...] = ()):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name))


@pytest.mark.parametrize("command", list(commands(cli)))
def test_every_command_has_help_with_an_example(command, mrpo):
    out = mrpo(f"{command} --help").out
    assert command == "doctor" or ("Example:" in out and f"mrpo {command}" in out)


def test_losses_lists_and_explains(mrpo):
    from mrpo_tools.methods.method import LOSSES

    lines = mrpo("losses").out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(LOSSES)
    out = mrpo("losses mrpo").out
    assert "MRPO Eq. 7-10" in out
    assert "mrpo train --loss mrpo" in out


def test_doctor_names_the_device(mrpo):
    assert "torch" in mrpo("doctor").out


def test_interrupting_ends_with_130(capsys):
    @click.command()
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert run([], interrupted) == 130
    assert "what was written so far is kept" in capsys.readouterr().err


def test_debug_shows_the_traceback(mrpo):
    assert "Traceback" in mrpo("--debug evaluate nowhere", 2).err
