"""Phase 2: the exact loss, the three kinds of finetuning, resuming, guards and refusals."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch
from independent import group_logps, response_logp
from small_data import write_lines
from trained import ADAPTER, METRICS, NAMES, cut_short, log_of, recipe, weights_of
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from mrpo_tools.cache import Cache, LogpRow
from mrpo_tools.config import Recipe, Reference, parse
from mrpo_tools.errors import CacheStale, NonFiniteError, ResourceError, UsageError
from mrpo_tools.evaluation.evaluate import evaluate
from mrpo_tools.evaluation.rank import rank
from mrpo_tools.precomputing.precompute import precompute
from mrpo_tools.references.loading import add_lora, load_model
from mrpo_tools.references.locate import locate
from mrpo_tools.references.merge import merge
from mrpo_tools.references.resolved import renderer_of, resolve
from mrpo_tools.runs.run import load_run
from mrpo_tools.scorer.scorer import ResponseScorer
from mrpo_tools.scorer.trees import Row
from mrpo_tools.training.arguments import training_arguments
from mrpo_tools.training.callbacks import FiniteGuard
from mrpo_tools.training.groups import group_seeds
from mrpo_tools.training.prepare import prepare
from mrpo_tools.training.saturation import flat_share, tell_saturated
from mrpo_tools.training.train import train
from mrpo_tools.training.trainer import GroupTrainer

LLAMA = {"loss": "dpo", "refs": ["llama"], "max_steps": 1}
WHOLE = recipe(save_steps=3)


@pytest.fixture(scope="module")
def fit(references, some_groups, cached):
    """`train` on what the session has, unless a test gives it something else."""
    return partial(train, groups=some_groups, cache=cached, references=references)


@pytest.fixture(scope="module")
def ready(references, some_groups, cached):
    """`prepare` on the same."""
    return partial(prepare, groups=some_groups, cache=cached, references=references)


@pytest.fixture
def run(tmp_path) -> Path:
    return tmp_path / "run"


@pytest.fixture(scope="module")
def whole(fit, tmp_path_factory) -> Path:
    """The finished run of `WHOLE`, with checkpoints 3 and 6; treat it as read-only."""
    return fit(WHOLE, output=tmp_path_factory.mktemp("whole") / "run").path


@pytest.fixture
def copied(whole, run) -> Path:
    """The same run, to be damaged."""
    return Path(shutil.copytree(whole, run))


@pytest.fixture
def measured(some_groups, cached):
    """What evaluation says of a run on all groups."""
    return lambda run: evaluate(load_run(run), some_groups, cached, "all").record.as_json()


def load(path):
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return add_lora(model, r=4, lora_alpha=8, target_modules="all-linear", seed=0)


def trainer_on(groups, model, words: Recipe, output: Path) -> GroupTrainer:
    return GroupTrainer(ResponseScorer(model), groups, training_arguments(words, output))


@pytest.mark.parametrize(
    ("loss", "shift", "share"), [("dpo", 0, 0), ("dpo", 200, 1), ("sppo", 0, 0), ("kto_pair", 0, 0)]
)
def test_a_loss_that_is_flat_from_the_start_is_told(ready, capsys, loss, shift, share):
    """A reference 200 nats below reference 1 on each best response, times β 0.1: σ(20) is flat."""
    groups = ready(recipe(loss=loss, refs=["llama"], beta=0.1)).training
    scores = groups.tensors.judged.scores.masked_fill(~groups.tensors.mask, -1e9)
    best = scores == scores.amax(-1, keepdim=True)
    logps = groups.combined.logps - shift * best
    groups = replace(groups, combined=replace(groups.combined, logps=logps))
    assert flat_share(groups) == share
    tell_saturated(groups)
    assert ("of the groups is flat before the first step" in capsys.readouterr().err) == bool(share)


def test_the_loss_is_a_mean_over_usable_groups(tiny_models, ready, tmp_path):
    """Whatever the micro-batches: one of the eight groups is tied, so seven count. The expected
    number is Σ losses / 7 over one row at a time."""
    words = recipe(per_device_train_batch_size=8)
    groups = ready(words).training
    scores, usable = groups.tensors.judged.scores.clone(), groups.usable.clone()
    scores[2], usable[2] = 5.0, False
    judged = replace(groups.tensors.judged, scores=scores)
    groups = replace(groups, tensors=replace(groups.tensors, judged=judged), usable=usable)
    model = load(tiny_models["llama"])
    trainer = trainer_on(groups, model, words, tmp_path)
    with torch.no_grad():
        logps = group_logps(model, groups.encoded[:8], groups.width)
    alone = [groups.objective([g], logps[[g]], torch.zeros(1, dtype=torch.int64)) for g in range(8)]
    expected = float(sum(applied.losses.sum() for applied in alone)) / 7

    trainer.create_optimizer()
    norms = []
    for sizes in [(8,), (3, 5), (1, 6, 1), (1,) * 8, (4, 4)]:
        places = iter(range(8))
        samples = [trainer.data_collator(list(islice(places, size))) for size in sizes]
        count = trainer._get_num_items_in_batch(samples, torch.device("cpu"))
        assert int(count) == 7
        trainer.current_gradient_accumulation_steps = len(samples)
        trainer.model.zero_grad()
        losses = [trainer.training_step(trainer.model, sample, count) for sample in samples]
        assert float(sum(losses)) == pytest.approx(expected, abs=1e-6)
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)))
    assert norms == pytest.approx(norms[:1] * len(norms), rel=1e-5)


@pytest.mark.parametrize("loss", ["dpo", "mrpo", "multi_dpo", "mpo"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_one_two_or_three_references(loss, count, fit, ready, run):
    words = recipe(loss=loss, refs=NAMES[:count], max_steps=2)
    if loss == "multi_dpo" and count == 1:
        with pytest.raises(UsageError, match="multi_dpo needs two references or more"):
            ready(words)
        return
    metrics = fit(words, output=run).metrics
    last = metrics.last_log
    assert math.isfinite(last["loss"])
    assert metrics.step0_difference_nats_per_token <= 1e-5
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
def test_training_lowers_the_loss_and_the_run_can_be_evaluated(words, fit, measured, run):
    """LoRA, QLoRA on the CPU and full: the last loss is below the first, the saved policy gives
    other log-probs than the untrained one, and evaluation reads it."""
    metrics = fit(recipe(max_steps=12, **words), output=run).metrics
    losses = [entry["loss"] for entry in log_of(run) if "loss" in entry]
    assert losses[-1] < losses[0]
    difference = metrics.step0_difference_nats_per_token
    assert difference <= 1e-5 or words.get("quantization") == "nf4"
    evaluation = measured(run)
    assert evaluation["accuracies"] > evaluation["accuracies_step0"]
    assert evaluation["margins"] > evaluation["margins_step0"]
    assert {"recipe.yaml", "run.json", METRICS, "trainer_state.json", "README.md", "tokenizer.json",
            "chat_template.jinja"} <= {path.name for path in run.iterdir()}  # fmt: skip


def test_a_policy_that_did_not_move_is_told(fit, references, tmp_path, capsys):
    """A LoRA at 1e-5 for 15 steps, and at 1e-2 for 3: how far is computed a row at a time, by the
    model and its adapter, over the responses that the record has."""
    groups = [group.with_split("train") for group in _first_responses(fit.keywords["groups"], 32)]
    for learning_rate, steps, moves in ((1e-5, 15, False), (1e-2, 3, True)):
        path = tmp_path / str(learning_rate)
        words = recipe(**LLAMA | {"max_steps": steps, "learning_rate": learning_rate})
        metrics = fit(words, groups=groups, output=path).metrics
        assert ("warning: the policy hardly moved" in capsys.readouterr().err) is not moves
        assert (metrics.hardly_moved is None) is moves
        before = load_model(locate(references["llama"]), references["llama"], "float32", "cpu")
        adapted = references["llama"].model_copy(update={"adapter": str(path)})
        after = load_model(locate(adapted), adapted, "float32", "cpu")
        encoded = [renderer_of(resolve("llama", references["llama"])).encode(g) for g in groups]
        with torch.no_grad():
            moved = [
                abs(float(response_logp(after, group.prompt_ids, response.ids)
                          - response_logp(before, group.prompt_ids, response.ids)))
                / len(response.ids)
                for group in encoded for response in group.responses
            ]  # fmt: skip
        assert metrics.moved_nats_per_token == pytest.approx(sum(moved) / len(moved), abs=1e-5)


def _first_responses(groups, count: int) -> list:
    """The first groups that have at most so many responses together."""
    taken, some = 0, []
    for group in groups:
        taken += len(group.responses)
        if taken > count:
            break
        some.append(group)
    return some


@pytest.mark.parametrize(
    ("missing", "memory", "tolerance"),
    [
        (["checkpoint-6"], {}, 0),  # three steps, a checkpoint, and three more
        ([], {}, 0),  # killed after the last step: none is trained again
        # in the middle of writing a checkpoint; memory may change, the result not
        (["checkpoint-6/trainer_state.json"], {"batch_tokens": 64}, 1e-6),
    ],
    ids=["between", "after the last", "cut short"],
)
def test_a_killed_run_ends_as_if_it_had_not_been(missing, memory, tolerance, fit, whole, copied):
    """Without its adapter and metrics, at least: equal bytes of all weights after resuming."""
    cut_short(copied, ADAPTER, METRICS, *missing)
    result = fit(WHOLE.model_copy(update=memory), output=copied, resume=True)
    assert result.metrics.steps == 6
    expected, resumed = weights_of(whole), weights_of(copied)
    assert expected.keys() == resumed.keys()
    for name, weights in expected.items():
        torch.testing.assert_close(resumed[name], weights, rtol=0, atol=tolerance)


def test_the_last_figures_are_those_of_the_last_step(fit, run):
    assert fit(recipe(logging_steps=100), output=run).metrics.last_log["step"] == 6


def test_a_finished_run_stays_as_it_is(fit, copied, capsys):
    files = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    again = fit(WHOLE, output=copied, resume=True)
    assert "has finished already" in capsys.readouterr().err
    assert again.metrics.as_json() == json.loads((copied / METRICS).read_text())
    assert files == {path: path.stat().st_mtime_ns for path in copied.rglob("*")}


def test_a_run_is_not_overwritten(fit, copied, tmp_path):
    with pytest.raises(UsageError, match="already holds a run"):
        fit(WHOLE, output=copied)
    with pytest.raises(UsageError, match=r"beta was None, is now 0\.5"):
        fit(WHOLE.model_copy(update={"beta": 0.5}), output=copied, resume=True)
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "file").write_text("mine")
    with pytest.raises(UsageError, match="is not empty and holds no run"):
        fit(WHOLE, output=occupied)
    assert [path.name for path in occupied.iterdir()] == ["file"]


def test_resuming_on_other_data_is_refused(fit, some_groups, copied):
    cut_short(copied, METRICS)
    with pytest.raises(UsageError, match="began with other groups"):
        fit(WHOLE, groups=some_groups[:-1], output=copied, resume=True)


def test_a_run_that_failed_before_its_first_checkpoint_begins_anew(fit, run):
    """An error that only the model's weights reveal leaves no directory that blocks the next."""
    with pytest.raises(UsageError, match="lora_target_modules"):
        fit(recipe(lora_target_modules=["no_such_layer"]), output=run)
    assert fit(recipe(max_steps=1), output=run).metrics.steps == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"loss": "mppo_point_mse", "score_scale": 0.001}, "needs scores in [0, 1] after division"),
        ({"loss": "dpo", "refs": ["llama", "llama"]}, "a reference is named twice"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(words, message, fit, run):
    with pytest.raises(UsageError) as error:
        fit(recipe(**words), output=run)
    assert message in error.value.what
    assert not run.exists()


@pytest.mark.parametrize(
    "words",
    [{"finetuning": "full", "quantization": "nf4"}, {"lr_scheduler_type": "cosin"},
     {"warmup_ratio": 1.0}],
)  # fmt: skip
def test_recipes_that_cannot_be_meant(words):
    with pytest.raises(UsageError, match="recipe"):
        parse(Recipe, words, "recipe")


def command(data: Path, cache: Cache, output: Path, refs: str, **words) -> list[str]:
    """`mrpo train` as a module's arguments."""
    settings = [word for key, value in words.items() for word in ("--set", f"{key}={value}")]
    return ["-m", "mrpo_tools", "train", "--dataset", str(data), "--cache", str(cache.path),
            "--refs", refs, "--output", str(output), *settings]  # fmt: skip


def launched(processes: int, *arguments: str) -> str:
    """stderr of a command in so many processes."""
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [sys.executable, *(torchrun if processes > 1 else []), *arguments],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_two_processes_train_as_one(some_groups, cached, tmp_path):
    """torchrun with two processes of four groups and one process of eight: equal logs over two
    epochs, of training and of what is measured beside it, one set of log lines, one run."""
    data = write_lines(tmp_path / "data.jsonl", (group.as_dict() for group in some_groups[:8]))
    words = {
        "split": "all", "num_train_epochs": 2, "gradient_accumulation_steps": 1,
        "logging_steps": 1, "learning_rate": 1e-2, "eval_steps": 1, "eval_split": "all",
    }  # fmt: skip
    logs = []
    for processes in (2, 1):
        run = tmp_path / str(processes)
        size = {"per_device_train_batch_size": 8 // processes}
        errors = launched(processes, *command(data, cached, run, "llama,mistral", **words, **size))
        assert errors.count("step 2/2  loss") == 1
        assert errors.count("step 2/2  split all") == 1
        keys = ("loss", "eval_loss", "eval_rewards/margins")
        logs.append([entry[key] for entry in log_of(run) for key in keys if key in entry])
    assert logs[0] == pytest.approx(logs[1], abs=1e-6)


def test_more_processes_than_groups_to_measure(some_groups, cached, run, tmp_path):
    groups = [
        some_groups[place].with_split("test" if place == 8 else "train") for place in range(9)
    ]
    data = write_lines(tmp_path / "data.jsonl", (group.as_dict() for group in groups))
    launched(2, *command(data, cached, run, "llama,mistral", max_steps=1, eval_steps=1))
    assert math.isfinite(json.loads((run / METRICS).read_text())["last_evaluation"]["eval_loss"])


def test_sigterm_saves_and_exits_75(some_groups, cached, run, tmp_path):
    """The process ends with 75, a checkpoint and the command that goes on."""
    data = write_lines(tmp_path / "data.jsonl", (group.as_dict() for group in some_groups))
    words = {
        "split": "all",
        "max_steps": 400,
        "eval_steps": 3,
        "eval_split": "all",
        "save_steps": 1000,
    }
    process = subprocess.Popen(
        [sys.executable, *command(data, cached, run, "llama", loss="dpo", **words)],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        for line in process.stderr:
            if line.startswith("step 3/"):
                process.send_signal(signal.SIGTERM)
                break
        errors = process.stderr.read()
    assert process.returncode == 75, errors
    assert list(run.glob("checkpoint-*"))
    assert not (run / METRICS).exists()
    assert errors.rstrip().endswith(f"go on with: mrpo train --resume --output {run}")


def test_resuming_what_is_not_there_is_refused(tmp_path, monkeypatch, capsys):
    from mrpo_tools.cli import run

    monkeypatch.chdir(tmp_path)
    assert run(["train", "--resume", "--output", "runs/typo"]) == 2
    assert "runs/typo holds no run to go on with" in capsys.readouterr().err


def test_a_nonfinite_gradient_moves_nothing_and_three_stop_the_run(tiny_models, ready, tmp_path):
    words = recipe()
    trainer = trainer_on(ready(words).training, load(tiny_models["llama"]), words, tmp_path)
    guard, parameters = FiniteGuard(), dict(trainer.model.named_parameters())
    trained = [parameter for parameter in parameters.values() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.1, weight_decay=0.1)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for outcome in (nullcontext(), nullcontext(), pytest.raises(NonFiniteError, match="3 steps")):
        for parameter in trained:
            parameter.grad = torch.full_like(parameter, float("nan"))
        with outcome:
            guard.on_pre_optimizer_step(
                trainer.args, trainer.state, trainer.control, model=trainer.model
            )
        optimizer.step()
    for name, parameter in parameters.items():
        assert torch.equal(parameter, before[name]), name


def test_an_exploding_run_exits_with_the_promised_error(fit, run):
    """A loss of NaN in every step (β so small that IPO's target overflows)."""
    with pytest.raises(NonFiniteError):
        fit(recipe(loss="ipo", refs=["llama"], beta=1e-30), output=run)


def test_seeds_depend_on_the_group_alone():
    together = group_seeds(["a", "b", "c"], 0, 1)
    assert group_seeds(["b"], 0, 1)[0] == together[1]
    assert group_seeds(["b"], 0, 2)[0] != together[1]
    assert group_seeds(["b"], 1, 1)[0] != together[1]


def test_a_policy_that_is_not_reference_1_is_warned_of(tiny_models, fit, measured, run, capsys):
    words = {**LLAMA, "refs": ["mistral"], "policy": str(tiny_models["llama"]), "dtype": "float32"}
    result = fit(recipe(**words), output=run)
    assert "the policy is not reference 1 (mistral)" in capsys.readouterr().err
    assert result.metrics.step0_difference_nats_per_token is None
    assert 0 <= measured(run)["accuracies_step0"] <= 1


def test_a_policy_with_an_adapter_is_merged_first(fit, whole, some_groups, tmp_path):
    """Full finetuning would begin without it: refused; the merged model has the adapter's log-probs
    and can be trained."""
    words = recipe(**LLAMA, dtype="float32", policy=str(whole), finetuning="full")
    with pytest.raises(UsageError, match="is a model with a LoRA adapter") as error:
        fit(words, output=tmp_path / "second")
    assert f"mrpo merge {whole}" in error.value.hint
    trained = load_run(whole).trained_policy
    merged = Reference(model=str(merge(trained, tmp_path / "merged")), dtype="float32")
    own = Cache(tmp_path / "cache")
    both = precompute({"adapter": trained, "merged": merged}, some_groups, own, "some")
    adapted, plain = (
        summary.store.table().sort_by("response_id")["logp"].to_pylist() for summary in both
    )
    assert plain == pytest.approx(adapted, abs=1e-3)
    third = words.model_copy(update={"policy": str(tmp_path / "merged")})
    assert fit(third, output=tmp_path / "third").metrics.steps == 1
    with pytest.raises(UsageError, match="has no adapter to merge"):
        merge(merged, tmp_path / "again")


def test_a_merge_that_finds_no_space_leaves_nothing(whole, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", full)
    with pytest.raises(ResourceError, match="No space left"):
        merge(load_run(whole).trained_policy, tmp_path / "merged")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"quantization": "nf4"}, "quantization was None, is now 'nf4'"),
        ({"max_length": 64}, "max_length was 8192, is now 64"),
        ({"chat_template": "template"}, "chat_template was"),
        ({"adapter": "run"}, "adapter was None, is now"),
        ({"revision": "a" * 40}, "revision was None"),
    ],
)
def test_words_of_a_reference_that_is_not_here_are_compared(
    words, message, references, ready, copied, tmp_path, monkeypatch
):
    """Its files are on another machine; what the project says of it is not what was scored."""
    monkeypatch.chdir(tmp_path)
    Path("template").write_text("{{ messages[0].content }}")
    absent = Reference(model="org/model", dtype="float32")
    assert ready(recipe(), references={**references, "qwen": absent}).stores
    other = absent.model_copy(update=words)
    with pytest.raises(CacheStale, match=message):
        ready(recipe(), references={**references, "qwen": other})


