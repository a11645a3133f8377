"""`mrpo sweep`: which runs a grid means, resuming, failures, several processes, the tables."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from stores import write_groups

from mrpo_tools.cache import Cache, LogpRow
from mrpo_tools.cli import run
from mrpo_tools.config import Dataset, Recipe, load_project, load_recipe
from mrpo_tools.errors import MrpoError, UsageError
from mrpo_tools.evaluation.evaluate import evaluate
from mrpo_tools.references.identity import imported_identity
from mrpo_tools.runs.formats import render
from mrpo_tools.sources import Source, load_dataset, load_groups
from mrpo_tools.sweep.grid import parse_grid, parse_seeds, plan
from mrpo_tools.sweep.sweep import Steps, Work, sweep
from mrpo_tools.training.train import train

REFS = ["a", "b", "c"]


def test_seeds_and_grid():
    for text, seeds in {"0..4": [0, 1, 2, 3, 4], "3": [3], "2,0..1, 2": [2, 0, 1]}.items():
        assert parse_seeds(text) == seeds
    assert parse_seeds("7..7") == [7]
    assert parse_grid(["loss=dpo,mrpo", "epsilon_max=0,1e6,0", "refs=a+b,c"]) == {
        "loss": ["dpo", "mrpo"], "epsilon_max": [0, "1e6"], "refs": [["a", "b"], ["c"]],
    }  # fmt: skip
    assert parse_grid(["refs=[a],[a, b],a"]) == {"refs": [["a"], ["a", "b"]]}
    assert parse_grid(["fixed_weights=[0.2,0.8],[0.5,0.5]"]) == {
        "fixed_weights": [[0.2, 0.8], [0.5, 0.5]]
    }


def test_seeds_and_grids_that_are_none():
    for text in ("", "a", "4..0", "0..", "1,,2", "-1", "0.5", "0..99999999"):
        with pytest.raises(UsageError, match="numbers and ranges"):
            parse_seeds(text)
    for message, *settings in (
        ("KEY=VALUE", "loss"), ("KEY=VALUE", "loss="), ("KEY=VALUE", "refs=[a"),
        ("a recipe has no key lr", "lr=1"),
        ("a place of its own", "seed=1,2"), ("a place of its own", "beta=1", "beta=2"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            parse_grid(settings)


def names(words: dict, *settings: str, baselines: bool = True) -> dict[str, Recipe]:
    return {
        run.name.removesuffix("/seed-0"): run.recipe
        for run in plan({"refs": REFS, **words}, parse_grid(settings), [0], baselines=baselines)
    }


def test_dpo_is_reference_1_alone_and_baselines_start_from_it():
    recipes = names({}, "loss=dpo,mrpo")
    assert {name: (recipe.refs, recipe.policy) for name, recipe in recipes.items()} == {
        "dpo-a": (["a"], None), "dpo-b": (["b"], "a"), "dpo-c": (["c"], "a"), "mrpo": (REFS, None),
    }  # fmt: skip
    assert list(names({}, "loss=dpo,mrpo", baselines=False)) == ["dpo-a", "mrpo"]


def test_keys_without_a_meaning_make_no_run_twice():
    """ε_max only where references are combined, γ only where SimPO is, nothing for the rest."""
    recipes = names({"beta": 0.1}, "loss=dpo,mrpo,simpo,sft", "epsilon_max=0,0.1", "gamma=1,2")
    assert list(recipes) == [
        "dpo-a", "dpo-b", "dpo-c", "mrpo-epsilon_max=0", "mrpo-epsilon_max=0.1",
        "simpo-gamma=1", "simpo-gamma=2", "sft",
    ]  # fmt: skip
    sft = recipes["sft"]
    assert (sft.beta, sft.policy, sft.refs) == (None, "a", [])


def test_baselines_get_the_same_search():
    recipes = names({}, "loss=mrpo", "learning_rate=1e-3,1e-4")
    assert len(recipes) == 8
    assert recipes["dpo-c-learning_rate=0.0001"].learning_rate == 1e-4


def test_references_of_the_grid():
    recipes = names({}, "loss=mrpo", "refs=a+b,b+a", baselines=False)
    assert {name: (recipe.refs, recipe.policy) for name, recipe in recipes.items()} == {
        "mrpo-a+b": (["a", "b"], None), "mrpo-b+a": (["b", "a"], "a"),
    }  # fmt: skip


def test_grids_that_mean_nothing():
    with pytest.raises(UsageError, match="no loss is named 'mrp'"):
        names({}, "loss=mrp")
    with pytest.raises(UsageError, match="needs references"):
        plan({}, {}, [0])
    with pytest.raises(UsageError, match="learning_rate"):
        names({}, "learning_rate=fast")
    with pytest.raises(UsageError, match="at most"):
        plan({"refs": REFS}, {}, list(range(9000)))


@pytest.fixture
def project(tmp_path, monkeypatch, some_groups, tiny_models, cached) -> Path:
    """A project on the shared cache, which is only read."""
    monkeypatch.chdir(tmp_path)
    splits = ("test", "train", "train")
    groups = (group.with_split(splits[n % 3]) for n, group in enumerate(some_groups))
    write_groups(Path("data.jsonl"), groups)
    words = [f"  {name}: {{model: {path}, dtype: float32}}" for name, path in tiny_models.items()]
    Path("mrpo.yaml").write_text(
        f"dataset: data.jsonl\ncache: {cached.path}\nreferences:\n" + "\n".join(words) + "\n"
    )
    Path("recipe.yaml").write_text("max_steps: 2\nlearning_rate: 1e-3\nlogging_steps: 1\n")
    return tmp_path


ARGUMENTS = ["sweep", "recipe.yaml", "--refs", "llama,qwen", "--grid", "loss=dpo,mrpo"]


def sweep_with(steps: Steps, *, baselines: bool = False, jobs: int = 1, gpus=(), **changes):
    """The project's sweep of dpo and mrpo with one seed, by other steps."""
    project = load_project()
    words = load_recipe(Path("recipe.yaml")) | {"refs": ["llama", "qwen"]}
    planned = plan(words, parse_grid(["loss=dpo,mrpo"]), [0], baselines=baselines)
    work = Work(Path("runs/sweep"), Dataset(source=str(Path("data.jsonl").resolve())),
                Path(project.cache), project.references, "test")  # fmt: skip
    return sweep(planned, replace(work, **changes), jobs, steps, gpus=gpus)


