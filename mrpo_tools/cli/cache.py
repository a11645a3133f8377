"""`mrpo cache`: what is in the store, whether it is whole, and how to mend it."""

from __future__ import annotations

import click

from mrpo_tools.cli.options import cache_option, json_option, print_json, print_table


@click.group()
def cache() -> None:
    """Look after the cache of log-probs."""


@cache.command()
@cache_option
@json_option
def status(cache: str | None, as_json: bool) -> None:
    """Rows of each reference, by status.

    \b
    Example:
        mrpo cache status
    """
    rows = [
        {
            "reference": store.name,
            "identity": store.short,
            "parts": len(store.part_paths()),
            **store.count_by_status(),
        }
        for store in _open(cache).references()
    ]
    if as_json:
        print_json(rows)
    elif rows:
        print_table(tuple(rows[0]), [tuple(row.values()) for row in rows])
    else:
        print("no reference is cached yet; mrpo precompute --ref NAME")


@cache.command()
@cache_option
def verify(cache: str | None) -> None:
    """Check the hash of every file; exit 3 if one is damaged.

    \b
    Example:
        mrpo cache verify
    """
    from mrpo_tools.errors import CacheDamaged

    opened = _open(cache)
    damaged = opened.damaged()
    if damaged:
        raise CacheDamaged(
            "\n".join(f"{path}: {reason}" for path, reason in damaged), "mrpo cache repair"
        )
    print(f"{opened.path}: every file has the hash in its name")


@cache.command()
@cache_option
def repair(cache: str | None) -> None:
    """Drop damaged files; `mrpo precompute` then scores their rows again.

    \b
    Example:
        mrpo cache repair
    """
    dropped = _open(cache).repair()
    for path, reason in dropped:
        print(f"dropped {path}: {reason}")
    print(f"{len(dropped)} damaged files dropped" + ("; mrpo precompute next" if dropped else ""))


def _open(path: str | None):  # type: ignore[no-untyped-def]
    from mrpo_tools.cache import Cache
    from mrpo_tools.config import load_project

    opened = Cache(path or load_project().cache)
    opened.references()  # refuses a path without a cache
    return opened
