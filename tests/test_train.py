"""Phase 2: the exact loss, the three kinds of finetuning, resuming, guards and refusals."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mrpo_tools.config import Recipe, Reference
from mrpo_tools.errors import CacheStale, NonFiniteError, ResourceError, UsageError
from mrpo_tools.evaluation.evaluate import evaluate
from mrpo_tools.precomputing.precompute import precompute
from mrpo_tools.runs.run import load_run
from mrpo_tools.scorer.scorer import ResponseScorer
from mrpo_tools.training.arguments import training_arguments
from mrpo_tools.training.callbacks import FiniteGuard
from mrpo_tools.training.groups import group_seeds
from mrpo_tools.training.prepare import prepare
from mrpo_tools.training.train import train
from mrpo_tools.training.trainer import GroupTrainer

NAMES = ["llama", "mistral", "qwen"]


def recipe(**words) -> Recipe:
    base = {
        "loss": "mrpo",
        "refs": NAMES,
        "split": "all",
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": 6,
        "logging_steps": 1,
    }
    return Recipe(**{**base, **words})


def trainer_on(prepared, model, words: Recipe, output: Path, groups=None) -> GroupTrainer:
    return GroupTrainer(
        ResponseScorer(model),
        groups or prepared.training,
        training_arguments(words, output),
    )


def load(path):
    from transformers import AutoModelForCausalLM

    from mrpo_tools.references.loading import add_lora

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return add_lora(model, 4, 8, "all-linear", 0)


@pytest.mark.parametrize("micro", [(8,), (3, 5), (1, 6, 1), (1,) * 8, (4, 4)])
def test_the_loss_is_a_mean_over_usable_groups(
    micro, tiny_models, references, some_groups, cached, tmp_path
):
    """Whatever the micro-batches: one of the eight groups is tied, so seven count. The expected
    number is Σ losses / 7 over one row at a time."""
    words = recipe(per_device_train_batch_size=8)
    prepared = prepare(words, some_groups, cached, references)
    groups = prepared.training
    tensors, scores = groups.tensors, groups.tensors.judged.scores.clone()
    scores[2] = 5.0
    usable = groups.usable.clone()
    usable[2] = False
    tied = replace(tensors, judged=replace(tensors.judged, scores=scores))
    groups = replace(groups, tensors=tied, usable=usable)
    model = load(tiny_models["llama"])
    trainer = trainer_on(prepared, model, words, tmp_path, groups)
    expected = one_at_a_time(groups, model, range(8)) / 7

    found, start = 0.0, 0
    samples = []
    for size in micro:
        samples.append(trainer.data_collator(list(range(start, start + size))))
        start += size
    count = trainer._get_num_items_in_batch(samples, torch.device("cpu"))
    assert int(count) == 7
    trainer.current_gradient_accumulation_steps = len(samples)
    trainer.create_optimizer()
    trainer.model.zero_grad()
    for sample in samples:
        found += float(trainer.training_step(trainer.model, sample, count))
    assert found == pytest.approx(expected, abs=1e-6)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    test_the_loss_is_a_mean_over_usable_groups.norms.append(float(norm))
    assert norm == pytest.approx(test_the_loss_is_a_mean_over_usable_groups.norms[0], rel=1e-5)


test_the_loss_is_a_mean_over_usable_groups.norms = []


def one_at_a_time(groups, model, places) -> float:
    """Σ of the groups' losses, each group computed alone."""
    total = 0.0
    from independent import response_logp

    for g in places:
        logps = torch.zeros(1, groups.width, dtype=torch.float64)
        with torch.no_grad():
            for n, one in enumerate(groups.encoded[g].responses):
                logps[0, n] = response_logp(model, groups.encoded[g].prompt_ids, one.ids)
        seeds = torch.zeros(1, dtype=torch.int64)
        total += float(groups.objective([g], logps, seeds).losses.sum())
    return total


