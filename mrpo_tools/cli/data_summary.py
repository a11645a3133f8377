"""What `mrpo data show` says of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mrpo_tools.cli.options import print_table
from mrpo_tools.progress import folded_text, terminal_width

if TYPE_CHECKING:
    from mrpo_tools.config import Reference
    from mrpo_tools.groups import Group
    from mrpo_tools.sources import GroupStream
    from mrpo_tools.sources.summary import Summary

TEXT_SHOWN = 600
BAR_WIDTH = 40


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


def facts_of(stream: GroupStream, summary: Summary) -> dict[str, object]:
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
    if stream.unused:
        facts["unused"] = unused_of(stream)
    if summary.scores:
        facts["scores"] = dict(summary.histogram())
    return facts


def unused_of(stream: GroupStream) -> dict[str, int]:
    """Columns and keys that hold anything and are not read, with how often: the most first."""
    return dict(sorted(stream.unused.items(), key=lambda item: (-item[1], item[0])))


def count_tokens(name: str, reference: Reference, groups: Sequence[Group]) -> Tokens:
    """The tokens of some groups under a reference's own tokenizer and chat template."""
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


def print_summary(stream: GroupStream, summary: Summary, tokens: Mapping[str, Tokens]) -> None:
    """Counts, scores, lengths and the first groups, for people."""
    _print_facts(facts_of(stream, summary), summary)
    _print_scores(summary)
    _print_lengths(summary, tokens)
    for group in summary.first:
        _print_group(group)


def _print_facts(facts: Mapping[str, object], summary: Summary) -> None:
    elsewhere = ("scores", "tied_pairs", "scored_pairs")
    lines = {key: value for key, value in facts.items() if key not in elsewhere}
    if summary.pairs:
        share = summary.tied_pairs / summary.pairs
        lines["tied_pairs"] = f"{summary.tied_pairs:,} of {summary.pairs:,} ({share:.1%})"
    width = max(map(len, lines))
    for key, value in lines.items():
        head = f"{key.replace('_', ' ').ljust(width)}  "
        for line in folded_text(head + _in_words(value), terminal_width(), indent=len(head)):
            print(line)


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
    taken = max(len(name) for name, _ in bins) + len("score  responses  ")
    width = max(1, min(BAR_WIDTH, (terminal_width() or taken + BAR_WIDTH) - taken))
    print_table(
        ("score", "responses", ""),
        [(name, count, "█" * round(count / most * width)) for name, count in bins],
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
    if group.tools:
        print(_indented("tools: ", group.tools))
    for turn in group.prompt:
        print(_indented(f"{turn.role}: ", turn.written))
    for response in group.responses:
        marks = [
            f"score {response.score:g}" if response.score is not None else "",
            {True: "chosen", False: "rejected", None: ""}[response.chosen],
        ]
        head = ", ".join(mark for mark in marks if mark)
        text = response.message.written
        print(_indented(f"  [{head}] " if head else "  - ", text))


def _indented(head: str, text: str) -> str:
    """A text under its head, cut where it is long, without characters that move the cursor."""
    cut = f" … ({len(text):,} characters)" if len(text) > TEXT_SHOWN else ""
    plain = "".join(
        c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text[:TEXT_SHOWN]
    )
    return "  " + head + plain.replace("\n", "\n" + " " * (len(head) + 2)) + cut
