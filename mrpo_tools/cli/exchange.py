"""`mrpo cache export` and `import`: log-probs for other programs, and from them."""

from __future__ import annotations

from pathlib import Path

import click

from mrpo_tools import words
from mrpo_tools.cli.completion import references
from mrpo_tools.cli.help import Command
from mrpo_tools.cli.options import (
    cache_option,
    choice,
    dataset_of,
    dataset_options,
    open_cache,
    read_groups,
    target_of,
    truncated_option,
    written_pairing_option,
)


@click.command(cls=Command)
@click.option("--ref", "reference", required=True, metavar="NAME", shell_complete=references,
              help="Whose log-probs.")  # fmt: skip
@click.option(
    "--format",
    "form",
    type=choice(words.PairsFormat),
    default="jsonl",
    show_default=True,
    help="How the pairs are written.",
)
@click.option("-o", "--output", metavar="FILE", help="Write to a file instead of stdout.")
@click.option("--dataset", metavar="NAME", help="Of this saved data set only.")
@click.option("--split", help="Of this split only.")
@written_pairing_option
@truncated_option
@cache_option
def export(
    reference: str,
    form: words.PairsFormat,
    output: str | None,
    dataset: str | None,
    split: str | None,
    pairing: words.DeterministicPairing,
    truncated: words.Truncated | None,
    cache: str | None,
) -> None:
    """Write pairs with one reference's log-probs: prompt, chosen, rejected, ref_chosen_logps,
    ref_rejected_logps.

    `jsonl` and `parquet` also hold ids, scores and splits; `trl` is Parquet with just these five,
    conversational, as TRL's trainers read them.

    \b
    Example:
        mrpo cache export --ref mistral --format trl -o pairs.parquet
    """
    from mrpo_tools.cache.pairs import as_trl, export_pairs
    from mrpo_tools.progress import say
    from mrpo_tools.sql import write

    opened = open_cache(cache)
    pairs = export_pairs(
        opened,
        opened.find(reference),
        dataset=dataset,
        split=split,
        pairing=pairing,
        truncated=truncated or "drop",
    )
    table = as_trl(pairs.table) if form == "trl" else pairs.table
    target = target_of(output, opened.path, binary=form != "jsonl")
    write(table, "jsonl" if form == "jsonl" else "parquet", target)
    skipped = "".join(f"; {n:,} {name} left out" for name, n in pairs.skipped.items() if n)
    say(f"{table.num_rows:,} pairs with the log-probs of {reference}{skipped}")


@click.command(name="import", cls=Command)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--ref", "reference", required=True, metavar="NAME", help="What to call them.")
@click.option("--origin", required=True, metavar="TEXT", help="Who computed them, in words.")
@click.option("--model", metavar="MODEL", help="What computed them: a hub id, say.")
@dataset_options
@cache_option
def import_(
    file: Path,
    reference: str,
    origin: str,
    model: str | None,
    cache: str | None,
    **options: object,
) -> None:
    """Take log-probs that another program computed, from JSONL or Parquet.

    A row holds `response_id` (or `prompt` and `response`) and `logp` with `num_tokens`, or
    `token_logps`. Every response of the data needs one, finite and not above 0. The origin marks
    them for good: they never mix with numbers computed here.

    \b
    Example:
        mrpo cache import logps.jsonl --ref big --origin "vLLM 0.11, Llama-3.1-70B, bf16"
    """
    from mrpo_tools.cache import Cache
    from mrpo_tools.cache.imported import import_logps
    from mrpo_tools.config import check_name, load_project

    project = load_project()
    source = read_groups(dataset_of(project, options))
    imported = import_logps(
        Cache(cache or project.cache),
        check_name(reference),
        source.groups,
        file,
        origin=origin,
        dataset=source.name,
        model=model,
    )
    print(
        f"{imported.store}: {imported.rows:,} rows imported, {imported.reused:,} were here "
        f"already, {imported.ignored:,} rows of {file} belong to no response of the data"
    )
