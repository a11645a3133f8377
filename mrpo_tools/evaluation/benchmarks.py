"""Benchmarks as outcomes: a policy's results beside those of its untrained self, paired.

A task's results are kept under the identity of the model and of everything else that determines
them, so that none is measured twice and none is another model's: a run's in RUN/outcomes/harness/,
those of untrained policies in CACHE/harness/, which runs share. The two answer the same examples,
so the difference is taken example by example: its standard error is usually far smaller than that
of two means taken apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from mrpo_tools.cache import Cache
from mrpo_tools.config import Reference, loaded_here
from mrpo_tools.errors import UsageError
from mrpo_tools.evaluation.harness import Harness, Measured, Subject, Wanted
from mrpo_tools.groups import content_id
from mrpo_tools.progress import say
from mrpo_tools.references.resolved import ResolvedReference, resolve
from mrpo_tools.runs.outcomes import (
    BENCHMARKS,
    OUTCOMES,
    Outcome,
    OutcomesRecord,
    outcomes_file,
    read_outcomes,
)
from mrpo_tools.runs.record import Interval, Record, Setting
from mrpo_tools.runs.run import Run

HARNESS = "harness"
"""Where results of tasks are kept, example by example."""
NORMAL_95 = 1.959964
"""Standard errors to each side of a 95 % interval."""
SAME = 1e-6
"""A mean over examples is the harness's number where they are this near."""


class KeptTask(Record):
    """A file of results: a model's on one task.

    Attributes:
        about: everything that determines them.
        measured: the results.
    """

    about: dict[str, Setting]
    measured: Measured


def measure_benchmarks(run: Run, wanted: Wanted, cache: Cache) -> OutcomesRecord:
    """A run's and its untrained policy's results on tasks, with their paired differences.

    `RUN/outcomes/benchmarks.json` holds them beside those of other tasks. Every task is kept when
    it is done.

    Args:
        run: a finished run.
        wanted: tasks and settings.
        cache: keeps the untrained policy's results.

    Raises:
        MrpoError: the harness fails.
        ResourceError: out of memory or disk.
        UsageError: the harness is not installed or has no such task, or the data of a task are
            others than those that the untrained policy was asked.
    """
    harness = Harness(wanted)
    trained = resolve("policy", run.trained_policy)
    untrained = resolve("policy-step0", run.record.policy)
    before = results_of(harness, untrained, cache.path / HARNESS)
    after = results_of(harness, trained, run.path / OUTCOMES / HARNESS)
    record = OutcomesRecord(
        split=BENCHMARKS,
        outcomes=_outcomes(after, before),
        untrained=_outcomes(before, {}),
    ).over(read_outcomes(run.path, BENCHMARKS))
    record.write(outcomes_file(run.path, BENCHMARKS))
    return record


def model_benchmarks(model: Reference, wanted: Wanted, cache: Cache) -> OutcomesRecord:
    """Any model's results on tasks, kept in the cache.

    Raises:
        As `measure_benchmarks`.
    """
    kept = results_of(Harness(wanted), resolve("model", loaded_here(model)), cache.path / HARNESS)
    return OutcomesRecord(split=BENCHMARKS, outcomes=_outcomes(kept, {}))


def results_of(harness: Harness, resolved: ResolvedReference, home: Path) -> dict[str, KeptTask]:
    """A model's results on each task; what was measured before is read.

    Raises:
        As `measure_benchmarks`.
    """
    subject = Subject(resolved)
    kept: dict[str, KeptTask] = {}
    for task in harness.wanted.names:
        about = harness.about(task, resolved)
        path = home / f"{task}-{content_id(about)[:12]}.json"
        if not path.exists():
            say(f"{resolved.name}: {task}")
            path.parent.mkdir(parents=True, exist_ok=True)
            KeptTask(about=about, measured=harness.measure(task, subject)).write(path)
        kept[task] = KeptTask.read(path)
    subject.release()
    return kept