@pytest.mark.parametrize("loss", ["dpo", "mrpo", "multi_dpo", "mpo"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_one_two_or_three_references(loss, count, references, some_groups, cached, tmp_path):
    if loss == "multi_dpo" and count == 1:
        with pytest.raises(UsageError, match="multi_dpo needs two references or more"):
            prepare(recipe(loss=loss, refs=NAMES[:1]), some_groups, cached, references)
        return
    result = train(
        recipe(loss=loss, refs=NAMES[:count], max_steps=2), some_groups, cached, references,
        tmp_path / "run",
    )  # fmt: skip
    last = result.metrics.last_log
    assert math.isfinite(last["loss"])
    assert result.metrics.step0_difference_nats_per_token <= 1e-5
    weights = [last[f"references/{name}/weight"] for name in NAMES[:count]]
    assert sum(weights) == pytest.approx(1)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins",
                 "logps/chosen", "logps/rejected", "references/clipped_fraction"):  # fmt: skip
        assert name in last or (count == 1 and "clipped" in name)


@pytest.mark.parametrize(
    "words", [{"finetuning": "lora"}, {"finetuning": "lora", "quantization": "nf4"},
              {"finetuning": "full", "learning_rate": 1e-3}],
    ids=["lora", "nf4", "full"],
)  # fmt: skip
def test_training_lowers_the_loss_and_the_run_can_be_evaluated(
    words, references, some_groups, cached, tmp_path
):
    """LoRA, QLoRA on the CPU and full: the last loss is below the first, the saved policy gives
    other log-probs than the untrained one, and evaluation reads it."""
    result = train(recipe(max_steps=12, **words), some_groups, cached, references, tmp_path / "run")
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < losses[0]
    difference = result.metrics.step0_difference_nats_per_token
    assert difference <= 1e-5 or words.get("quantization") == "nf4"
    found = evaluate(load_run(tmp_path / "run"), some_groups, cached, "all").record.as_json()
    assert found["accuracies"] > found["accuracies_step0"]
    assert found["margins"] > found["margins_step0"]
    saved = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"recipe.yaml", "run.json", "metrics.json", "trainer_state.json", "README.md",
            "tokenizer.json", "chat_template.jinja"} <= saved  # fmt: skip


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter_model.safetensors")


def test_resume_continues_bit_for_bit(references, some_groups, cached, tmp_path):
    """Six steps at once, or three, a checkpoint, and three more: equal bytes."""
    words = recipe(save_steps=3, max_steps=6)
    train(words, some_groups, cached, references, tmp_path / "whole")
    train(words, some_groups, cached, references, tmp_path / "parts")
    for name in ("adapter_model.safetensors", "metrics.json"):
        (tmp_path / "parts" / name).unlink()
    last = tmp_path / "parts" / "checkpoint-6"
    for path in sorted(last.rglob("*"), reverse=True):
        path.unlink()
    last.rmdir()
    train(words, some_groups, cached, references, tmp_path / "parts", resume=True)
    whole, parts = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_run_killed_after_its_last_step_trains_no_other(
    references, some_groups, cached, tmp_path
):
    """The last checkpoint is there, the adapter and the metrics are not: resuming writes them, with
    the bytes of the checkpoint."""
    words = recipe(save_steps=3, max_steps=6)
    train(words, some_groups, cached, references, tmp_path / "run")
    before = weights_of(tmp_path / "run")
    for name in ("adapter_model.safetensors", "metrics.json"):
        (tmp_path / "run" / name).unlink()
    result = train(words, some_groups, cached, references, tmp_path / "run", resume=True)
    assert result.metrics.steps == 6
    after = weights_of(tmp_path / "run")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_checkpoint_that_was_cut_short_is_passed_over(references, some_groups, cached, tmp_path):
    """A kill while a checkpoint is written: the one before it is taken, and the run ends alike."""
    words = recipe(save_steps=2, max_steps=6)
    train(words, some_groups, cached, references, tmp_path / "whole")
    train(words, some_groups, cached, references, tmp_path / "run")
    for name in ("adapter_model.safetensors", "metrics.json", "checkpoint-6/trainer_state.json"):
        (tmp_path / "run" / name).unlink()
    smaller = words.model_copy(update={"batch_tokens": 64})  # memory may change, the result not
    train(smaller, some_groups, cached, references, tmp_path / "run", resume=True)
    whole, parts = weights_of(tmp_path / "whole"), weights_of(tmp_path / "run")
    assert all(torch.allclose(whole[name], parts[name], atol=1e-6) for name in whole)


def test_the_last_figures_are_those_of_the_last_step(references, some_groups, cached, tmp_path):
    result = train(recipe(max_steps=6, logging_steps=100), some_groups, cached, references,
                   tmp_path / "run")  # fmt: skip
    assert result.metrics.last_log["step"] == 6


