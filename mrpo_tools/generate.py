"""Generation: answers of a model or a run to the prompts of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mrpo_tools.config import Reference
from mrpo_tools.messages import Message
from mrpo_tools.progress import bar
from mrpo_tools.references.devices import memory_errors, pick_device
from mrpo_tools.references.loading import load_model
from mrpo_tools.references.resolved import renderer_of, resolve

BATCH = 64


@torch.no_grad()
def generate(
    reference: Reference,
    prompts: Sequence[Sequence[Message]],
    max_new_tokens: int = 256,
    *,
    tools: Sequence[str | None] = (),
) -> list[str]:
    """Greedy answers, rendered and tokenised as in phase 1; special tokens are left out.

    Args:
        reference: the model.
        prompts: messages each.
        max_new_tokens: of an answer.
        tools: JSON text of the tools that each prompt offers, None for none; or nothing at all.

    Raises:
        ResourceError: out of memory.
        UsageError: the model's files or its template cannot be used.
    """
    resolved = resolve("model", reference)
    renderer, device = renderer_of(resolved), pick_device()
    model: Any = load_model(resolved.files, reference, resolved.dtype, device)
    tokenizer: Any = renderer.tokenizer
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    asked = zip(prompts, tools or [None] * len(prompts), strict=True)
    encoded = [renderer.encode_prompt(prompt, offered) for prompt, offered in asked]
    order = sorted(range(len(encoded)), key=lambda index: -len(encoded[index]))
    answers = [""] * len(encoded)
    with bar("generating", len(order), "prompts") as advance:
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            ids, seen = _left_padded([encoded[place] for place in places], padding)
            with memory_errors("generating", "lower --max-new-tokens, or use a smaller model"):
                output = model.generate(
                    input_ids=ids.to(device),
                    attention_mask=seen.to(device),
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    pad_token_id=padding,
                )
            texts = tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
            for place, text in zip(places, texts, strict=True):
                answers[place] = text.strip()
            advance(len(places))
    return answers


def _left_padded(rows: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:
    """[R, T] ids that end together, and [R, T] 1 where they are no padding."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), padding, dtype=torch.long)
    seen = torch.zeros(len(rows), width, dtype=torch.long)
    for line, row in enumerate(rows):
        ids[line, width - len(row) :] = torch.tensor(row)
        seen[line, width - len(row) :] = 1
    return ids, seen
