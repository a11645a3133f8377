"""What a recipe passes on to transformers' Trainer and to peft."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trained import ADAPTER, cut_short, log_of, recipe, weights_of

from mrpo_tools.config import Recipe, parse
from mrpo_tools.errors import UsageError
from mrpo_tools.evaluation.evaluate import evaluate
from mrpo_tools.runs.run import load_run
from mrpo_tools.training.arguments import trainer_words, training_arguments
from mrpo_tools.training.train import train

LLAMA = {"loss": "dpo", "refs": ["llama"]}
MEASURED = {**LLAMA, "max_steps": 5, "eval_steps": 1, "eval_split": "all", "save_steps": 1}


@pytest.fixture(scope="module")
def fit(references, some_groups, cached):
    return partial(train, groups=some_groups, cache=cached, references=references)


def test_any_other_key_reaches_the_trainer(tmp_path):
    words = {
        "optim": "adafactor", "adam_beta2": "0.95", "warmup_steps": 3, "logging_first_step": False,
        "lr_scheduler_kwargs": {"num_cycles": 1}, "dataloader_num_workers": 0,
    }  # fmt: skip
    arguments = training_arguments(recipe(trainer=words), tmp_path)
    assert (arguments.optim, arguments.adam_beta2, arguments.warmup_steps) == ("adafactor", 0.95, 3)
    assert (arguments.logging_first_step, arguments.lr_scheduler_kwargs) == (
        False, {"num_cycles": 1},
    )  # fmt: skip
    assert arguments.report_to == []


def test_what_the_recipe_says_wins_and_is_told(tmp_path, capsys):
    words = {"learning_rate": 5.0, "bf16": True, "eval_strategy": "epoch", "warmup_steps": 9}
    made = training_arguments(recipe(trainer=words, warmup_ratio=0.1), tmp_path)
    plain = training_arguments(recipe(warmup_ratio=0.1), tmp_path)
    err = capsys.readouterr().err
    differing = {key for key, value in plain.to_dict().items() if made.to_dict()[key] != value}
    assert differing <= {"logging_dir"}
    assert "trainer.learning_rate is left out: learning_rate sets it" in err
    assert "trainer.bf16 is left out: dtype and autocast sets it" in err
    assert "trainer.eval_strategy is left out: eval_steps sets it" in err
    assert "trainer.warmup_steps is left out: warmup_ratio sets it" in err


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        ({"optimm": "sgd"}, ["trainer.optimm: transformers' TrainingArguments has no such key"]),
        ({"adam_beta1": "high"}, ["trainer.adam_beta1: Input should be a valid number"]),
        ({"neftune_noise_alpha": 5}, ["noise in the embeddings"]),
        ({"tf32": True, "optimm": 1}, ["arithmetic would not be that", "no such key"]),
        ({"hub_token": "hf_x"}, ["set HF_TOKEN in the environment"]),
        ({"report_to": "tensorbord"}, ["no logger is named 'tensorbord'"]),
        ({"report_to": ["mlflow"]}, ["mlflow is not installed"]),
    ],
)
def test_what_cannot_be_meant_is_refused_together(words, messages):
    with pytest.raises(UsageError) as error:
        trainer_words(recipe(trainer=words))
    assert all(message in error.value.what for message in messages)


def test_words_that_do_not_go_together(tmp_path):
    """The Trainer's own complaint, in a line; and a name that nothing measures, at step 0."""
    with pytest.raises(UsageError, match="trainer: --load_best_model_at_end requires"):
        training_arguments(recipe(trainer={"load_best_model_at_end": True}), tmp_path)
    with pytest.raises(UsageError, match="early_stopping_patience needs eval_steps"):
        parse(Recipe, {"early_stopping_patience": 2}, "recipe")
    for value in ("pissa", "pissa_niter_4", False):
        with pytest.raises(UsageError, match="no longer be reference 1"):
            parse(Recipe, {"init_lora_weights": value}, "recipe")


def test_a_metric_that_is_not_measured(fit, tmp_path):
    words = recipe(**MEASURED, trainer={"metric_for_best_model": "rewards/margin"})
    with pytest.raises(UsageError, match="is not measured; there are: logps/chosen, ") as error:
        fit(words, output=tmp_path / "run")
    assert error.value.hint.startswith("did you mean rewards/margins")
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_tensorboard_holds_the_log(fit, tmp_path, monkeypatch):
    """Every number of the log, at its step, under TRL's names; weights and clipping beside."""
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    words = recipe(
        max_steps=3, eval_steps=1, eval_split="all", trainer={"report_to": "tensorboard"}
    )
    run = fit(words, output=tmp_path / "run").path
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    read = {
        (tag, event.step): event.value
        for tag in board.Tags()["scalars"]
        for event in board.Scalars(tag)
    }
    names = {"rewards/chosen", "rewards/margins", "logps/rejected", "references/qwen/weight",
             "references/clipped_fraction", "loss", "learning_rate"}  # fmt: skip
    for entry in log_of(run):
        for name, value in entry.items():
            if name.startswith("eval_"):
                tag = f"eval/{name.removeprefix('eval_')}"
            elif name in names:
                tag = f"train/{name}"
            else:
                continue
            assert read[tag, entry["step"]] == pytest.approx(value, rel=1e-6)
            names.discard(name)
    assert not names


