"""mrpo-tools: preference optimisation with several reference models.

The functions behind the command line, as a Python API:

    load_groups(source)                         anything -> groups
    score(references, groups, cache, name)      phase 1: missing log-probs into a cache
    open_cache(path)                            the store
    reference_logps(cache, stores, groups)      [G, N, K] cached log-probs and what goes with them
    train(recipe, groups, cache, …)             phase 2
    evaluate(run, groups, cache)                the metrics of a run

They are imported when first used, so that importing the package is quick and needs no torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrpo_tools.cache import Cache as open_cache
    from mrpo_tools.evaluation.evaluate import evaluate
    from mrpo_tools.methods.tensors import look_up as reference_logps
    from mrpo_tools.precomputing.precompute import precompute as score
    from mrpo_tools.sources import load_groups
    from mrpo_tools.training.train import train

__all__ = ["evaluate", "load_groups", "open_cache", "reference_logps", "score", "train"]

_HOMES = {
    "load_groups": ("mrpo_tools.sources", "load_groups"),
    "score": ("mrpo_tools.precomputing.precompute", "precompute"),
    "open_cache": ("mrpo_tools.cache", "Cache"),
    "reference_logps": ("mrpo_tools.methods.tensors", "look_up"),
    "train": ("mrpo_tools.training.train", "train"),
    "evaluate": ("mrpo_tools.evaluation.evaluate", "evaluate"),
}


class _Package(ModuleType):
    """This package: `train` and its like stay functions when their modules are imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'mrpo_tools' has no attribute {name!r}")
        module, attribute = _HOMES[name]
        return getattr(importlib.import_module(module), attribute)


sys.modules[__name__].__class__ = _Package
