"""A replicate's preference data: four answers of the policy to a prompt, scored with noise."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from models import Beliefs
from tasks import LETTERS, read_prompt, score

ANSWERS = 4
NOISE = 2.0
"""Standard deviation of a training score around the rule's, in points of ten: judges err."""


def draw_answers(beliefs: Beliefs, prompts: Sequence[str], seed: int) -> list[list[str]]:
    """Four answers to each prompt, drawn from what a model believes."""
    generator = torch.Generator().manual_seed(seed)
    read = [read_prompt(prompt) for prompt in prompts]
    letters = torch.tensor([[LETTERS.index(letter) for letter in line] for line, _ in read])
    first = torch.tensor([digit for _, digit in read])
    drawn = [beliefs.answer(letters, first, generator).tolist() for _ in range(ANSWERS)]
    return [[" ".join(map(str, row)) for row in rows] for rows in zip(*drawn, strict=True)]


def write_groups(
    path: Path, prompts: Mapping[str, str], answers: Sequence[Sequence[str]], seed: int
) -> None:
    """One group a line; equal answers of a prompt are one response, empty ones none.

    Args:
        path: JSONL.
        prompts: the split of each prompt, by its text.
        answers: of each prompt.
        seed: of the noise.
    """
    rng = random.Random(f"noise {seed}")
    begun = path.with_suffix(".writing")
    with begun.open("w", encoding="utf-8") as file:
        for (prompt, split), texts in zip(prompts.items(), answers, strict=True):
            responses = []
            for text in filter(None, dict.fromkeys(texts)):
                true = score([{"role": "user", "content": prompt}], text)
                responses.append({"content": text, "score": round(true + rng.gauss(0, NOISE), 2)})
            row = {"prompt": prompt, "responses": responses, "split": split}
            file.write(json.dumps(row) + "\n")
    os.replace(begun, path)