def test_a_finished_run_stays_as_it_is(references, some_groups, cached, tmp_path, capsys):
    words = recipe(max_steps=2)
    first = train(words, some_groups, cached, references, tmp_path / "run")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    again = train(words, some_groups, cached, references, tmp_path / "run", resume=True)
    assert "has finished already" in capsys.readouterr().err
    assert again.metrics.as_json() == first.metrics.as_json()
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}


def test_resuming_on_other_data_is_refused(references, some_groups, cached, tmp_path):
    words = recipe(save_steps=3, max_steps=6)
    train(words, some_groups, cached, references, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    with pytest.raises(UsageError, match="began with other groups"):
        train(words, some_groups[:-1], cached, references, tmp_path / "run", resume=True)


def test_a_run_that_failed_before_its_first_checkpoint_begins_anew(
    references, some_groups, cached, tmp_path
):
    """An error that only the model's weights reveal leaves no directory that blocks the next."""
    with pytest.raises(UsageError, match="lora_target_modules"):
        train(
            recipe(lora_target_modules=["no_such_layer"]), some_groups, cached, references,
            tmp_path / "run",
        )  # fmt: skip
    result = train(recipe(max_steps=1), some_groups, cached, references, tmp_path / "run")
    assert result.metrics.steps == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"loss": "mppo_point_mse", "score_scale": 0.001}, "needs scores in [0, 1] after division"),
        ({"loss": "dpo", "refs": ["llama", "llama"]}, "a reference is named twice"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(
    words, message, references, some_groups, cached, tmp_path
):
    with pytest.raises(UsageError) as error:
        train(recipe(**words), some_groups, cached, references, tmp_path / "run")
    assert message in error.value.what
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [{"finetuning": "full", "quantization": "nf4"}, {"lr_scheduler_type": "cosin"},
     {"warmup_ratio": 1.0}],
)  # fmt: skip
def test_recipes_that_cannot_be_meant(words):
    from mrpo_tools.config import parse

    with pytest.raises(UsageError, match="recipe"):
        parse(Recipe, words, "recipe")


