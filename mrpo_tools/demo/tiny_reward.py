"""A tiny reward model: a Llama that classifies sequences, fitted on scores in seconds on a CPU.

It stands in for the reward models of the hub. It learns the form of an answer well and its content
a little, so it ranks answers by far better than chance and can be fooled: what a held-out scorer
is for.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.optim import AdamW
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from mrpo_tools.demo.tiny_tokenizers import TOKENIZERS
from mrpo_tools.groups import Group
from mrpo_tools.references.rendering import Renderer
from mrpo_tools.scoring.pooling import pooled

SIZE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 8192,
    "initializer_range": 0.05,
    "num_labels": 1,
}
SPECIAL = ("bos", "eos", "pad")
EPOCHS, BATCH, LEARNING_RATE = 5, 32, 2e-3


class _Row(NamedTuple):
    """A prompt with its response as ids, and what it should get."""

    ids: list[int]
    target: float


def make_reward_model(
    directory: Path | str,
    groups: Sequence[Group],
    seed: int = 0,
    *,
    epochs: int = EPOCHS,
    tokenizer: str = "llama",
) -> Path:
    """Fit a reward model on the scores of groups and save it with its tokenizer.

    The same seed, thread count and library versions give the same bytes.

    Args:
        directory: made if it is not there; what is there is overwritten.
        groups: that have scores; those of a test split do not belong here.
        seed: of weights and order.
        epochs: over the responses.
        tokenizer: whose kind of tokenizer and template it has, of the demo's models.
    """
    texts = [turn.content for group in groups for turn in group.prompt]
    texts += [response.content for group in groups for response in group.responses]
    own = TOKENIZERS[tokenizer](texts)
    rows = _rows(groups, own)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ids = {f"{word}_token_id": getattr(own, f"{word}_token_id") for word in SPECIAL}
        model = LlamaForSequenceClassification(LlamaConfig(**SIZE, **ids, vocab_size=len(own)))
        _fit(model, rows, random.Random(seed), epochs)
    model.eval().save_pretrained(directory)
    own.save_pretrained(directory)
    return Path(directory)


def _rows(groups: Sequence[Group], tokenizer: PreTrainedTokenizerFast) -> list[_Row]:
    """Every scored response; targets have mean 0 and standard deviation 1."""
    renderer = Renderer(tokenizer, name="reward")
    ids, scores = [], []
    for group in groups:
        encoded = renderer.encode(group)
        for response, said in zip(group.responses, encoded.responses, strict=True):
            if response.score is not None:
                ids.append([*encoded.prompt_ids, *said.ids])
                scores.append(response.score)
    values = torch.tensor(scores, dtype=torch.float64)
    targets = (values - values.mean()) / values.std().clamp(min=1e-9)
    return [_Row(row, target) for row, target in zip(ids, targets.tolist(), strict=True)]


def _fit(
    model: LlamaForSequenceClassification, rows: list[_Row], rng: random.Random, epochs: int
) -> None:
    """Least squares with AdamW; the rate rises and falls once."""
    optimizer = AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    steps = epochs * -(-len(rows) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for batch in _batches(rows, rng):
            scores = pooled(model, [row.ids for row in batch], torch.device("cpu"))
            targets = torch.tensor([row.target for row in batch], dtype=torch.float64)
            optimizer.zero_grad()
            (scores - targets).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()


def _batches(rows: list[_Row], rng: random.Random) -> Iterator[list[_Row]]:
    """Every row once: batches of like length, in random order."""
    ordered = sorted(rows, key=lambda row: (len(row.ids), rng.random()))
    batches = [ordered[start : start + BATCH] for start in range(0, len(ordered), BATCH)]
    rng.shuffle(batches)
    return iter(batches)
