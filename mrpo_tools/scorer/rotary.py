"""Rotary embeddings whose frequencies depend on a call's longest row.

`longrope` (Ding et al. 2024) has two sets: one for rows within the length it was first trained on,
one for longer ones; rows of one kind may share a call. `dynamic` NTK scaling has another frequency
for every length beyond it, and remembers the last one; such rows are computed one at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mrpo_tools.scorer.trees import Row, branches


class Rotary:
    """What a model's rotary embeddings ask of batches.

    Args:
        model: a causal LM.

    Attributes:
        bound: the longest sequence with the first frequencies; None where length does not matter.
        together: whether longer ones may share a call.
    """

    def __init__(self, model: Any) -> None:
        config = model.config.get_text_config()
        kinds = _length_dependent(config)
        self.together = not any("dynamic" in _kind(words) for words in kinds)
        self.bound: int | None = min(
            (_first_length(words, config) for words in kinds), default=None
        )
        self._remembered = [] if self.together else _lengths(model)

    def kinds(self, trees: Sequence[Row]) -> Iterable[tuple[Sequence[Row], bool]]:
        """Trees that may share a call, longer ones first, and whether they may; a tree with both
        kinds of rows becomes two."""
        if self.bound is None:
            return [(trees, True)]
        plain = [(tree, [len(tree.prompt) + len(ids) > self.bound for ids in tree.responses])
                 for tree in trees]  # fmt: skip
        longer = [_only(tree, beyond) for tree, beyond in plain if any(beyond)]
        within = [_only(tree, [not is_beyond for is_beyond in beyond])
                  for tree, beyond in plain if not all(beyond)]  # fmt: skip
        return [(longer, self.together), (within, True)]

    def begin(self) -> None:
        """Forget the length of the call before: the frequencies are those of a fresh model."""
        for module, name in self._remembered:
            setattr(module, name, 0)


def _lengths(model: Any) -> list[tuple[Any, str]]:
    """Where modules remember the longest row so far: (module, attribute)."""
    return [
        (module, name)
        for module in model.modules()
        for name in vars(module)
        if name.endswith("max_seq_len_cached")
    ]


def _only(tree: Row, chosen: Sequence[bool]) -> Row:
    rows = [row for row, is_chosen in zip(branches(tree), chosen, strict=True) if is_chosen]
    responses = [row.responses[0] for row in rows]
    return Row(tree.prompt, responses, [row.keys[0] for row in rows])


def _length_dependent(config: Any) -> list[dict[str, Any]]:
    """The rope settings of a configuration, or of its kinds of layers, that look at the length."""
    words = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    every = [words, *(part for part in words.values() if isinstance(part, dict))]
    return [each for each in every if _kind(each) == "longrope" or "dynamic" in _kind(each)]


def _kind(words: dict[str, Any]) -> str:
    return str(words.get("rope_type", words.get("type")))


def _first_length(words: dict[str, Any], config: Any) -> int:
    own = getattr(config, "original_max_position_embeddings", None)
    return int(
        words.get("original_max_position_embeddings") or own or config.max_position_embeddings
    )
