"""The Trainer's words do what they say: steps of optimizers and schedules, derived by hand."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from trained import log_of, recipe, weights_of
from transformers import TrainingArguments

from mrpo_tools.training.arguments import training_arguments
from mrpo_tools.training.train import train

ONE = {"loss": "dpo", "refs": ["llama"], "max_steps": 1, "lr_scheduler_type": "constant"}


@pytest.fixture(scope="module")
def fit(references, some_groups, cached):
    return partial(train, groups=some_groups[:8], cache=cached, references=references)


@pytest.fixture(scope="module")
def moved(fit, tmp_path_factory):
    """How far one step moves the adapter's B, which begins at 0, and the gradient's length."""

    def moved(**words) -> tuple[torch.Tensor, float]:
        run = fit(recipe(**{**ONE, **words}), output=tmp_path_factory.mktemp("one") / "run").path
        parts = [w.flatten() for name, w in sorted(weights_of(run).items()) if "lora_B" in name]
        return torch.cat(parts).double(), log_of(run)[0]["grad_norm"]

    return moved


def test_sgd_goes_along_the_gradient_that_is_cut(moved):
    """Without momentum a step is lr · g; of a longer gradient lr · max_grad_norm in its direction.
    (A, whose gradient is 0 while B is, stays.)"""
    words = {"trainer": {"optim": "sgd"}, "learning_rate": 1e-2}
    free, norm = moved(**words, max_grad_norm=0.0)
    assert float(free.norm()) == pytest.approx(1e-2 * norm, rel=1e-4)
    bound = norm / 10
    cut, before = moved(**words, max_grad_norm=bound)
    assert before == pytest.approx(norm, rel=1e-5)
    assert float(cut.norm()) == pytest.approx(1e-2 * bound, rel=1e-4)
    torch.testing.assert_close(cut, free / 10, rtol=1e-3, atol=1e-12)


def test_adams_words_are_adams(moved):
    """The first step of Adam is lr · g / (|g| + ε): its sign under a small ε, g / ε under a large
    one; β cancels in it, as moments are corrected."""
    gradient, _ = moved(trainer={"optim": "sgd"}, learning_rate=1.0, max_grad_norm=0.0)
    words = {"learning_rate": 1e-2, "max_grad_norm": 0.0}
    for epsilon, betas in ((1e-8, {}), (1e3, {"adam_beta1": 0.5, "adam_beta2": 0.6})):
        step, _ = moved(**words, trainer={"adam_epsilon": epsilon, **betas})
        expected = 1e-2 * gradient / (gradient.abs() + epsilon)
        torch.testing.assert_close(step, expected, rtol=1e-2, atol=1e-6 / max(epsilon, 1e-2))


@pytest.mark.parametrize("words", [{"trainer": {"warmup_steps": 4}}, {"warmup_ratio": 0.5}])
def test_the_rate_rises_first(fit, tmp_path, words):
    """Over four steps of eight, by their number or by their share: lr · n / 4, then as it falls."""
    steps = {**ONE, "max_steps": 8, "lr_scheduler_type": "cosine", "learning_rate": 1e-3}
    rates = [e["learning_rate"] for e in log_of(fit(recipe(**steps, **words), output=tmp_path).path)
             if "learning_rate" in e]  # fmt: skip
    rising = [1e-3 * n / 4 for n in range(5)]
    falling = [1e-3 * (1 + math.cos(math.pi * n / 4)) / 2 for n in range(1, 4)]
    assert rates == pytest.approx([*rising, *falling], abs=1e-12)


def test_a_key_that_is_not_set_is_the_trainers_own(tmp_path):
    """What a recipe without `trainer` says differs from the Trainer's defaults in these alone."""
    ours = training_arguments(recipe(), tmp_path).to_dict()
    theirs = TrainingArguments(str(tmp_path), use_cpu=True).to_dict()
    differing = {key for key, value in theirs.items() if ours[key] != value}
    assert differing <= {
        "data_seed", "dataloader_pin_memory", "ddp_find_unused_parameters", "disable_tqdm",
        "gradient_accumulation_steps", "learning_rate", "logging_first_step", "logging_steps",
        "lr_scheduler_type", "max_steps", "per_device_train_batch_size", "remove_unused_columns",
        "num_train_epochs", "report_to", "seed", "logging_dir",
    }  # fmt: skip
    spelled = {"optim": theirs["optim"], "adam_beta1": 0.9, "adam_beta2": 0.999,
               "adam_epsilon": 1e-8, "warmup_steps": 0}  # fmt: skip
    assert training_arguments(recipe(trainer=spelled), tmp_path).to_dict() == ours
