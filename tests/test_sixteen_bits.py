"""The demo's project in bfloat16, end to end: every command that refused 16 bits does its work."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from stores import said
from transformers import LlamaConfig, LlamaForCausalLM

from mrpo_tools.cache import Cache
from mrpo_tools.cli import run
from mrpo_tools.config import Reference
from mrpo_tools.demo import demo
from mrpo_tools.demo.tiny_models import make_models
from mrpo_tools.errors import UsageError
from mrpo_tools.files import shipped
from mrpo_tools.references.loading import add_lora, quiet_libraries
from mrpo_tools.references.resolved import renderer_of, resolve
from mrpo_tools.runs.run import load_run
from mrpo_tools.scorer.scorer import ResponseScorer
from mrpo_tools.scorer.trees import Row
from mrpo_tools.sources import load_groups
from mrpo_tools.training.activations import bytes_per_token
from mrpo_tools.training.policy import resolve_policy

REFS = "llama,mistral,qwen"
FOUR_BITS = "  four: {model: models/llama, dtype: bfloat16, quantization: nf4}\n"
FULL = ("finetuning=full", "dtype=float32", "autocast=bfloat16", "learning_rate=1e-4")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's project with its references in bfloat16 and one more in 4 bits, and three runs:
    one that begins at the 4-bit reference, one that trains all weights with 16-bit products."""
    folder = tmp_path_factory.mktemp("sixteen")
    recipe = demo.RECIPE.replace("num_train_epochs: 2", "max_steps: 3")
    recipe = "".join(line for line in recipe.splitlines(True) if "eval_steps" not in line)
    (folder / "mrpo.yaml").write_text(demo.PROJECT.replace("float32", "bfloat16") + FOUR_BITS)
    (folder / "recipe.yaml").write_text(recipe)
    shutil.copyfile(shipped("data") / "demo.jsonl", folder / "demo.jsonl")
    train = ["train", "--config", "recipe.yaml", "--loss", "mrpo", "--output"]
    full = [word for setting in FULL for word in ("--set", setting)]
    with contextlib.chdir(folder):
        make_models("models", steps=60)
        for words in (
            ["precompute"],
            [*train, "runs/mrpo", "--refs", REFS],
            [*train, "runs/four", "--refs", "four,mistral,qwen"],
            [*train, "runs/full", "--refs", REFS, *full],
            ["evaluate", "runs/mrpo", "runs/four", "runs/full"],
        ):
            assert run(words) == 0, words
    return folder


def test_prompts_are_shared_and_the_noise_is_recorded(made):
    """Of measured numbers: some noise, little bias; nothing faster was refused."""
    for store in Cache(made / "cache").references():
        [record] = store.recorded()
        assert (record.dtype, record.route, record.refused) == ("bfloat16", "tree", {})
        assert 1e-5 < record.noise.rms < 0.03
        assert abs(record.noise.bias) < 5 * record.noise.rms / record.noise.tokens**0.5
        assert store.identity.fields["logits"] == "float32"


@pytest.mark.parametrize("name", ["mrpo", "four"])
def test_training_starts_at_its_reference(made, name):
    """At step 0 the policy is reference 1 up to noise, with 4-bit weights too."""
    metrics = json.loads((made / "runs" / name / "metrics.json").read_text())
    assert 0 <= metrics["step0_difference_nats_per_token"] < 0.01
    assert metrics["steps"] == 3


def test_a_policy_of_other_weights_is_told_how_far_it_is(made, capsys, monkeypatch):
    """bfloat16 numbers and a 4-bit policy: a warning with the distance, no refusal."""
    monkeypatch.chdir(made)
    code = run(["train", "--config", "recipe.yaml", "--refs", REFS, "--set", "quantization=nf4",
                "--set", "max_steps=1", "--output", "runs/other"])  # fmt: skip
    assert code == 0
    assert "the policy's quantization differ from cached reference 1's" in capsys.readouterr().err


@pytest.mark.parametrize("ref", ["llama", "mistral", "qwen", "four"])
def test_numbers_computed_again_agree_and_false_ones_do_not(made, tmp_path, capsys, ref):
    """64 of them; then the same cache with numbers of a temperature that is 2 % too high."""
    check = ["cache", "verify", "--rescore", "64", "--ref", ref, "--cache"]
    with contextlib.chdir(made):
        said(capsys, *check, "cache")
        source, false = Cache(Path("cache")), Cache(tmp_path / "false")
        false.save_groups("demo", load_groups("demo.jsonl").groups)
        store = source.find(ref)
        [part] = store.parts()
        warm = pc.multiply(part.table["logp"], pa.scalar(1.02))
        table = part.table.set_column(part.table.schema.get_field_index("logp"), "logp", warm)
        false.store(ref, store.identity).write(table, part.created, part.records)
        text = said(capsys, *check, str(tmp_path / "false"), code=3)
    assert "and noise explains" in text