def test_a_changed_reference_is_refused(references, fit, run):
    """The project now says another max_length than the one that was scored."""
    mistral = references["mistral"].model_copy(update={"max_length": 64})
    with pytest.raises(CacheStale, match=r"max_length was 8192, is now 64") as error:
        fit(recipe(), references={**references, "mistral": mistral}, output=run)
    assert "mrpo precompute --ref mistral" in error.value.hint
    assert not run.exists()


@pytest.fixture
def scored(references, some_groups, fit, tmp_path):
    """A cache of llama's numbers alone under other words: what `fit` needs of it, and a summary."""

    def scored(**words):
        own = {"llama": references["llama"].model_copy(update=words)}
        cache = Cache(tmp_path / "cache")
        (summary,) = precompute(own, some_groups, cache, "some")
        return partial(fit, cache=cache, references=own, output=tmp_path / "run"), summary

    return scored


def test_a_policy_that_cuts_elsewhere_is_refused(scored):
    """With `overlong: truncate` another max_length means other tokens, so other log-probs."""
    fit, _ = scored(max_length=30, overlong="truncate")
    with pytest.raises(CacheStale, match=r"cut elsewhere for the policy \(max_length 24\)"):
        fit(recipe(**LLAMA, max_length=24, truncated="keep"))
    fit(recipe(**LLAMA, truncated="keep"))


