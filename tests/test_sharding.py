"""Two processes, DDP and FSDP2, against one: the same curve, figures and files, whatever is where.

The groups are of unequal lengths, so that the two processes need unequal numbers of passes.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import pytest
import torch
from launched import started
from safetensors.torch import load_file
from sharded_runs import FSDP, LIMIT, ROW
from small_data import write_lines
from trained import ADAPTER, METRICS, cut_short, log_of, recipe
from transformers import AutoModelForCausalLM

from mrpo_tools.cache import Cache
from mrpo_tools.errors import UsageError
from mrpo_tools.precomputing.precompute import precompute
from mrpo_tools.references.loading import load_model
from mrpo_tools.references.locate import locate
from mrpo_tools.runs.checkpoints import last_whole
from mrpo_tools.scorer.scorer import ResponseScorer
from mrpo_tools.sources import load_groups
from mrpo_tools.training.train import train
from mrpo_tools.training.wrapping import Sharding, sharding_of

HERE = Path(__file__).parent
WORDS = {
    "refs": ["llama", "qwen"], "max_steps": 3, "gradient_accumulation_steps": 1, "save_steps": 1,
    "save_total_limit": 3,
    "eval_steps": 1, "eval_split": "all", "batch_tokens": 90, "learning_rate": 3e-3,
}  # fmt: skip
FULL = {**WORDS, "refs": ["qwen", "llama"], "finetuning": "full", "learning_rate": 1e-3}
ALONE = {"per_device_train_batch_size": 4}
SHARED = {"per_device_train_batch_size": 2}
RUNS = {"ddp": WORDS, "fsdp": WORDS, "fsdp_full": FULL, "fsdp_resumed": WORDS}
FIGURES = ("loss", "grad_norm", "rewards/margins", "eval_loss", "eval_rewards/margins",
           "eval_logps/chosen")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory, references) -> Path:
    """Eight groups, short and long in turn, their cache, and the runs of one process."""
    rng, folder = random.Random(0), tmp_path_factory.mktemp("sharded")
    words = ["one", "two", "three", "four", "five", "six", "seven"]
    write_lines(folder / "data.jsonl", [
        {"prompt": f"Question {g}?", "split": "train", "responses": [
            {"content": " ".join(rng.choices(words, k=(2, 30)[g % 2] + n)), "score": n % 3}
            for n in range(3)]}
        for g in range(8)
    ])  # fmt: skip
    used = {name: references[name] for name in ("llama", "qwen")}
    groups = load_groups(folder / "data.jsonl").groups
    precompute(used, groups, Cache(folder / "cache"), "sharded")
    for name, run_words in (("one", WORDS), ("one_full", FULL)):
        fit(folder, references, folder / name, **run_words, **ALONE)
    shutil.copytree(folder / "one", folder / "fsdp_resumed")
    cut_back(folder / "fsdp_resumed")
    return folder


def cut_back(run: Path) -> None:
    """Leave of a run what it was after its first step."""
    cut_short(run, METRICS, ADAPTER, "checkpoint-2", "checkpoint-3")
    assert last_whole(run) == run / "checkpoint-1"


def fit(folder: Path, references, run: Path, *, resume: bool = False, **words):
    groups = load_groups(folder / "data.jsonl").groups
    return train(recipe(**words), groups, Cache(folder / "cache"), references, run, resume=resume)


@pytest.fixture(scope="module")
def found(folder, references) -> list[dict]:
    """What each of two processes found; beside it lie their runs."""
    asked = {
        "references": {name: reference.model_dump(mode="json", exclude_none=True)
                       for name, reference in references.items()},
        "cache": str(folder / "cache"),
        "runs": {name: recipe(**words, **SHARED).model_dump(mode="json")
                 for name, words in RUNS.items()},
    }  # fmt: skip
    (folder / "asked.json").write_text(json.dumps(asked))
    with started("torchrun", HERE / "sharded_runs.py", folder) as process:
        told, _ = process.communicate(timeout=500)
    assert process.returncode == 0, told[-5000:]
    return [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(2)]


def curve(run: Path) -> list[tuple[str, float]]:
    """Every figure of a run's log, in order."""
    return [(key, entry[key]) for entry in log_of(run) for key in FIGURES if key in entry]


