"""What a recipe's `eval_steps` measures while a policy trains, and the clock that leaves it out."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from dataclasses import replace

import pytest
from safetensors.torch import load_file
from transformers import TrainerCallback

from mrpo_tools.cache import Cache
from mrpo_tools.config import Recipe
from mrpo_tools.errors import CacheMissing, Preempted, UsageError
from mrpo_tools.evaluation.evaluate import evaluate
from mrpo_tools.precomputing.precompute import precompute
from mrpo_tools.runs.run import load_run
from mrpo_tools.training.train import _mean_loss, train

NAMES = ["llama", "mistral", "qwen"]


@pytest.fixture(scope="module")
def halves(some_groups):
    """The same groups, every third one to test on; the first of these is tied."""
    tied = replace(
        some_groups[0],
        responses=tuple(replace(one, score=1.0) for one in some_groups[0].responses),
    )
    return [
        replace(group, split="test" if place % 3 == 0 else "train")
        for place, group in enumerate([tied, *some_groups[1:]])
    ]


def recipe(**words) -> Recipe:
    base = {
        "loss": "mrpo",
        "refs": NAMES,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": 5,
        "logging_steps": 1,
    }
    return Recipe(**{**base, **words})


def history(run) -> list[dict]:
    return json.loads((run / "trainer_state.json").read_text())["log_history"]


def evaluated(run) -> dict[int, dict]:
    entries = [entry for entry in history(run) if "eval_loss" in entry]
    found = {entry["step"]: entry for entry in entries}
    assert len(found) == len(entries), "a step was measured twice"
    return found


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"weights": "accuracy", "refs": NAMES[:2]},
        {"loss": "mpo", "chosen": "top_bottom"},
        {"loss": "dpo", "refs": ["llama"], "pairing": "all"},
    ],
    ids=["mrpo", "accuracy", "mpo", "dpo"],
)
def test_the_last_measurement_is_that_of_evaluate(words, references, halves, cached, tmp_path):
    """At step 0 the policy is reference 1; at the end the numbers are `mrpo evaluate`'s own."""
    run = tmp_path / "run"
    result = train(recipe(eval_steps=2, **words), halves, cached, references, run)
    found = evaluated(run)
    assert list(found) == [0, 2, 4, 5]
    evaluation = evaluate(load_run(run), halves, cached, "test").record.as_json()
    for name, key in (("accuracies", "rewards/accuracies"), ("margins", "rewards/margins")):
        assert found[5][f"eval_{key}"] == pytest.approx(evaluation[name], abs=1e-5)
        assert found[0][f"eval_{key}"] == pytest.approx(evaluation[f"{name}_step0"], abs=1e-5)
    assert result.metrics.last_evaluation["eval_loss"] == found[5]["eval_loss"]
    if words.get("loss") == "dpo":  # the tied group has no loss, and does not count
        assert found[0]["eval_loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_measuring_changes_nothing(references, halves, cached, tmp_path):
    """Equal weights and equal logs of training, bit for bit, with it and without."""
    train(recipe(), halves, cached, references, tmp_path / "plain")
    train(recipe(eval_steps=1), halves, cached, references, tmp_path / "measured")
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors")
                  for name in ("plain", "measured"))  # fmt: skip
    assert all((one[name] == other[name]).all() for name in one)
    logs = [[(e["loss"], e["rewards/margins"]) for e in history(tmp_path / name) if "loss" in e]
            for name in ("plain", "measured")]  # fmt: skip
    assert logs[0] == logs[1]
    assert not evaluated(tmp_path / "plain")


def test_a_resumed_run_measures_and_counts_on(references, halves, cached, tmp_path):
    """The checkpoint's clock goes on; step 0 is not measured twice; the end is that of one run."""
    whole = train(recipe(eval_steps=2), halves, cached, references, tmp_path / "whole")
    run = tmp_path / "parts"
    train(recipe(eval_steps=2, save_steps=2), halves, cached, references, run)
    for path in (run / "metrics.json", run / "checkpoint-5" / "trainer_state.json"):
        path.unlink()
    state = run / "checkpoint-4" / "trainer_state.json"
    kept = json.loads(state.read_text())
    kept["stateful_callbacks"]["Clock"]["attributes"]["seconds"] = 1000.0
    state.write_text(json.dumps(kept))
    with pytest.raises(UsageError, match="eval_steps was 2, is now 1"):
        train(recipe(eval_steps=1, save_steps=2), halves, cached, references, run, resume=True)
    result = train(recipe(eval_steps=2, save_steps=2), halves, cached, references, run, resume=True)
    assert list(evaluated(run)) == [0, 2, 4, 5]
    assert 1000 < result.metrics.train_seconds < 1000 + result.metrics.total_seconds
    assert result.metrics.train_loss == pytest.approx(whole.metrics.train_loss, abs=1e-6)
    for key in ("eval_loss", "eval_rewards/margins"):
        after, before = (one.metrics.last_evaluation[key] for one in (result, whole))
        assert after == pytest.approx(before, abs=1e-6)