def test_two_processes_train_as_one(tiny_models, some_groups, cached, tmp_path):
    """torchrun with two processes of four groups and one process of eight: equal logs over two
    epochs, of training and of what is measured beside it, one set of log lines, one run."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(group.as_dict()) + "\n" for group in some_groups[:8]))
    words = ["train", "--dataset", str(data), "--cache", str(cached.path), "--loss", "mrpo",
             "--refs", "llama,mistral", "--set", "split=all", "--set", "num_train_epochs=2",
             "--set", "gradient_accumulation_steps=1", "--set", "logging_steps=1",
             "--set", "learning_rate=1e-2", "--set", "eval_steps=1",
             "--set", "eval_split=all"]  # fmt: skip
    launchers = {
        4: [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"],
        8: [sys.executable],
    }
    losses = {}
    for size, launcher in launchers.items():
        done = subprocess.run(
            [*launcher, "-m", "mrpo_tools", *words, "--output", str(tmp_path / str(size)),
             "--set", f"per_device_train_batch_size={size}"],
            capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("step 2/2  loss") == 1
        assert done.stderr.count("step 2/2  split all") == 1
        state = json.loads((tmp_path / str(size) / "trainer_state.json").read_text())
        losses[size] = [
            one[key]
            for one in state["log_history"]
            for key in ("loss", "eval_loss", "eval_rewards/margins")
            if key in one
        ]
    assert losses[4] == pytest.approx(losses[8], abs=1e-6)


def test_more_processes_than_groups_to_measure(tiny_models, some_groups, cached, tmp_path):
    data = tmp_path / "data.jsonl"
    rows = [{**group.as_dict(), "split": "train"} for group in some_groups[:8]]
    rows.append({**some_groups[8].as_dict(), "split": "test"})
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m",
         "mrpo_tools", "train", "--dataset", str(data), "--cache", str(cached.path), "--loss",
         "mrpo", "--refs", "llama,mistral", "--output", str(tmp_path / "run"), "--set",
         "max_steps=1", "--set", "eval_steps=1"],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())["last_evaluation"]
    assert math.isfinite(found["eval_loss"])


def test_resuming_what_is_not_there_is_refused(tmp_path, monkeypatch, capsys):
    from mrpo_tools.cli import run

    monkeypatch.chdir(tmp_path)
    assert run(["train", "--resume", "--output", "runs/typo"]) == 2
    assert "runs/typo holds no run to go on with" in capsys.readouterr().err


def test_sigterm_saves_and_exits_75(tiny_models, references, some_groups, cached, tmp_path):
    """The process ends with 75 and the resumed run equals an undisturbed one."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(group.as_dict()) + "\n" for group in some_groups))
    common = [sys.executable, "-m", "mrpo_tools", "train", "--dataset", str(data), "--cache",
              str(cached.path), "--loss", "dpo", "--refs", "llama"]  # fmt: skip
    settings = ["--set", "split=all", "--set", "max_steps=400", "--set", "logging_steps=1",
                "--set", "save_steps=1000"]  # fmt: skip
    run = tmp_path / "run"
    process = subprocess.Popen(
        [*common, *settings, "--output", str(run)], stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if line.startswith("step 3/"):
            process.send_signal(signal.SIGTERM)
            break
    errors = process.stderr.read()
    assert process.wait() == 75, errors
    assert "--resume" in errors
    assert list(run.glob("checkpoint-*"))
    assert not (run / "metrics.json").exists()
    assert errors.rstrip().endswith(f"go on with: mrpo train --resume --output {run}")


def test_a_nonfinite_gradient_moves_nothing_and_three_stop_the_run(
    tiny_models, references, some_groups, cached, tmp_path
):
    words = recipe()
    prepared = prepare(words, some_groups, cached, references)
    trainer = trainer_on(prepared, load(tiny_models["llama"]), words, tmp_path)
    guard = FiniteGuard()
    optimizer = torch.optim.AdamW(
        [p for p in trainer.model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1
    )
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    for attempt in range(3):
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.full_like(parameter, float("nan"))
        if attempt == 2:
            with pytest.raises(NonFiniteError, match="3 steps in a row"):
                guard.on_pre_optimizer_step(
                    trainer.args, trainer.state, trainer.control, model=trainer.model
                )
            break
        guard.on_pre_optimizer_step(
            trainer.args, trainer.state, trainer.control, model=trainer.model
        )
        optimizer.step()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_an_exploding_run_exits_with_the_promised_error(references, some_groups, cached, tmp_path):
    """A loss of NaN in every step (β so small that IPO's target overflows)."""
    with pytest.raises(NonFiniteError):
        train(
            recipe(loss="ipo", refs=["llama"], beta=1e-30, max_steps=8), some_groups, cached,
            references, tmp_path / "run",
        )  # fmt: skip


def test_seeds_depend_on_the_group_alone():
    together = group_seeds(["a", "b", "c"], 0, 1)
    assert group_seeds(["b"], 0, 1)[0] == together[1]
    assert group_seeds(["b"], 0, 2)[0] != together[1]
    assert group_seeds(["b"], 1, 1)[0] != together[1]


def test_a_policy_that_is_not_reference_1_is_warned_of(
    tiny_models, references, some_groups, cached, tmp_path, capsys
):
    result = train(
        recipe(refs=["mistral"], loss="dpo", policy=str(tiny_models["llama"]), dtype="float32",
               max_steps=1), some_groups, cached, references, tmp_path / "run",
    )  # fmt: skip
    assert "the policy is not reference 1 (mistral)" in capsys.readouterr().err
    assert result.metrics.step0_difference_nats_per_token is None
    found = evaluate(load_run(tmp_path / "run"), some_groups, cached, "all").record.as_json()
    assert 0 <= found["accuracies_step0"] <= 1


def test_a_policy_with_an_adapter_is_merged_first(references, some_groups, cached, tmp_path):
    """Training on top of an adapter would begin without it: refused; the merged model has the
    adapter's log-probs and can be trained."""
    from mrpo_tools.cache import Cache
    from mrpo_tools.references.merge import merge

    words = recipe(loss="dpo", refs=["llama"], max_steps=2)
    train(words, some_groups, cached, references, tmp_path / "first")
    second = words.model_copy(update={"policy": str(tmp_path / "first"), "dtype": "float32"})
    with pytest.raises(UsageError, match="is a model with a LoRA adapter") as error:
        train(second, some_groups, cached, references, tmp_path / "second")
    assert f"mrpo merge {tmp_path / 'first'}" in error.value.hint
    trained = load_run(tmp_path / "first").trained_policy
    merged = Reference(model=str(merge(trained, tmp_path / "merged")), dtype="float32")
    own = Cache(tmp_path / "cache")
    both = precompute({"adapter": trained, "merged": merged}, some_groups, own, "some")
    tables = [summary.store.table().sort_by("response_id") for summary in both]
    for one, other in zip(*(table["logp"].to_pylist() for table in tables), strict=True):
        assert one == pytest.approx(other, abs=1e-3)
    third = words.model_copy(update={"policy": str(tmp_path / "merged"), "dtype": "float32"})
    assert train(third, some_groups, cached, references, tmp_path / "third").metrics.steps == 2
    with pytest.raises(UsageError, match="has no adapter to merge"):
        merge(merged, tmp_path / "again")


def test_a_merge_that_finds_no_space_leaves_nothing(
    references, some_groups, cached, tmp_path, monkeypatch
):
    from transformers import PreTrainedTokenizerBase

    from mrpo_tools.references.merge import merge

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    run = tmp_path / "run"
    train(recipe(max_steps=1), some_groups, cached, references, run)
    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", full)
    with pytest.raises(ResourceError, match="No space left"):
        merge(load_run(run).trained_policy, tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_policy_that_cuts_elsewhere_is_refused(tiny_models, some_groups, tmp_path):
    """With `overlong: truncate` another max_length means other tokens, so other log-probs."""
    from mrpo_tools.cache import Cache

    reference = Reference(
        model=str(tiny_models["llama"]), dtype="float32", max_length=60, overlong="truncate"
    )
    cache = Cache(tmp_path / "cache")
    precompute({"llama": reference}, some_groups, cache, "some")
    words = recipe(loss="dpo", refs=["llama"], max_steps=1)
    with pytest.raises(CacheStale, match=r"cut elsewhere for the policy \(max_length 40\)"):
        train(
            words.model_copy(update={"max_length": 40}), some_groups, cache,
            {"llama": reference}, tmp_path / "run",
        )  # fmt: skip
    train(words, some_groups, cache, {"llama": reference}, tmp_path / "run")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"quantization": "nf4"}, "quantization was None, is now 'nf4'"),
        ({"max_length": 64}, "max_length was 8192, is now 64"),
        ({"chat_template": "TEMPLATE"}, "chat_template was"),
        ({"adapter": "ADAPTER"}, "adapter was None, is now"),
        ({"revision": "a" * 40}, "revision was None"),
    ],
)
def test_words_of_a_reference_that_is_not_here_are_compared(
    words, message, references, some_groups, cached, tmp_path
):
    """Its files are on another machine; what the project says of it is not what was scored."""
    if "chat_template" in words:
        (tmp_path / "template").write_text("{{ messages[0].content }}")
        words = {"chat_template": str(tmp_path / "template")}
    if "adapter" in words:
        train(recipe(loss="dpo", refs=["qwen"], max_steps=1), some_groups, cached, references,
              tmp_path / "run")  # fmt: skip
        words = {"adapter": str(tmp_path / "run")}
    same = Reference(model="org/model", dtype="float32")
    assert prepare(recipe(), some_groups, cached, {**references, "qwen": same}).stores
    other = same.model_copy(update=words)
    with pytest.raises(CacheStale, match=message):
        prepare(recipe(), some_groups, cached, {**references, "qwen": other})