def test_a_reference_that_lies_is_found_at_step_0(scored):
    """A cache whose numbers are not the policy's, under the policy's own identity."""
    fit, summary = scored()
    rows = summary.store.table().to_pylist()
    for path in summary.store.part_paths():
        path.unlink()
    summary.store.append([LogpRow(**{**row, "logp": row["logp"] - 0.01}) for row in rows])
    with pytest.raises(CacheStale, match="at step 0 differs from cached reference 'llama'"):
        fit(recipe(**LLAMA))


def test_overlong_responses_are_left_out(scored, ready):
    """A short max_length leaves numbers out, training skips them and says how many; the same for a
    policy of a shorter max_length than its reference."""
    fit, summary = scored(max_length=24)
    count = summary.computed["overlong"]
    assert count > 0
    assert fit(recipe(**LLAMA)).metrics.dropped_responses["overlong"] == count
    report = ready(recipe(**LLAMA, max_length=24)).report
    assert report.dropped_responses == {"overlong_for_policy": count}


def test_truncated_responses_take_part_when_asked_alone(scored, some_groups):
    """Left out and counted by training, evaluation and rank alike; with `keep` all of them are in,
    and only those that have no number are counted."""
    fit, summary = scored(max_length=28, overlong="truncate")
    cut = sum(summary.store.table()["truncated"].to_pylist())
    assert cut > 0
    unread = {"overlong": summary.computed["overlong"]}
    cache, output = fit.keywords["cache"], fit.keywords["output"]
    for truncated, dropped in (("drop", {"truncated": cut, **unread}), ("keep", unread)):
        path = output.with_name(truncated)
        result = fit(recipe(**LLAMA, truncated=truncated), output=path)
        assert result.metrics.dropped_responses == dropped
        record = evaluate(load_run(path), some_groups, cache, "all").record
        assert record.dropped_responses == dropped
        assert rank(cache, split="all", truncated=truncated).dropped_responses == dropped
    assert rank(cache, split="all").dropped_responses == {"truncated": cut, **unread}


