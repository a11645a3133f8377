"""Recipes of tiny runs, and what the runs leave behind, for the tests of training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from mrpo_tools.config import Recipe

NAMES = ["llama", "mistral", "qwen"]
ADAPTER, METRICS = "adapter_model.safetensors", "metrics.json"


def recipe(**words) -> Recipe:
    """Six steps of eight groups under three references, on all of the data."""
    base = {
        "loss": "mrpo", "refs": NAMES, "split": "all", "learning_rate": 1e-2, "max_steps": 6,
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "logging_steps": 1,
    }  # fmt: skip
    return Recipe(**{**base, **words})


def log_of(run: Path) -> list[dict]:
    return json.loads((run / "trainer_state.json").read_text())["log_history"]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / ADAPTER)


def cut_short(run: Path, *names: str) -> None:
    """Take files and folders of a run away, as if it had been killed before it wrote them."""
    for path in map(run.joinpath, names):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
