"""`mrpo cache`: what is in the store, whether it is whole, how to mend it, and what leaves it."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import click

from mrpo_tools.cli.exchange import export, import_
from mrpo_tools.cli.options import cache_option, json_option, open_cache, print_json, print_table

if TYPE_CHECKING:
    from mrpo_tools.cache import Cache, ReferenceStore
    from mrpo_tools.cache.coverage import Holding
    from mrpo_tools.config import Reference
    from mrpo_tools.precomputing.rescore import Rescored
    from mrpo_tools.references.resolved import ResolvedReference


@click.group()
def cache() -> None:
    """Look after the cache of log-probs."""


cache.add_command(export)
cache.add_command(import_)


@cache.command()
@cache_option
@json_option
def status(cache: str | None, as_json: bool) -> None:
    """What has been scored: each reference x data set x split, and by whom.

    \b
    Example:
        mrpo cache status
    """
    from mrpo_tools.cache.coverage import coverage, holdings

    opened = open_cache(cache)
    held, covered = holdings(opened), coverage(opened)
    if as_json:
        cells = [vars(one) for one in covered]
        print_json([vars(one) | {"coverage": _cells(one, cells)} for one in held])
    elif held:
        if covered:
            print_table(tuple(vars(covered[0])), [tuple(vars(one).values()) for one in covered])
            print()
        rows = [_holding(one) for one in held]
        print_table(tuple(rows[0]), [tuple(row.values()) for row in rows])
    else:
        print("no reference is cached yet; mrpo precompute --ref NAME")


@cache.command()
@cache_option
@click.option(
    "--rescore",
    type=click.IntRange(min=1),
    metavar="K",
    help="Compute K random numbers of each reference again (loads the models).",
)
@click.option("--ref", "refs", multiple=True, metavar="NAME", help="Rescore only these.")
@json_option
def verify(cache: str | None, rescore: int | None, refs: tuple[str, ...], as_json: bool) -> None:
    """Check every file's hash, rows scored twice, and with --rescore the numbers; exit 3 if wrong.

    \b
    Example:
        mrpo cache verify
        mrpo cache verify --rescore 64
    """
    from mrpo_tools.cache import upkeep
    from mrpo_tools.cache.files import repair_command
    from mrpo_tools.errors import CacheDamaged, CacheStale

    opened = open_cache(cache)
    found = upkeep.damaged(opened)
    if found:
        raise CacheDamaged("\n".join(one.reason for one in found), repair_command(opened.path))
    stores = opened.references()
    counts = [_counts(store) for store in stores]
    chosen = [opened.find(name) for word in refs for name in word.split(",")] or stores
    again = [(one, _rescore(opened, one, rescore)) for one in chosen if rescore]
    if as_json:
        print_json({"rows": counts, "rescored": [_rescored(*one) for one in again]})
    else:
        print(f"{opened.path}: every file has the hash in its name")
        if counts:
            print_table(tuple(counts[0]), [tuple(one.values()) for one in counts])
        if again:
            rows = [_rescored(*one) for one in again]
            print_table(tuple(rows[0]), [tuple(row.values()) for row in rows])
    for path in upkeep.foreign(opened):
        print(f"note: {path} is no file of mrpo's; nothing reads it", file=sys.stderr)
    problems = [line for store in stores for line in _disagreements(store)]
    problems += [line for one in again for line in _changed(*one)]
    if problems:
        raise CacheStale("\n".join(problems), _AFTER_DISAGREEMENT)


_AFTER_DISAGREEMENT = (
    "the earliest number counts everywhere; mrpo cache verify --rescore 64 says whether it is "
    "right, mrpo cache status which versions wrote it"
)


@cache.command()
@cache_option
def repair(cache: str | None) -> None:
    """Drop damaged files; `mrpo precompute` then scores their rows again.

    A damaged identity.json is restored from the parts beside it.

    \b
    Example:
        mrpo cache repair
    """
    from mrpo_tools.cache.upkeep import repair as mend

    done = mend(open_cache(cache))
    for one, what in done:
        print(f"{what}: {one.reason}")
    print(f"{len(done)} damaged files" + ("; mrpo precompute next" if done else ""))


@cache.command()
@cache_option
def compact(cache: str | None) -> None:
    """Merge small parts into large ones, and drop files of data that were saved anew.

    Numbers stay as they are: of rows scored twice, the earliest is kept. May run while others
    read and write.

    \b
    Example:
        mrpo cache compact
    """
    from mrpo_tools.cache import upkeep

    opened = open_cache(cache)
    lost = [line for store in opened.references() for line in _disagreements(store)]
    merged = upkeep.compact(opened)
    print_table(
        ("reference", "files before", "files after", "rows dropped"),
        [(one.name, one.before, one.after, one.dropped_rows) for one in merged],
    )
    for line in lost:
        print(f"dropped: {line}", file=sys.stderr)


@cache.command()
@cache_option
def upgrade(cache: str | None) -> None:
    """Write files of an older format anew; numbers and times stay.

    \b
    Example:
        mrpo cache upgrade
    """
    from mrpo_tools.cache import FORMAT_VERSION
    from mrpo_tools.cache.upkeep import upgrade as rewrite

    done = rewrite(open_cache(cache))
    for old, new in done:
        print(f"{old} -> {new.name}")
    print(f"{len(done)} files upgraded; every file has format {FORMAT_VERSION}")


@cache.command()
@click.argument("one", metavar="A")
@click.argument("other", metavar="B")
@cache_option
@json_option
def diff(one: str, other: str, cache: str | None, as_json: bool) -> None:
    """Which fields of two identities differ; --json prints them whole.

    \b
    Example:
        mrpo cache diff mistral@ab12 mistral@cd34
    """
    from mrpo_tools.references.identity import shown

    opened = open_cache(cache)
    first, second = opened.find(one), opened.find(other)
    found = first.identity.differences(second.identity)
    if as_json:
        print_json([{"field": name, str(first): a, str(second): b} for name, a, b in found])
    elif found:
        rows = [(name, *shown(a, b)) for name, a, b in found]
        print_table(("field", str(first), str(second)), rows)
    else:
        print(f"{first} and {second} have the same identity")


def _cells(held: Holding, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The coverage of one identity, without its names."""
    return [
        {key: value for key, value in cell.items() if key not in ("reference", "identity")}
        for cell in cells
        if (cell["reference"], cell["identity"]) == (held.reference, held.identity)
    ]