def _best(run: Path, name: str, pick=min) -> int:
    """The step that measured best after the first."""
    values = {entry["step"]: entry[name] for entry in log_of(run) if name in entry}
    return pick([step for step in values if step], key=values.get)


def test_the_best_measured_policy_is_the_run(fit, tmp_path):
    """Margins fall from 0 at every step under a wrong sign of "best": the first is the best. It
    stays though one checkpoint is kept, and the run's adapter is its byte for byte."""
    words = recipe(
        **MEASURED, save_total_limit=1,
        trainer={"load_best_model_at_end": True, "metric_for_best_model": "rewards/margins",
                 "greater_is_better": False},
    )  # fmt: skip
    run = fit(words, output=tmp_path / "run").path
    best = _best(run, "eval_rewards/margins")
    assert best == 1, "margins grow with every step"
    assert {path.name for path in run.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-5"}
    adapters = {path.parent.name: path.read_bytes() for path in run.glob(f"*/{ADAPTER}")}
    assert (run / ADAPTER).read_bytes() == adapters["checkpoint-1"] != adapters["checkpoint-5"]
    cut_short(run, "metrics.json", ADAPTER)
    fit(words, output=run, resume=True)
    assert (run / ADAPTER).read_bytes() == adapters["checkpoint-1"], "resumed after its last step"


def test_a_run_without_gain_stops_and_a_resumed_one_stops_where_it_would_have(fit, tmp_path):
    words = recipe(
        **{**MEASURED, "max_steps": 6}, early_stopping_patience=3,
        trainer={"metric_for_best_model": "rewards/margins", "greater_is_better": False},
    )  # fmt: skip
    run = fit(words, output=tmp_path / "run").path
    assert log_of(run)[-1]["step"] == 4, "the first is the best, and three without a better one"
    adapter = (run / ADAPTER).read_bytes()
    cut_short(run, "metrics.json", ADAPTER, "checkpoint-4")
    for checkpoint in run.glob("checkpoint-[!3]"):
        shutil.rmtree(checkpoint)
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-3"]
    result = fit(words, output=run, resume=True)
    assert (result.metrics.steps, (run / ADAPTER).read_bytes()) == (4, adapter)


def test_settings_of_the_adapter(fit, tmp_path, some_groups, cached):
    """As peft writes them; the first policy is reference 1 with each, and the run is evaluated."""
    words = recipe(
        **LLAMA, max_steps=2, lora_dropout=0.5, use_rslora=True, use_dora=True,
        init_lora_weights="gaussian", modules_to_save=["lm_head"],
    )  # fmt: skip
    result = fit(words, output=tmp_path / "run")
    written = json.loads((result.path / "adapter_config.json").read_text())
    assert written["target_modules"] == sorted(written["target_modules"])  # part of an identity
    assert (written["lora_dropout"], written["use_rslora"], written["use_dora"]) == (
        0.5,
        True,
        True,
    )
    assert written["modules_to_save"] == ["lm_head"]
    weights = weights_of(result.path)
    assert any("lm_head" in name for name in weights)
    assert any("magnitude" in name for name in weights)
    assert result.metrics.step0_difference_nats_per_token < 1e-5
    evaluation = evaluate(load_run(result.path), some_groups, cached, "all").record
    assert evaluation.margins > evaluation.margins_step0 == 0


def test_dropout_is_drawn_while_training_alone_and_again_by_a_resumed_run(fit, tmp_path):
    words = recipe(**LLAMA, max_steps=4, save_steps=2, lora_dropout=0.5)
    run = fit(words, output=tmp_path / "run").path
    plain = fit(recipe(**LLAMA, max_steps=4), output=tmp_path / "plain").path
    first, second = (log_of(path)[1]["loss"] for path in (run, plain))
    assert log_of(run)[0]["loss"] == pytest.approx(log_of(plain)[0]["loss"]), "B is 0 at first"
    assert abs(first - second) > 1e-6
    adapter = (run / ADAPTER).read_bytes()
    cut_short(run, "metrics.json", ADAPTER, "checkpoint-4")
    fit(words, output=run, resume=True)
    assert (run / ADAPTER).read_bytes() == adapter


def test_an_adapter_goes_on(fit, tmp_path, some_groups, cached):
    """Training from a run continues its adapter: the first weights are those, its rank stays, and
    the second run is evaluated as the base model with the adapter it has now."""
    first = fit(recipe(**LLAMA, max_steps=2, lora_r=4), output=tmp_path / "first").path
    words = recipe(**LLAMA, policy=str(first), dtype="float32", max_steps=1, learning_rate=1e-12)
    second = fit(words, output=tmp_path / "second").path
    before, after = weights_of(first), weights_of(second)
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-9) for name in before)
    third = fit(words.model_copy(update={"learning_rate": 1e-2, "policy": str(second)}),
                output=tmp_path / "third").path  # fmt: skip
    assert not all(torch.allclose(before[name], w) for name, w in weights_of(third).items())
    evaluation = evaluate(load_run(third), some_groups, cached, "all").record
    assert evaluation.margins > evaluation.margins_step0 > 0, "it began where the first ended"
    with pytest.raises(UsageError, match="which finetuning full would lose"):
        fit(words.model_copy(update={"finetuning": "full"}), output=tmp_path / "full")