def test_a_changed_reference_is_refused(tiny_models, references, some_groups, cached, tmp_path):
    """The project now says another max_length than the one that was scored."""
    changed = {**references, "mistral": references["mistral"].model_copy(
        update={"max_length": 64})}  # fmt: skip
    with pytest.raises(CacheStale, match=r"max_length was 8192, is now 64") as error:
        train(recipe(), some_groups, cached, changed, tmp_path / "run")
    assert "mrpo precompute --ref mistral" in error.value.hint
    assert not (tmp_path / "run").exists()


def test_a_reference_that_lies_is_found_at_step_0(tiny_models, references, some_groups, tmp_path):
    """A cache whose numbers are not the policy's, under the policy's own identity."""
    from mrpo_tools.cache import Cache

    cache = Cache(tmp_path / "cache")
    store = precompute({"llama": references["llama"]}, some_groups, cache, "some")[0].store
    rows = store.table().to_pylist()
    for path in store.part_paths():
        path.unlink()
    from mrpo_tools.cache import LogpRow

    store.append([LogpRow(**{**row, "logp": row["logp"] - 0.01}) for row in rows])
    with pytest.raises(CacheStale, match="at step 0 differs from cached reference 'llama'"):
        train(recipe(refs=["llama"], loss="dpo"), some_groups, cache, references, tmp_path / "run")


