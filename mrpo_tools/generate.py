"""Generation: answers of a model or a run to the prompts of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mrpo_tools.config import Reference
from mrpo_tools.groups import Message
from mrpo_tools.progress import bar
from mrpo_tools.references.devices import memory_errors, pick_device
from mrpo_tools.references.loading import load_model
from mrpo_tools.references.resolved import renderer_of, resolve

BATCH = 64


@torch.no_grad()
def generate(
    reference: Reference, prompts: Sequence[Sequence[Message]], max_new_tokens: int = 256
) -> list[str]:
    """Greedy answers, rendered and tokenised as in scoring; special tokens are left out."""
    subject = resolve("model", reference)
    renderer, device = renderer_of(subject), pick_device()
    model: Any = load_model(subject.files, reference, subject.dtype, device)
    tokenizer: Any = renderer.tokenizer
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    encoded = [renderer.encode_prompt(prompt) for prompt in prompts]
    order = sorted(range(len(encoded)), key=lambda index: -len(encoded[index]))
    answers = [""] * len(encoded)
    with bar("generating", len(order), "prompts") as advance:
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            width = max(len(encoded[i]) for i in places)
            ids = torch.full((len(places), width), padding, dtype=torch.long)
            seen = torch.zeros(len(places), width, dtype=torch.long)
            for row, i in enumerate(places):
                ids[row, width - len(encoded[i]) :] = torch.tensor(encoded[i])
                seen[row, width - len(encoded[i]) :] = 1
            with memory_errors("generating", "lower --max-new-tokens, or use a smaller model"):
                output = model.generate(
                    input_ids=ids.to(device),
                    attention_mask=seen.to(device),
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    pad_token_id=padding,
                )
            texts = tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
            for i, text in zip(places, texts, strict=True):
                answers[i] = text.strip()
            advance(len(places))
    return answers
