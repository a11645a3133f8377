"""`mrpo data`: look at preference data before any model loads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mrpo_tools.cli.options import (
    counted,
    dataset_of,
    dataset_options,
    decorate,
    json_option,
    print_json,
    print_table,
    references_named,
    renamed,
    warn_of,
    written_pairing_option,
)

if TYPE_CHECKING:
    from mrpo_tools.config import Reference
    from mrpo_tools.groups import Group
    from mrpo_tools.sources import GroupStream
    from mrpo_tools.sources.summary import Summary
    from mrpo_tools.words import DeterministicPairing

TEXT_SHOWN = 600
BAR_WIDTH = 40


data_options = decorate(
    click.option("--split", metavar="NAME", help="This split only."),
    dataset_options,
    click.option("--seed", type=int, help="The same as --split-seed."),
)


@dataclass(frozen=True)
class Tokens:
    """Lengths of some groups under a reference's own tokenizer and chat template.

    Attributes:
        groups: how many were counted.
        prompt, response, both: quantiles of tokens, by `summary.quantiles`.
        max_length: what the reference reads at most; None without a limit.
        longer: responses that do not fit in it with their prompt.
    """

    groups: int
    prompt: dict[str, int]
    response: dict[str, int]
    both: dict[str, int]
    max_length: int | None
    longer: int


@click.group()
def data() -> None:
    """Look at, check and convert preference data."""


@data.command()
@click.argument("source", required=False)
@data_options
@click.option("--ref", "refs", multiple=True, metavar="NAME[=MODEL]",
              help="Count the tokens of this reference's tokenizer too. Repeats.")  # fmt: skip
@click.option("--rows", default=3, show_default=True, help="Groups to show.")
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
    """
    from mrpo_tools.config import load_project
    from mrpo_tools.sources.summary import Summary

    references = references_named(refs, load_project(), {})
    summary = Summary(shown=rows)
    with _stream(source, options, "reading") as stream:
        for group in stream:
            summary.add(group)
    facts = _facts(stream, summary)
    tokens = {
        name: _tokens(name, reference, summary.sample) for name, reference in references.items()
    }
    if as_json:
        first = [group.as_dict() for group in summary.first]
        lengths = {name: asdict(counts) for name, counts in tokens.items()}
        print_json({**facts, "tokens": lengths, "first": first})
        return
    _print_facts(facts, summary)
    _print_scores(summary)
    _print_lengths(summary, tokens)
    for group in summary.first:
        _print_group(group)


@data.command()
@click.argument("source", required=False)
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
        print_json({"name": stream.name, "adapter": stream.adapter.name, **stream.counts})
    else:
        print(f"{stream.name}: {counted(stream.counts)}; no problem found")


@data.command()
@click.argument("source")
@click.argument("target", type=click.Path(path_type=Path))
@data_options
@click.option("--to", "form", default="canonical", show_default=True,
              type=click.Choice(["canonical", "trl", "llama-factory", "openrlhf"]),
              help="The last three are pairs.")  # fmt: skip
