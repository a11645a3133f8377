"""Benchmarks on the command line: the options that ask for them, and how they are printed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mrpo_tools.cli.options import decorate, print_table, with_interval

if TYPE_CHECKING:
    from mrpo_tools.evaluation.harness import Wanted
    from mrpo_tools.runs.outcomes import Outcome, OutcomesRecord

harness_options = decorate(
    click.option("--harness", metavar="TASK,…",
                 help="Tasks of the language-model harness (extra `eval`), of the run and of its "
                 "untrained policy; `glu`: MRPO's six."),
    click.option("--harness-tasks", metavar="DIR", type=click.Path(path_type=Path),
                 help="Tasks of your own, YAML files of the harness."),
    click.option("--harness-shots", type=click.IntRange(0),
                 help="Worked examples before a question.  [default: the papers', or the task's]"),
    click.option("--harness-limit", type=click.IntRange(1),
                 help="The first N examples of a task only."),
    click.option("--harness-plain", is_flag=True,
                 help="Ask without the model's chat template."),
)  # fmt: skip


def wanted_of(options: Mapping[str, Any]) -> Wanted | None:
    """What `harness_options` ask for; None for nothing.

    Raises:
        UsageError: settings without a task.
    """
    from mrpo_tools.errors import UsageError
    from mrpo_tools.evaluation.harness import Wanted

    names = tuple(name for name in (options["harness"] or "").split(",") if name)
    if names:
        return Wanted(
            tasks=names,
            folder=options["harness_tasks"],
            shots=options["harness_shots"],
            limit=options["harness_limit"],
            chat=not options["harness_plain"],
        )
    said = [name for name in ("harness_tasks", "harness_shots", "harness_limit", "harness_plain")
            if options[name]]  # fmt: skip
    if said:
        raise UsageError(f"--{said[0].replace('_', '-')} without a task", "--harness TASK,…")
    return None


def print_benchmarks(record: OutcomesRecord, wanted: Wanted) -> None:
    """A line for each task that was asked: before training, after, and the paired difference."""
    shown = [outcome for outcome in record.outcomes if outcome.scorer in wanted.names]
    rows = []
    for outcome in shown:
        before = record.before(outcome)
        rows.append(
            (
                f"{outcome.scorer}, {outcome.settings['metric']}, {outcome.way}",
                "–" if before is None else _with_error(before),
                _with_error(outcome),
                with_interval(outcome.estimate("gain")) if outcome.gain is not None else "–",
                _moved(outcome),
            )
        )
    if record.untrained:
        print_table(("benchmark", "untrained", "trained", "gain, paired", "better/worse"), rows)
        print("± one standard error; gains with 95 % intervals, example by example")
    else:
        print_table(("benchmark", "policy"), [(row[0], row[2]) for row in rows])
        print("± one standard error")
    for outcome in shown:
        if outcome.note is not None:
            print(f"{outcome.scorer}: {outcome.note}")
    print()


def _with_error(outcome: Outcome) -> str:
    error = outcome.settings.get("stderr")
    value = "–" if outcome.mean is None else f"{outcome.mean:.3f}"
    return f"{value} ± {error:.3f}" if isinstance(error, float) else value


def _moved(outcome: Outcome) -> str:
    """On how many examples the trained policy did better, and on how many worse."""
    if outcome.gain is None:
        return "–"
    return f"{outcome.settings['better']:,}/{outcome.settings['worse']:,} of {outcome.prompts:,}"
