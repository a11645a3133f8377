"""Which adapter reads these rows: by their columns, and by what the columns hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mrpo_tools.errors import UsageError, did_you_mean
from mrpo_tools.sources.adapters.adapter import MESSAGES, Adapter
from mrpo_tools.sources.adapters.catalogue import ADAPTERS
from mrpo_tools.sources.adapters.way_out import nothing_fits

SAMPLE_ROWS = 50
_ENOUGH = 0.9


def choose(source: str, rows: Sequence[Mapping[str, Any]], name: str | None) -> tuple[Adapter, str]:
    """The adapter for rows like these, and why.

    The first of the table that fits about as many rows as any does. If none fits a row (the first
    rows may all be bad), the one that fits the most columns.

    Raises:
        UsageError: `name` is no adapter, or no adapter has these columns.
    """
    if name is not None:
        if name not in ADAPTERS:
            raise UsageError(f"there is no adapter {name!r}", did_you_mean(name, ADAPTERS))
        return ADAPTERS[name], "asked for"
    if not rows:
        return ADAPTERS["canonical"], "no row is an object"
    fits = {adapter.name: _fits(adapter, rows) for adapter in _candidates(rows)}
    most = max(fits.values())
    if not any(most[:2]):
        raise nothing_fits(source, rows)
    whole = most[0]
    likely = (name for name, counts in fits.items() if whole and counts[0] >= _ENOUGH * whole)
    best = ADAPTERS[next(likely, max(fits, key=lambda name: fits[name]))]
    return best, _reason(best)


def _candidates(rows: Sequence[Mapping[str, Any]]) -> list[Adapter]:
    """All adapters but those that would leave a column unread which another one understands, or
    which holds the conversation."""
    understood = [
        adapter.columns.keys()
        for adapter in ADAPTERS.values()
        if any(all(row.get(column) is not None for column in adapter.columns) for row in rows)
    ]
    return [
        adapter
        for adapter in ADAPTERS.values()
        if not any(adapter.columns.keys() < columns for columns in understood)
        and not (adapter.whole and any(_talks_elsewhere(adapter, row) for row in rows))
    ]


def _talks_elsewhere(adapter: Adapter, row: Mapping[str, Any]) -> bool:
    return any(MESSAGES.fits(row[column]) for column in row.keys() - adapter.columns.keys())


def _fits(adapter: Adapter, rows: Sequence[Mapping[str, Any]]) -> tuple[int, int, int]:
    """How many rows have all columns in the right shape, how many columns do, how many rows have
    all columns."""
    fits = [
        sum(shape.fits(row[column]) for column, shape in adapter.columns.items())
        for row in rows
        if adapter.columns.keys() <= row.keys()
    ]
    return sum(number == len(adapter.columns) for number in fits), sum(fits), len(fits)


def _reason(adapter: Adapter) -> str:
    return "columns " + ", ".join(
        column if shape.words == "text" else f"{column}: {shape.words}"
        for column, shape in adapter.columns.items()
    )
