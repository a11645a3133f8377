"""`mrpo evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mrpo_tools.cli.options import (
    cache_option,
    dataset_of,
    dataset_options,
    json_option,
    print_json,
    print_table,
    read_groups,
)

NOT_COMPARABLE = (
    "The first accuracy is not comparable between methods: a reference that ranks well lowers it, "
    "one that ranks badly lifts it, with no training at all."
)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@dataset_options
@click.option("--split", default="test", show_default=True, help="`all` for everything.")
@cache_option
@json_option
def evaluate(run: Path, split: str, **options: Any) -> None:
    """Measure a trained policy on held-out groups.

    Prints the method's own accuracy, the same for the untrained policy, against reference 1 and by
    log-prob alone; each reference's own accuracy; and that of always preferring the longer answer.

    \b
    Example:
        mrpo evaluate runs/mrpo --split test
    """
    from mrpo_tools.cache import Cache
    from mrpo_tools.config import Project, load_project
    from mrpo_tools.run import load_run

    found = load_run(run)
    recorded = Project(dataset=found.record["dataset"])
    dataset = dataset_of(recorded if recorded.dataset else load_project(), options)
    groups = read_groups(dataset).groups
    from mrpo_tools.evaluate import evaluate as verb

    cache = Cache(options["cache"] or found.record["cache"])
    result = verb(found, groups, cache, split)
    if options["as_json"]:
        print_json(result.metrics)
    else:
        _print(result.metrics)


def _print(metrics: dict[str, Any]) -> None:
    rows = [
        ("own reward", metrics["accuracies"]),
        ("own reward, untrained", metrics["accuracies_step0"]),
        ("against reference 1", metrics.get("accuracies_reference_1")),
        ("log-prob", metrics["accuracies_logp"]),
        ("log-prob, untrained", metrics["accuracies_logp_step0"]),
    ]
    for name, value in zip(
        metrics["references"], metrics["reference_accuracies"]["summed"], strict=True
    ):
        rows.append((f"reference {name.partition('@')[0]} alone", value))
    rows.append(("always the longer (a tie counts 0)", metrics["accuracies_longer"]))
    print_table(("accuracy by", metrics["loss"]), rows)
    print(
        f"margin {metrics['margins']:.4f} (untrained {metrics['margins_step0']:.4f}) on "
        f"{metrics['groups']:,} groups of split {metrics['split']}"
        if metrics["margins"] is not None
        else f"no group of split {metrics['split']} has a pair"
    )
    print(NOT_COMPARABLE)
