"""The single measurements of `speed.py`, each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import random
import statistics
import time
from pathlib import Path

import torch
from models import VOCABULARY, make_model

from mrpo_tools.cache import Cache
from mrpo_tools.config import Recipe, Reference
from mrpo_tools.precomputing.ensure import ensure
from mrpo_tools.references.devices import peak_memory_bytes, reset_peak_memory
from mrpo_tools.references.loading import load_model
from mrpo_tools.references.resolved import ResolvedReference, resolve
from mrpo_tools.scorer.loaded import LoadedReference
from mrpo_tools.scorer.scorer import BATCH_TOKENS, ROUTES, ResponseScorer, response_logps
from mrpo_tools.scorer.trees import Row, batches, plan_rows
from mrpo_tools.sources import load_groups

CPU = torch.device("cpu")
PAIRS, TRAINED_PAIRS, BATCH = 160, 48, 8
MAX_LENGTH = 768
CHAT, FOUR = "chat_pairs_sharegpt.json", "vicuna_scored4.jsonl"


def run(name: str, data: Path, work: Path) -> dict:
    """One measurement by name."""
    work.mkdir(parents=True, exist_ok=True)
    kind, _, rest = name.partition("-")
    if kind == "score":
        return ours(data, work, FOUR if rest == "four" else CHAT, plain=rest == "plain")
    if kind in ("planned", "unshared"):
        return equal_lengths(data, work, int(rest), share=kind == "planned")
    if kind == "train":
        return ours_training(data, work, references=int(rest or 1))
    _, what, *how = name.split("-")
    if what == "train":
        return trl_training(data, work)
    return trl_scoring(data, work, "four" in how, int(how[1]) if "sorted" in how else 0)


def groups_of(data: Path, name: str) -> list:
    return load_groups(str(data / name), limit=PAIRS if name == CHAT else None).groups


def model_of(data: Path, work: Path) -> Path:
    directory = work / "model"
    if not (directory / "tokenizer_config.json").exists():
        texts = [
            turn.content
            for name in (CHAT, FOUR)
            for group in groups_of(data, name)
            for turn in (*group.prompt, *group.responses)
        ]
        make_model(directory, texts)
    return directory


def reference_of(data: Path, work: Path) -> Reference:
    return Reference(
        model=str(model_of(data, work)), dtype="float32", max_length=MAX_LENGTH, overlong="truncate"
    )


def peak_flops() -> float:
    """Operations a second of a float32 matrix product, the median of ten."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    speeds = []
    for _ in range(10):
        started = time.perf_counter()
        a @ b
        speeds.append(2 * 2048**3 / (time.perf_counter() - started))
    return statistics.median(speeds)


class Stopwatch(ResponseScorer):
    """A scorer that adds up the time inside `forward`; with plain rows only where it is told so."""

    seconds = 0.0
    plain = False

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        if self.plain:
            self.routes = ROUTES[2:]

    def forward(self, *arguments: object) -> torch.Tensor:
        started = time.perf_counter()
        found = super().forward(*arguments)
        type(self).seconds += time.perf_counter() - started
        return found


def load_timed(resolved: ResolvedReference, dtype: str, device: torch.device) -> LoadedReference:
    """The reference's model under a stopwatch."""
    model = load_model(resolved.files, resolved.reference, dtype, device)
    return LoadedReference(Stopwatch(model, resolved.reference.attention), device)


def ours(data: Path, work: Path, name: str, plain: bool) -> dict:
    """`ensure` from nothing: files, tokens, model, self-check, forward passes, parts."""
    groups, reference = groups_of(data, name), reference_of(data, work)
    Stopwatch.plain = plain
    peaks = [peak_flops()]
    reset_peak_memory(CPU)
    with contextlib.ExitStack() as stack:
        import tempfile

        cache = Cache(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "cache")
        started = time.perf_counter()
        summary = ensure(cache, resolve("model", reference), groups, load=load_timed)
        seconds = time.perf_counter() - started
        rows = summary.store.table()
    peak_memory = peak_memory_bytes(CPU)
    peaks.append(peak_flops())
    lengths = {
        row["response_id"]: row["num_tokens"] for row in rows.to_pylist() if row["status"] == "ok"
    }
    scored = sum(lengths.values())
    useful = 2 * decoder_parameters(reference) * summary.tokens + 2 * VOCABULARY * 512 * scored
    return {
        "seconds": seconds,
        "tokens": summary.tokens,
        "scored_tokens": scored,
        "scored_tokens_with_repetitions": sum(
            lengths.get(key, 0) for group in groups for key in group.response_ids
        ),
        "peak_memory_bytes": peak_memory,
        "useful_share": useful / seconds / statistics.mean(peaks),
        "other_share": 1 - Stopwatch.seconds / seconds,
        "peak_flops": peaks,
    }


def decoder_parameters(reference: Reference) -> int:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(reference.model)
    return sum(one.numel() for one in model.model.layers.parameters())


