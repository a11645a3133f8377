"""The cache directory: which references, scorers and judges it holds, and which data."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from mrpo_tools.cache import datasets, files
from mrpo_tools.cache.parts import first_of_each
from mrpo_tools.cache.reference import ReferenceStore
from mrpo_tools.cache.scores import ScoreStore
from mrpo_tools.cache.store_of_parts import PartStore, is_store
from mrpo_tools.cache.verdicts import VerdictStore
from mrpo_tools.errors import CacheMissing, CacheStale, did_you_mean
from mrpo_tools.files import sweep_temporaries
from mrpo_tools.groups import Group
from mrpo_tools.references.identity import Identity, excerpts

STORES: tuple[type[PartStore], ...] = (ReferenceStore, ScoreStore, VerdictStore)
"""A store class for each kind of rows."""
StoreT = TypeVar("StoreT", bound=PartStore)


class Cache:
    """A cache directory.

    Args:
        path: it need not exist: what is written first creates it.
        clock: seconds since 1970, for what is written.
    """

    def __init__(self, path: Path | str, *, clock: Callable[[], float] = time.time) -> None:
        self.path, self.clock = Path(path), clock

    @property
    def references_path(self) -> Path:
        """The directory of the references' stores."""
        return self.path / ReferenceStore.kind.folder

    @property
    def groups_path(self) -> Path:
        """The directory of the saved data."""
        return self.path / "groups"

    def references(self) -> list[ReferenceStore]:
        """Every stored identity of every reference, by name; other directories are left alone.

        Raises:
            CacheMissing: there is no cache at this path.
        """
        return self._stored(ReferenceStore)

    def scorers(self) -> list[ScoreStore]:
        """The same of scorers."""
        return self._stored(ScoreStore)

    def judges(self) -> list[VerdictStore]:
        """The same of judges."""
        return self._stored(VerdictStore)

    def stores(self) -> list[PartStore]:
        """Every store of every kind.

        Raises:
            CacheMissing: there is no cache at this path.
        """
        return [store for of in STORES for store in self._stored(of)]

    def _stored(self, of: type[StoreT]) -> list[StoreT]:
        if not self.path.is_dir():
            raise CacheMissing(f"no cache at {self.path}", "mrpo precompute --ref NAME")
        folder = self.path / of.kind.folder
        if not folder.is_dir():
            return []
        stores = [of(path, clock=self.clock) for path in sorted(folder.iterdir()) if is_store(path)]
        return [store for store in stores if store.identity_path.exists() or store.part_paths()]

    def named(self, wanted: str) -> list[ReferenceStore]:
        """The stores of a name, or of `mistral@ab12`, the one that was written last first.

        Stores without a part, which an interrupted start may leave, count only where no other does.
        """
        return _fitting(wanted, self.references())

    def find(self, wanted: str) -> ReferenceStore:
        """The store of a reference, `mistral` or, where there are several, `mistral@ab12`.

        Raises:
            CacheMissing: none of this name.
            CacheStale: two identities of this name, and no digits to tell which.
        """
        stores = self.named(wanted)
        if not stores:
            self.require(wanted)
        return self._only(wanted, stores)

    def find_scores(self, wanted: str) -> ScoreStore:
        """The store of a scorer, `skywork` or, where there are several, `skywork@ab12`.

        Raises:
            CacheMissing: none of this name.
            CacheStale: two identities of this name, and no digits to tell which.
        """
        there = self.scorers() if self.path.is_dir() else []
        stores = _fitting(wanted, there)
        if not stores:
            meant, names = _near(wanted, there)
            raise CacheMissing(
                f"scorer {wanted!r} has no scores in {self.path} (cached: {names})",
                f"{meant}create them with: mrpo score --reward-model "
                f"{wanted.partition('@')[0]}=MODEL, or --rule MODULE:FUNCTION"
                f"{files.cache_option(self.path)}",
            )
        return self._only(wanted, stores)

    def find_verdicts(self, wanted: str) -> VerdictStore:
        """The store of a judge, by its name or, where there are several, `name@ab12`.

        Raises:
            As `find_scores`.
        """
        there = self.judges()
        stores = _fitting(wanted, there)
        if not stores:
            meant, names = _near(wanted, there)
            raise CacheMissing(
                f"judge {wanted!r} has no verdicts in {self.path} (cached: {names})",
                f"{meant}create them with: mrpo judge A B --judge URL#MODEL",
            )
        return self._only(wanted, stores)

    def _only(self, wanted: str, stores: Sequence[StoreT]) -> StoreT:
        """The one store that a name means."""
        if len(stores) == 1:
            return stores[0]
        name, (latest, other) = wanted.partition("@")[0], stores[:2]
        differing = "; ".join(
            f"{field} {' and '.join(excerpts(first, second))}"
            for field, first, second in latest.identity.differences(other.identity)
        )
        raise CacheStale(
            f"{latest.whose} {name!r} has {len(stores)} identities in {self.path}: "
            f"{', '.join(map(str, stores))}; they differ in {differing}",
            f"name the one you mean; {name}@{latest.short[:4]} was written last",
        )

    def require(self, wanted: str) -> None:
        """Return where some store of a reference has this name.

        Raises:
            CacheMissing: none has; with the command, and names that are near.
        """
        if self.named(wanted):
            return
        meant, names = _near(wanted, self.references())
        name = wanted.partition("@")[0]
        raise CacheMissing(
            f"reference {wanted!r} has no log-probs in {self.path} (cached: {names})",
            f"{meant}create them with: mrpo precompute --ref {name}{files.cache_option(self.path)}",
        )

    def store(self, name: str, identity: Identity) -> ReferenceStore:
        """The store of a reference's identity; the first part that is written creates it.

        Raises:
            CacheDamaged: there is one, and its `identity.json` is not what its name says.
        """
        return self._begun(ReferenceStore, name, identity)

    def score_store(self, name: str, identity: Identity) -> ScoreStore:
        """The same of a scorer."""
        return self._begun(ScoreStore, name, identity)

    def verdict_store(self, name: str, identity: Identity) -> VerdictStore:
        """The same of a judge."""
        return self._begun(VerdictStore, name, identity)

    def _begun(self, of: type[StoreT], name: str, identity: Identity) -> StoreT:
        directory = self.path / of.kind.folder / f"{name}-{identity.short}"
        sweep_temporaries(directory)
        store = of(directory, identity, clock=self.clock)
        _ = store.identity
        return store

    def save_groups(self, dataset: str, groups: Sequence[Group]) -> Path:
        """Keep data, in place of what was saved under this name before."""
        return datasets.save(self.groups_path, dataset, groups, self.clock())

    def group_tables(self) -> dict[str, pa.Table]:
        """Each saved data set by name, the latest first; in it each group once.

        Raises:
            CacheDamaged: naming every file that is not what its name says.
        """
        saved = datasets.load_all(self.groups_path)
        return {
            datasets.dataset_of(file.path): first_of_each(file.table, "group_id")
            for file in datasets.latest_of_each(saved)
        }

    def groups_table(self, dataset: str | None = None) -> pa.Table:
        """The groups of a data set; without one all, each once: that of the latest data set."""
        tables = self.group_tables()
        chosen = [table for name, table in tables.items() if dataset in (None, name)]
        every = pa.concat_tables([datasets.GROUPS_SCHEMA.empty_table(), *chosen])
        return first_of_each(every, "group_id")


def store_at(directory: Path) -> PartStore:
    """The store of a directory of a cache, of the kind that the folder above it holds."""
    of = next(of for of in STORES if of.kind.folder == directory.parent.name)
    return of(directory)


def _fitting(wanted: str, stores: Sequence[StoreT]) -> list[StoreT]:
    name, _, digits = wanted.partition("@")
    namesakes = [store for store in stores if store.name == name]
    fitting = [store for store in namesakes if store.short.startswith(digits)]
    filled = [store for store in fitting if store.part_paths()] or fitting[:1]
    return sorted(filled, key=lambda store: store.written, reverse=True)


def _near(wanted: str, there: Sequence[PartStore]) -> tuple[str, str]:
    """`did you mean …? Or ` where a name is near, and every name there is."""
    near = did_you_mean(wanted.partition("@")[0], {store.name for store in there}) or ""
    meant = f"{near} Or " if near.startswith("did you mean") else ""
    return meant, ", ".join(sorted(map(str, there))) or "none yet"
