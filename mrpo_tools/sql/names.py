"""What references are called in SQL, and how text becomes SQL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mrpo_tools.cache import PartStore

TAKEN_COLUMNS = ("response_id",)
"""Columns of `logps_wide` that a reference cannot be called."""

SHORTEST = 4


def literal(text: str | None) -> str:
    """SQL for a text, whatever is in it."""
    return "NULL" if text is None else "'" + text.replace("'", "''") + "'"


def identifier(text: str) -> str:
    """SQL for a name of a column, whatever is in it."""
    return '"' + text.replace('"', '""') + '"'


def text_list(texts: Sequence[str]) -> str:
    """SQL for a list of texts."""
    return f"([{', '.join(map(literal, texts))}]::VARCHAR[])"


def labels(stores: Sequence[PartStore]) -> list[str]:
    """What each store is called: its name, or `name@ab12` where the name alone is not enough.

    SQL does not tell `Llama` from `llama` in a column's name, so these two count as one name.
    """
    seen = Counter(store.name.casefold() for store in stores)
    return [
        store.name
        if seen[store.name.casefold()] == 1 and store.name.casefold() not in TAKEN_COLUMNS
        else f"{store.name}@{store.short[: _digits_needed(store, stores)]}"
        for store in stores
    ]


def spellings(stores: Sequence[PartStore]) -> dict[str, str]:
    """The label of each accepted spelling: `mistral`, `mistral@a`, `mistral@ab`, …

    A spelling that fits two stores is left out.
    """
    fitting: dict[str, list[str]] = {}
    for store, label in zip(stores, labels(stores), strict=True):
        prefixes = [store.short[:n] for n in range(1, len(store.short) + 1)]
        for spelling in {store.name, label, *(f"{store.name}@{digits}" for digits in prefixes)}:
            fitting.setdefault(spelling, []).append(label)
    return {spelling: fits[0] for spelling, fits in fitting.items() if len(fits) == 1}


def _digits_needed(store: PartStore, stores: Sequence[PartStore]) -> int:
    """How many digits of the identity set a store apart from its namesakes."""
    name = store.name.casefold()
    namesakes = {other.short for other in stores if other.name.casefold() == name} - {store.short}
    needed = SHORTEST
    while needed < len(store.short) and any(
        short[:needed] == store.short[:needed] for short in namesakes
    ):
        needed += 1
    return needed
