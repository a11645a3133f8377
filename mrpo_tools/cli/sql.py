"""`mrpo sql`: questions to the cache."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from mrpo_tools import words
from mrpo_tools.cli.completion import references
from mrpo_tools.cli.help import Command
from mrpo_tools.cli.options import cache_option, choice, target_of
from mrpo_tools.cli.scorers import pinned_scores, score_option

SUFFIXES: dict[str, words.ResultFormat] = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".md": "markdown",
    ".parquet": "parquet",
}
_ID = re.compile(r"[0-9a-f]{32}")


@click.command(cls=Command)
@click.argument("query", required=False)
@click.option("-f", "--file", metavar="FILE", help="Read the query from a file.")
@click.option("--saved", metavar="NAME", help="Run a query that comes with mrpo.")
@click.option("--param", "params", metavar="NAME=VALUE", multiple=True, help="Value of $NAME.")
@click.option(
    "--format",
    "form",
    type=choice(words.ResultFormat),
    help="How to write the result.  [default: by the suffix of -o, else table]",
)
@click.option("-o", "--output", metavar="FILE", help="Write to a file instead of stdout.")
@cache_option
@click.option("--runs", metavar="DIR", help="Directory of runs.  [default: runs]")
@click.option("--refs", metavar="NAMES", shell_complete=references,
              help="Load these only; reference 1 first.  [default: all]")  # fmt: skip
@score_option
@click.option("--timeout", type=float, default=60.0, show_default=True, help="Seconds.")
@click.option("--memory-limit", metavar="SIZE", default="2GB", show_default=True,
              help="Of the query.")  # fmt: skip
def sql(
    query: str | None,
    file: str | None,
    saved: str | None,
    params: tuple[str, ...],
    form: words.ResultFormat | None,
    output: str | None,
    cache: str | None,
    runs: str | None,
    refs: str | None,
    score: str | None,
    timeout: float,
    memory_limit: str,
) -> None:
    """Ask the cache in SQL; without a QUERY, list what there is to ask.

    QUERY is one SELECT, or `-` to read it from stdin. It can read the cache's views and call the
    macros, and nothing else: no files, no network, no writing.

    \b
    Example:
        mrpo sql "SELECT reference, avg(logp) FROM logps GROUP BY reference"
        mrpo sql --saved best-reference --format csv -o best.csv
        mrpo sql "SELECT scorer, avg(score) FROM scores GROUP BY scorer"
        mrpo sql "SELECT * FROM virtual_reference($eps)" --param eps=0.1 -o virtual.parquet
    """
    from mrpo_tools.cache import Cache
    from mrpo_tools.config import load_project
    from mrpo_tools.progress import terminal_width

    project = load_project()
    path = Path(cache or project.cache)
    text, values = _query(query, file, saved)
    if text is None:
        click.echo("\n".join(_overview(path)))
        return
    values |= _values(params)
    form = form or SUFFIXES.get(Path(output or "").suffix.lower(), "table")
    target = target_of(output, path, binary=form == "parquet")
    from mrpo_tools.sql.apart import Question, answer
    from mrpo_tools.sql.formats import sink_of

    question = Question(
        sql=text, params=values, form=form, cache=path, runs=runs,
        references=[name for name in (refs or "").split(",") if name] or None,
        timeout=timeout, memory_limit=memory_limit,
        width=None if isinstance(target, Path) else terminal_width(),
        score=pinned_scores(score, Cache(path), project),
    )  # fmt: skip
    with sink_of(target) as sink:
        for content in answer(question):
            sink.write(content)


def _query(
    query: str | None, file: str | None, saved: str | None
) -> tuple[str | None, dict[str, object]]:
    """The query's text and its parameters' defaults; None when nothing was asked."""
    from mrpo_tools.errors import UsageError

    if [query, file, saved].count(None) < 2:
        raise UsageError("more than one query", "give a query, -f FILE or --saved NAME")
    if saved is not None:
        from mrpo_tools.sql import find_saved

        question = find_saved(saved)
        return question.sql, dict(question.params)
    source = "-" if query == "-" else file
    if source is None:
        return query, {}
    try:
        content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        return content.decode("utf-8-sig"), {}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{source} cannot be read: {error}") from None


def _values(params: Sequence[str]) -> dict[str, object]:
    """`eps=0.1` as a number, `refs=["a","b"]` as a list, an id and all else as text."""
    from mrpo_tools.errors import UsageError

    values: dict[str, object] = {}
    for param in params:
        name, equals, text = param.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--param {param}: NAME=VALUE is needed", "--param eps=0.1")
        try:
            values[name] = text if _ID.fullmatch(text) else json.loads(text)
        except ValueError:
            values[name] = text
    return values


def _overview(path: Path) -> Iterator[str]:
    """What there is to ask, without opening the cache."""
    from mrpo_tools.cache import Cache
    from mrpo_tools.sql import MACROS, SAVED, VIEWS

    stores = Cache(path).references() if path.is_dir() else []
    yield f"cache {path}: {', '.join(map(str, stores)) or 'no references yet'}"
    yield "\nviews"
    for view in VIEWS:
        yield f"  {view.name}: {view.about}"
        yield from _wrapped(view.columns)
    yield "\nmacros (refs is a list of names, reference 1 first; default: all, by name)"
    for macro in MACROS:
        yield f"  {macro.name}({macro.arguments}): {macro.about}"
        yield from _wrapped(macro.columns)
    yield "\nsaved queries (mrpo sql --saved NAME)"
    for saved in SAVED:
        defaults = ", ".join(f"{name}={json.dumps(value)}" for name, value in saved.params.items())
        yield f"  {saved.name}: {saved.about}" + (f" ({defaults})" if defaults else "")
    yield '\nexample\n  mrpo sql "SELECT * FROM refs"'


def _wrapped(columns: Sequence[str]) -> Iterator[str]:
    import textwrap

    from mrpo_tools.progress import terminal_width

    indent = " " * 6
    yield from textwrap.wrap(
        ", ".join(columns), min(92, terminal_width() or 92), initial_indent=indent,
        subsequent_indent=indent, break_long_words=False,
    )  # fmt: skip
