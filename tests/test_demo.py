"""`mrpo demo` with shortened training: every step runs, and the table's numbers are true."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from mrpo_tools.cli import run
from mrpo_tools.demo import demo, tasks


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One short demo."""
    folder = tmp_path_factory.mktemp("demo") / "here"
    recipe = demo.RECIPE.partition("eval_steps")[0].replace("num_train_epochs: 2", "max_steps: 1")
    demo.demo(folder, run, recipe=recipe, model_steps=60)
    return folder


def results_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def test_the_table_is_complete_and_true(made, capsys):
    """Again in the same directory: nothing is trained or scored anew, and the same table comes."""
    times = {path: path.stat().st_mtime for path in made.rglob("*.safetensors")}
    before = results_of(made)
    assert run(["demo", str(made)]) == 0
    table = capsys.readouterr().out.rpartition("On the test split")[2].splitlines()
    assert {path: path.stat().st_mtime for path in made.rglob("*.safetensors")} == times
    rows = results_of(made)["rows"]
    assert rows == before["rows"]
    named = [(row["method"], row["references"]) for row in rows]
    assert named == [
        ("untrained", "llama"), ("dpo", "llama"), ("dpo", "mistral"), ("dpo", "qwen"),
        ("mrpo", "llama,mistral,qwen"), ("mrpo", "llama,placebo_a,placebo_b"),
        ("mpo", "llama,mistral,qwen"),
    ]  # fmt: skip
    for row in rows:
        line = next(
            line for line in table if line.split()[:2] == [row["method"], row["references"]]
        )
        marks = row["marks"]
        assert re.findall(r"-?\d+\.\d+", line)[:5] == [
            f"{marks['value']:.2f}", f"{marks['low']:.2f}", f"{marks['high']:.2f}",
            f"{row['right_content']:.3f}", f"{row['right_form']:.3f}",
        ]  # fmt: skip
        assert row["kl_nats"] == 0 if row["method"] == "untrained" else row["kl_nats"] != 0
        assert (row["clipped"] is None) == ("," not in row["references"])


def test_marks_and_shares_are_those_of_the_answers(made):
    """From the answers that the run kept, by the rule, one prompt at a time."""
    for row, name in zip(results_of(made)["rows"][1:], demo.RUNS, strict=True):
        lines = (made / "runs" / name / "outcomes" / "test.answers.jsonl").read_text().splitlines()
        sampled = [
            (group["prompt"], answer["content"])
            for group in map(json.loads, lines)
            for answer in group["responses"]
            if (answer["model"], answer["decoding"]) == ("trained", "sampled")
        ]
        assert len(sampled) == 4 * 200
        scores = [tasks.score(*each) for each in sampled]
        assert row["marks"]["value"] == pytest.approx(fmean(scores))
        right = fmean(tasks.content(*each) == 1 for each in sampled)
        assert row["right_content"] == pytest.approx(right)
        assert row["right_form"] == pytest.approx(fmean(tasks.form(*each) for each in sampled))


def test_a_placebo_has_its_models_numbers_in_other_places(made):
    """The same numbers as often, so the same spread; few where they were."""
    for placebo, model in demo.PLACEBOS.items():
        query = f"SELECT response_id, logp FROM logps WHERE reference = '{model}'"
        assert (
            run(["sql", query, "-o", str(made / "own.jsonl"), "--cache", str(made / "cache")]) == 0
        )
        own, dealt = (
            {
                row["response_id"]: row["logp"]
                for row in map(json.loads, path.read_text().splitlines())
            }
            for path in (made / "own.jsonl", made / f"{placebo}.jsonl")
        )
        assert own.keys() == dealt.keys()
        assert Counter(own.values()) == Counter(dealt.values())
        assert fmean(own[key] == dealt[key] for key in own) < 0.05


def test_another_directory_is_left_alone(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert run(["demo", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