def _holding(held: Holding) -> dict[str, object]:
    import time

    when = (
        time.strftime("%Y-%m-%d %H:%M", time.localtime(one)) if one else None
        for one in (held.first, held.last)
    )
    versions = (f"{library} {'/'.join(one)}" for library, one in held.versions.items())
    return {
        "reference": held.reference,
        "identity": held.identity,
        "parts": held.parts,
        "rows": held.rows,
        "bytes": held.bytes,
        "first part": next(when),
        "last part": next(when),
        "by": held.origin or ", ".join([*held.devices, *versions]),
    }


def _counts(store: ReferenceStore) -> dict[str, object]:
    return {
        "reference": store.name,
        "identity": store.short,
        "parts": len(store.part_paths()),
        **store.count_by_status(),
    }


def _disagreements(store: ReferenceStore) -> list[str]:
    """Rows that were scored twice with more than noise between, a few of them by name."""
    from mrpo_tools.cache.upkeep import disagreements

    found = disagreements(store)
    lines = [
        f"{one.reference}: response {one.response_id} was scored twice: {one.field} {one.kept}, "
        f"later {one.other}"
        for one in found[:5]
    ]
    more = len(found) - len(lines)
    return [*lines, f"{store}: … and {more:,} more"] if more else lines


def _rescore(opened: Cache, store: ReferenceStore, count: int | None) -> Rescored | None:
    """None for imported numbers: there is no model to ask."""
    from mrpo_tools.precomputing.rescore import rescore

    if "origin" in store.identity.fields:
        return None
    return rescore(opened, store, _subject(store), count or 0)


def _subject(store: ReferenceStore) -> ResolvedReference:
    """The model as the project has it, if it is the one of this identity; else as it was scored."""
    from mrpo_tools.config import load_project
    from mrpo_tools.errors import UsageError
    from mrpo_tools.references.resolved import resolve

    def found(words: Reference) -> ResolvedReference:
        dtype = words.dtype or store.identity.fields["dtype"]
        return resolve(store.name, words.model_copy(update={"dtype": dtype}))

    ours = load_project().references.get(store.name)
    if ours is not None:
        with contextlib.suppress(UsageError):  # its files went away
            subject = found(ours)
            if subject.identity.hash == store.identity.hash:
                return subject
    return found(store.recorded_reference())


def _rescored(store: ReferenceStore, found: Rescored | None) -> dict[str, object]:
    return {
        "rescored": str(store),
        "rows": found.rows if found else 0,
        "largest difference, nats": f"{abs(found.logp - found.cached):.3g}" if found else None,
        "nats per token": f"{found.per_token:.3g}" if found else None,
        "response": found.worst if found else "imported: no model to ask",
    }


def _changed(store: ReferenceStore, found: Rescored | None) -> list[str]:
    """What is wrong with numbers that were computed again."""
    from mrpo_tools.cache.upkeep import allowed_noise

    lines = []
    if found and found.other_tokens:
        lines.append(f"{store}: {found.other_tokens:,} of {found.rows:,} rows have other tokens")
    if found and not found.per_token <= allowed_noise(store):
        lines.append(
            f"{store}: response {found.worst} is {found.logp:.6f} now, {found.cached:.6f} in the "
            f"cache: {found.per_token:.3g} nats per token apart"
        )
    return lines
