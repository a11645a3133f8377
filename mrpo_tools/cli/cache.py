"""`mrpo cache`: what is in the store, whether it is whole, how to mend it, and what leaves it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from mrpo_tools.cli.completion import references
from mrpo_tools.cli.exchange import export, import_
from mrpo_tools.cli.help import Group
from mrpo_tools.cli.options import (
    Row,
    cache_option,
    json_option,
    open_cache,
    print_json,
    print_records,
    print_table,
)

if TYPE_CHECKING:
    from mrpo_tools.cache import Cache, PartStore, ReferenceStore
    from mrpo_tools.cache.coverage import Coverage, Holding
    from mrpo_tools.config import Reference
    from mrpo_tools.precomputing.rescore import Rescored
    from mrpo_tools.references.resolved import ResolvedReference


@click.group(cls=Group)
def cache() -> None:
    """Look after the cache of log-probs, scores and verdicts."""


cache.add_command(export)
cache.add_command(import_)


@cache.command()
@cache_option
@json_option
def status(*, cache: str | None, as_json: bool) -> None:
    """What is stored: each reference x data set x split, and by whom; so of scorers and judges.

    \b
    Example:
        mrpo cache status
    """
    from mrpo_tools.cache.coverage import coverage, holdings

    opened = open_cache(cache)
    printed = False
    listed: list[Row] = []
    kinds: list[tuple[Sequence[PartStore], bool]] = [
        (opened.references(), True), (opened.scorers(), True), (opened.judges(), False)
    ]  # fmt: skip
    for stores, of_responses in kinds:
        held, cells = holdings(stores), coverage(opened, stores) if of_responses else []
        if as_json:
            listed += [
                {**_named(asdict(holding)), "coverage": _of(holding, cells)} for holding in held
            ]
        elif held:
            if printed:
                print()
            printed = True
            if cells:
                print_records([_named(asdict(cell)) for cell in cells])
                print()
            print_records([_named(_holding(holding)) for holding in held])
    if as_json:
        print_json(listed)
    elif not printed:
        print("no reference is cached yet; mrpo precompute --ref NAME")


@cache.command()
@cache_option
@click.option(
    "--rescore",
    type=click.IntRange(min=1),
    metavar="K",
    help="Compute K random numbers of each reference again (loads the models).",
)
@click.option("--ref", "refs", multiple=True, metavar="NAME", shell_complete=references,
              help="Rescore only these. Repeats and takes commas.")  # fmt: skip
@json_option
def verify(*, cache: str | None, rescore: int | None, refs: tuple[str, ...], as_json: bool) -> None:
    """Check every file's hash, rows with two numbers, with --rescore the numbers; exit 3 if wrong.

    \b
    Example:
        mrpo cache verify
        mrpo cache verify --rescore 64
    """
    from mrpo_tools.cache import upkeep
    from mrpo_tools.errors import CacheStale

    opened = open_cache(cache)
    upkeep.refuse_damage(opened)
    stores = opened.references()
    scored = opened.scorers()
    counts = [_counts(store) for store in stores]
    marks = [_counts(store) for store in scored]
    verdicts = [_counts(store) for store in opened.judges()]
    named = [opened.find(name) for word in refs for name in word.split(",")] or stores
    again = [(store, _rescore(opened, store, rescore)) for store in named if rescore]
    rows = [_rescored(store, result) for store, result in again]
    if as_json:
        more = {name: each for name, each in (("scores", marks), ("verdicts", verdicts)) if each}
        print_json({"rows": counts, "rescored": rows, **more})
    else:
        print(f"{opened.path}: every file has the hash in its name")
        print_records(counts)
        print_records(marks)
        print_records(verdicts)
        print_records(rows)
    for path in upkeep.foreign(opened):
        print(f"note: {path} is no file of mrpo's; nothing reads it", file=sys.stderr)
    problems = [
        line for store in [*stores, *scored, *opened.judges()] for line in _disagreements(store)
    ]
    problems += [line for store, result in again for line in _changed(store, result)]
    if problems:
        raise CacheStale("\n".join(problems), _AFTER_DISAGREEMENT)


_AFTER_DISAGREEMENT = (
    "the earliest number counts everywhere; mrpo cache verify --rescore 64 says whether it is "
    "right, mrpo cache status which versions wrote it"
)


@cache.command()
@cache_option
def repair(cache: str | None) -> None:
    """Drop damaged files; `mrpo precompute`, or `mrpo score`, then computes their rows again.

    A damaged identity.json is restored from the parts beside it.

    \b
    Example:
        mrpo cache repair
    """
    from mrpo_tools.cache.upkeep import repair as mend

    mended = mend(open_cache(cache))
    for file, what in mended:
        print(f"{what}: {file.reason}")
    print(
        f"{len(mended)} damaged files"
        + ("; mrpo precompute, or mrpo score, next" if mended else "")
    )


@cache.command()
@cache_option
def compact(cache: str | None) -> None:
    """Merge small parts into large ones, and drop files of data that were saved anew.

    Numbers stay as they are: of rows with two, the earliest is kept. May run while others
    read and write.

    \b
    Example:
        mrpo cache compact
    """
    from mrpo_tools.cache import upkeep

    opened = open_cache(cache)
    lost = [line for store in opened.stores() for line in _disagreements(store)]
    merged = upkeep.compact(opened)
    print_table(
        ("reference", "files before", "files after", "rows dropped"),
        [(part.name, part.before, part.after, part.dropped_rows) for part in merged],
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

    renewed = rewrite(open_cache(cache))
    for old, new in renewed:
        print(f"{old} -> {new.name}")
    print(f"{len(renewed)} files upgraded; every file has format {FORMAT_VERSION}")


@cache.command()
@click.argument("first", metavar="A", shell_complete=references)
@click.argument("second", metavar="B", shell_complete=references)
@cache_option
@json_option
def diff(*, first: str, second: str, cache: str | None, as_json: bool) -> None:
    """Which fields of two identities differ; --json prints them whole.

    \b
    Example:
        mrpo cache diff mistral@ab12 mistral@cd34
    """
    from mrpo_tools.references.identity import excerpts

    opened = open_cache(cache)
    left, right = _store(opened, first), _store(opened, second)
    differing = left.identity.differences(right.identity)
    if as_json:
        print_json([{"field": name, str(left): a, str(right): b} for name, a, b in differing])
    elif differing:
        rows = [(name, *excerpts(a, b)) for name, a, b in differing]
        print_table(("field", str(left), str(right)), rows)
    else:
        print(f"{left} and {right} have the same identity")


def _named(values: Row) -> Row:
    """The row of a store under the word for what it is: of a scorer with what failed."""
    rest = {key: value for key, value in values.items() if key not in ("whose", "reference")}
    if values["whose"] == "reference":
        rest.pop("failed", None)
    return {str(values["whose"]): values["reference"], **rest}


def _store(opened: Cache, name: str) -> PartStore:
    """The store of a reference, or else of a scorer or a judge."""
    bare = name.partition("@")[0]
    if not opened.named(name):
        if any(store.name == bare for store in opened.scorers()):
            return opened.find_scores(name)
        if any(store.name == bare for store in opened.judges()):
            return opened.find_verdicts(name)
    return opened.find(name)


def _of(holding: Holding, cells: list[Coverage]) -> list[Row]:
    """The coverage of one identity, without its names."""
    names = {holding.whose: holding.reference, "identity": holding.identity}
    rows = [_named(asdict(cell)) for cell in cells]
    return [
        {key: value for key, value in row.items() if key not in names}
        for row in rows
        if names.items() <= row.items()
    ]


def _holding(holding: Holding) -> Row:
    versions = (f"{library} {'/'.join(used)}" for library, used in holding.versions.items())
    return {
        "whose": holding.whose,
        "reference": holding.reference,
        "identity": holding.identity,
        "parts": holding.parts,
        "rows": holding.rows,
        "bytes": holding.bytes,
        "first part": _when(holding.first),
        "last part": _when(holding.last),
        "by": holding.origin or ", ".join([*holding.devices, *versions]),
    }


def _when(seconds: float | None) -> str | None:
    import time

    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else None


def _counts(store: PartStore) -> Row:
    return {
        store.whose: store.name,
        "identity": store.short,
        "parts": len(store.part_paths()),
        **store.count_by_status(),
    }


def _disagreements(store: PartStore) -> list[str]:
    """Rows with two numbers and more than noise between them, a few of them by name."""
    from mrpo_tools.cache.upkeep import disagreements

    rows = disagreements(store)
    lines = [
        f"{row.reference}: response {row.response_id} was computed twice: "
        f"{row.field} {row.earliest}, later {row.other}"
        for row in rows[:5]
    ]
    more = len(rows) - len(lines)
    return [*lines, f"{store}: … and {more:,} more"] if more else lines


def _rescore(opened: Cache, store: ReferenceStore, count: int | None) -> Rescored | None:
    """None for imported numbers: there is no model to ask."""
    from mrpo_tools.precomputing.rescore import rescore

    if "origin" in store.identity.fields:
        return None
    return rescore(opened, store, _subject(store), count or 0)


def _subject(store: ReferenceStore) -> ResolvedReference:
    """The model as the project has it, if it has this identity; else as it was recorded."""
    from mrpo_tools.config import load_project
    from mrpo_tools.errors import UsageError
    from mrpo_tools.references.resolved import resolve

    def resolved(words: Reference) -> ResolvedReference:
        dtype = words.dtype or store.identity.fields["dtype"]
        return resolve(store.name, words.model_copy(update={"dtype": dtype}))

    ours = load_project().references.get(store.name)
    if ours is not None:
        with contextlib.suppress(UsageError):  # its files went away
            subject = resolved(ours)
            if subject.identity.hash == store.identity.hash:
                return subject
    return resolved(store.recorded_reference())


def _rescored(store: ReferenceStore, result: Rescored | None) -> Row:
    return {
        "rescored": str(store),
        "rows": result.rows if result else 0,
        "largest difference, nats": f"{abs(result.logp - result.cached):.3g}" if result else None,
        "nats per token": f"{result.per_token:.3g}" if result else None,
        "response": result.worst if result else "imported: no model to ask",
    }


def _changed(store: ReferenceStore, result: Rescored | None) -> list[str]:
    """What is wrong with numbers that were computed again."""
    lines = []
    if result and result.other_tokens:
        lines.append(f"{store}: {result.other_tokens:,} of {result.rows:,} rows have other tokens")
    if result and result.beyond:
        lines.append(
            f"{store}: response {result.worst} is {result.logp:.6f} now, {result.cached:.6f} in "
            f"the cache: {result.per_token:.3g} nats per token apart; {result.beyond}"
        )
    return lines
