"""Which adapter reads these rows: by their columns, and by what the columns hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mrpo_tools.errors import UsageError, did_you_mean
from mrpo_tools.sources.adapters import Adapter
from mrpo_tools.sources.catalogue import ADAPTERS

SAMPLE_ROWS = 50
_ENOUGH = 0.9
_MAX_COLUMNS_SHOWN = 12


def choose(rows: Sequence[Mapping[str, Any]], name: str | None) -> tuple[Adapter, str]:
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
    known = {adapter.name: _fits(adapter, rows) for adapter in _candidates(rows)}
    most = max(known.values())
    if not any(most):
        raise _nothing_fits(rows)
    whole = most[0]
    likely = (name for name, fits in known.items() if whole and fits[0] >= _ENOUGH * whole)
    best = ADAPTERS[next(likely, max(known, key=lambda name: known[name]))]
    return best, _reason(best)


def _candidates(rows: Sequence[Mapping[str, Any]]) -> list[Adapter]:
    """All adapters but those that would leave a column unread which another one understands."""
    there = [
        adapter.columns.keys()
        for adapter in ADAPTERS.values()
        if any(all(row.get(column) is not None for column in adapter.columns) for row in rows)
    ]
    return [
        adapter
        for adapter in ADAPTERS.values()
        if not any(adapter.columns.keys() < columns for columns in there)
    ]


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


def _nothing_fits(rows: Sequence[Mapping[str, Any]]) -> UsageError:
    columns = list(rows[0]) if rows else []
    nearest = max(
        ADAPTERS.values(),
        key=lambda adapter: len(set(adapter.columns) & set(columns)) / len(adapter.columns),
    )
    lacking = [column for column in nearest.columns if column not in columns]
    shown = ", ".join(map(str, columns[:_MAX_COLUMNS_SHOWN])) or "none"
    example = " ".join(f"--map {column}=YOUR_COLUMN" for column in lacking)
    return UsageError(
        f"no adapter fits the columns {shown}; the nearest, {nearest.name}, "
        f"also needs {', '.join(lacking)}",
        f"name them: {example}, or choose a --data-adapter: {', '.join(ADAPTERS)}",
    )
