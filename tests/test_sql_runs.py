"""The views of runs: what training and evaluation wrote, and what is left out."""

from __future__ import annotations

import json

import pytest
from sql_world import ask, make_run, one_column

from mrpo_tools.errors import UsageError
from mrpo_tools.sql import open_sql


def test_runs_and_metrics_are_read_from_directories(world, tmp_path, capsys):
    make_run(tmp_path / "b", train_loss=0.5, report={"weights": [0.25, 0.75], "name": "x"})
    make_run(tmp_path / "a")
    make_run(tmp_path / "sweep" / "dpo" / "seed-0", train_loss=0.25)
    history = [{"step": 10, "loss": 0.75}, {"step": 20, "loss": 0.5, "rewards/margins": 0.125}]
    state = {"global_step": 20, "log_history": history}
    (tmp_path / "b" / "trainer_state.json").write_text(json.dumps(state))
    (tmp_path / "b" / "evaluation").mkdir()
    (tmp_path / "b" / "evaluation" / "test.json").write_text('{"accuracies": 0.75, "ok": true}')
    (tmp_path / "c").mkdir()
    make_run(tmp_path / "d")
    (tmp_path / "d" / "run.json").write_text("{")
    with open_sql(world.cache.path, runs=tmp_path) as database:
        runs = database.query("SELECT * FROM runs ORDER BY run").to_pylist()
        rank = ask(database, "SELECT run, (recipe->>'lora_r')::INT FROM runs WHERE seed = 3")
        query = "SELECT run || ':' || metric, value FROM metrics WHERE step IS NULL"
        metrics = dict(ask(database, query))
        log = ask(database, "SELECT run, step, metric, value FROM metrics WHERE step > 0")
    assert [run["run"] for run in runs] == ["a", "b", "sweep/dpo/seed-0"]
    assert [run["finished"] for run in runs] == [False, True, True]
    assert log == [
        ("b", 10, "loss", 0.75), ("b", 20, "loss", 0.5), ("b", 20, "rewards/margins", 0.125),
    ]  # fmt: skip
    assert [runs[1][name] for name in ("loss", "objective", "dataset", "reference_names")] == [
        "mrpo", "dpo", "toy.jsonl", ["llama@0123456789ab", "qwen@ba9876543210"],
    ]  # fmt: skip
    assert sorted(rank) == [("a", 8), ("b", 8), ("sweep/dpo/seed-0", 8)]
    assert metrics == {
        "b:train_loss": 0.5,
        "b:report.weights.0": 0.25,
        "b:report.weights.1": 0.75,
        "b:evaluation.test.accuracies": 0.75,
        "b:evaluation.test.ok": 1.0,
        "sweep/dpo/seed-0:train_loss": 0.25,
    }
    assert f"{tmp_path / 'd'} is left out" in capsys.readouterr().err
    with open_sql(world.cache.path, runs=tmp_path / "b") as database:
        assert one_column(database, "SELECT run FROM runs") == ["b"]
    with pytest.raises(UsageError, match="no directory"):
        open_sql(world.cache.path, runs=tmp_path / "absent")


ODD = {
    "a number for a name": ("run.json", '{"objective": 5}'),
    "a text for a list": ("run.json", '{"references": "llama"}'),
    "lists of lists": ("run.json", '{"references": [["llama"]]}'),
    "a number for a policy": ("run.json", '{"policy": 7}'),
    "a list for a model": ("run.json", '{"policy": {"model": []}}'),
    "half a letter": ("run.json", '{"objective": "\\ud800"}'),
    "no object": ("run.json", "[]"),
    "depth": ("run.json", "[" * 100_000),
    "a number beyond floats": ("metrics.json", f'{{"train_loss": {"9" * 400}}}'),
    "a text for a step": ("trainer_state.json", '{"log_history": [{"step": "first", "loss": 1}]}'),
    "a number beyond integers": ("recipe.yaml", f"seed: {2**70}"),
    "no object of an evaluation": ("evaluation/test.json", "7"),
}


@pytest.mark.parametrize(("file", "content"), ODD.values(), ids=ODD)
def test_an_odd_run_is_left_out_and_told(world, tmp_path, capsys, file, content):
    make_run(tmp_path / "good", train_loss=0.5)
    make_run(tmp_path / "odd", train_loss=0.25)
    (tmp_path / "odd" / "evaluation").mkdir()
    (tmp_path / "odd" / file).write_text(content)
    with open_sql(world.cache.path, runs=tmp_path) as database:
        assert one_column(database, "SELECT run FROM runs") == ["good"]
        assert one_column(database, "SELECT DISTINCT run FROM metrics") == ["good"]
    err = capsys.readouterr().err
    assert err.startswith(f"warning: {tmp_path / 'odd'} is left out of the views")
    assert err.count("\n") == 1
