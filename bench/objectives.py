"""Train every objective shortly on the demo's data: `python bench/objectives.py DEMO_DIRECTORY`.

DEMO_DIRECTORY is one that `mrpo demo` made: its models and its cache are used. Writes
docs/objectives_on_demo.json, from which docs/methods.md takes its last table.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import sys
import tempfile
import time
from pathlib import Path

from mrpo_tools.cache import Cache, library_versions
from mrpo_tools.config import Recipe, load_project
from mrpo_tools.evaluation.evaluate import evaluate
from mrpo_tools.methods.method import LOSSES, objective_of
from mrpo_tools.methods.presets import PRESETS
from mrpo_tools.runs.read import read_history
from mrpo_tools.runs.run import load_run
from mrpo_tools.sources import load_groups
from mrpo_tools.training.train import train

EPOCHS = 3
OUTPUT = Path(__file__).parent.parent / "docs" / "objectives_on_demo.json"


def references_of(loss: str) -> list[str]:
    """Three for the methods made for several, one for the others, none where none enters."""
    if loss in PRESETS:
        return ["llama", "mistral", "qwen"]
    counts = {"none": 0, "one": 1, "several": 3}
    return ["llama", "mistral", "qwen"][: counts[objective_of(loss).references]]


def main(directory: str) -> None:
    """Measure every objective in a demo's directory."""
    with contextlib.chdir(directory):
        project = load_project()
        groups = load_groups("demo.jsonl").groups
        cache = Cache("cache")
        rows = []
        for loss in LOSSES:
            with tempfile.TemporaryDirectory() as run:
                rows.append(measure(loss, groups, cache, project, Path(run) / "run"))
            print(rows[-1], file=sys.stderr)
    measured = {
        "what": f"LoRA of rank 8, {EPOCHS} epochs over 600 groups, learning rate 1e-3, otherwise "
        "each objective's defaults. `loss` is the mean over all groups of an epoch. It shows that "
        "each one trains, not which is better: that takes a learning rate tuned for each.",
        "command": "python bench/objectives.py demo && python docs/generate.py",
        "date": datetime.date.today().isoformat(),
        "versions": ", ".join(f"{name} {version}" for name, version in library_versions().items()),
        "rows": rows,
    }
    OUTPUT.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


def measure(loss, groups, cache, project, run: Path) -> dict[str, object]:
    """Train and evaluate with one objective."""
    refs = references_of(loss)
    recipe = Recipe(
        loss=loss, refs=refs, policy=None if refs else "llama", learning_rate=1e-3, lora_alpha=16,
        per_device_train_batch_size=8, gradient_accumulation_steps=2, logging_steps=1,
        num_train_epochs=EPOCHS,
    )  # fmt: skip
    started = time.monotonic()
    train(recipe, groups, cache, project.references, run)
    seconds = time.monotonic() - started
    losses = [entry.values["loss"] for entry in read_history(run) if "loss" in entry.values]
    epoch = len(losses) // EPOCHS
    evaluation = evaluate(load_run(run), groups, cache).record
    return {
        "loss": loss,
        "references": len(refs),
        "first": sum(losses[:epoch]) / epoch,
        "last": sum(losses[-epoch:]) / epoch,
        "logp_before": evaluation.accuracies_logp_step0,
        "logp_after": evaluation.accuracies_logp,
        "seconds": seconds,
    }


if __name__ == "__main__":
    main(sys.argv[1])