def equal_lengths(data: Path, work: Path, prompt: int, share: bool) -> dict:
    """Two responses of 128 tokens after a prompt of `prompt`; no padding anywhere."""
    reference = reference_of(data, work)
    model = load_model(resolve("model", reference).files, reference, "float32", CPU)
    scorer = ResponseScorer(model)
    scorer.take(ROUTES[0])
    source = random.Random(0)

    def ids(length: int) -> list[int]:
        return [source.randrange(10, VOCABULARY) for _ in range(length)]

    trees = [Row(ids(prompt), [ids(128), ids(128)], [2 * n, 2 * n + 1]) for n in range(24)]
    planned = batches(plan_rows(trees, share=share, hidden_size=512), BATCH_TOKENS[True])
    response_logps(scorer, planned[0], CPU)
    started = time.perf_counter()
    for batch in planned:
        response_logps(scorer, batch, CPU)
    return {"seconds": time.perf_counter() - started, "rows": sum(map(len, planned))}


def ours_training(data: Path, work: Path, references: int) -> dict:
    """Seconds of training alone, with the cached numbers of one to three references."""
    import tempfile

    from mrpo_tools.precomputing.precompute import precompute
    from mrpo_tools.training.train import train

    groups = groups_of(data, CHAT)[:TRAINED_PAIRS]
    reference = reference_of(data, work)
    cache = Cache(work / "train-cache")
    names = ["one", "two", "three"][:references]
    table = dict.fromkeys(names, reference)
    precompute(table, groups, cache, "pairs")
    recipe = Recipe(
        loss="dpo" if references == 1 else "mrpo", refs=names, split="all", lora_r=8,
        lora_target_modules=["q_proj", "v_proj"], per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=1, gradient_checkpointing=False, logging_steps=100,
        lr_scheduler_type="constant",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        result = train(recipe, groups, cache, table, Path(scratch) / "run")
    metrics = result.metrics
    return {"seconds": metrics["train_seconds"], "steps": metrics["steps"],
            "peak_memory_bytes": metrics["peak_memory_bytes"]}  # fmt: skip


def trl_rows(groups: list) -> list[dict]:
    """Conversational pairs; of scored sets the best against each of the rest."""
    rows = []
    for group in groups:
        prompt = [turn.as_dict() for turn in group.prompt]
        ordered = sorted(group.responses, key=lambda one: -(one.score or float(bool(one.chosen))))
        rows += [
            {
                "prompt": prompt,
                "chosen": [{"role": "assistant", "content": ordered[0].content}],
                "rejected": [{"role": "assistant", "content": other.content}],
            }
            for other in ordered[1:]
        ]
    return rows


def trl_trainer(data: Path, work: Path, rows: list[dict], **words: object):
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    directory = str(model_of(data, work))
    arguments = DPOConfig(
        output_dir=str(work / "trl"), max_length=MAX_LENGTH, precompute_ref_log_probs=True,
        use_cpu=True, bf16=False, report_to=[], save_strategy="no", disable_tqdm=True,
        model_init_kwargs={"dtype": "float32"}, gradient_checkpointing=False,
        **{key: value for key, value in words.items() if key != "peft_config"},
    )  # fmt: skip
    return DPOTrainer(
        model=directory,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(directory),
        peft_config=words.get("peft_config"),
    )


def trl_scoring(data: Path, work: Path, four: bool, sorted_batch: int) -> dict:
    """TRL's reference log-probs: its trainer made from nothing, which computes them."""
    rows = trl_rows(groups_of(data, FOUR if four else CHAT))
    if sorted_batch:
        rows.sort(key=lambda row: -len(json.dumps(row)))
    model_of(data, work)
    import datasets  # noqa: F401  before the clock starts
    import trl  # noqa: F401

    reset_peak_memory(CPU)
    started = time.perf_counter()
    trainer = trl_trainer(data, work, rows, precompute_ref_batch_size=sorted_batch or BATCH)
    seconds = time.perf_counter() - started
    peak = peak_memory_bytes(CPU)
    collated = [trainer.data_collator([one]) for one in trainer.train_dataset]
    return {
        "seconds": seconds,
        "scored_tokens": int(sum(one["completion_mask"].sum() for one in collated)),
        "peak_memory_bytes": peak,
    }


def trl_training(data: Path, work: Path) -> dict:
    """TRL's training alone, its reference log-probs computed before."""
    from peft import LoraConfig

    rows = trl_rows(groups_of(data, CHAT)[:TRAINED_PAIRS])
    trainer = trl_trainer(
        data, work, rows, per_device_train_batch_size=BATCH, num_train_epochs=1,
        logging_steps=100, learning_rate=1e-5, lr_scheduler_type="constant",
        peft_config=LoraConfig(r=8, lora_alpha=8, target_modules=["q_proj", "v_proj"],
                               task_type="CAUSAL_LM"),
    )  # fmt: skip
    reset_peak_memory(CPU)
    outcome = trainer.train()
    return {"seconds": outcome.metrics["train_runtime"], "steps": trainer.state.global_step,
            "peak_memory_bytes": peak_memory_bytes(CPU)}  # fmt: skip
