"""`mrpo demo` with shortened training: every step runs, and the table's numbers are true."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from mrpo_tools.cli import run
from mrpo_tools.config import Reference
from mrpo_tools.demo import demo, tasks
from mrpo_tools.groups import in_split
from mrpo_tools.sources import load_groups


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One short demo."""
    folder = tmp_path_factory.mktemp("demo") / "here"
    recipe = demo.RECIPE.replace("num_train_epochs: 2", "max_steps: 4")
    demo.demo(folder, run, recipe=recipe, model_steps=60)
    return folder


def results_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def test_the_table_is_complete_and_true(made, capsys):
    """Again in the same directory: nothing is trained or scored anew, and the same table comes."""
    times = {path: path.stat().st_mtime for path in made.rglob("*.safetensors")}
    before = results_of(made)
    assert run(["demo", str(made)]) == 0
    out = capsys.readouterr().out
    assert {path: path.stat().st_mtime for path in made.rglob("*.safetensors")} == times
    assert results_of(made)["rows"] == before["rows"]
    for row in before["rows"]:
        line = next(line for line in out.splitlines() if line.startswith(f"{row['method']} "))
        numbers = re.findall(r"-?\d+\.\d+", line)
        printed = [row["accuracies"], row["accuracies_step0"], row["accuracies_reference_1"],
                 row["accuracies_logp"], row["right_before"], row["right_after"]]  # fmt: skip
        values = [f"{value:.3f}" for value in printed if value is not None]
        assert numbers[: len(values)] == values
        assert ("–" in line) == (row["accuracies_step0"] is None) == (row["method"] == "dpo")
        assert row["train_seconds"] > 0
        assert row["peak_memory_mb"] > 100
    assert [row["method"] for row in before["rows"]] == ["dpo", "mrpo", "mpo"]
    assert set(before["baselines"]) == {
        "llama alone", "mistral alone", "qwen alone", "always the longer (a tie counts 0)",
    }  # fmt: skip


def test_the_baselines_are_those_of_the_data(made):
    """Always the longer, by a plain loop over the test split; a tie counts 0."""
    shares = []
    for group in in_split(load_groups(made / "demo.jsonl").groups, "test"):
        shares.append(fmean(
            len(a.content.encode()) > len(b.content.encode())
            for a in group.responses for b in group.responses if a.score > b.score
        ))  # fmt: skip
    assert results_of(made)["baselines"][demo.LONGER] == pytest.approx(fmean(shares))


def test_right_answers_are_counted_by_the_rule(made):
    """Greedy answers one prompt at a time, without padding, judged by the rule."""
    import torch
    from transformers import AutoModelForCausalLM

    from mrpo_tools.references.resolved import renderer_of, resolve

    path = made / "models" / "llama"
    renderer = renderer_of(resolve("llama", Reference(model=str(path), dtype="float32")))
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    test = in_split(load_groups(made / "demo.jsonl").groups, "test")
    right = 0
    for group in test:
        ids = torch.tensor([renderer.encode_prompt(group.prompt)])
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
            max_new_tokens=demo.MAX_NEW_TOKENS, pad_token_id=0,
        )  # fmt: skip
        text = renderer.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        right += tasks.is_right([turn.as_dict() for turn in group.prompt], text.strip())
    share = results_of(made)["rows"][0]["right_before"]
    assert share == pytest.approx(right / len(test), abs=0.011)


def test_another_directory_is_left_alone(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert run(["demo", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
