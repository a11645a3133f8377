"""A dry run counts what precompute then computes, and loads and writes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from reference_changes import edit_json
from stores import write_groups

from mrpo_tools.cache import Cache
from mrpo_tools.cli import run
from mrpo_tools.config import Recipe
from mrpo_tools.errors import UsageError
from mrpo_tools.precomputing.estimate import estimate
from mrpo_tools.precomputing.long_rows import tell_long_rows
from mrpo_tools.precomputing.precompute import precompute
from mrpo_tools.references.model_files import count_parameters
from mrpo_tools.references.resolved import renderer_of, resolve
from mrpo_tools.scorer.memory import working_bytes
from mrpo_tools.scorer.room import blueprint
from mrpo_tools.scorer.trees import Row
from mrpo_tools.training.estimate import estimate_training
from mrpo_tools.training.prepare import prepare
from mrpo_tools.training.train import train


def test_a_dry_run_counts_the_split_and_the_shard(references, some_groups, tmp_path):
    """What it counts is what precompute then scores."""
    cache = Cache(tmp_path / "cache")
    groups = [
        group.with_split(("train", "test")[n % 2]) for n, group in enumerate(some_groups[:12])
    ]
    resolved = resolve("llama", references["llama"])
    for split, shard in (("test", (0, 1)), ("test", (1, 3)), (None, (0, 2))):
        expected = estimate(resolved, groups, cache, split, shard)
        other = Cache(tmp_path / f"{split}-{shard[0]}")
        summary = precompute({"llama": references["llama"]}, groups, other, "some", split, shard)[0]
        assert summary.computed["ok"] == expected.responses > 0
    with pytest.raises(UsageError, match="no group is in split 'typo'"):
        estimate(resolved, groups, cache, "typo")


def test_a_dry_run_loads_no_weights_and_writes_nothing(
    tiny_models, some_groups, tmp_path, capsys, monkeypatch
):
    """Tokens of the dry run are those that scoring then computes; it does without weights that
    can be loaded."""
    monkeypatch.chdir(tmp_path)
    write_groups(Path("data.jsonl"), some_groups)
    unloadable = Path(shutil.copytree(tiny_models["llama"], "unloadable"))
    edit_json(unloadable / "config.json", intermediate_size=65)
    words = ["precompute", "--dataset", "data.jsonl", "--json", "--ref"]
    assert run([*words, "llama=./unloadable", "--dry-run"]) == 0
    estimate = json.loads(capsys.readouterr().out)[0]
    assert not Path("cache").exists()
    assert run([*words, "llama=./unloadable"]) == 2
    assert "cannot be loaded" in capsys.readouterr().err
    assert run([*words, f"llama={tiny_models['llama']}"]) == 0
    scored = json.loads(capsys.readouterr().out)[0]
    assert estimate["responses"] == scored["scored"]
    assert estimate["unique_tokens"] == scored["tokens"] <= estimate["tokens"]
    assert estimate["padding"] == 0
    weights = (tiny_models["llama"] / "model.safetensors").stat().st_size
    assert weights < estimate["memory_bytes"] < 100 * weights
    parts = sum(path.stat().st_size for path in Path("cache").rglob("part-*.parquet"))
    assert 0 < estimate["disk_bytes"] < parts  # a small part is mostly footer
    assert 0 < estimate["seconds"] < 60
    assert not estimate["about"]
    assert estimate["memory_bytes"] == estimate["weights_bytes"] + estimate["working_bytes"]


def test_a_model_of_no_known_family_is_estimated_roughly(references, some_groups, tmp_path, mrpo):
    """Its configuration makes no model here; the formula needs three of its numbers."""
    unknown = Path(shutil.copytree(references["llama"].model, tmp_path / "unknown"))
    edit_json(unknown / "config.json", model_type="unheard-of")
    edit_json(unknown / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    write_groups(tmp_path / "data.jsonl", some_groups)
    line = f"precompute --dry-run --ref u={unknown} --dataset {tmp_path}/data.jsonl --cache c"
    assert "about, by a rough formula" in mrpo(line).out
    estimate = json.loads(mrpo(f"{line} --json").out)[0]
    assert estimate["about"]
    assert estimate["weights_bytes"] == 4 * count_parameters(unknown)
    assert estimate["seconds"] > 0


def test_memory_grows_with_the_row(references):
    plan = blueprint(resolve("llama", references["llama"]), torch.device("cpu"))
    short, long = (
        working_bytes(plan, [Row(range(size), [range(20)], [0])]) for size in (100, 4000)
    )
    assert long > 10 * short


@pytest.fixture
def dry(here, cached, some_groups, references) -> str:
    """The words of a dry run of training on what the session has."""
    write_groups(here / "data.jsonl", some_groups)
    named = " ".join(f"--ref {name}={words.model}" for name, words in references.items())
    return f"train --refs llama --cache {cached.path} --dataset data.jsonl {named} --dry-run"


def test_a_dry_run_of_training_says_what_it_takes(dry, mrpo, here):
    """One group of every four tokens more is trained; nothing is written."""
    before = sorted(here.rglob("*"))
    words = "--loss dpo --set split=all --set max_steps=3"
    estimate = json.loads(mrpo(f"{dry} {words} --json").out)
    assert estimate["steps"] == 3
    plain, checkpointed = estimate["plain"], estimate["checkpointed"]
    assert plain["kept_bytes"] > checkpointed["kept_bytes"] > 0
    assert plain["peak_bytes"] > checkpointed["peak_bytes"] > plain["weights_bytes"]
    assert plain["optimizer_bytes"] == 2 * plain["gradient_bytes"] > 0
    assert estimate["gradient_checkpointing"] is False  # it is tiny, and there is room
    assert not estimate["about"]
    printed = mrpo(f"{dry} {words} --set gradient_checkpointing=true").out
    assert "gradient_checkpointing: true here" in printed
    assert sorted(here.rglob("*")) == before


def test_a_dry_run_of_several_devices(dry, mrpo):
    """Eight have an eighth of parameters and optimizer each, and a step takes eight times the
    groups; under DDP each has all of them. What starts nothing cannot be asked for without it."""
    words = "--loss dpo --set split=all --set gradient_checkpointing=true --set finetuning=full"
    one, ddp, parts, sgd = (
        json.loads(mrpo(f"{dry} {words} {more} --json").out)
        for more in ("", "--processes 8", "--processes 8 --wrapping fsdp2",
                     "--set 'trainer={optim: sgd}'")
    )  # fmt: skip
    assert (one["layout"], ddp["layout"]) == (
        {"processes": 1, "wrapping": None}, {"processes": 8, "wrapping": "ddp"},
    )  # fmt: skip
    for part in ("weights_bytes", "optimizer_bytes"):
        whole = one["plain"][part]
        assert ddp["plain"][part] == whole
        assert parts["plain"][part] == whole // 8
    assert one["steps"] == 5
    assert ddp["steps"] == parts["steps"] == 1
    assert sgd["plain"]["optimizer_bytes"] == 0
    printed = mrpo(f"{dry} {words} --processes 8 --wrapping zero2").out
    assert "memory is of a device (each of 8 under zero2)" in printed
    refused = mrpo(f"{dry} {words} --processes 8".replace("--dry-run", "--output run"), 2).err
    assert "--processes goes with --dry-run" in refused
    line = f"{dry} --loss dpo --set split=all --set quantization=nf4 --processes 2 --wrapping"
    assert "nf4 weights cannot be divided by fsdp2" in mrpo(f"{line} fsdp2", 2).err


def test_a_dry_run_counts_the_steps_that_training_makes(cached, references, some_groups, tmp_path):
    recipe = Recipe(loss="dpo", refs=["llama"], split="all", num_train_epochs=1.5,
                    gradient_accumulation_steps=3)  # fmt: skip
    prepared = prepare(recipe, some_groups[:20], cached, references)
    estimate = estimate_training(recipe, prepared)
    result = train(recipe, some_groups[:20], cached, references, tmp_path / "run")
    assert estimate.steps == result.metrics.steps
    assert estimate.groups == result.metrics.groups
    saved = [path for path in (tmp_path / "run").glob("checkpoint-*/*") if path.suffix in WEIGHTS]
    assert estimate.disk_bytes == pytest.approx(sum(path.stat().st_size for path in saved), rel=0.2)


WEIGHTS = (".safetensors", ".pt")


def test_a_dry_run_of_training_is_refused_as_training_is(dry, mrpo):
    assert "no-such-cache" in mrpo(f"{dry} --cache no-such-cache", 3).err
    assert "loss" in mrpo(f"{dry} --loss no-such-loss", 2).err
    assert "Missing option '--output'" in mrpo(dry.replace("--dry-run", ""), 2).err
    assert "lora_target_modules" in mrpo(f"{dry} --set lora_target_modules=[nothing]", 2).err


def test_a_long_row_is_told_where_nobody_has_set_a_length(references, some_groups, capsys):
    """Its tokens, its memory and the option; not where the length is set, or the row is short."""
    longest = max(some_groups, key=lambda group: sum(len(r.content) for r in group.responses))
    words = references["llama"].model_copy(update={"max_length": None})
    resolved = resolve("llama", words)
    encoded = renderer_of(resolved).encode(longest)
    tokens = len(encoded.prompt_ids) + sum(len(each.ids) for each in encoded.responses)
    tell_long_rows(resolved, [longest], long=tokens - 1)
    told = capsys.readouterr().err
    assert f"the longest prompt with its responses has {tokens:,} tokens and takes about 0." in told
    assert f"context of {resolved.identity.fields['max_length']:,} cuts" in told
    tell_long_rows(resolved, [longest], long=tokens)
    tell_long_rows(resolve("llama", words.model_copy(update={"max_length": 64})), [longest], long=1)
    assert capsys.readouterr().err == ""
