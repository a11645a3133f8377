"""A run's directory: records with and without a version, one notion of finished, one reader."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from made_up import made_up_run

from mrpo_tools.errors import UsageError
from mrpo_tools.files import finite, save_json
from mrpo_tools.report.references import ranking
from mrpo_tools.report.write import report
from mrpo_tools.runs.compare import compare
from mrpo_tools.runs.methods import by_method
from mrpo_tools.runs.read import numbers, read_history, read_results
from mrpo_tools.runs.record import CombinationWords, Estimate, EvaluationRecord, Metrics, RunRecord
from mrpo_tools.runs.run import Stage, load_run, project_of, read_run, stage_of
from mrpo_tools.sql.runs import run_datasets

OLDER = Path(__file__).parent / "fixtures" / "run_without_versions"
"""Of `mrpo demo`, written before records had a version; its log and paths are shortened."""
FILES = {"run.json": RunRecord, "metrics.json": Metrics, "evaluation/test.json": EvaluationRecord}


LATER = (
    "autocast", "max_prompt_length", "device_map", "max_memory", "stream_layers", "sweep_tokens",
    "server", "engine", "server_model", "served_quantization", "logprobs_mode", "calibration",
    "concurrency", "timeout",
)  # fmt: skip
"""Words of a reference that the older run did not know."""


@pytest.mark.parametrize("name", FILES)
def test_a_file_without_a_version_is_read_whole(name, tmp_path):
    """Every key is one that the record knows, and written again it gains the version alone."""
    record = FILES[name].read(OLDER / name)
    assert record.model_extra == {}
    record.write(tmp_path / "again.json")
    before = json.loads((OLDER / name).read_text())
    if name == "run.json":
        before["hyper"]["chosen"] = before["hyper"].pop("partition")  # as the recipe has it
        for words in (before["policy"], *before["models"].values()):
            words |= dict.fromkeys(LATER)
    if "dataset" in before:
        before["dataset"] |= {"skip_bad": False, "validation_size": 0.0, "keep_status": []}
    assert json.loads((tmp_path / "again.json").read_text()) == {"version": 1, **before}
    assert FILES[name].read(tmp_path / "again.json") == record


def test_an_older_run_serves_every_reader(tmp_path):
    """Numbers as its files have them, by the eye: table, page, SQL, and what it began with."""
    (result,) = read_results([OLDER])
    table = compare([result])
    assert table.rows[0].cells["accuracies_logp"].mean == pytest.approx(0.8655)
    untrained = {row.what: row.summed for row in table.untrained}
    assert untrained["mistral alone"] == pytest.approx(0.86933, abs=1e-5)
    (method,) = by_method([result])
    assert {row.name: (row.low, row.high) for row in ranking([method])}["always the longer"] == (
        pytest.approx((0.31916, 0.3785), abs=1e-5)
    )
    shutil.copytree(OLDER, tmp_path / "runs" / "older")
    assert tmp_path / "report.html" in report([tmp_path / "runs"], tmp_path)
    tables = run_datasets(tmp_path / "runs")
    (row,) = tables["stored_runs"].to_table().to_pylist()
    assert (row["run"], row["loss"], row["finished"]) == ("older", "mrpo", True)
    assert row["reference_names"][1] == "mistral@a4f641dcf3de"
    metrics = tables["stored_metrics"].to_table().to_pylist()
    by_name = {(metric["metric"], metric["step"]): metric["value"] for metric in metrics}
    assert by_name["evaluation.test.intervals.margins.0", None] == pytest.approx(0.0752476, 1e-6)
    assert by_name["train_loss", None] == pytest.approx(0.6155953, 1e-6)
    assert by_name["rewards/accuracies", 76] == pytest.approx(0.7291667, 1e-6)
    assert not {name for name, _ in by_name if "version" in name}
    assert list(project_of(OLDER).references) == ["llama", "mistral", "qwen"]
    assert read_run(OLDER).record.combination.epsilon_max == 0.1


@pytest.mark.parametrize("name", FILES)
def test_a_later_version_is_refused_with_its_name(name, tmp_path, capsys):
    path = Path(shutil.copytree(OLDER, tmp_path / "runs" / "later"))
    values = json.loads((path / name).read_text())
    (path / name).write_text(json.dumps({"version": 2, **values}))
    with pytest.raises(UsageError, match=f"{name} has version 2; this mrpo reads up to 1"):
        read_results([path])
    run_datasets(path)
    assert f"{path} is left out of the views" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", "{", r"run\.json cannot be read"),
        ("run.json", "[]", r"run\.json is no JSON object"),
        ("run.json", "{}", r"run\.json: policy: Field required"),
        ("run.json", '{"version": 0, "policy": {"model": "m"}}', "version"),
        ("metrics.json", '{"train_seconds": "long"}', r"metrics\.json: train_seconds"),
        ("evaluation/test.json", '{"intervals": {"margins": [1]}}', r"test\.json: intervals"),
        ("trainer_state.json", '{"log_history": [{"step": "first"}]}', "is no number"),
        ("trainer_state.json", '{"log_history": 7}', r"trainer_state\.json cannot be read"),
        ("recipe.yaml", "loss: [", r"recipe\.yaml cannot be read"),
    ],
)
def test_files_that_are_no_records(name, content, message, tmp_path):
    shutil.copytree(OLDER, tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        read_results([tmp_path / "run"])


def test_what_was_not_said_stays_unsaid():
    """Null where no group can say, no key where nothing was asked, other keys as they were."""
    record = EvaluationRecord.model_validate({"accuracies": math.nan, "margins": None, "mine": [1]})
    assert record.as_json() == {"version": 1, "accuracies": None, "margins": None, "mine": [1]}
    assert record.estimate("margins") == Estimate(None, None, None)
    assert record.estimate("top1") is None
    words = RunRecord.model_validate({"policy": {"model": "m"}}).as_json()
    assert set(words) == {"version", "policy"}
    assert words["policy"]["overlong"] == "skip"  # a part of a user's file is complete
    assert CombinationWords().epsilon_max is None


def test_estimates_have_the_intervals_of_their_own_metric():
    record = EvaluationRecord.model_validate({
        "references": ["a@1", "b@2"], "margins": 0.5, "top1": 0.25,
        "reference_accuracies": {"summed": [0.75, None]},
        "intervals": {"margins": (0.25, 1), "reference_accuracies": {"summed": [(0.5, 1), None]}},
    })  # fmt: skip
    assert record.estimate("margins") == Estimate(0.5, 0.25, 1.0)
    assert record.estimate("top1") == Estimate(0.25, None, None)
    assert record.references_alone() == [("a@1", Estimate(0.75, 0.5, 1.0)), ("b@2", Estimate())]


STAGES = {
    "no checkpoint": ([], Stage.BEGUN),
    "a checkpoint cut short": (["checkpoint-5/trainer_state.json"], Stage.BEGUN),
    "a checkpoint": (["checkpoint-5/seal.json"], Stage.INTERRUPTED),
    "weights without metrics": (
        ["checkpoint-5/seal.json", "adapter_model.safetensors"], Stage.INTERRUPTED,
    ),
    "metrics": (["metrics.json"], Stage.FINISHED),
}  # fmt: skip


@pytest.mark.parametrize("state", STAGES)
def test_every_reader_has_the_same_notion_of_finished(state, tmp_path):
    """The stage, the run, compare and SQL agree; only `metrics.json` makes a run finished."""
    files, stage = STAGES[state]
    path = tmp_path / "runs" / "r"
    for name in ("recipe.yaml", "run.json", *files):
        (path / name).parent.mkdir(exist_ok=True, parents=True)
        older = OLDER / name
        (path / name).write_bytes(older.read_bytes() if older.exists() else b"{}")
    assert stage_of(path) is stage
    finished = stage is Stage.FINISHED
    rows = run_datasets(tmp_path / "runs")["stored_runs"].to_table().to_pylist()
    assert [row["finished"] for row in rows] == [finished]
    assert read_run(path).finished is finished
    if finished:
        assert [result.path for result in read_results([tmp_path])] == [path]
    else:
        with pytest.raises(UsageError, match="no finished run"):
            read_results([tmp_path])
    reason = "has lost its weights" if finished else "has not finished training"
    with pytest.raises(UsageError, match=reason):
        load_run(path)


def test_a_place_that_is_no_run(tmp_path):
    assert stage_of(tmp_path) is Stage.EMPTY
    assert run_datasets(tmp_path)["stored_runs"].to_table().num_rows == 0
    (tmp_path / "other").write_text("mine")
    with pytest.raises(UsageError, match="is not empty and holds no run"):
        stage_of(tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        stage_of(tmp_path / "other")
    with pytest.raises(UsageError, match=r"holds no run: it has no recipe\.yaml and run\.json"):
        load_run(tmp_path)


def test_a_made_up_run_is_like_a_real_one(tmp_path):
    """Its records, of which other tests are made, have no key that the records do not know."""
    path = made_up_run(tmp_path / "run", "mrpo", ["llama", "qwen"], 0)
    for name, kind in FILES.items():
        assert kind.read(path / name).model_extra == {}


def test_numbers_of_nested_values():
    values = {"a": {"b": [1, {"c": True}, "2", None]}, "d": 0.5}
    assert dict(numbers(values)) == {"a.b.0": 1.0, "a.b.1.c": 1.0, "d": 0.5}


def test_the_log_without_its_steps(tmp_path):
    """A step is no measurement; an entry may have none."""
    entries = [{"step": 3, "loss": 1, "name": "x"}, {"loss": 0.5}]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": entries}))
    history = [(entry.step, entry.values) for entry in read_history(tmp_path)]
    assert history == [(3, {"loss": 1.0}), (None, {"loss": 0.5})]
    assert read_history(tmp_path / "nowhere") == []


def test_json_has_no_nan(tmp_path):
    save_json(tmp_path / "x.json", {"a": math.nan, "b": [1.0, math.inf], "c": ({"d": -math.inf},)})
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": None, "b": [1.0, None], "c": [{"d": None}],
    }  # fmt: skip
    assert finite({"x": 1, "y": "nan", "z": True}) == {"x": 1, "y": "nan", "z": True}
