"""`mrpo sweep`: train and evaluate many runs, then the papers' table.

What is done is what its files say, so a sweep that was interrupted goes on where it stopped, and
one that is finished is a table again in a second. A run that fails keeps nobody from the others.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from multiprocessing import active_children, get_context
from pathlib import Path

from mrpo_tools.cache import Cache
from mrpo_tools.config import Dataset, Recipe, Reference, drawn_as, pinned
from mrpo_tools.errors import MrpoError, Preempted, UsageError
from mrpo_tools.evaluation.evaluate import evaluate
from mrpo_tools.evaluation.outcomes import is_measured, measure_outcomes
from mrpo_tools.groups import Group, hash_groups, in_split
from mrpo_tools.progress import name_lines, say
from mrpo_tools.references.devices import visible_gpus
from mrpo_tools.runs.compare import Comparison, compare
from mrpo_tools.runs.formats import FORMATS, render
from mrpo_tools.runs.read import read_evaluation, read_results
from mrpo_tools.runs.run import Run, is_finished, is_run, load_run, read_run
from mrpo_tools.sampling import Sampling
from mrpo_tools.scoring.rules import Rule, load_rule
from mrpo_tools.sources import Draws, Source, load_dataset
from mrpo_tools.sweep.grid import Planned
from mrpo_tools.sweep.worker import start_worker, turns
from mrpo_tools.training.policy import resolve_policy
from mrpo_tools.training.train import train

TABLE = "table"
Attempt = tuple[Planned, MrpoError | None]
"""A run that was tried, and the error it ended with."""


@dataclass(frozen=True)
class Work:
    """Everything that the runs of a sweep share.

    Attributes:
        output: the sweep's directory.
        dataset: with an absolute path, or a hub id; `sweep` pins it to the commit that it reads.
        cache: directory.
        references: by name, where the project knows them.
        split: to evaluate on.
        rules: that mark each run's answers, `MODULE:FUNCTION`.
        full_marks: of the rules; None takes their own.
        sampling: of the answers, beside the greedy ones.
    """

    output: Path
    dataset: Dataset
    cache: Path
    references: Mapping[str, Reference]
    split: str
    rules: tuple[str, ...] = ()
    full_marks: float | None = None
    sampling: Sampling | None = None

    def loaded_rules(self) -> list[Rule]:
        """The rules, in this process.

        Raises:
            UsageError: one cannot be loaded.
        """
        return [load_rule(name, self.full_marks) for name in self.rules]


@dataclass(frozen=True)
class Steps:
    """What is done for each run, in this process and in others."""

    load: Callable[[Dataset], Source] = load_dataset
    train: Callable[..., object] = train
    evaluate: Callable[..., object] = evaluate
    measure: Callable[..., object] = measure_outcomes


STEPS = Steps()


def sweep(
    planned: Sequence[Planned],
    work: Work,
    jobs: int = 1,
    steps: Steps = STEPS,
    gpus: Sequence[str] | None = None,
) -> Comparison:
    """Make every run that is not there, evaluate it, and write the tables.

    Args:
        planned: the runs.
        work: what they share.
        jobs: runs at a time, each in a process of its own; 1 trains in this process.
        steps: how data is read and a run is trained and evaluated.
        gpus: the processes take one each, in turn; None takes this machine's.

    Returns:
        The comparison, which `table.md`, `.tex`, `.csv` and `.json` in the sweep's directory hold.

    Raises:
        UsageError: before anything is trained: a directory that holds a run of another recipe,
            data, references or policy, data without the split to evaluate on, or no such rule.
        MrpoError: some run failed; all others are done and in the table; its exit code is kept.
        Preempted: stopped by a signal.
    """
    work.loaded_rules()
    planned = sorted(planned, key=lambda run: run.recipe.split_seed or 0)  # each draw once
    data = Draws(steps.load)
    source = data.source(work.dataset, planned[0].recipe if planned else Recipe())
    dataset = pinned(work.dataset, source.revision)
    work = replace(work, references=_references(planned, work), dataset=dataset)
    todo = _todo(planned, work, data)
    say(f"{len(planned):,} runs, {len(planned) - len(todo):,} of them done already")
    gpus = visible_gpus() if gpus is None else gpus
    if jobs < min(len(gpus), len(todo)):
        say(f"{jobs} of {len(gpus)} GPUs used; --jobs {len(gpus)} uses all of them")
    if jobs > 1 and len(todo) > 1:
        attempts = _in_processes(
            todo=todo, work=work, jobs=min(jobs, len(todo)), steps=steps, gpus=gpus
        )
    else:
        attempts = _in_this_process(todo, work, data, steps)
    failures: list[tuple[Planned, MrpoError]] = []
    for done, (run, error) in enumerate(attempts, len(planned) - len(todo) + 1):
        say(f"[{done}/{len(planned)}] {run.name}: {'done' if error is None else error}")
        if error is not None:
            failures.append((run, error))
    failed = [run for run, _ in failures]
    finished = [work.output / run.name for run in planned if run not in failed]
    if finished or not failures:
        comparison = _tabulate(finished, work)
    if failures:
        raise _failed(failures, len(planned))
    return comparison


def _todo(planned: Sequence[Planned], work: Work, data: Draws) -> list[Planned]:
    """The runs that are not done; everything that can be refused is refused here."""
    todo = []
    for run in planned:
        groups = data.source(work.dataset, run.recipe).groups
        in_split(groups, work.split)
        if not _is_done(run, work, groups):
            todo.append(run)
    return todo


def _tabulate(paths: Sequence[Path], work: Work) -> Comparison:
    """Compare runs, and write the table in every format."""
    comparison = compare(read_results(paths, work.split), work.split)
    for name, (ending, _) in FORMATS.items():
        path = work.output / f"{TABLE}.{ending}"
        path.write_text(render(comparison, name), encoding="utf-8")
    return comparison


def _references(planned: Sequence[Planned], work: Work) -> dict[str, Reference]:
    """Where every reference's model is: as the project says, or else the cache.

    Imported numbers come without a model.

    Raises:
        CacheMissing: a reference without numbers.
    """
    cache = Cache(work.cache)
    names = dict.fromkeys(name for run in planned for name in run.recipe.refs)
    stores = [cache.find(name) for name in names]
    recorded = {
        store.name: store.recorded_reference()
        for store in stores
        if store.name not in work.references and "origin" not in store.identity.fields
    }
    return {**recorded, **work.references}


def _is_done(planned: Planned, work: Work, groups: Sequence[Group]) -> bool:
    """Whether a run is trained and evaluated.

    Raises:
        UsageError: its directory holds a run of another recipe, data, references or policy.
    """
    path = work.output / planned.name
    if not is_run(path):
        return False
    run = read_run(path)
    if run.recipe != planned.recipe:
        raise UsageError(
            f"{path} holds a run of another recipe", "choose another --output, or remove that run"
        )
    _check_same(run, work, groups)
    evaluation = read_evaluation(path, work.split)
    if not run.finished or evaluation is None:
        return False
    measured = hash_groups(in_split(groups, work.split), in_order=False)
    if evaluation.groups_hash not in (None, measured):
        return False
    return is_measured(run, groups, work.loaded_rules(), work.sampling, work.split)


def _check_same(run: Run, work: Work, groups: Sequence[Group]) -> None:
    """Refuse a run of other data, references or weights, as far as that is known unloaded.

    Raises:
        UsageError: names what differs.
    """
    stores = [Cache(work.cache).find(name) for name in run.recipe.refs]
    now: dict[str, object] = {
        "dataset": drawn_as(work.dataset, run.recipe).model_dump(mode="json"),
        "references": [str(store) for store in stores],
        "split_hash": hash_groups(in_split(groups, run.recipe.split)),
    }
    with contextlib.suppress(MrpoError):  # a model that is no longer here cannot be another one
        policy = resolve_policy(run.recipe, stores, work.references)
        now["policy_identity"] = policy.identity.hash
    before = run.record.as_json()
    differing = [
        f"{key.replace('_', ' ')} was {before[key]}, is now {value}"
        for key, value in now.items()
        if before.get(key) not in (None, value)
    ]
    if differing:
        raise UsageError(
            f"{run.path} holds a run of other data or models: {'; '.join(differing)}",
            "choose another --output, or remove that run",
        )


def _make(planned: Planned, work: Work, groups: Sequence[Group], steps: Steps) -> None:
    """Train and evaluate one run, going on where an earlier attempt stopped."""
    path = work.output / planned.name
    cache = Cache(work.cache)
    if not is_finished(path):
        steps.train(
            recipe=planned.recipe,
            groups=groups,
            cache=cache,
            references=work.references,
            output=path,
            dataset=drawn_as(work.dataset, planned.recipe),
            resume=is_run(path),
        )
    run = load_run(path)
    steps.evaluate(run, groups, cache, work.split)
    if rules := work.loaded_rules():
        steps.measure(run, groups, rules, cache, work.sampling, work.split)


def _in_this_process(
    todo: Sequence[Planned], work: Work, data: Draws, steps: Steps
) -> Iterator[Attempt]:
    """Each run as it ends, one after another."""
    for run in todo:
        try:
            _make(run, work, data.source(work.dataset, run.recipe).groups, steps)
        except Preempted:
            raise
        except MrpoError as error:
            yield run, error
        else:
            yield run, None


def _in_processes(
    *, todo: Sequence[Planned], work: Work, jobs: int, steps: Steps, gpus: Sequence[str]
) -> Iterator[Attempt]:
    """Each run as it ends, several at a time."""
    context = get_context("spawn")
    begin = partial(start_worker, max(1, (os.cpu_count() or 1) // jobs))
    with (
        _forwarded_sigterm() as signals,
        ProcessPoolExecutor(jobs, context, begin, (turns(gpus, jobs, context),)) as pool,
    ):
        futures = {pool.submit(make_alone, run, work, steps): run for run in todo}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            if signals:
                raise Preempted(
                    "the sweep was stopped by a signal; finished runs and checkpoints are kept",
                    "run the same command again; it goes on where it stopped",
                ) from None
            raise MrpoError(
                "a process of the sweep was killed, perhaps for want of memory",
                "run the same command again; it goes on where it stopped. Fewer --jobs need less",
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextlib.contextmanager
def _forwarded_sigterm() -> Iterator[list[int]]:
    """Pass SIGTERM on to this process's children; the signals received so far."""
    signals: list[int] = []

    def forward(number: int, _: object) -> None:
        signals.append(number)
        for child in active_children():
            child.terminate()

    before = signal.signal(signal.SIGTERM, forward)
    try:
        yield signals
    finally:
        signal.signal(signal.SIGTERM, before)


def make_alone(planned: Planned, work: Work, steps: Steps) -> MrpoError | None:
    """Make a run in a process of its own; an error travels as a plain one with its exit code.

    A signal ends the process, once training has saved: the pool must not give it another run.
    """
    name_lines(planned.name)
    try:
        groups = _draws(steps.load).source(work.dataset, planned.recipe).groups
        _make(planned, work, groups, steps)
    except Preempted as error:
        print(f"{planned.name}: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)
    except MrpoError as error:
        plain = MrpoError(str(error))
        plain.exit_code = error.exit_code
        return plain
    return None


@lru_cache(maxsize=1)
def _draws(load: Callable[[Dataset], Source]) -> Draws:
    """One for all runs of a process."""
    return Draws(load)


def _failed(failures: Sequence[tuple[Planned, MrpoError]], runs: int) -> MrpoError:
    lines = [f"{len(failures)} of {runs} runs failed; the others are done"]
    lines += [f"  {run.name}: {error}" for run, error in failures]
    error = MrpoError("\n".join(lines), "the same command again tries them alone")
    error.exit_code = failures[0][1].exit_code
    return error