def test_a_checkpoint_between_log_entries_loses_none_of_the_log(
    references, halves, cached, tmp_path
):
    """Entries and mean loss of a run that was stopped and resumed are those of one that was not."""
    words = recipe(max_steps=6, logging_steps=5, save_steps=2)
    whole = train(words, halves, cached, references, tmp_path / "whole")
    run = tmp_path / "parts"
    train(words, halves, cached, references, run)
    for path in (run / "metrics.json", run / "checkpoint-6" / "trainer_state.json"):
        path.unlink()
    result = train(words, halves, cached, references, run, resume=True)
    assert result.metrics.train_loss == whole.metrics.train_loss
    logs = [[(one["step"], one.get("loss")) for one in history(tmp_path / name)]
            for name in ("whole", "parts")]  # fmt: skip
    assert logs[0] == logs[1]
    assert [step for step, _ in logs[0]] == [1, 2, 4, 5, 6]  # and no closing entry


class AtEachBatch(TrainerCallback):
    """Does something whenever a batch was measured."""

    def __init__(self, what) -> None:
        self.what, self.batches = what, 0

    def on_prediction_step(self, args, state, control, **_):
        self.batches += 1
        self.what(self.batches)


def test_a_signal_ends_measuring_and_the_checkpoint_comes_first(
    references, halves, cached, tmp_path
):
    """Told to stop in the second measurement: it ends, nothing half is logged, then one step and a
    checkpoint without another measurement; the resumed run ends as ever."""
    third = AtEachBatch(lambda batch: batch == 3 and os.kill(os.getpid(), signal.SIGTERM))
    words, run = recipe(eval_steps=2, batch_tokens=600), tmp_path / "run"
    with pytest.raises(Preempted):
        train(words, halves, cached, references, run, callbacks=[third])
    assert third.batches == 3
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-3"]
    train(words, halves, cached, references, run, resume=True)
    train(words, halves, cached, references, tmp_path / "whole")
    assert evaluated(run)[5] == evaluated(tmp_path / "whole")[5]


def test_groups_without_a_judgement_are_left_out(references, halves, cached, tmp_path, capsys):
    """In either split: they say nothing, and keep nothing from being trained or measured."""
    silent = [
        replace(group, responses=tuple(replace(one, score=None) for one in group.responses))
        if place in (3, 4) else group
        for place, group in enumerate(halves)
    ]  # fmt: skip
    assert {silent[3].split, silent[4].split} == {"train", "test"}
    run = tmp_path / "run"
    result = train(recipe(eval_steps=5), silent, cached, references, run)
    assert result.metrics.skipped_groups
    assert evaluate(load_run(run), silent, cached, "test").record.groups_without_pairs >= 2


def test_a_split_that_cannot_be_measured_is_told(references, halves, cached, tmp_path, capsys):
    tied = [
        group if group.split == "train"
        else replace(group, responses=tuple(replace(r, score=1.0) for r in group.responses))
        for group in halves
    ]  # fmt: skip
    train(recipe(eval_steps=5), tied, cached, references, tmp_path / "run")
    err = capsys.readouterr().err
    assert "warning: mrpo can measure no group of split test" in err
    assert "/5  \n" not in err


def test_the_clock_leaves_measuring_out(references, halves, cached, tmp_path):
    """A measurement that takes a second is in the whole time, not in that of training."""
    slow = AtEachBatch(lambda batch: time.sleep(0.2))
    words = recipe(max_steps=1, eval_steps=1, batch_tokens=100)
    run = tmp_path / "run"
    metrics = train(words, halves, cached, references, run, callbacks=[slow]).metrics
    assert metrics.total_seconds > 2
    assert metrics.train_seconds < 1


def test_the_mean_loss_weighs_the_steps_of_each_entry():
    entries = [{"loss": 1.0, "step": 1}, {"eval_loss": 9.0, "step": 1}, {"loss": 4.0, "step": 3}]
    assert _mean_loss(entries) == pytest.approx((1 + 4 + 4) / 3)
    assert _mean_loss([{"train_runtime": 1.0, "step": 3}]) is None


def test_numbers_that_are_not_there_are_told_before_anything_is_written(
    references, halves, tmp_path
):
    """The references have scored the training split alone."""
    cache = Cache(tmp_path / "cache")
    precompute({"llama": references["llama"]}, [g for g in halves if g.split == "train"], cache,
               "some")  # fmt: skip
    words = {"loss": "dpo", "refs": ["llama"], "eval_steps": 2}
    with pytest.raises(CacheMissing, match="'llama' has log-probs for 0 of") as error:
        train(recipe(**words), halves, cache, references, tmp_path / "run")
    assert "mrpo precompute --ref llama" in error.value.hint
    with pytest.raises(UsageError, match="no group is in split 'dev'"):
        train(recipe(**words, eval_split="dev"), halves, cache, references, tmp_path / "run")
    assert not (tmp_path / "run").exists()
