"""The command line as a user meets it: with a project and without one, errors, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from mrpo_tools.cli import COMMANDS, cli, run

NAMES = ("llama", "mistral", "qwen")


@pytest.fixture
def project(tmp_path, monkeypatch, some_groups) -> Path:
    """An empty working directory with a data file."""
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps(group.as_dict()) for group in some_groups]
    Path("data.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


@pytest.fixture
def blocked(tmp_path) -> dict[str, str]:
    """An environment in which importing torch fails."""
    package = tmp_path / "blocked" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('torch is blocked')\n")
    return {**os.environ, "PYTHONPATH": str(package.parent)}


def mrpo(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mrpo_tools", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_by_hand_with_a_project(project, tiny_models, capsys):
    """init, precompute, train, evaluate, sql, generate: the README's commands."""
    refs = [word for name, path in tiny_models.items() for word in ("--ref", f"{name}={path}")]
    assert run(["init", "--dataset", "data.jsonl", "--test-size", "0.3", *refs]) == 0
    assert "dtype: float32" in Path("mrpo.yaml").read_text()
    assert run(["precompute", "--ref", "mistral"]) == 0
    assert run(["precompute", "--ref", "llama,qwen"]) == 0
    capsys.readouterr()
    assert run(["precompute", "--json"]) == 0
    assert [row["scored"] for row in json.loads(capsys.readouterr().out)] == [0, 0, 0]
    assert run(["train", "--loss", "mrpo", "--refs", "llama,mistral,qwen", "--output", "runs/mrpo",
                "--set", "max_steps=2"]) == 0  # fmt: skip
    out = capsys.readouterr().out
    assert "next: mrpo evaluate runs/mrpo" in out
    assert run(["evaluate", "runs/mrpo", "--split", "train", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    for name in ("accuracies", "accuracies_step0", "accuracies_reference_1", "accuracies_logp"):
        assert 0 <= metrics[name] <= 1
    assert run(["evaluate", "runs/mrpo", "--split", "train"]) == 0
    assert "not comparable between methods" in capsys.readouterr().out
    assert run(["sql", "SELECT reference, count(*) AS n FROM logps GROUP BY 1 ORDER BY 1",
                "--format", "json"]) == 0  # fmt: skip
    rows = json.loads(capsys.readouterr().out)
    assert [row["reference"] for row in rows] == list(NAMES)
    assert run(["generate", "runs/mrpo", "--split", "train", "--max-new-tokens", "4"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert answers
    assert all(set(answer) == {"prompt_id", "prompt", "answer"} for answer in answers)


def test_by_hand_without_a_project(project, tiny_models, capsys):
    """--ref NAME=PATH --dataset FILE --cache DIR; the cache says where reference 1's model is."""
    common = ["--dataset", "data.jsonl", "--cache", "elsewhere"]
    assert run(["precompute", "--ref", f"a={tiny_models['llama']}", "--ref",
                f"b={tiny_models['qwen']}", *common]) == 0  # fmt: skip
    assert run(["train", "--loss", "mrpo", "--refs", "a,b", *common, "--output", "run",
                "--set", "max_steps=1"]) == 0  # fmt: skip
    assert run(["evaluate", "run", "--split", "train"]) == 0
    record = json.loads(Path("run/run.json").read_text())
    assert record["policy"]["model"] == str(tiny_models["llama"])
    assert not Path("mrpo.yaml").exists()


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


BAD = {
    "unknown command": (["precmopute"], 2, "no command is named 'precmopute'; did you mean"),
    "unknown alias": (
        ["precompute", "--ref", "lama", "--dataset", "data.jsonl"], 2,
        "no reference is named 'lama'\nnext:  did you mean llama?",
    ),
    "no reference": (["precompute", "--dataset", "data.jsonl"], 2, "no reference is named"),
    "no data": (["precompute", "--ref", "a=model"], 2, "no data set is named"),
    "reference without a model": (["precompute", "--ref", "a="], 2, "no model after '='"),
    "model that is not there": (
        ["precompute", "--ref", "a=./nowhere", "--dataset", "data.jsonl"], 2,
        "no directory ./nowhere",
    ),
    "data that is not there": (
        ["precompute", "--ref", "a=./nowhere", "--dataset", "nowhere.jsonl"], 2, "nowhere.jsonl",
    ),
    "bad shard": (
        ["precompute", "--ref", "llama", "--dataset", "data.jsonl", "--shard", "4/3"], 2,
        "--shard 4/3: I/N with I from 1 to N is needed",
    ),
    "no cache": (
        ["train", "--refs", "llama", "--dataset", "data.jsonl", "--cache", "none",
         "--output", "run"], 3,
        "no cache at none\nnext:  mrpo precompute --ref NAME",
    ),
    "unknown loss": (
        ["train", "--loss", "mrop", "--refs", "a", "--output", "run", "--dataset", "data.jsonl",
         "--cache", "cached"], 2, "no loss is named 'mrop'\nnext:  did you mean mrpo",
    ),
    "unknown key": (
        ["train", "--refs", "a", "--output", "run", "--dataset", "data.jsonl", "--set", "lr=1"], 2,
        "recipe: lr: unknown key\nnext:  did you mean learning_rate?",
    ),
    "reference not cached": (
        ["train", "--refs", "nobody", "--output", "run", "--dataset", "data.jsonl", "--cache",
         "cached"], 3,
        "reference 'nobody' has no log-probs in cached (cached: none yet)\n"
        "next:  create them with: mrpo precompute --ref nobody",
    ),
    "run that is not there": (["evaluate", "nowhere"], 2, "nowhere holds no run"),
    "unknown objective": (["losses", "dppo"], 2, "no loss is named 'dppo'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_writes_nothing(case, project, capsys):
    arguments, code, message = BAD[case]
    Path("cached/references").mkdir(parents=True)
    before = snapshot(project)
    assert run(arguments) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert snapshot(project) == before


def test_missing_rows_are_counted_with_the_command(project, tiny_models, capsys):
    """A reference that has scored something else: 0 of N."""
    llama = f"llama={tiny_models['llama']}"
    Path("other.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    assert run(["precompute", "--ref", llama, "--dataset", "other.jsonl"]) == 0
    capsys.readouterr()
    assert run(["train", "--refs", "llama", "--loss", "dpo", "--dataset", "data.jsonl",
                "--output", "run"]) == 3  # fmt: skip
    error = capsys.readouterr().err
    assert "reference 'llama' has log-probs for 0 of" in error
    assert "next:  create them with: mrpo precompute --ref llama" in error
    assert not Path("run").exists()


def test_two_identities_of_one_name(project, tiny_models, capsys):
    llama = f"llama={tiny_models['llama']}"
    for length in ("100", "200"):
        assert run(["precompute", "--ref", llama, "--dataset", "data.jsonl", "--max-length",
                    length]) == 0  # fmt: skip
    capsys.readouterr()
    words = ["--loss", "dpo", "--dataset", "data.jsonl", "--set", "max_steps=1"]
    assert run(["train", "--refs", "llama", *words, "--output", "run"]) == 3
    error = capsys.readouterr().err
    assert "they differ in max_length" in error
    name = error.rsplit("name the one you mean; ", 1)[1].split()[0]
    assert run(["train", "--refs", name, *words, "--output", "run"]) == 0
    both = ",".join(f"llama@{path.name[-12:]}" for path in Path("cache/references").iterdir())
    assert run(["train", "--refs", both, *words, "--output", "both"]) == 2
    assert "a reference is named twice" in capsys.readouterr().err
    assert run(["rank", "--refs", both, "--split", "all"]) == 0  # rank compares them


def test_one_model_under_two_names_is_two_references_in_sql(project, tiny_models, capsys):
    llama = tiny_models["llama"]
    assert run(["precompute", "--ref", f"one={llama},two={llama}", "--dataset", "data.jsonl"]) == 0
    for refs, count in (("one,two", 2), ("one,one", 1), ("two", 1)):
        capsys.readouterr()
        assert run(["sql", "SELECT reference FROM refs", "--refs", refs, "--format", "csv"]) == 0
        assert len(capsys.readouterr().out.split()) == 1 + count


def test_the_project_tells_which_identity_is_meant(project, tiny_models, capsys):
    """A setting changes: what is there is refused, the hint is followed, and the name alone then
    means the new numbers, for training and for rank; the old ones stay and are told of."""

    def settings(max_length: int) -> None:
        words = f"model: {tiny_models['llama']}, dtype: float32, max_length: {max_length}"
        Path("mrpo.yaml").write_text(f"dataset: data.jsonl\nreferences:\n  llama: {{{words}}}\n")

    train = ["train", "--refs", "llama", "--loss", "dpo", "--set", "max_steps=1"]
    settings(100)
    assert run(["precompute"]) == 0
    settings(200)
    for command in ([*train, "--output", "run"], ["rank", "--split", "all"]):
        capsys.readouterr()
        assert run(command) == 3
        error = capsys.readouterr().err
        assert "max_length was 100, is now 200" in error
        assert "mrpo precompute --ref llama" in error
    assert run(["precompute", "--ref", "llama"]) == 0
    assert "of another identity: max_length was 100, is now 200" in capsys.readouterr().err
    assert run([*train, "--output", "run"]) == 0
    assert json.loads(Path("run/run.json").read_text())["policy"]["max_length"] == 200
    capsys.readouterr()
    assert run(["rank", "--split", "all", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["references"]) == 1
    old = next(Path("cache/references").glob("llama-*")).name
    if old.rpartition("-")[2] in json.loads(Path("run/run.json").read_text())["references"][0]:
        old = sorted(path.name for path in Path("cache/references").glob("llama-*"))[1]
    name, _, digits = old.rpartition("-")
    train[2] = f"{name}@{digits}"
    assert run([*train, "--output", "other"]) == 3
    assert "then 'llama', without digits, means the new numbers" in capsys.readouterr().err


def test_a_damaged_part_is_named_and_repaired(project, tiny_models, capsys):
    llama = f"llama={tiny_models['llama']}"
    assert run(["precompute", "--ref", llama, "--dataset", "data.jsonl"]) == 0
    part = next(Path("cache").rglob("part-*.parquet"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 4
    part.write_bytes(content)
    train = ["train", "--refs", "llama", "--loss", "dpo", "--dataset", "data.jsonl",
             "--output", "run", "--set", "max_steps=1"]  # fmt: skip
    for arguments in (train, ["sql", "SELECT 1"], ["cache", "verify"]):
        capsys.readouterr()
        assert run(arguments) == 3
        error = capsys.readouterr().err
        assert part.name in error
        assert "mrpo cache repair" in error
    assert run(["cache", "repair"]) == 0
    assert run(["precompute", "--ref", llama, "--dataset", "data.jsonl"]) == 0
    assert run(["cache", "verify"]) == 0
    assert run(train) == 0


def test_help_is_quick_and_needs_no_torch(blocked):
    started = time.monotonic()
    times = []
    for _ in range(3):
        started = time.monotonic()
        result = mrpo("--help", env=blocked)
        times.append(time.monotonic() - started)
        assert result.returncode == 0, result.stderr
    assert all(name in result.stdout for name in COMMANDS)
    assert min(times) < 1.0  # under 0.5 s on an idle machine; the tests share theirs


def test_sql_and_cache_need_no_torch(blocked, cached):
    query = "SELECT reference, count(*) AS n FROM logps GROUP BY 1 ORDER BY 1"
    result = mrpo("sql", query, "--cache", str(cached.path), "--format", "csv", env=blocked)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[1].startswith("llama,")
    result = mrpo("cache", "status", "--cache", str(cached.path), env=blocked)
    assert result.returncode == 0, result.stderr
    assert "mistral" in result.stdout


def commands(group: click.Group, path: tuple[str, ...] = ()):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.mark.parametrize("path", [path for path, _ in commands(cli)], ids=" ".join)
def test_every_command_has_help_with_an_example(path, capsys):
    assert run([*path, "--help"]) == 0
    out = capsys.readouterr().out
    assert "Example:" in out or path == ("doctor",)
    assert f"mrpo {' '.join(path)}" in out or path == ("doctor",)


def test_losses_lists_and_explains(capsys):
    from mrpo_tools.methods.method import LOSSES

    assert run(["losses"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(LOSSES)
    assert run(["losses", "mrpo"]) == 0
    out = capsys.readouterr().out
    assert "MRPO Eq. 7-10" in out
    assert "mrpo train --loss mrpo" in out


def test_doctor_names_the_device(capsys):
    assert run(["doctor"]) == 0
    assert "torch" in capsys.readouterr().out


def test_interrupting_ends_with_130(capsys):
    @click.command()
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert run([], interrupted) == 130
    assert "what was written so far is kept" in capsys.readouterr().err


def test_debug_shows_the_traceback(capsys):
    assert run(["--debug", "evaluate", "nowhere"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["", ",", "mistral,llama=,"])
def test_an_empty_reference_is_refused_before_anything_is_written(words, project, capsys):
    assert run(["precompute", "--ref", words, "--dataset", "data.jsonl"]) == 2
    assert "unexpected" not in capsys.readouterr().err
    assert not Path("cache").exists()


@pytest.mark.parametrize("shard", ["²/3", "1/³", "0/2", "3/2", "x"])
def test_a_shard_that_is_none(shard, project, tiny_models, capsys):
    llama = f"llama={tiny_models['llama']}"
    assert run(["precompute", "--ref", llama, "--dataset", "data.jsonl", "--shard", shard]) == 2
    assert f"--shard {shard}: I/N" in capsys.readouterr().err
