"""`mrpo demo`."""

from __future__ import annotations

from pathlib import Path

import click

from mrpo_tools.cli.help import Command
from mrpo_tools.cli.options import json_option, print_json, print_table, with_interval


@click.command(cls=Command)
@click.argument("directory", default="demo", type=click.Path(path_type=Path))
@click.option("--rounds", type=click.IntRange(0), default=0, metavar="N",
              help="Then rounds of sampling and training, with and without earlier policies as "
              "references; two take some minutes more.")  # fmt: skip
@json_option
def demo(directory: Path, rounds: int, *, as_json: bool) -> None:
    """Run everything on tiny models, in a few minutes on two CPU cores, without a network.

    Makes three models of three families, caches their log-probs and noise of the same spread,
    trains dpo against each model, mrpo against the models and against the noise, and mpo, samples
    answers, and prints one table. DIRECTORY is `demo` by default.

    \b
    Example:
        mrpo demo
        mrpo demo --rounds 2
    """
    import os
    from dataclasses import asdict

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: a second thread mostly waits

    from mrpo_tools.cli import run
    from mrpo_tools.demo.demo import demo as workflow

    result = workflow(directory, run, rounds=rounds)
    if as_json:
        print_json(asdict(result))
        return
    print("\nOn the test split, whose operands no model and no run has seen:\n")
    print_table(
        ("method", "references", "marks of 10", "content", "form", "KL", "clipped", "log-prob",
         "margin", "seconds"),
        [
            (row.method, row.references, with_interval(row.marks, ".2f"), row.right_content,
             row.right_form, row.kl_nats, row.clipped, row.logp_accuracy, row.margin,
             None if row.train_seconds is None else round(row.train_seconds, 1))
            for row in result.rows
        ],
    )  # fmt: skip
    print("\nMarks, content and form are of four answers sampled to each prompt: the rule's mean,")
    print("and the shares that are right and in the form asked for. KL is to the untrained policy,")
    print("in nats. Log-prob is a preference accuracy, under one yardstick for all.")
    print(f"\nEverything took {result.seconds:.0f} s and is in {directory}/.")