@pytest.mark.parametrize(
    ("run", "alone"),
    [("ddp", "one"), ("fsdp", "one"), ("fsdp_full", "one_full"), ("fsdp_resumed", "one")],
)
def test_two_processes_have_the_curve_of_one(run, alone, folder, found):
    shared, expected = curve(folder / run), curve(folder / alone)
    assert [key for key, _ in shared] == [key for key, _ in expected]
    assert len(expected) == 3 * 3 + 4 * 3
    for (key, value), (_, other) in zip(shared, expected, strict=True):
        assert value == pytest.approx(other, abs=1e-5, rel=1e-5), key
    moved = [json.loads((folder / each / METRICS).read_text())["moved_nats_per_token"]
             for each in (run, alone)]  # fmt: skip
    assert moved[0] == pytest.approx(moved[1], abs=1e-5)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own
@pytest.mark.parametrize(("run", "alone"), [("fsdp", "one"), ("fsdp_resumed", "one")])
def test_an_adapter_is_saved_whole(run, alone, folder, found, tiny_models):
    """peft loads it onto the plain model, whose logits are those of one process's adapter."""
    from peft import PeftModel

    ids = torch.tensor([[1, 2, 3, 4]])
    plain = AutoModelForCausalLM.from_pretrained(tiny_models["llama"])(input_ids=ids).logits
    logits = []
    for each in (run, alone):
        model = AutoModelForCausalLM.from_pretrained(tiny_models["llama"])
        logits.append(PeftModel.from_pretrained(model, folder / each)(input_ids=ids).logits)
    torch.testing.assert_close(*logits, rtol=0, atol=1e-4)
    assert float((logits[0] - plain).abs().max()) > 1e-2
    assert load_file(folder / run / ADAPTER).keys() == load_file(folder / alone / ADAPTER).keys()


def test_a_model_is_saved_whole(folder, found):
    """Tied embeddings once; plain transformers load it, without a word of missing names."""
    names = [load_file(folder / run / "model.safetensors").keys()
             for run in ("fsdp_full", "one_full")]  # fmt: skip
    assert names[0] == names[1]
    models = []
    for run in ("fsdp_full", "one_full"):
        model, told = AutoModelForCausalLM.from_pretrained(folder / run, output_loading_info=True)
        assert not any(told.values()), told
        models.append(dict(model.named_parameters()))
    for name, weights in models[0].items():
        torch.testing.assert_close(weights, models[1][name], rtol=0, atol=2e-5, msg=name)


def test_checkpoints_have_the_form_of_one_process(folder, found):
    """The optimizer's states too, whole: the same names and shapes, and nearly the same values."""
    states = [torch.load(folder / run / "checkpoint-2" / "optimizer.pt", weights_only=True)["state"]
              for run in ("fsdp", "one")]  # fmt: skip
    assert states[0].keys() == states[1].keys()
    for place, state in states[1].items():
        for name, value in state.items():
            torch.testing.assert_close(states[0][place][name], value, rtol=1e-3, atol=1e-6)
    assert (folder / "fsdp" / "checkpoint-2" / "seal.json").exists()


def test_one_process_goes_on_where_two_stopped(folder, found, references, tmp_path):
    run = Path(shutil.copytree(folder / "fsdp", tmp_path / "run"))
    cut_back(run)
    with pytest.raises(UsageError, match=r"a step of .* is of 4 groups; with 1 processes") as error:
        fit(folder, references, run, resume=True, **WORDS, **SHARED)
    assert "--set gradient_accumulation_steps=2" in str(error.value.hint)
    fit(folder, references, run, resume=True, **WORDS, **ALONE)
    for (key, value), (_, other) in zip(curve(run), curve(folder / "one"), strict=True):
        assert value == pytest.approx(other, abs=1e-5, rel=1e-5), key