@written_pairing_option
@renamed("--pairs", "pairing")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@json_option
def convert(
    *,
    source: str,
    target: Path,
    form: str,
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
            for row in FORMS[form].rows(group, pairing):
                put(row)
                written += 1
            without += written == before
    counts = {"target": str(target), "form": form, "rows": written,
            "groups": stream.counts["groups"], "groups_without_a_pair": without}  # fmt: skip
    if as_json:
        print_json({**counts, "pairs": None if form == "canonical" else pairing})
        return
    kind = (
        "groups"
        if form == "canonical"
        else f"{pairing} pairs of {stream.counts['groups']:,} groups"
    )
    print(f"wrote {written:,} {kind} to {target}")
    if without:
        print(f"{without:,} groups have no better response and made no pair")


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
        stream = GroupStream(
            dataset.source,
            Options.of(dataset, split=options["split"], on_progress=report),
        )
        yield stream
    warn_of(stream.counts)


def _facts(stream: GroupStream, summary: Summary) -> dict[str, object]:
    """What `--json` prints of a data set, in the order in which people read it."""
    from mrpo_tools.sources.known import KNOWN
    from mrpo_tools.sources.summary import quantiles

    facts: dict[str, object] = {"name": stream.name}
    if stream.name in KNOWN:
        facts["about"] = KNOWN[stream.name].about
    if stream.revision:
        facts["revision"] = stream.revision
    facts |= {
        "adapter": stream.adapter.name,
        "because": stream.reason,
        **{key: count for key, count in stream.counts.items() if count},
        "responses_per_group": {str(n): count for n, count in sorted(summary.sizes.items())},
        "splits": dict(summary.splits),
        "labelled_groups": summary.labelled,
        "tied_pairs": summary.tied_pairs,
        "scored_pairs": summary.pairs,
        "characters_of_a_response": quantiles(summary.characters),
    }
    if summary.scores:
        facts["scores"] = dict(summary.histogram())
    return facts


def _tokens(name: str, reference: Reference, groups: Sequence[Group]) -> Tokens:
    from mrpo_tools.references.loading import load_tokenizer
    from mrpo_tools.references.locate import locate
    from mrpo_tools.references.model_files import context_length, template_text
    from mrpo_tools.references.rendering import Renderer
    from mrpo_tools.sources.summary import quantiles

    files = locate(reference)
    limit = reference.max_length or context_length(files.model)
    renderer = Renderer(
        load_tokenizer(files, reference),
        name=name,
        chat_template=template_text(files.model, reference.chat_template),
        system=reference.system,
        added_tokens=reference.added_tokens,
    )
    encoded = [renderer.encode(group) for group in groups]
    prompts = [len(rendered.prompt_ids) for rendered in encoded]
    responses = [[len(response.ids) for response in rendered.responses] for rendered in encoded]
    wholes = [
        prompt + length
        for prompt, lengths in zip(prompts, responses, strict=True)
        for length in lengths
    ]
    return Tokens(
        groups=len(groups),
        prompt=quantiles(prompts),
        response=quantiles([length for lengths in responses for length in lengths]),
        both=quantiles(wholes),
        max_length=limit,
        longer=sum(bool(limit) and length > limit for length in wholes),
    )


def _print_facts(facts: Mapping[str, object], summary: Summary) -> None:
    elsewhere = ("scores", "tied_pairs", "scored_pairs")
    lines = {key: value for key, value in facts.items() if key not in elsewhere}
    if summary.pairs:
        share = summary.tied_pairs / summary.pairs
        lines["tied_pairs"] = f"{summary.tied_pairs:,} of {summary.pairs:,} ({share:.1%})"
    width = max(map(len, lines))
    for key, value in lines.items():
        print(f"{key.replace('_', ' ').ljust(width)}  {_in_words(value)}")


def _in_words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {count:,}" for name, count in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


def _print_scores(summary: Summary) -> None:
    """A histogram, drawn with bars."""
    if not summary.scores:
        return
    bins = summary.histogram()
    most = max(count for _, count in bins)
    print()
    print_table(
        ("score", "responses", ""),
        [(name, count, "█" * round(count / most * BAR_WIDTH)) for name, count in bins],
    )


def _print_lengths(summary: Summary, tokens: Mapping[str, Tokens]) -> None:
    if not tokens:
        return
    print()
    print_table(
        ("tokens under", "of", "median", "p95", "max", "max_length", "longer"),
        [
            (name, part, *lengths.values(), *limits)
            for name, counts in tokens.items()
            for part, lengths, limits in (
                ("prompt", counts.prompt, (None, None)),
                ("response", counts.response, (None, None)),
                ("both", counts.both, (counts.max_length, counts.longer)),
            )
        ],
    )
    everything = summary.sizes.total()
    if len(summary.sample) < everything:
        print(f"(of {len(summary.sample):,} groups drawn from {everything:,})")


def _print_group(group: Group) -> None:
    print()
    for turn in group.prompt:
        print(_indented(f"{turn.role}: ", turn.content))
    for response in group.responses:
        marks = [
            f"score {response.score:g}" if response.score is not None else "",
            {True: "chosen", False: "rejected", None: ""}[response.chosen],
        ]
        head = ", ".join(mark for mark in marks if mark)
        print(_indented(f"  [{head}] " if head else "  - ", response.content))


def _indented(head: str, text: str) -> str:
    """A text under its head, cut where it is long, without characters that move the cursor."""
    cut = f" … ({len(text):,} characters)" if len(text) > TEXT_SHOWN else ""
    plain = "".join(
        c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text[:TEXT_SHOWN]
    )
    return "  " + head + plain.replace("\n", "\n" + " " * (len(head) + 2)) + cut