def test_overlong_responses_are_left_out(tiny_models, some_groups, tmp_path):
    """A short max_length leaves numbers out, training skips them, and says how many."""
    from mrpo_tools.cache import Cache

    reference = Reference(model=str(tiny_models["llama"]), dtype="float32", max_length=40)
    cache = Cache(tmp_path / "cache")
    summary = precompute({"llama": reference}, some_groups, cache, "some")[0]
    assert summary.computed["overlong"] > 0
    result = train(
        recipe(loss="dpo", refs=["llama"], max_steps=1), some_groups, cache,
        {"llama": reference}, tmp_path / "run",
    )  # fmt: skip
    assert result.metrics.dropped_responses["overlong"] == summary.computed["overlong"]


def test_a_run_is_not_overwritten(references, some_groups, cached, tmp_path):
    words = recipe(loss="dpo", refs=["llama"], max_steps=1)
    train(words, some_groups, cached, references, tmp_path / "run")
    with pytest.raises(UsageError, match="already holds a run"):
        train(words, some_groups, cached, references, tmp_path / "run")
    other = words.model_copy(update={"beta": 0.5})
    with pytest.raises(UsageError, match=r"beta was None, is now 0\.5"):
        train(other, some_groups, cached, references, tmp_path / "run", resume=True)
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "file").write_text("mine")
    with pytest.raises(UsageError, match="is not empty and holds no run"):
        train(words, some_groups, cached, references, occupied)
    assert [path.name for path in occupied.iterdir()] == ["file"]


def test_a_4_bit_policy_has_the_gradient_of_its_dequantised_weights(references):
    """NF4 with LoRA after a pass without gradient: log-probs and gradients equal those of a float32
    model that holds the dequantised weights. (A layer that repacks its weights for inference has
    no backward at all.)"""
    import bitsandbytes
    from independent import response_logp

    from mrpo_tools.references.loading import add_lora, load_model
    from mrpo_tools.references.locate import locate
    from mrpo_tools.scorer.trees import Row

    reference = references["llama"].model_copy(update={"quantization": "nf4"})
    files, cpu = locate(reference), torch.device("cpu")
    quantized = load_model(files, reference, "float32", cpu)
    plain = load_model(files, references["llama"], "float32", cpu)
    layers = 0
    for name, module in quantized.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(
                module.weight.data, module.weight.quant_state
            )
            plain.get_submodule(name).weight.data = weight.float()
            layers += 1
    assert layers == 14
    prompt, response = list(range(3, 20)), list(range(20, 30))
    gradients = []
    for model in (quantized, plain):
        adapted = add_lora(model, 4, 8, "all-linear", 0)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.data.fill_(0.01)
        scorer = ResponseScorer(adapted)
        batch = [scorer.collate([Row(prompt, [response], [0])])]
        with torch.no_grad():
            scorer(batch, 1)
        logp = (
            scorer(batch, 1)[0] if model is quantized else response_logp(adapted, prompt, response)
        )
        logp.backward()
        gradients.append({n: p.grad for n, p in adapted.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[1].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["simpo", "sft", "mppo_list_mle"])
def test_an_objective_without_references_trains_and_is_evaluated(
    loss, tiny_models, references, some_groups, cached, tmp_path
):
    words = recipe(
        loss=loss, refs=[], policy=str(tiny_models["llama"]), dtype="float32", max_steps=2
    )
    train(words, some_groups, cached, references, tmp_path / "run")
    found = evaluate(load_run(tmp_path / "run"), some_groups, cached, "all").record.as_json()
    assert 0 <= found["accuracies"] <= 1
    assert "accuracies_reference_1" not in found
    assert found["reference_accuracies"]["summed"] == []