def stamps(folder: Path = Path("runs")) -> dict[Path, int]:
    """When each file of the runs was written; tables are written anew every time."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.stem != "table")
    return {path: path.stat().st_mtime_ns for path in files}


def test_a_sweep_its_table_and_a_second_time(project, capsys):
    """Three methods and two seeds; again: nothing is trained, the same bytes."""
    assert run([*ARGUMENTS, "--seeds", "0..1"]) == 0
    printed = capsys.readouterr()
    assert "6 runs, 0 of them done already" in printed.err
    for method in ("`dpo llama` \\* | 2", "`dpo qwen` \\* | 2", "`mrpo` | 2"):
        assert method in printed.out
    output = Path("runs/sweep")
    tables = {path.name: path.read_bytes() for path in output.glob("table.*")}
    assert set(tables) == {"table.md", "table.tex", "table.csv", "table.json"}
    assert tables["table.md"].decode() == printed.out
    before = stamps()
    assert run([*ARGUMENTS, "--seeds", "0..1"]) == 0
    assert capsys.readouterr().out == printed.out
    assert stamps() == before
    assert {path.name: path.read_bytes() for path in output.glob("table.*")} == tables


def test_an_interrupted_sweep_goes_on(project):
    """Stopped in the second run: the first is kept, the second is finished."""
    calls = []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    with pytest.raises(KeyboardInterrupt):
        sweep_with(Steps(evaluate=interrupted))
    first = Path("runs/sweep/dpo-llama/seed-0")
    assert (first / "evaluation/test.json").exists()
    before = stamps(first)
    sweep_with(Steps(evaluate=interrupted))
    assert stamps(first) == before
    assert len(calls) == 3


def training_without(*losses: str) -> Steps:
    """Training that refuses some losses."""

    def refusing(recipe, *arguments, **words):
        if recipe.loss in losses:
            raise UsageError("no such thing")
        return train(recipe, *arguments, **words)

    return Steps(train=refusing)


def test_a_failure_keeps_nobody_from_the_others(project):
    """The first of two runs fails; tried again, it alone is made."""
    with pytest.raises(MrpoError, match="1 of 2 runs failed; the others are done") as raised:
        sweep_with(training_without("dpo"))
    assert raised.value.exit_code == 2
    assert "dpo-llama/seed-0: no such thing" in str(raised.value)
    other = Path("runs/sweep/mrpo/seed-0")
    assert (other / "evaluation/test.json").exists()
    before = stamps(other)
    assert [row.label for row in sweep_with(Steps()).rows] == ["dpo", "mrpo"]
    assert stamps(other) == before


def test_one_failing_run_leaves_a_table_of_the_others(project):
    with pytest.raises(MrpoError, match="mrpo/seed-0: no such thing"):
        sweep_with(training_without("mrpo"), baselines=True)
    rows = json.loads(Path("runs/sweep/table.json").read_text())["methods"]
    assert [row["method"] for row in rows] == ["dpo llama", "dpo qwen"]
    shutil.rmtree("runs")
    with pytest.raises(MrpoError, match="3 of 3 runs failed"):
        sweep_with(training_without("mrpo", "dpo"), baselines=True)


def test_other_data_or_models_in_the_same_place_are_refused(project, capsys):
    """Each difference is named, and nothing is trained; the same data and models are a table."""
    arguments = [*ARGUMENTS, "--seeds", "0", "--no-baselines"]
    assert run(arguments) == 0

    def refused(more: list[str], *words: str) -> None:
        before = stamps()
        capsys.readouterr()
        assert run([*arguments, *more]) == 2
        err = capsys.readouterr().err
        assert all(word in err for word in ("another --output", *words)), err
        assert stamps() == before

    refused(["--limit", "20"], "dataset was", "split hash was")
    record = Path("runs/sweep/mrpo/seed-0/run.json")
    whole = record.read_text()
    for key, other in (("references", ["llama@0123456789ab"]), ("policy_identity", "0" * 64)):
        record.write_text(json.dumps(json.loads(whole) | {key: other}))
        refused([], f"{key.replace('_', ' ')} was {other}")
    record.write_text(whole)
    shorter = "".join(Path("data.jsonl").read_text().splitlines(keepends=True)[:-2])
    for file, text, words in (
        ("data.jsonl", shorter, "split hash was"),
        ("recipe.yaml", "max_steps: 3\n", "holds a run of another recipe"),
    ):
        whole = Path(file).read_text()
        Path(file).write_text(text)
        refused([], words)
        Path(file).write_text(whole)
    assert run(arguments) == 0


def test_references_with_imported_numbers(project, capsys, cached):
    """A reference that came as numbers has no model to look for; it is one more reference."""
    shutil.copytree(cached.path, "cache")
    cache = Cache("cache")
    table = cache.find("qwen").table().select(list(LogpRow.__annotations__))
    rows = [LogpRow(**row) for row in table.to_pylist()]
    cache.store("far", imported_identity("elsewhere", None)).append(rows)
    words = Path("mrpo.yaml").read_text()
    Path("mrpo.yaml").write_text(words.replace(f"cache: {cached.path}", "cache: cache"))
    arguments = ["sweep", "recipe.yaml", "--refs", "llama,far", "--grid", "loss=mrpo"]
    assert run([*arguments, "--seeds", "0", "--no-baselines"]) == 0
    assert "far alone" in capsys.readouterr().out


def test_sigterm_reaches_every_process_and_the_sweep_goes_on(project):
    """Both runs are stopped in training: 75, the way to go on, a checkpoint each, no process."""
    Path("recipe.yaml").write_text("max_steps: 3000\neval_steps: 3\nsave_steps: 10000\n")
    command = [sys.executable, "-m", "mrpo_tools", *ARGUMENTS, "--seeds", "0", "--no-baselines"]
    process = subprocess.Popen([*command, "--jobs", "2"], stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    runs = [Path("runs/sweep/dpo-llama/seed-0"), Path("runs/sweep/mrpo/seed-0")]
    named = {"[dpo-llama/seed-0]", "[mrpo/seed-0]"}  # each line says whose it is
    with process:
        for line in process.stderr:
            if " step 3/" in line:
                named.remove(line.split()[0])
            if not named:
                process.send_signal(signal.SIGTERM)
                break
        errors = process.stderr.read()
    assert process.returncode == 75, errors
    assert "run the same command again; it goes on where it stopped" in errors
    for path in runs:
        assert list(path.glob("checkpoint-*"))
        assert not (path / "metrics.json").exists()


def from_hub(dataset: Dataset) -> Source:
    """The project's data as if they were a hub's, at one commit; says what it was asked for, and
    which GPU this process sees."""
    with Path("asked").open("a") as asked:
        print(dataset.source, os.environ.get("CUDA_VISIBLE_DEVICES"), file=asked)
    here = dataset.model_copy(update={"source": "data.jsonl"})
    return replace(load_dataset(here), revision="c0ffee")


def test_two_processes_give_the_same_numbers_from_the_commit_that_was_read_first(
    project, monkeypatch
):
    """A data set of the hub may change while a sweep runs for days. Each process sees one GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-a")
    alone = render(sweep_with(Steps()), "csv")
    there = {"output": Path("runs/two"), "dataset": Dataset(source="owner/pairs")}
    processes = {"jobs": 2, "gpus": ["3", "GPU-a"]}
    assert render(sweep_with(Steps(load=from_hub), **processes, **there), "csv") == alone
    first, *others = Path("asked").read_text().splitlines()
    assert first == "owner/pairs 3,GPU-a"
    assert others
    assert set(others) <= {"owner/pairs@c0ffee 3", "owner/pairs@c0ffee GPU-a"}
    record = json.loads(Path("runs/two/mrpo/seed-0/run.json").read_text())
    assert record["dataset"]["source"] == "owner/pairs@c0ffee"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--refs", "llama,ghost"], 3, "mrpo precompute --ref ghost"),
        (["--refs", "llama,qwen", "--split", "dev"], 2, "no group is in split 'dev'"),
    ],
)
def test_what_is_missing_is_told_before_training(project, capsys, words, code, message):
    assert run(["sweep", "recipe.yaml", *words]) == code
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


