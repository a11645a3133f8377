"""mrpo-tools: preference optimisation with several reference models.

What is behind the command line, as a Python API (docs/python.md has an example of all of it):

    load_groups(source)                         anything -> groups
    precompute(references, groups, cache, name) phase 1: missing log-probs into a cache
    reference_logps(stores, groups)             [G, N, K] cached log-probs and what goes with them
    train(recipe, groups, cache, …)             phase 2
    evaluate(run, groups, cache)                the metrics of a run

and the nouns they take: `Group`, `Message`, `Response`, `Reference`, `Recipe`, `Dataset`, `Cache`,
`Run`. They are imported when first used, so that importing the package is quick and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrpo_tools.cache import Cache
    from mrpo_tools.config import Dataset, Recipe, Reference
    from mrpo_tools.evaluation.evaluate import evaluate
    from mrpo_tools.groups import Group, Response
    from mrpo_tools.messages import Message, ToolCall
    from mrpo_tools.methods.tensors import look_up as reference_logps
    from mrpo_tools.precomputing.precompute import precompute
    from mrpo_tools.runs.run import Run, load_run
    from mrpo_tools.sources import load_groups
    from mrpo_tools.training.train import train

__all__ = [
    "Cache",
    "Dataset",
    "Group",
    "Message",
    "Recipe",
    "Reference",
    "Response",
    "Run",
    "ToolCall",
    "evaluate",
    "load_groups",
    "load_run",
    "precompute",
    "reference_logps",
    "train",
]

_HOMES = {
    "Cache": ("mrpo_tools.cache", "Cache"),
    "Dataset": ("mrpo_tools.config", "Dataset"),
    "Group": ("mrpo_tools.groups", "Group"),
    "Message": ("mrpo_tools.messages", "Message"),
    "Recipe": ("mrpo_tools.config", "Recipe"),
    "Reference": ("mrpo_tools.config", "Reference"),
    "Response": ("mrpo_tools.groups", "Response"),
    "Run": ("mrpo_tools.runs.run", "Run"),
    "ToolCall": ("mrpo_tools.messages", "ToolCall"),
    "evaluate": ("mrpo_tools.evaluation.evaluate", "evaluate"),
    "load_groups": ("mrpo_tools.sources", "load_groups"),
    "load_run": ("mrpo_tools.runs.run", "load_run"),
    "precompute": ("mrpo_tools.precomputing.precompute", "precompute"),
    "reference_logps": ("mrpo_tools.methods.tensors", "look_up"),
    "train": ("mrpo_tools.training.train", "train"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mrpo_tools' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return __all__
