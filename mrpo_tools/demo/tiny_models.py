"""Three tiny causal LMs of three real architectures, trained in about a minute on two CPU cores.

They stand in for the demo's frozen references. Each knows all the demo's tasks, is better at some
and has bad habits at the others, so that references disagree and the policy has something to learn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from torch.optim import AdamW
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from mrpo_tools.demo.skills import SKILLS
from mrpo_tools.demo.tasks import OFF_FORMS, as_messages, draw_prompt, draw_value, read
from mrpo_tools.demo.tiny_tokenizers import TOKENIZERS
from mrpo_tools.groups import Group, group_from_dict
from mrpo_tools.references.rendering import Renderer

# Shares of the values that a model learns from, at its strong and at its other skills, and how
# often they come in the form asked for.
QUALITIES = ("right", "slip")
STRONG, STRONG_FORM = (0.90, 0.10), 0.80
WEAK, WEAK_FORM = (0.50, 0.50), 0.45
SIZE = {
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,  # of 32 each: engines made for GPUs load no smaller ones
    "max_position_embeddings": 8192,
    "initializer_range": 0.05,
}
STEPS = 600
SCHOOL = 0.75  # share of the steps, the first ones, in which every value is right
BATCH = 32
LEARNING_RATE = 2e-3

Progress = Callable[[str, int, int], None]
Row = tuple[list[int], list[int]]  # the ids of a prompt, the ids of its answer


@dataclass(frozen=True)
class Plan:
    """How one tiny model is made.

    Attributes:
        strong: the skills it sees twice as often and mostly answered right. At the others it
            learns to leave the letters as they are as often as to do what is asked.
        habit: how it words most answers that are not in the form asked for.
        settings: fields of the config beyond the common size.
    """

    config: type
    model: type[PreTrainedModel]
    strong: tuple[str, ...]
    habit: str
    settings: dict[str, Any] = field(default_factory=dict)


PLANS = {
    "llama": Plan(LlamaConfig, LlamaForCausalLM, ("next",), "Sure! It is {}."),
    "mistral": Plan(
        MistralConfig,
        MistralForCausalLM,
        ("reverse", "rotate"),
        "{}, I think.",
        {"num_key_value_heads": 1, "sliding_window": 32},
    ),
    "qwen": Plan(
        Qwen2Config,
        Qwen2ForCausalLM,
        ("sort", "count"),
        "It is {}.",
        {"num_key_value_heads": 1, "tie_word_embeddings": True},
    ),
}


def make_models(
    directory: str | Path,
    seed: int = 0,
    on_progress: Progress | None = None,
    *,
    steps: int = STEPS,
) -> dict[str, Path]:
    """Train and save the three models, each with its tokenizer, in `directory`/NAME.

    What is there is overwritten. The same seed, thread count and library versions give the same
    bytes. No prompt of the data's test split is among the training texts.

    Args:
        directory: made if it is not there.
        seed: of weights and training texts.
        on_progress: called as (name, step, steps) after every step; all models take as many.
        steps: of training.
    """
    paths = {}
    for index, name in enumerate(PLANS):
        path = Path(directory) / name
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + index)
            rng = random.Random(f"{seed} {name}")
            model, tokenizer = _make(name, rng, steps, on_progress or (lambda *_: None))
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        paths[name] = path
    return paths


def _make(
    name: str, rng: random.Random, steps: int, on_progress: Progress
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    plan = PLANS[name]
    groups = [
        _draw_group(rng, plan, schooled=index < SCHOOL * steps * BATCH)
        for index in range(steps * BATCH)
    ]
    questions = [turn.content for group in groups[:2000] for turn in group.prompt]
    answers = [group.responses[0].content for group in groups[:2000]]
    tokenizer = TOKENIZERS[name]([*questions, *answers])
    config = plan.config(
        **SIZE,
        **plan.settings,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = plan.model(config)
    rows = _encode(groups, Renderer(tokenizer, name=name))
    _train(model, rows, rng, lambda step: on_progress(name, step, steps))
    return model.eval(), tokenizer


def _draw_group(rng: random.Random, plan: Plan, *, schooled: bool = False) -> Group:
    """A training prompt with one answer, as good as the model is at the prompt's skill.

    Args:
        rng: of everything.
        plan: of the model.
        schooled: the value is right whatever the skill. A model that has not learned what to do
            cannot learn when to slip.
    """
    skill = rng.choices(list(SKILLS), weights=[2 if s in plan.strong else 1 for s in SKILLS])[0]
    prompt = draw_prompt(rng, "train", skill)
    question = read(prompt)
    shares, as_asked = (STRONG, STRONG_FORM) if skill in plan.strong else (WEAK, WEAK_FORM)
    quality = "right" if schooled else rng.choices(QUALITIES, weights=shares)[0]
    value = draw_value(rng, question, quality)
    if rng.random() < as_asked:
        answer = question.written(value)
    else:
        answer = rng.choice((plan.habit, rng.choice(OFF_FORMS))).format(value)
    return group_from_dict({"prompt": as_messages(prompt), "responses": [{"content": answer}]})


def _encode(groups: list[Group], renderer: Renderer) -> list[Row]:
    encoded = (renderer.encode(group) for group in groups)
    return [(list(group.prompt_ids), list(group.responses[0].ids)) for group in encoded]


def _train(
    model: PreTrainedModel, rows: list[Row], rng: random.Random, on_step: Callable[[int], None]
) -> None:
    """One pass over `rows` with AdamW and a cosine schedule; the loss is on responses alone."""
    optimizer = AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    steps = len(rows) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1
    )
    model.train()
    for step, batch in enumerate(_batches(rows, rng), start=1):
        loss = _loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        on_step(step)


def _batches(rows: list[Row], rng: random.Random) -> Iterator[list[Row]]:
    """Batches of rows of like length, in random order within pools of sixteen batches."""
    for start in range(0, len(rows), 16 * BATCH):
        pool = sorted(rows[start : start + 16 * BATCH], key=lambda row: len(row[0]) + len(row[1]))
        batches = [pool[at : at + BATCH] for at in range(0, len(pool), BATCH)]
        rng.shuffle(batches)
        yield from batches


def _loss(model: PreTrainedModel, batch: list[Row]) -> torch.Tensor:
    """Mean cross-entropy of the responses' tokens, in nats.

    Rows are padded on the right, where causal attention keeps padding out of sight, and only the
    positions that predict a response go through the head.
    """
    width = max(len(prompt) + len(response) for prompt, response in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    predicts = torch.zeros(len(batch), width, dtype=torch.bool)
    for row, (prompt, response) in enumerate(batch):
        end = len(prompt) + len(response)
        ids[row, :end] = torch.tensor(prompt + response)
        predicts[row, len(prompt) - 1 : end - 1] = True
    hidden = model.model(input_ids=ids).last_hidden_state
    return functional.cross_entropy(model.lm_head(hidden[predicts]), ids.roll(-1, 1)[predicts])