def test_seeds_that_redraw_the_split():
    """Each seed is the split's too; or the split is a key of the grid, in the runs' names."""
    planned = plan({"refs": REFS}, parse_grid(["loss=mrpo"]), [3, 4], redraw_split=True)
    assert {(run.recipe.seed, run.recipe.split_seed) for run in planned} == {(3, 3), (4, 4)}
    assert planned[-1].name == "mrpo/seed-4"
    of_grid = names({}, "loss=mrpo", "split_seed=0,1", baselines=False)
    assert {name: recipe.split_seed for name, recipe in of_grid.items()} == {
        "mrpo-split_seed=0": 0, "mrpo-split_seed=1": 1,
    }  # fmt: skip
    for words, grid in (({"split_seed": 1}, []), ({}, ["split_seed=0,1"])):
        with pytest.raises(UsageError, match="makes each seed the split_seed"):
            plan({"refs": REFS, **words}, parse_grid(grid), [0], redraw_split=True)


def test_a_sweep_over_draws_of_the_split(project, some_groups, capsys):
    """Each run trains and is measured on its own draw, as reading the data with that seed has it;
    they are one method; again, nothing is trained; `evaluate` measures the same prompts."""
    write_groups(Path("data.jsonl"), (group.with_split(None) for group in some_groups))
    arguments = ["sweep", "recipe.yaml", "--refs", "llama", "--grid", "loss=dpo", "--seeds", "0..1",
                 "--no-baselines", "--redraw-split", "--test-size", "0.4"]  # fmt: skip
    assert run(arguments) == 0
    assert "| `dpo` \\* | 2 |" in capsys.readouterr().out
    prompts = []
    for seed in range(2):
        path = Path(f"runs/sweep/dpo-llama/seed-{seed}")
        groups = load_groups("data.jsonl", test_size=0.4, seed=seed).groups
        held_out = sorted(group.group_id for group in groups if group.split == "test")
        record, evaluation = (
            json.loads((path / name).read_text()) for name in ("run.json", "evaluation/test.json")
        )
        assert evaluation["groups_hash"] == sha256("\n".join(held_out).encode()).hexdigest()
        assert record["dataset"]["split_seed"] == seed
        assert (
            record["data_hash"]
            == sha256("\n".join(sorted(group.group_id for group in groups)).encode()).hexdigest()
        )
        before = (path / "evaluation/test.json").read_bytes()
        assert run(["evaluate", str(path)]) == 0
        assert (path / "evaluation/test.json").read_bytes() == before
        prompts.append(held_out)
    assert prompts[0] != prompts[1]
    before = stamps()
    assert run(arguments) == 0
    assert stamps() == before


def test_data_with_splits_of_its_own_is_not_redrawn(project, capsys):
    for words in (
        ["sweep", "recipe.yaml", "--redraw-split"],
        ["train", "--refs", "llama", "--set", "split_seed=1", "--output", "runs/a"],
    ):
        assert run(words) == 2  # fmt: skip
        assert "data names its own splits" in capsys.readouterr().err
    words = ["train", "--refs", "llama", "--set", "split_seed=1", "--split-seed", "2"]
    assert run([*words, "--output", "runs/a"]) == 2
    assert "leave one of them out" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_groups_that_were_drawn_otherwise_are_not_trained_on(project, cached, tmp_path):
    recipe, groups = Recipe(refs=["llama"], split_seed=1), load_groups("data.jsonl").groups
    for dataset in (None, Dataset(source="data.jsonl", split_seed=2)):
        with pytest.raises(UsageError, match="split_seed is 1, the groups were"):
            train(recipe, groups, cached, {}, tmp_path / "run", dataset)


def test_dry_run(project, capsys):
    assert run([*ARGUMENTS, "--seeds", "0", "--dry-run"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert names == ["dpo-llama/seed-0", "dpo-qwen/seed-0", "mrpo/seed-0"]
    assert not Path("runs").exists()
