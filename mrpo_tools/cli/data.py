"""`mrpo data`: look at preference data before any model loads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mrpo_tools import words
from mrpo_tools.cli.completion import files, references
from mrpo_tools.cli.data_summary import count_tokens, facts_of, print_summary, unused_of
from mrpo_tools.cli.help import Group as Commands
from mrpo_tools.cli.options import (
    cache_option,
    choice,
    counted,
    dataset_of,
    dataset_options,
    decorate,
    json_option,
    list_skipped,
    print_json,
    references_named,
    renamed,
    scored_dataset_options,
    warn_of,
    written_pairing_option,
)
from mrpo_tools.cli.scorers import scorer_word, stored_scores, tell_scores

if TYPE_CHECKING:
    from mrpo_tools.cache import ScoreStore
    from mrpo_tools.groups import Group
    from mrpo_tools.sources import GroupStream
    from mrpo_tools.words import DataForm, DeterministicPairing


split_option = click.option("--split", metavar="NAME", help="This split only.")
seed_option = click.option("--seed", type=int, help="The same as --split-seed.")
data_options = decorate(split_option, dataset_options, seed_option)


@click.group(cls=Commands)
def data() -> None:
    """Look at, check and convert preference data."""


@data.command()
@click.argument("source", required=False, shell_complete=files)
@split_option
@scored_dataset_options
@seed_option
@click.option("--ref", "refs", multiple=True, metavar="NAME[=MODEL]",
              shell_complete=references,
              help="Count the tokens of this reference's tokenizer too. Repeats.")  # fmt: skip
@click.option("--rows", default=3, show_default=True, help="Groups to show.")
@cache_option
@json_option
def show(
    *, source: str | None, refs: tuple[str, ...], rows: int, as_json: bool, **options: Any
) -> None:
    """What a data set holds: adapter and why, counts, scores, lengths, the first groups.

    SOURCE is the project's data set by default.

    \b
    Example:
        mrpo data show pairs.jsonl
        mrpo data show ultrafeedback --score mean --ref llama=./models/llama
        mrpo data show pairs.jsonl --score skywork
    """
    from mrpo_tools.cache import Cache
    from mrpo_tools.config import load_project
    from mrpo_tools.sources.summary import Summary

    project = load_project()
    references = references_named(refs, project, {})
    cache = Cache(options["cache"] or project.cache)
    scores = stored_scores(scorer_word(options), cache, project)
    summary = Summary(shown=rows)
    with _stream(source, options, "reading") as stream:
        for group in stream if scores is None else _scored(stream, scores):
            summary.add(group)
    tokens = {
        name: count_tokens(name, reference, summary.sample)
        for name, reference in references.items()
    }
    if as_json:
        first = [group.as_dict() for group in summary.first]
        lengths = {name: asdict(counts) for name, counts in tokens.items()}
        print_json({**facts_of(stream, summary), "tokens": lengths, "first": first})
    else:
        print_summary(stream, summary, tokens)


@data.command()
@click.argument("source", required=False, shell_complete=files)
@data_options
@json_option
def validate(*, source: str | None, as_json: bool, **options: Any) -> None:
    """Check every row; exit 2 with the first twenty problems.

    \b
    Example:
        mrpo data validate pairs.jsonl
    """
    with _stream(source, options, "checking") as stream:
        for _ in stream:
            pass
    if as_json:
        facts = {"name": stream.name, "adapter": stream.adapter.name, **stream.counts}
        print_json({**facts, "unused": unused_of(stream)})
        return
    skipped = stream.counts["skipped_rows"]
    found = f"{skipped:,} bad rows left out" if skipped else "no problem found"
    print(f"{stream.name}: {counted(stream.counts)}; {found}")
    if stream.unused:
        print(f"not used: {', '.join(f'{key} ({n:,})' for key, n in unused_of(stream).items())}")


@data.command()
@click.argument("source", shell_complete=files)
@click.argument("target", type=click.Path(path_type=Path))
@data_options
@click.option("--to", "form", default="canonical", show_default=True,
              type=choice(words.DataForm), help="What form; the last three are pairs.")  # fmt: skip
@written_pairing_option
@renamed("--pairs", "pairing")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@json_option
def convert(
    *,
    source: str,
    target: Path,
    form: DataForm,
    pairing: DeterministicPairing,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Write a data set in another form, as JSONL or Parquet, a group at a time.

    Nothing is written unless every row is good. In a pair form the best of a group stands against
    its worst; --pairing takes more. Groups without a better response make no pair and are counted.

    \b
    Example:
        mrpo data convert pairs.json canonical.parquet
        mrpo data convert nectar pairs.jsonl --to trl --pairing best_vs_rest
    """
    from mrpo_tools.sources.export import FORMS
    from mrpo_tools.sources.write import writing

    written = without = 0
    with (
        writing(target, FORMS[form].columns, overwrite=overwrite) as put,
        _stream(source, options, "converting") as stream,
    ):
        for group in stream:
            before = written
            FORMS[form].check(group, target.suffix.lower())
            for row in FORMS[form].rows(group, pairing):
                put(row)
                written += 1
            without += written == before
    counts = {"target": str(target), "form": form, "rows": written,
            "groups": stream.counts["groups"], "groups_without_a_pair": without}  # fmt: skip
    if as_json:
        print_json({**counts, "pairs": None if form == "canonical" else pairing})
        return
    groups = f"{stream.counts['groups']:,} groups"
    kind = "groups" if form == "canonical" else f"{pairing} pairs of {groups}"
    print(f"wrote {written:,} {kind} to {target}")
    if without:
        print(f"{without:,} groups have no better response and made no pair")


def _scored(stream: GroupStream, scores: ScoreStore) -> list[Group]:
    """All groups with a scorer's scores; what has none is counted."""
    from mrpo_tools.progress import say_once
    from mrpo_tools.scoring.apply import with_scores

    groups, left_out = with_scores(list(stream), scores)
    tell_scores(str(scores))
    for reason, count in left_out.items():
        say_once(f"left out {count:,} responses: {reason}")
    return groups


@contextlib.contextmanager
def _stream(source: str | None, options: Mapping[str, Any], doing: str) -> Iterator[GroupStream]:
    """The groups of the named or the project's data set, under a progress bar."""
    from mrpo_tools.config import load_project
    from mrpo_tools.progress import bar_to
    from mrpo_tools.sources import GroupStream, Options

    seed = options["split_seed"] if options["seed"] is None else options["seed"]
    named = {"dataset": source or options["dataset"], "split_seed": seed}
    dataset = dataset_of(load_project(), {**options, **named})
    with bar_to(doing, "bytes") as report:
        how = Options.of(dataset, split=options["split"], on_progress=report)
        stream = GroupStream(dataset.source, how)
        yield stream
    list_skipped(stream.name, stream.problems)
    warn_of(stream.counts)
