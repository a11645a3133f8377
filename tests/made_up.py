"""A cache of made-up numbers: references as good as a test wants them, and no model."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path

from mrpo_tools.cache import Cache, LogpRow
from mrpo_tools.groups import Group, Response, user_prompt
from mrpo_tools.references.identity import Identity

Speaker = Callable[[random.Random, int, Response], float]
"""(random numbers, index of the group, response) -> log-prob in nats."""


def made_up_groups(count: int = 80, parts: tuple[str, ...] = ("sum", "sort")) -> list[Group]:
    """Groups of two to four responses with scores 0 to 3, of two parts, a fifth of them test."""
    rng = random.Random(5)
    groups = []
    for index in range(count):
        scores = rng.sample(range(4), rng.choice([2, 3, 4]))
        texts = [(f"answer {'x' * rng.randrange(9)} {score}", float(score)) for score in scores]
        split = "test" if index % 5 == 4 else "train"
        source_id = f"{split}-{parts[index % len(parts)]}-{index:03d}"
        responses = tuple(Response(*text) for text in texts)
        groups.append(Group(user_prompt(f"Question {index}?"), responses, source_id, split))
    return groups


def made_up_cache(path: Path, groups: list[Group], speakers: Mapping[str, Speaker]) -> Cache:
    """A cache in which each speaker has scored every response."""
    cache = Cache(path)
    cache.save_groups("toy", groups)
    for name, speak in speakers.items():
        rng = random.Random(name)
        rows = [
            LogpRow(
                key, group.prompt_id, speak(rng, index, response), 1 + len(response.content) // 4,
                len(response.content.encode()), "ok", False, "hash",
            )
            for index, group in enumerate(groups)
            for key, response in zip(group.response_ids, group.responses, strict=True)
        ]  # fmt: skip
        cache.store(name, Identity({"model": f"hub/{name}", "dtype": "float32"})).append(rows)
    return cache


def knowing(noise: float, spread: float = 2.0) -> Speaker:
    """Prefers better scores, up to noise (both in nats)."""
    return lambda rng, index, response: -40 + spread * (response.score or 0) + rng.gauss(0, noise)


def knowing_half(even: bool) -> Speaker:
    """Knows half of the groups very surely and guesses, unsurely, in the other half."""

    def speak(rng: random.Random, index: int, response: Response) -> float:
        knows = (index // 2) % 2 == even
        return -40 + (8 * (response.score or 0) if knows else 0) + rng.gauss(0, 0.5)

    return speak


def made_up_run(path: Path, loss: str, refs: list[str], seed: int, **changes) -> Path:
    """A finished, evaluated run of made-up numbers that depend on loss, references and seed."""
    from dataclasses import asdict

    from mrpo_tools.config import Recipe
    from mrpo_tools.files import save_json
    from mrpo_tools.methods.method import resolve_method
    from mrpo_tools.runs.run import save_recipe

    recipe = Recipe(loss=loss, refs=refs, seed=seed, **changes)
    method = resolve_method(recipe, scores=True)
    rng = random.Random(f"{loss} {refs} {changes}")
    level, slope = 0.55 + rng.random() / 5, 0.1 + rng.random() / 10
    noise = random.Random(f"{loss} {refs} {changes} {seed}")
    path.mkdir(parents=True)
    save_recipe(path, recipe)
    hidden = {f"references/{name}/weight": 1 / len(refs) for name in refs}
    history = [
        {
            "step": step, "loss": 0.7 - step / 400, "learning_rate": 1e-3, "epoch": step / 50,
            "rewards/accuracies": level + slope * step / 100 + noise.gauss(0, 0.01),
            "rewards/margins": slope * step / 50 + noise.gauss(0, 0.01),
            "rewards/chosen": step / 400, "rewards/rejected": -step / 200,
            "logps/chosen": -20 - step / 50 + noise.gauss(0, 0.1),
            "logps/rejected": -25 - step / 10 + noise.gauss(0, 0.1),
            "references/clipped_fraction": 0.9, **hidden,
        }
        for step in range(10, 101, 10)
    ]  # fmt: skip
    save_json(path / "run.json", {
        "policy": {"model": "models/llama"}, "policy_identity": "0" * 64,
        "references": [f"{name}@0123456789ab" for name in refs], "cache": "cache",
        "dataset": {"source": "data/toy.jsonl"}, "objective": method.row.name,
        "hyper": dict(method.hyper), "combination": asdict(method.combination),
        "report": {}, "versions": {"mrpo-tools": "0.1.0", "torch": "2.9"},
        "created": "2026-01-02T03:04:05+00:00",
    })  # fmt: skip
    save_json(path / "metrics.json", {
        "train_loss": 0.5, "steps": 100, "train_seconds": 50 + 10 * noise.random(),
        "total_seconds": 70.0, "peak_memory_bytes": 800_000_000, "groups": 600,
    })  # fmt: skip
    save_json(path / "trainer_state.json", {"log_history": history})
    (path / "evaluation").mkdir()
    save_json(path / "evaluation" / "test.json", _evaluation(refs, level, slope, noise))
    return path


def _evaluation(refs: list[str], level: float, slope: float, noise: random.Random) -> dict:
    own = level + slope + noise.gauss(0, 0.01)
    alone = [0.8 - 0.05 * place for place in range(len(refs))]
    around = {"accuracies": [own - 0.02, own + 0.02]}
    bins = [noise.randrange(30) for _ in range(40)]
    return {
        "accuracies": own, "accuracies_step0": 0.0 if len(refs) == 1 else 0.4,
        "accuracies_reference_1": own + 0.01, "accuracies_logp": own + 0.1,
        "accuracies_logp_per_token": own + 0.05, "accuracies_logp_step0": 0.8,
        "accuracies_longer": 0.35, "margins": slope,
        "margins_step0": 0.0, "groups": 200, "groups_without_pairs": 0, "split": "test",
        "references": [f"{name}@0123456789ab" for name in refs],
        "reference_accuracies": {
            "summed": alone, "per_token": [of - 0.1 for of in alone], "per_byte": alone,
        },
        "intervals": {
            **around,
            "reference_accuracies": {"summed": [[of - 0.03, of + 0.03] for of in alone]},
        },
        "precompute_seconds": [30.0 + place for place in range(len(refs))],
        "histograms": None if len(refs) < 2 else {
            "weights": [bins for _ in refs], "distances": [bins for _ in refs[1:]],
            "mean_radius": 0.05, "clipped": [0.9 for _ in refs[1:]],
        },
    }  # fmt: skip