def test_a_policy_that_would_read_less_leaves_it_out(references, ready, some_groups):
    """Its own limit cuts what the reference read whole; the two have other words for it."""
    words = {"max_length": 28, "overlong": "truncate"}
    policy = {"cut": references["llama"].model_copy(update=words)}
    both = {**references, **policy}
    report = ready(recipe(**LLAMA, policy="cut"), references=both).report
    renderer = renderer_of(resolve("cut", policy["cut"]))
    responses = [r for group in some_groups for r in renderer.encode(group).responses]
    assert report.dropped_responses == {
        "truncated_for_policy": sum(r.truncated for r in responses),
        "overlong_for_policy": sum(r.overlong for r in responses),
    }
    with pytest.raises(CacheStale, match="cut elsewhere"):
        ready(recipe(**LLAMA, policy="cut", truncated="keep"), references=both)


def test_what_scores_say_against_labels_is_counted_and_told(some_groups, fit, run, capsys):
    """Chosen is always the first response: tied, contradicted, on one side, or as scored."""
    scores = [(2.0, 2.0), (1.0, 2.0), (1.0, None), (3.0, 2.0)]
    groups = [
        replace(
            group,
            responses=tuple(
                replace(response, score=scores[g % 4][n], chosen=n == 0)
                for n, response in enumerate(group.responses[:2])
            ),
            split="train" if g < 20 else "test",
        )
        for g, group in enumerate([*some_groups[:20], *some_groups[:3]])
    ]
    report = fit(recipe(**LLAMA, split="train"), groups=groups, output=run).metrics
    assert report.groups == 20
    assert report.doubted_labels == {
        "chosen_tied_with_rejected": 5, "chosen_scored_below_rejected": 5, "one_sided_scores": 5,
        "unused_scores": 15,
    }  # fmt: skip
    assert report.prompts_in_two_splits == 3
    err = capsys.readouterr().err
    assert "warning: trained on: 5 groups whose scores contradict their labels" in err
    assert "warning: 3 prompts are trained on and stand in another split too" in err


def test_a_4_bit_policy_has_the_gradient_of_its_dequantised_weights(references):
    """NF4 with LoRA after a pass without gradient: log-probs and gradients equal those of a float32
    model that holds the dequantised weights. (A layer that repacks its weights for inference has
    no backward at all.)"""
    import bitsandbytes

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
        adapted = add_lora(model, r=4, lora_alpha=8, target_modules="all-linear", seed=0)
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
    loss, tiny_models, fit, measured, run
):
    fit(
        recipe(loss=loss, refs=[], policy=str(tiny_models["llama"]), dtype="float32", max_steps=2),
        output=run,
    )
    evaluation = measured(run)
    assert 0 <= evaluation["accuracies"] <= 1
    assert "accuracies_reference_1" not in evaluation
    assert evaluation["reference_accuracies"]["summed"] == []
