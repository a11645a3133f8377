"""Which prompts are held out, where the data itself names no split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mrpo_tools.groups import Group, lot_of, split_of
from mrpo_tools.sources.locate import Located


@dataclass(frozen=True)
class Draw:
    """A draw by prompt, so that no prompt is in both splits.

    Attributes:
        test_size: the share of prompts for `test`; each prompt is drawn by its id alone.
        seed: which ones.
        train_groups: instead so many groups for `train` and the rest for `test`. That takes all
            groups into memory; the named data sets that have it hold a few thousand.
    """

    test_size: float
    seed: int = 0
    train_groups: int | None = None

    @classmethod
    def of(cls, located: Located, wished: float | None, seed: int) -> Draw:
        """The share that is wished for, or what the source's paper does."""
        if wished is not None:
            return cls(wished, seed)
        return cls(located.test_size, seed, located.train_groups)

    @property
    def holds_out(self) -> bool:
        """Whether any prompt may go to `test`, so that another seed is another draw."""
        return self.test_size > 0 or self.train_groups is not None

    def splits(self, groups: Iterable[Group], counts: Counter[str]) -> Iterator[Group]:
        """The groups, each in a split."""
        if self.train_groups is not None:
            yield from self._exactly(list(groups), self.train_groups, counts)
            return
        for group in groups:
            yield group if group.split else group.with_split(self._by_share(group))

    def _by_share(self, group: Group) -> str:
        return split_of(group.prompt_id, self.test_size, self.seed)

    def _exactly(self, groups: list[Group], room: int, counts: Counter[str]) -> Iterator[Group]:
        """The prompts of the highest lots fill `train`; one with too many groups is passed over."""
        sizes = Counter(group.prompt_id for group in groups if not group.split)
        if sizes.total() <= room:
            room = round((1 - self.test_size) * sizes.total())
        train = set()
        for prompt in sorted(sizes, key=lambda prompt: lot_of(prompt, self.seed), reverse=True):
            if sizes[prompt] <= room:
                train.add(prompt)
                room -= sizes[prompt]
        counts["lacking_in_train"] = room
        for group in groups:
            drawn = "train" if group.prompt_id in train else "test"
            yield group if group.split else group.with_split(drawn)