def _loaded(trained: Reference, dtype: str):
    """As transformers and peft load it, with nothing of ours."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(trained.model, dtype=getattr(torch, dtype))
    if trained.adapter:
        model = PeftModel.from_pretrained(model, trained.adapter).get_base_model()
    return model.eval()


def _apart(model, encoded, cached: list[float], *, narrow: bool) -> list[float]:
    """Each response's log-prob, by transformers one row at a time, less the cached one; products as
    they are or in bfloat16, logits in float64."""
    head, apart = model.lm_head.weight.detach(), []
    head = (head.bfloat16() if narrow else head).double()
    for response, number in zip(encoded.responses, cached, strict=True):
        row = torch.tensor([[*encoded.prompt_ids, *response.ids]])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            states = model.model(row).last_hidden_state[0]
        states = (states.bfloat16() if narrow else states).double()
        logits = (states @ head.T)[len(encoded.prompt_ids) - 1 : -1].log_softmax(-1)
        logp = logits.gather(1, torch.tensor(response.ids)[:, None]).sum()
        apart.append((float(logp) - number) / len(response.ids) ** 0.5)
    return apart


@pytest.mark.parametrize("name", ["mrpo", "full"])
def test_a_policy_is_evaluated_as_it_was_trained(made, name):
    """Its cached numbers are those of transformers under autocast; those of a full run are much
    farther from the same weights without it."""
    with contextlib.chdir(made):
        trained = load_run(Path("runs", name)).trained_policy
        resolved = resolve("policy", trained)
        assert (resolved.dtype, resolved.products) == (
            ("float32", "bfloat16") if name == "full" else ("bfloat16", "bfloat16")
        )
        groups = [group for group in load_groups("demo.jsonl").groups if group.split == "test"][:10]
        renderer, model = renderer_of(resolved), _loaded(trained, resolved.dtype)
    store = Cache(made / "runs" / name / "evaluation").store("policy", resolved.identity)
    rms = {True: 0.0, False: 0.0}
    for narrow in rms if name == "full" else (True,):
        squares = []
        for group in groups:
            cached = store.rows_of(pa.array(group.response_ids))["logp"].to_pylist()
            encoded = renderer.encode(group)
            squares += [x**2 for x in _apart(model, encoded, cached, narrow=narrow)]
        rms[narrow] = (sum(squares) / len(squares)) ** 0.5
    assert rms[True] < 0.01
    assert name != "full" or rms[True] < 0.7 * rms[False], rms


def test_float16_is_not_trained_where_nothing_scales_the_loss(tiny_models):
    from mrpo_tools.config import Recipe

    recipe = Recipe(loss="slic", policy=str(tiny_models["llama"]), dtype="float16")
    with pytest.raises(UsageError, match="its gradients vanish unless the loss is scaled"):
        resolve_policy(recipe, [], {})
    scored = Reference(model=str(tiny_models["llama"]), dtype="float16")
    assert resolve("llama", scored).products == "float16"  # computing log-probs needs no gradient


def adapted(dtype: torch.dtype) -> ResponseScorer:
    """A small Llama with a LoRA adapter that does something, in training mode."""
    quiet_libraries()
    torch.manual_seed(0)
    words = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 224}
    config = LlamaConfig(num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                         initializer_range=0.1, **words)  # fmt: skip
    model = add_lora(
        LlamaForCausalLM(config).to(dtype), r=8, lora_alpha=16, target_modules="all-linear", seed=0
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05)
    return ResponseScorer(model).train()


def test_an_adapter_in_16_bits_keeps_half_and_has_the_gradient_of_float32():
    """Adapters and their gradients are float32; what autograd keeps of a token is 16 bits wide:
    55 % of float32's bytes, where widening the adapter's inputs would keep 68 %."""
    row, kept, gradients = Row([5] * 40, [[6] * 30, [7] * 20], [0, 1]), {}, {}
    for dtype in (torch.float32, torch.bfloat16):
        scorer = adapted(dtype)
        kept[dtype] = bytes_per_token(scorer, row)
        logps = scorer([scorer.collate([row])], 2)
        (logps[0] - logps[1]).backward()
        trained = [p.grad for p in scorer.parameters() if p.requires_grad]
        assert {gradient.dtype for gradient in trained} == {torch.float32}
        gradients[dtype] = torch.cat([gradient.flatten() for gradient in trained]).double()
    wide, narrow = gradients.values()
    assert kept[torch.bfloat16] < 0.6 * kept[torch.float32]
    assert wide @ narrow > 0.999 * wide.norm() * narrow.norm()
    assert narrow.norm() / wide.norm() == pytest.approx(1, abs=0.02)


def test_all_weights_with_16_bit_products_have_the_gradient_of_float32():
    """Full finetuning: float32 weights and gradients, products in bfloat16."""
    row, gradients = Row([5, 9, 11] * 8, [[6, 3] * 9, [7] * 20], [0, 1]), []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, initializer_range=0.1,
        )  # fmt: skip
        scorer = ResponseScorer(LlamaForCausalLM(config), dtype=dtype).train()
        logps = scorer([scorer.collate([row])], 2)
        (logps[0] - logps[1]).backward()
        every = [parameter.grad for parameter in scorer.parameters()]
        assert {gradient.dtype for gradient in every} == {torch.float32}
        gradients.append(torch.cat([gradient.flatten() for gradient in every]).double())
    wide, narrow = gradients
    assert not torch.equal(wide, narrow)
    assert wide @ narrow > 0.999 * wide.norm() * narrow.norm()