def _outcomes(kept: Mapping[str, KeptTask], before: Mapping[str, KeptTask]) -> list[Outcome]:
    """A row for each task whose metric is better when it is larger."""
    rows = []
    for task, each in kept.items():
        measured = each.measured
        if measured.higher_is_better.get(measured.metric.partition(",")[0]) is False:
            say(f"note: of {measured.metric} of {task} less is better: no outcome, but kept")
        else:
            rows.append(_outcome(task, each, before.get(task)))
    return rows


def _outcome(task: str, kept: KeptTask, before: KeptTask | None) -> Outcome:
    measured = kept.measured
    about = {key: value for key, value in kept.about.items() if key != "policy"}
    settings: dict[str, Setting] = {
        **{key: value for key, value in about.items() if value is not None},
        "shots": max(measured.shots.values(), default=0),
        "task_version": measured.versions.get(task),
        "metric": measured.metric,
        "stderr": measured.stderr,
    }
    intervals: dict[str, Interval | None] = {"mean": _ends(measured.value, measured.stderr)}
    gain, note = None, None
    if before is not None:
        try:
            pairs = paired(task, measured, before.measured)
        except ValueError as error:
            note = f"no paired difference: {error}"
        else:
            gain, spread = difference(pairs)
            intervals["gain"] = _ends(gain, spread)
            settings |= {
                "gain_stderr": spread,
                "better": sum(own > old for part in pairs for own, old in part),
                "worse": sum(own < old for part in pairs for own, old in part),
            }
    return Outcome(
        scorer=task,
        kind="benchmark",
        mean=measured.value,
        gain=gain,
        note=note,
        prompts=sum(len(columns["doc_id"]) for columns in measured.examples.values()),
        settings=settings,
        identity=content_id({**about, "versions": measured.versions, "shots": measured.shots}),
        intervals=intervals,
    )


Pairs = list[tuple[float, float]]
"""Of each example: what the trained policy got, and what the untrained one."""


def paired(task: str, after: Measured, before: Measured) -> list[Pairs]:
    """The two results on every example, by the tasks that a task is made of.

    Raises:
        UsageError: they are not of the same examples.
        ValueError: the task's number is no mean over its examples.
    """
    metric = after.metric
    parts = []
    for leaf, own in after.examples.items():
        old = before.examples.get(leaf, {})
        if [own["doc_id"], own["doc_hash"]] != [old.get("doc_id"), old.get("doc_hash")]:
            raise UsageError(
                f"the data of task {leaf} have changed since the untrained policy was asked",
                f"delete {task}-*.json of CACHE/{HARNESS} and of RUN/{OUTCOMES}/{HARNESS}, and "
                "measure both anew",
            )
        values = [*own.get(metric, [None]), *old.get(metric, [None])]
        if any(value is None for value in values):
            raise ValueError(f"{metric} is said of no single example")
        parts.append(list(zip(own[metric], old[metric], strict=True)))
    every = [own for part in parts for own, _ in part]
    if after.value is None or abs(math.fsum(every) / len(every) - after.value) > SAME:
        raise ValueError(f"{metric} is no mean over examples")
    return parts


def difference(parts: Sequence[Pairs]) -> tuple[float, float | None]:
    """The mean over all examples of what the trained policy got more, and its standard error.

    sd(d)/√N of the N differences d, where sd is within the parts, pooled, as the harness pools the
    tasks of a group; None where no part has two examples.
    """
    differences = [[own - old for own, old in part] for part in parts]
    count = sum(map(len, differences))
    mean = math.fsum(d for part in differences for d in part) / count
    free = count - len(differences)
    if free < 1:
        return mean, None
    squares = math.fsum(
        (d - math.fsum(part) / len(part)) ** 2 for part in differences for d in part
    )
    return mean, math.sqrt(squares / free / count)


def _ends(value: float | None, stderr: float | None) -> Interval | None:
    if value is None or stderr is None:
        return None
    return value - NORMAL_95 * stderr, value + NORMAL_95 * stderr
