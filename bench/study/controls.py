"""References whose truth is known, put into the cache as other programs' numbers are.

`placebo_…` has the numbers of a real reference, dealt out anew among all responses: the same
distribution, no knowledge. `wrong_…` is a real reference that was given the ids of the base's
tokenizer. `oracle` prefers right steps, `anti_oracle` wrong ones, both around reference 1.
`stretched` is reference 1 with log-probs a third larger or so: no other model has a say in it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tasks import score

from mrpo_tools.cache import Cache
from mrpo_tools.cache.imported import import_logps
from mrpo_tools.config import Reference
from mrpo_tools.groups import Group
from mrpo_tools.methods.tensors import look_up
from mrpo_tools.references.resolved import renderer_of, resolve

NATS_PER_POINT = 6.0
"""How much an oracle prefers an answer of a point more; its log-probs then spread within a group
about as those of the strong model."""
STRETCH = 1.3
"""One and the mean radius of the study's trust regions."""
HIGHEST = -0.01
"""No log-prob is above 0."""


def import_controls(cache: Cache, groups: Sequence[Group], models: Path, seed: int) -> None:
    """Put the controls into the cache, for the groups that are trained on."""
    numbers = look_up([cache.find("base"), cache.find("left"), cache.find("right")], groups).logps
    knowing = _true_deviations(groups)
    made = {
        "oracle": numbers[..., 0] + NATS_PER_POINT * knowing,
        "anti_oracle": numbers[..., 0] - NATS_PER_POINT * knowing,
        "stretched": STRETCH * numbers[..., 0],
    }
    for place, name in enumerate(("left", "right"), 1):
        made[f"placebo_{name}"] = _dealt_anew(numbers[..., place], groups, seed + place)
        made[f"wrong_{name}"] = _of_wrong_ids(models, name, groups, numbers.shape[1])
    for name, logps in made.items():
        file = cache.path.parent / f"{name}.jsonl"
        _write(file, groups, logps.clamp(max=HIGHEST))
        import_logps(cache, name, groups, file, origin=f"study: {name}", dataset="study")


def _true_deviations(groups: Sequence[Group]) -> torch.Tensor:
    """[G, N] the rule's score without the judge's noise, minus its mean over the group."""
    width = max(len(group.responses) for group in groups)
    deviations = torch.zeros(len(groups), width, dtype=torch.float64)
    for g, group in enumerate(groups):
        prompt = [turn.as_dict() for turn in group.prompt]
        marks = torch.tensor([score(prompt, response.content) for response in group.responses])
        deviations[g, : len(marks)] = marks - marks.mean()
    return deviations


def _dealt_anew(logps: torch.Tensor, groups: Sequence[Group], seed: int) -> torch.Tensor:
    places = [(g, n) for g, group in enumerate(groups) for n in range(len(group.responses))]
    others = list(places)
    random.Random(seed).shuffle(others)
    dealt = logps.clone()
    for (g, n), (other, m) in zip(places, others, strict=True):
        dealt[g, n] = logps[other, m]
    return dealt


@torch.no_grad()
def _of_wrong_ids(models: Path, name: str, groups: Sequence[Group], width: int) -> torch.Tensor:
    """[G, N] log-probs of a model that reads the base's ids as its own."""
    from transformers import AutoModelForCausalLM

    renderer = renderer_of(resolve("base", Reference(model=str(models / "base"))))
    model: Any = AutoModelForCausalLM.from_pretrained(models / name).eval()
    logps = torch.zeros(len(groups), width, dtype=torch.float64)
    for g, group in enumerate(groups):
        encoded = renderer.encode(group)
        begins = len(encoded.prompt_ids)
        for n, response in enumerate(encoded.responses):
            ids = torch.tensor([[*encoded.prompt_ids, *response.ids]])
            tokens = model(input_ids=ids[:, :-1]).logits[0, begins - 1 :].log_softmax(-1)
            logps[g, n] = tokens.gather(1, ids[0, begins:, None]).double().sum()
    return logps


def _write(file: Path, groups: Sequence[Group], logps: torch.Tensor) -> None:
    with file.open("w", encoding="utf-8") as lines:
        for g, group in enumerate(groups):
            for n, key in enumerate(group.response_ids):
                tokens = len(group.responses[n].content.split()) + 1
                row = {"response_id": key, "logp": float(logps[g, n]), "num_tokens": tokens}
                lines.write(json.dumps(row) + "\n")
