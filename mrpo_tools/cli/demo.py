"""`mrpo demo`."""

from __future__ import annotations

from pathlib import Path

import click

from mrpo_tools.cli.help import Command
from mrpo_tools.cli.options import json_option, print_json, print_table


@click.command(cls=Command)
@click.argument("directory", default="demo", type=click.Path(path_type=Path))
@json_option
def demo(directory: Path, *, as_json: bool) -> None:
    """Run everything on tiny models, in a few minutes on two CPU cores, without a network.

    Makes three models of three families, caches their log-probs, asks SQL, trains dpo, mrpo and
    mpo, evaluates, and prints one table. DIRECTORY is `demo` by default.

    \b
    Example:
        mrpo demo
    """
    import os
    from dataclasses import asdict

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: a second thread mostly waits

    from mrpo_tools.cli import run
    from mrpo_tools.demo.demo import demo as workflow
    from mrpo_tools.runs.compare import NOT_COMPARABLE

    result = workflow(directory, run)
    if as_json:
        print_json(asdict(result))
        return
    print("\nOn the test split:\n")
    print_table(
        ("method", "own reward", "untrained", "vs reference 1", "log-prob", "right before",
         "right after", "margin", "seconds", "peak MB"),
        [
            (row.method, row.accuracies, row.accuracies_step0, row.accuracies_reference_1,
             row.accuracies_logp, row.right_before, row.right_after, row.margin,
             round(row.train_seconds, 1), round(row.peak_memory_mb))
            for row in result.rows
        ],
    )  # fmt: skip
    print("\nThe first four are preference accuracies. `right` is the share of greedy answers that")
    print("the tasks' rule calls right. Accuracy without any training:\n")
    print_table(("by", "accuracy"), list(result.baselines.items()))
    print(f"\n{NOT_COMPARABLE}")
    print(f"Everything took {result.seconds:.0f} s and is in {directory}/.")
