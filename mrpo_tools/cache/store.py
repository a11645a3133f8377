"""The cache directory: which references it holds, and which data."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa

from mrpo_tools.cache import datasets, files
from mrpo_tools.cache.parts import first_of_each
from mrpo_tools.cache.reference import ReferenceStore, is_store
from mrpo_tools.errors import CacheMissing, CacheStale, did_you_mean
from mrpo_tools.files import sweep_temporaries
from mrpo_tools.groups import Group
from mrpo_tools.references.identity import Identity, excerpts


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
        return self.path / "references"

    @property
    def groups_path(self) -> Path:
        """The directory of the saved data."""
        return self.path / "groups"

    def references(self) -> list[ReferenceStore]:
        """Every stored identity of every reference, by name; other directories are left alone.

        Raises:
            CacheMissing: there is no cache at this path.
        """
        if not self.path.is_dir():
            raise CacheMissing(f"no cache at {self.path}", "mrpo precompute --ref NAME")
        if not self.references_path.is_dir():
            return []
        directories = sorted(self.references_path.iterdir())
        stores = [ReferenceStore(path, clock=self.clock) for path in directories if is_store(path)]
        return [store for store in stores if store.identity_path.exists() or store.part_paths()]

    def named(self, wanted: str) -> list[ReferenceStore]:
        """The stores of a name, or of `mistral@ab12`, the one that was written last first.

        Stores without a part, which an interrupted start may leave, count only where no other does.
        """
        name, _, digits = wanted.partition("@")
        namesakes = [store for store in self.references() if store.name == name]
        fitting = [store for store in namesakes if store.short.startswith(digits)]
        filled = [store for store in fitting if store.part_paths()] or fitting[:1]
        return sorted(filled, key=lambda store: store.written, reverse=True)

    def find(self, wanted: str) -> ReferenceStore:
        """The store of a reference, `mistral` or, where there are several, `mistral@ab12`.

        Raises:
            CacheMissing: none of this name.
            CacheStale: two identities of this name, and no digits to tell which.
        """
        name = wanted.partition("@")[0]
        stores = self.named(wanted)
        if len(stores) == 1:
            return stores[0]
        self.require(wanted)
        latest, other = stores[:2]
        differing = "; ".join(
            f"{field} {' and '.join(excerpts(first, second))}"
            for field, first, second in latest.identity.differences(other.identity)
        )
        raise CacheStale(
            f"reference {name!r} has {len(stores)} identities in {self.path}: "
            f"{', '.join(map(str, stores))}; they differ in {differing}",
            f"name the one you mean; {name}@{latest.short[:4]} was written last",
        )

    def require(self, wanted: str) -> None:
        """Return where some store has this name.

        Raises:
            CacheMissing: none has; with the command, and names that are near.
        """
        if self.named(wanted):
            return
        name, there = wanted.partition("@")[0], self.references()
        near = did_you_mean(name, {store.name for store in there}) or ""
        meant = f"{near} Or " if near.startswith("did you mean") else ""
        names = ", ".join(sorted(map(str, there))) or "none yet"
        raise CacheMissing(
            f"reference {wanted!r} has no log-probs in {self.path} (cached: {names})",
            f"{meant}create them with: mrpo precompute --ref {name}{files.cache_option(self.path)}",
        )

    def store(self, name: str, identity: Identity) -> ReferenceStore:
        """The store of an identity; the first part that is written creates it.

        Raises:
            CacheDamaged: there is one, and its `identity.json` is not what its name says.
        """
        directory = self.references_path / f"{name}-{identity.short}"
        sweep_temporaries(directory)
        store = ReferenceStore(directory, identity, clock=self.clock)
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
