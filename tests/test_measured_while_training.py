"""What a recipe's `eval_steps` measures while a policy trains, and the clock that leaves it out."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import time
from dataclasses import replace
from functools import partial

import pytest
from trained import METRICS, NAMES, cut_short, log_of, recipe, weights_of
from transformers import TrainerCallback

from mrpo_tools.cache import Cache
from mrpo_tools.errors import CacheMissing, Preempted, UsageError
from mrpo_tools.evaluation.evaluate import evaluate
from mrpo_tools.precomputing.precompute import precompute
from mrpo_tools.runs.checkpoints import seal
from mrpo_tools.runs.run import load_run
from mrpo_tools.training.train import _mean_loss, train

recipe = partial(recipe, split="train", max_steps=5)


def judged(group, score: float | None):
    """The group with one score for all of its responses."""
    responses = (replace(response, score=score) for response in group.responses)
    return replace(group, responses=tuple(responses))


@pytest.fixture(scope="module")
def halves(some_groups):
    """The same groups, some to test on and some to weigh by; the first of all is tied."""
    groups = [judged(some_groups[0], 1.0), *some_groups[1:]]
    return [
        group.with_split("test" if place % 3 == 0 else "validation" if place % 9 == 1 else "train")
        for place, group in enumerate(groups)
    ]


@pytest.fixture(scope="module")
def fit(references, halves, cached):
    """`train` on the halves, unless a test gives it something else."""
    return partial(train, groups=halves, cache=cached, references=references)


def evaluated(run) -> dict[int, dict]:
    entries = [entry for entry in log_of(run) if "eval_loss" in entry]
    by_step = {entry["step"]: entry for entry in entries}
    assert len(by_step) == len(entries), "a step was measured twice"
    return by_step


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
def test_the_last_measurement_is_that_of_evaluate(words, fit, halves, cached, tmp_path):
    """At step 0 the policy is reference 1; at the end the numbers are `mrpo evaluate`'s own."""
    run = tmp_path / "run"
    result = fit(recipe(eval_steps=2, **words), output=run)
    entries = evaluated(run)
    assert list(entries) == [0, 2, 4, 5]
    evaluation = evaluate(load_run(run), halves, cached, "test").record.as_json()
    for name in ("accuracies", "margins"):
        first, last = (entries[step][f"eval_rewards/{name}"] for step in (0, 5))
        assert last == pytest.approx(evaluation[name], abs=1e-5)
        assert first == pytest.approx(evaluation[f"{name}_step0"], abs=1e-5)
    assert result.metrics.last_evaluation["eval_loss"] == entries[5]["eval_loss"]
    if words.get("loss") == "dpo":  # the tied group has no loss, and does not count
        assert entries[0]["eval_loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_ties_before_the_first_step_are_told_as_ties(fit, tmp_path, capsys):
    """DPO's policy is its reference then: no accuracy of 0, and a number once it has moved."""
    fit(recipe(eval_steps=5, loss="dpo", refs=["llama"]), output=tmp_path / "run")
    lines = [line for line in capsys.readouterr().err.splitlines() if "split test: loss" in line]
    assert lines[0].startswith("step 0/5")
    assert lines[0].endswith("accuracy – (every pair is tied)")
    assert re.search(r"accuracy \d\.\d{3}", lines[1])


def test_measuring_changes_nothing(fit, tmp_path):
    """Equal weights and equal logs of training, bit for bit, with it and without."""
    plain = fit(recipe(), output=tmp_path / "plain").path
    measured = fit(recipe(eval_steps=1), output=tmp_path / "measured").path
    before, after = weights_of(plain), weights_of(measured)
    assert all((before[name] == after[name]).all() for name in before)
    logs = [[(entry["loss"], entry["rewards/margins"]) for entry in log_of(run) if "loss" in entry]
            for run in (plain, measured)]  # fmt: skip
    assert logs[0] == logs[1]
    assert not evaluated(plain)


def test_a_resumed_run_measures_and_counts_on(fit, tmp_path):
    """The checkpoint's clock goes on; step 0 is not measured twice; the end is that of one run."""
    whole = fit(recipe(eval_steps=2), output=tmp_path / "whole").metrics
    run, words = tmp_path / "parts", recipe(eval_steps=2, save_steps=2)
    fit(words, output=run)
    cut_short(run, METRICS, "checkpoint-5/seal.json")
    file = run / "checkpoint-4" / "trainer_state.json"
    state = json.loads(file.read_text())
    state["stateful_callbacks"]["Clock"]["attributes"]["seconds"] = 1000.0
    file.write_text(json.dumps(state))
    seal(file.parent)
    with pytest.raises(UsageError, match="eval_steps was 2, is now 1"):
        fit(words.model_copy(update={"eval_steps": 1}), output=run, resume=True)
    resumed = fit(words, output=run, resume=True).metrics
    assert list(evaluated(run)) == [0, 2, 4, 5]
    assert 1000 < resumed.train_seconds < 1000 + resumed.total_seconds
    assert resumed.train_loss == pytest.approx(whole.train_loss, abs=1e-6)
    for key in ("eval_loss", "eval_rewards/margins"):
        expected = pytest.approx(whole.last_evaluation[key], abs=1e-6)
        assert resumed.last_evaluation[key] == expected


def test_a_checkpoint_between_log_entries_loses_none_of_the_log(fit, tmp_path):
    """Entries and mean loss of a run that was stopped and resumed are those of one that was not."""
    words, run = recipe(max_steps=6, logging_steps=5, save_steps=2), tmp_path / "run"
    whole = fit(words, output=run)
    log = [(entry["step"], entry.get("loss")) for entry in log_of(run)]
    assert [step for step, _ in log] == [1, 2, 4, 5, 6]  # and no closing entry
    cut_short(run, METRICS, "checkpoint-6/seal.json")
    result = fit(words, output=run, resume=True)
    assert result.metrics.train_loss == whole.metrics.train_loss
    assert [(entry["step"], entry.get("loss")) for entry in log_of(run)] == log


class AtEachBatch(TrainerCallback):
    """Does something whenever a batch was measured."""

    def __init__(self, what) -> None:
        self.what, self.batches = what, 0

    def on_prediction_step(self, args, state, control, **_):
        self.batches += 1
        self.what(self.batches)


def test_a_signal_ends_measuring_and_the_checkpoint_comes_first(fit, tmp_path):
    """Told to stop in the second measurement: it ends, nothing half is logged, then one step and a
    checkpoint without another measurement; the resumed run ends as ever."""
    third = AtEachBatch(lambda batch: batch == 3 and os.kill(os.getpid(), signal.SIGTERM))
    words, run = recipe(eval_steps=2, batch_tokens=300), tmp_path / "run"
    with pytest.raises(Preempted):
        fit(words, output=run, callbacks=[third])
    assert third.batches == 3
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-3"]
    fit(words, output=run, resume=True)
    fit(words, output=tmp_path / "whole")
    assert evaluated(run)[5] == evaluated(tmp_path / "whole")[5]


def test_groups_without_a_judgement_are_left_out(fit, halves, cached, tmp_path):
    """In either split: they say nothing, and keep nothing from being trained or measured."""
    silent = [judged(group, None) if place in (3, 4) else group
              for place, group in enumerate(halves)]  # fmt: skip
    assert {silent[3].split, silent[4].split} == {"train", "test"}
    result = fit(recipe(eval_steps=5), groups=silent, output=tmp_path / "run")
    assert result.metrics.skipped_groups
    assert evaluate(load_run(result.path), silent, cached, "test").record.groups_without_pairs >= 2


def test_a_split_that_cannot_be_measured_is_told(fit, halves, tmp_path, capsys):
    tied = [group if group.split == "train" else judged(group, 1.0) for group in halves]
    fit(recipe(eval_steps=5), groups=tied, output=tmp_path / "run")
    err = capsys.readouterr().err
    assert "warning: mrpo can measure no group of split test" in err
    assert "/5  \n" not in err


def test_the_clock_leaves_measuring_out(fit, tmp_path):
    """A measurement that takes a second is in the whole time, not in that of training."""
    slow = AtEachBatch(lambda batch: time.sleep(0.2))
    words = recipe(max_steps=1, eval_steps=1, batch_tokens=100)
    metrics = fit(words, output=tmp_path / "run", callbacks=[slow]).metrics
    assert metrics.total_seconds > 2
    assert metrics.train_seconds < 1


def test_the_mean_loss_weighs_the_steps_of_each_entry():
    entries = [{"loss": 1.0, "step": 1}, {"eval_loss": 9.0, "step": 1}, {"loss": 4.0, "step": 3}]
    assert _mean_loss(entries) == pytest.approx((1 + 4 + 4) / 3)
    assert _mean_loss([{"train_runtime": 1.0, "step": 3}]) is None


def test_numbers_that_are_not_there_are_told_before_anything_is_written(
    fit, references, halves, tmp_path
):
    """The references have scored the training split alone."""
    cache, run = Cache(tmp_path / "cache"), tmp_path / "run"
    training = [group for group in halves if group.split == "train"]
    precompute({"llama": references["llama"]}, training, cache, "some")
    words = {"loss": "dpo", "refs": ["llama"], "eval_steps": 2}
    with pytest.raises(CacheMissing, match="'llama' has log-probs for 0 of") as error:
        fit(recipe(**words), cache=cache, output=run)
    assert "mrpo precompute --ref llama" in error.value.hint
    with pytest.raises(UsageError, match="no group is in split 'dev'"):
        fit(recipe(**words, eval_split="dev"), cache=cache, output=run)
    assert not run.exists()
