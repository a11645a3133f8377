"""Options that several commands share, and how they override the project file."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import click

from mrpo_tools import words
from mrpo_tools.cli.completion import files, settings
from mrpo_tools.cli.help import Names

if TYPE_CHECKING:
    from mrpo_tools.cache import Cache
    from mrpo_tools.config import Dataset, Project, Reference
    from mrpo_tools.runs.record import Estimate
    from mrpo_tools.sources import Source
    from mrpo_tools.sources.readers.rows import Problem

Row = Mapping[str, object]
"""A row of a table: what its columns are called, and what they hold."""
Command = TypeVar("Command", bound=Callable[..., Any])


def decorate(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, in the order of the help."""

    def apply(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


def choice(of: Any) -> Names:
    """An option's type: one of the names of a choice in `words`."""
    return Names(of)


def renamed(old: str, name: str) -> Callable[[Command], Command]:
    """The former word of an option, hidden: it sets what the parameter `name` sets.

    Where both words stand on a line, the present one counts.
    """

    def pass_on(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
        if value is not None:
            ctx.default_map = {**(ctx.default_map or {}), name: value}

    return click.option(old, hidden=True, expose_value=False, is_eager=True, callback=pass_on)


written_pairing_option = click.option(
    "--pairing",
    type=choice(words.DeterministicPairing),
    default="best_worst",
    show_default=True,
    help="Which pairs a group of more responses makes.",
)


def _data_options(score: str) -> Callable[[Command], Command]:
    """How data is found and read; `score` is what `--score` means."""
    return decorate(
        click.option(
            "--dataset",
            metavar="SOURCE",
            shell_complete=files,
            help="File, directory or hub id of the data.",
        ),
        click.option("--data-adapter", metavar="NAME", help="How to read the data's columns."),
        click.option(
            "--map",
            "mapping",
            multiple=True,
            metavar="FIELD=COLUMN,…",
            help="Columns by other names. Repeats and takes commas.",
        ),
        click.option("--score", metavar="KIND", help=score),
        click.option("--test-size", type=float, help="Share of prompts held out as split `test`."),
        click.option(
            "--validation-size",
            type=float,
            help="Share of the prompts in `train` held out as split `validation`.",
        ),
        click.option("--split-seed", type=int, help="Which prompts those are."),
        click.option("--limit", type=int, help="The first N groups of each split only."),
        click.option(
            "--skip-bad",
            is_flag=True,
            default=None,
            help="Leave bad rows out; each is listed in NAME.skipped.txt.",
        ),
        click.option(
            "--keep-status",
            type=choice(words.KeptStatus),
            multiple=True,
            help="Keep sampled answers that are left out otherwise. Repeats.",
        ),
    )


dataset_options = _data_options("Which score, where the data has several.")
scored_dataset_options = _data_options(
    "Which score counts: a kind, where the data has several, or a scorer of `mrpo score`."
)

cache_option = click.option(
    "--cache", metavar="DIR", help="The cache's directory.  [default: cache]"
)

truncated_option = click.option(
    "--truncated",
    type=choice(words.Truncated),
    help="Whether responses take part that a model read cut.  [default: drop]",
)

set_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=settings,
    help="Any key of a recipe (`mrpo recipe` lists them). Repeats.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

reference_options = decorate(
    click.option("--dtype", type=choice(words.Dtype),
                 help="Format of the weights.  [default: bfloat16; float32 on a CPU]"),
    click.option("--quantization", type=choice(words.Quantization),
                 help="Format of frozen weights, where not --dtype's."),
    click.option("--max-length", type=int, help="Tokens of prompt and response together."),
    click.option("--max-prompt-length", type=int,
                 help="Tokens of a prompt that --overlong keep_end leaves."),
    click.option("--overlong", type=choice(words.Overlong),
                 help="What of a response that does not fit.  [default: skip]"),
    click.option("--revision", metavar="REV", help="Commit, tag or branch on the hub."),
    click.option("--adapter", metavar="DIR", help="LoRA adapter of the reference."),
    click.option("--system", type=choice(words.System),
                 help="What of a system message that the template refuses.  [default: fold]"),
    click.option("--added-tokens", type=choice(words.AddedTokens),
                 help="What of a tokenizer's added tokens in the data.  [default: plain]"),
    click.option("--batch-tokens", type=int, help="Tokens of a batch, padding counted."),
    click.option("--attention", type=choice(words.Attention),
                 help="How attention is computed.  [default: auto]"),
    click.option("--trust-remote-code", is_flag=True, default=None, help="Run the model's code."),
)  # fmt: skip
placement_options = decorate(
    click.option("--device-map", type=choice(words.DeviceMap),
                 help="Where layers lie.  [default: on one device where they fit it]"),
    click.option("--stream-layers/--no-stream-layers", default=None,
                 help="Read the model a layer at a time.  [default: if nothing holds it]"),
    click.option("--sweep-tokens", type=int,
                 help="Tokens that share a reading of streamed layers."),
)  # fmt: skip
REFERENCE_FIELDS = (
    "dtype", "quantization", "max_length", "max_prompt_length", "overlong", "revision", "adapter",
    "system", "added_tokens", "batch_tokens", "attention", "device_map", "stream_layers",
    "sweep_tokens", "trust_remote_code",
)  # fmt: skip


def references_named(
    values: Iterable[str], project: Project, options: Mapping[str, Any]
) -> dict[str, Reference]:
    """References of `--ref`, which repeats and takes commas: names of the project, or NAME=MODEL.

    `options` are reference fields given on the command line; they hold for every one of them.
    """
    from mrpo_tools.config import Reference, check_name, find_reference, parse
    from mrpo_tools.errors import UsageError
    from mrpo_tools.progress import say_once

    fields = {key: options[key] for key in REFERENCE_FIELDS if options.get(key) is not None}
    references: dict[str, Reference] = {}
    for word in (part for value in values for part in value.split(",") if part):
        name, equals, model = word.partition("=")
        if equals and not model:
            raise UsageError(f"--ref {word}: no model after '='", f"--ref {name}=PATH_OR_HUB_ID")
        check_name(name)
        base = Reference(model=model) if equals else find_reference(name, project)
        if not equals and name not in project.references:
            say_once(
                f"note: {name} is {base.model}, a reference of the MRPO paper (7B, about 15 GB to "
                f"download if it is not here); another one: --ref {name}=PATH_OR_HUB_ID"
            )
        references[name] = parse(Reference, {**base.model_dump(), **fields}, f"reference {name}")
    return references


def dataset_of(project: Project, options: Mapping[str, Any]) -> Dataset:
    """The project's data set with the options over it."""
    from mrpo_tools.config import Dataset, parse
    from mrpo_tools.errors import UsageError

    named = {
        "source": options.get("dataset"),
        "adapter": options.get("data_adapter"),
        "map": _mapping(options.get("mapping") or ()),
        "score": options.get("score"),
        "test_size": options.get("test_size"),
        "validation_size": options.get("validation_size"),
        "split_seed": options.get("split_seed"),
        "limit": options.get("limit"),
        "skip_bad": options.get("skip_bad"),
        "keep_status": options.get("keep_status") or None,
    }
    fields = {key: value for key, value in named.items() if value is not None}
    if project.dataset and "source" not in fields:
        fields = project.dataset.model_dump() | fields
    if "source" not in fields:
        raise UsageError(
            "no data set is named", "give one with --dataset SOURCE, or in mrpo.yaml (mrpo init)"
        )
    return parse(Dataset, fields, "data set")


def recipe_keys(settings: Sequence[str]) -> dict[str, Any]:
    """The recipe's keys that `--set` gives; values are YAML."""
    from mrpo_tools.config import yaml_value
    from mrpo_tools.errors import UsageError

    keys = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {setting}: KEY=VALUE is needed", "--set learning_rate=1e-5")
        keys[key] = yaml_value(value)
    return keys


def _mapping(values: Sequence[str]) -> dict[str, str] | None:
    """`prompt=question,chosen=best` as a mapping; None without any."""
    from mrpo_tools.errors import UsageError

    if not values:
        return None
    text = ",".join(values)
    pairs = [part.partition("=") for part in text.split(",") if part]
    if any(not (field and equals and column) for field, equals, column in pairs):
        raise UsageError(f"--map {text}: FIELD=COLUMN is needed", "--map prompt=question")
    return {field: column for field, _, column in pairs}


def read_groups(dataset: Dataset, cache: Cache | None = None) -> Source:
    """Read and check the data; its adapter and what was counted go to stderr.

    Args:
        dataset: the words.
        cache: keeps the groups of large files, which are then read once.
    """
    from mrpo_tools.progress import bar_to, say_once

    with bar_to("reading") as report:
        source = _source(dataset, cache, report)
    at = f" at {source.revision}" if source.revision else ""
    adapter = f"(adapter {source.adapter}: {source.reason})"
    say_once(f"{source.name}{at}: {counted(source.counts)} {adapter}")
    list_skipped(source.name, source.skipped)
    warn_of(source.counts)
    return source


def _source(
    dataset: Dataset, cache: Cache | None, report: Callable[[float, float], None]
) -> Source:
    if cache is None:
        from mrpo_tools.sources import load_dataset

        return load_dataset(dataset, report)
    from mrpo_tools.cache.reading import read_dataset

    return read_dataset(cache.path, dataset, report)


def list_skipped(name: str, problems: Sequence[Problem]) -> None:
    """The problems of the rows that were left out, a line each, in a file of their own."""
    from mrpo_tools.errors import disk_error
    from mrpo_tools.files import whole_file
    from mrpo_tools.progress import say_once

    if not problems:
        return
    target = Path(f"{name}.skipped.txt")
    try:
        with whole_file(target) as file:
            file.writelines(f"{problem}\n".encode() for problem in problems)
    except OSError as error:
        raise disk_error(target, error) from None
    rows = len({problem.where for problem in problems})
    say_once(f"warning: {rows:,} bad rows left out; each is listed in {target}")


WARNED = (
    "chosen_scored_below_rejected", "chosen_tied_with_rejected", "one_sided_scores",
    "contradicting_groups", "unjudged_groups", "prompts_in_two_splits",
    "similar_prompts_in_two_splits", "lacking_in_train", "one_sided_verdicts",
)  # fmt: skip


def warn_of(counts: Mapping[str, int]) -> None:
    """A line to stderr for each thing about the data that may not be meant."""
    from mrpo_tools.progress import say_once
    from mrpo_tools.sources import COUNTS

    for name in WARNED:
        if counts[name]:
            say_once(f"warning: {counts[name]:,} {COUNTS[name]}")


def counted(counts: Mapping[str, int]) -> str:
    """`800 rows, 800 groups, 6 tied groups`: the counts that are not zero."""
    return ", ".join(
        f"{count:,} {name.replace('_', ' ')}"
        for name, count in counts.items()
        if count or name == "groups"
    )


def open_cache(path: str | None) -> Cache:
    """The cache of `--cache`, or of the project.

    Raises:
        CacheMissing: it is not there.
    """
    from mrpo_tools.cache import Cache
    from mrpo_tools.config import load_project

    cache = Cache(path or load_project().cache)
    cache.references()
    return cache


def target_of(output: str | None, cache: Path, *, binary: bool) -> Path | BinaryIO:
    """Where a result goes: the file of `-o`, or standard output.

    Raises:
        UsageError: no such file can be made, it is inside the cache, or binary on a terminal.
    """
    from mrpo_tools.errors import UsageError

    if output is None or output == "-":
        if binary and sys.stdout.isatty():
            raise UsageError("Parquet is not for a terminal", "-o FILE.parquet")
        return sys.stdout.buffer
    path = Path(output)
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise UsageError(f"cannot write to {output}: no such file can be made", "-o FILE")
    if path.resolve().is_relative_to(cache.resolve()):
        raise UsageError(f"{output} is inside the cache", "choose a file outside it")
    return path


def print_json(values: object) -> None:
    """JSON on stdout; a number that is not finite is null."""
    from mrpo_tools.files import finite

    json.dump(finite(values), sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
    print()


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns on stdout, no wider than its terminal: text to the left, numbers to the right."""
    from mrpo_tools.progress import aligned, terminal_width

    texts = [[_cell(value) for value in row] for row in rows]
    numeric = [all(map(_is_number, column)) for column in zip(*texts, strict=True)]
    right = numeric or [False] * len(header)
    for line in aligned([header, *texts], right, width=terminal_width()):
        print(line)


def rounded_up(value: float) -> str:
    """A quantity with one decimal, and 0.0 for nothing alone."""
    return f"{math.ceil(10 * value) / 10:,.1f}"


def print_records(records: Sequence[Row]) -> None:
    """Rows of the same columns as a table; nothing without any."""
    if records:
        print_table(tuple(records[0]), [tuple(record.values()) for record in records])


def print_timed(rows: Sequence[Row], seconds: Iterable[float], *, as_json: bool) -> None:
    """Rows of work that was done, the seconds that each took last: rounded up in a table."""
    timed = list(zip(rows, seconds, strict=True))
    if as_json:
        print_json([{**row, "seconds": round(took, 2)} for row, took in timed])
    else:
        print_records([{**row, "seconds": rounded_up(took)} for row, took in timed])


def with_interval(measured: Estimate, form: str = ".3f") -> str:
    """`0.842 [0.820, 0.861]`; a dash where there is no value."""
    if measured.value is None:
        return "–"
    if measured.low is None or measured.high is None:
        return format(measured.value, form)
    return f"{measured.value:{form}} [{measured.low:{form}}, {measured.high:{form}}]"


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _is_number(cell: str) -> bool:
    return cell in ("", "–") or cell[:1].isdigit() or (cell[:1] in "-−" and cell[1:2].isdigit())
