"""Data whose splits a recipe draws anew (`split_seed`), where the data itself names none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from mrpo_tools.config import Dataset, Recipe, drawn_as
from mrpo_tools.errors import UsageError
from mrpo_tools.sources.load import Source


@dataclass
class Draws:
    """The data, read anew for each draw of its splits; the last one is kept.

    Attributes:
        load: reads a data set.
        last: split seed and data.
    """

    load: Callable[[Dataset], Source]
    last: tuple[int | None, Source] | None = None

    def source(self, dataset: Dataset, recipe: Recipe) -> Source:
        """The data with the splits of a recipe.

        Raises:
            UsageError: the recipe draws splits, and the data names its own.
        """
        if self.last is None or self.last[0] != recipe.split_seed:
            self.last = recipe.split_seed, self.load(drawn_as(dataset, recipe))
        check_drawn(self.last[1], recipe)
        return self.last[1]


def check_drawn(source: Source, recipe: Recipe) -> None:
    """Refuse a recipe that draws splits anew where nothing is drawn.

    Raises:
        UsageError: the data names its splits itself, or nothing is held out.
    """
    if recipe.split_seed is None or source.drawn:
        return
    counts = Counter(group.split for group in source.groups)
    splits = ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items(), key=str))
    raise UsageError(
        f"split_seed {recipe.split_seed} would change nothing: {source.name} names its own splits, "
        f"or holds nothing out ({splits})",
        "hold prompts of its training split out with --test-size 0.2, or leave split_seed unset",
    )