def test_empty_passes_make_unequal_processes_equal(found, tiny_models, references):
    """One pass here, three there: the gradient is that of four passes, halved by the mean; without
    the two empty ones each waits for the other until it gives up."""
    reference = references["llama"]
    scorer = ResponseScorer(load_model(locate(reference), reference, "float32"))
    logps = scorer([scorer.collate([ROW])], 2)
    logps.sum().backward()
    expected = {name: float(2 * weights.grad.norm())
                for name, weights in scorer.named_parameters()}  # fmt: skip
    for rank, passes in enumerate((1, 3)):
        padded = found[rank]["padded"]
        assert padded["logps"] == pytest.approx((passes * logps).tolist(), abs=1e-4)
        assert padded["gradients"] == pytest.approx(expected, rel=1e-4)
        assert padded["dropped"]
    given_up = [each["unpadded"] for each in found]
    assert max(each.get("seconds", 0) for each in given_up) >= LIMIT.total_seconds() / 2
    assert any("failed" in each for each in given_up)


def test_an_error_in_one_process_ends_all(folder, found):
    """Between two steps, where the other goes on to wait for it; torchrun tells which it was."""
    with started("torchrun", HERE / "sharded_runs.py", folder, "raise") as process:
        for line in process.stdout:
            if line.startswith("raises"):
                break
        raised = time.monotonic()
        told, _ = process.communicate(timeout=60)
        assert time.monotonic() - raised < 60
    assert process.returncode != 0
    assert "planted" in told


REFUSED = {
    "FSDP_VERSION": "1", "FSDP_OFFLOAD_PARAMS": "true", "FSDP_ACTIVATION_CHECKPOINTING": "true",
    "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
}  # fmt: skip
TWO = {"RANK": "0", "WORLD_SIZE": "2"}
KEPT = Sharding(reshard_after_forward=False)


@pytest.mark.parametrize("word", REFUSED)
def test_words_of_accelerate_that_would_be_ignored(word):
    with pytest.raises(UsageError, match=word.lower()):
        sharding_of(recipe(), {**TWO, **FSDP, word: REFUSED[word]})


def test_all_of_them_are_told_together():
    with pytest.raises(UsageError) as error:
        sharding_of(recipe(), {**TWO, **FSDP, **REFUSED})
    assert all(word.lower() in str(error.value) for word in REFUSED)


@pytest.mark.parametrize(
    ("environment", "trainer", "expected"),
    [(TWO, {}, None), (FSDP, {}, None), ({**TWO, **FSDP}, {}, Sharding()),
     (TWO, {"fsdp": True}, Sharding()), ({}, {"fsdp": True}, None),
     ({**TWO, **FSDP, "FSDP_RESHARD_AFTER_FORWARD": "false"}, {}, KEPT),
     (TWO, {"fsdp": True, "fsdp_config": {"reshard_after_forward": False}}, KEPT)],
)  # fmt: skip
def test_who_asks_for_sharding(environment, trainer, expected):
    assert sharding_of(recipe(trainer=trainer), environment) == expected


@pytest.mark.parametrize(
    ("words", "told"),
    [({"quantization": "nf4"}, "nf4 weights cannot be shared out"),
     ({"trainer": {"fsdp": True, "optim": "paged_adamw_8bit"}}, "cannot compute on parts"),
     ({"trainer": {"fsdp": True, "fsdp_config": {"offload": True}}}, "offload is not read")],
)  # fmt: skip
def test_what_cannot_be_shared_out(words, told):
    with pytest.raises(UsageError, match=told):
        sharding_of(recipe(**words), {**TWO, **FSDP})
