"""Which prompts are held out, where the data itself names no split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
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
        validation_size: the share of what is then in `train` that goes to `validation`, drawn or
            named by the data; the other splits stay as they are without it.
    """

    test_size: float
    seed: int = 0
    train_groups: int | None = None
    validation_size: float = 0.0

    @classmethod
    def of(
        cls, located: Located, wished: float | None, seed: int, validation_size: float = 0.0
    ) -> Draw:
        """The share that is wished for, or what the source's paper does."""
        if wished is not None:
            return cls(wished, seed, validation_size=validation_size)
        return cls(located.test_size, seed, located.train_groups, validation_size)

    @property
    def names(self) -> set[str]:
        """The splits that are drawn."""
        shares = {"test": self.test_size, "validation": self.validation_size}
        return {"train", *(name for name, share in shares.items() if share)}

    @property
    def holds_out(self) -> bool:
        """Whether any prompt may go to `test`, so that another seed is another draw."""
        return self.test_size > 0 or self.train_groups is not None

    def splits(self, groups: Iterable[Group], counts: Counter[str]) -> Iterator[Group]:
        """The groups, each in a split."""
        room = self.validation_size * 2**64
        for group in self._trained_or_tested(groups, counts):
            held_out = group.split == "train" and lot_of(group.prompt_id, self._validation) < room
            yield group.with_split("validation") if held_out else group

    @property
    def _validation(self) -> str:
        """The seed of a lot of its own, so that no prompt leaves `test` for it."""
        return f"validation:{self.seed}"

    def _trained_or_tested(self, groups: Iterable[Group], counts: Counter[str]) -> Iterator[Group]:
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


class Room:
    """Room for the first groups of each split, in the order of the data.

    Args:
        limit: so many of each; None for all.
        splits: those there can be, after which nothing need be read; None where nobody knows.
    """

    def __init__(self, limit: int | None, splits: Collection[str] | None) -> None:
        self._limit, self._splits = limit, splits
        self._taken: Counter[str | None] = Counter()

    def takes(self, split: str | None) -> bool:
        """Whether there is room for one more group of a split, which then takes it."""
        if self._limit is not None and self._taken[split] >= self._limit:
            return False
        self._taken[split] += 1
        return True

    @property
    def is_full(self) -> bool:
        """Whether no split that there can be has room."""
        limit, splits = self._limit, self._splits
        if limit is None or splits is None:
            return False
        return all(self._taken[split] >= limit for split in splits)
