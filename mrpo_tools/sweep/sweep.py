"""`mrpo sweep`: train and evaluate many runs, then the papers' table.

What is done is what its files say, so a sweep that was interrupted goes on where it stopped, and
one that is finished is a table again in a second. A run that fails keeps nobody from the others.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import active_children, get_context
from pathlib import Path

from mrpo_tools.cache import Cache
from mrpo_tools.config import Dataset, Recipe, Reference, parse, pinned, read_yaml
from mrpo_tools.errors import MrpoError, Preempted, UsageError
from mrpo_tools.evaluation.evaluate import evaluate, held_out
from mrpo_tools.groups import hash_groups, in_split
from mrpo_tools.progress import name_lines, say
from mrpo_tools.runs.compare import Comparison, compare
from mrpo_tools.runs.formats import FORMATS, render
from mrpo_tools.runs.read import read_results
from mrpo_tools.runs.run import EVALUATION, METRICS, RECIPE, RUN, load_run, read_json
from mrpo_tools.sources import Source, load_dataset
from mrpo_tools.sweep.grid import Planned
from mrpo_tools.training.policy import resolve_policy
from mrpo_tools.training.train import train

TABLE = "table"


@dataclass(frozen=True)
class Work:
    """Everything that the runs of a sweep share.

    Attributes:
        output: the sweep's directory.
        dataset: with an absolute path, or a hub id; `sweep` pins it to the commit that it reads.
        cache: directory.
        references: by name, where the project knows them.
        split: to evaluate on.
    """

    output: Path
    dataset: Dataset
    cache: Path
    references: Mapping[str, Reference]
    split: str


def sweep(planned: Sequence[Planned], work: Work, jobs: int = 1) -> Comparison:
    """Make every run that is not there, evaluate it, and write the tables.

    Args:
        planned: the runs.
        work: what they share.
        jobs: runs at a time, each in a process of its own; 1 trains in this process.

    Returns:
        The comparison, which `table.md`, `.tex`, `.csv` and `.json` in the sweep's directory hold.

    Raises:
        UsageError: before anything is trained: a directory that holds a run of another recipe,
            data, references or policy, or data without the split to evaluate on.
        MrpoError: some run failed; all others are done and in the table; its exit code is kept.
        Preempted: stopped by a signal.
    """
    source = _read(work.dataset.model_dump_json())
    held_out(source.groups, work.split)
    dataset = pinned(work.dataset, source.revision)
    work = replace(work, references=_known(planned, work), dataset=dataset)
    todo = [one for one in planned if not _is_done(one, work)]
    say(f"{len(planned):,} runs, {len(planned) - len(todo):,} of them done already")
    failures: list[tuple[Planned, MrpoError]] = []
    for done, (one, error) in enumerate(_all(todo, work, jobs), len(planned) - len(todo) + 1):
        say(f"[{done}/{len(planned)}] {one.name}: {'done' if error is None else error}")
        if error is not None:
            failures.append((one, error))
    failed = [one for one, _ in failures]
    finished = [work.output / one.name for one in planned if one not in failed]
    if finished or not failures:
        comparison = _tabulate(finished, work)
    if failures:
        raise _failed(failures, len(planned))
    return comparison


def _tabulate(paths: Sequence[Path], work: Work) -> Comparison:
    """Compare runs, and write the table in every format."""
    comparison = compare(read_results(paths, work.split), work.split)
    for name, (ending, _) in FORMATS.items():
        path = work.output / f"{TABLE}.{ending}"
        path.write_text(render(comparison, name), encoding="utf-8")
    return comparison


def _known(planned: Sequence[Planned], work: Work) -> dict[str, Reference]:
    """Where every reference's model is: as the project says, or else the cache.

    Imported numbers come without a model.

    Raises:
        CacheMissing: a reference that nobody has scored.
    """
    cache = Cache(work.cache)
    stores = [cache.find(name) for name in dict.fromkeys(n for p in planned for n in p.recipe.refs)]
    recorded = {
        store.name: store.recorded_reference()
        for store in stores
        if store.name not in work.references and "origin" not in store.identity.fields
    }
    return {**recorded, **work.references}


def _is_done(one: Planned, work: Work) -> bool:
    """Whether a run is trained and evaluated.

    Raises:
        UsageError: its directory holds a run of another recipe, data, references or policy.
    """
    path = work.output / one.name
    if not (path / RUN).exists():
        return False
    before = parse(Recipe, read_yaml(path / RECIPE), str(path / RECIPE))
    if before != one.recipe:
        raise UsageError(
            f"{path} holds a run of another recipe", "choose another --output, or remove that run"
        )
    _check_same(path, one.recipe, work)
    evaluation = path / EVALUATION / f"{work.split}.json"
    if not (path / METRICS).exists() or not evaluation.exists():
        return False
    chosen = held_out(_read(work.dataset.model_dump_json()).groups, work.split)
    now = hash_groups(sorted(chosen, key=lambda group: group.group_id))
    return read_json(evaluation).get("groups_hash") in (None, now)


def _check_same(path: Path, recipe: Recipe, work: Work) -> None:
    """Refuse a run of other data, references or weights, as far as that is known unloaded.

    Raises:
        UsageError: names what differs.
    """
    record = read_json(path / RUN)
    stores = [Cache(work.cache).find(name) for name in recipe.refs]
    groups = in_split(_read(work.dataset.model_dump_json()).groups, recipe.split)
    now = {
        "dataset": work.dataset.model_dump(mode="json"),
        "references": [str(store) for store in stores],
        "split_hash": hash_groups(groups),
    }
    with contextlib.suppress(MrpoError):  # a model that is no longer here cannot be another one
        now["policy_identity"] = resolve_policy(recipe, stores, work.references).identity.hash
    differing = [
        f"{key.replace('_', ' ')} was {record[key]}, is now {value}"
        for key, value in now.items()
        if record.get(key) not in (None, value)
    ]
    if differing:
        raise UsageError(
            f"{path} holds a run of other data or models: {'; '.join(differing)}",
            "choose another --output, or remove that run",
        )


def make(one: Planned, work: Work) -> None:
    """Train and evaluate one run, going on where an earlier attempt stopped."""
    path = work.output / one.name
    groups = _read(work.dataset.model_dump_json()).groups
    cache = Cache(work.cache)
    if not (path / METRICS).exists():
        resume = (path / RUN).exists()
        train(one.recipe, groups, cache, work.references, path, work.dataset, resume)
    evaluate(load_run(path), groups, cache, work.split)


def _all(
    todo: Sequence[Planned], work: Work, jobs: int
) -> Iterator[tuple[Planned, MrpoError | None]]:
    """Each run with the error it ended with, as they end."""
    if jobs > 1 and len(todo) > 1:
        yield from _in_processes(todo, work, jobs)
        return
    for one in todo:
        try:
            make(one, work)
        except Preempted:
            raise
        except MrpoError as error:
            yield one, error
        else:
            yield one, None


def _in_processes(
    todo: Sequence[Planned], work: Work, jobs: int
) -> Iterator[tuple[Planned, MrpoError | None]]:
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with (
        _forwarded_sigterm() as told,
        ProcessPoolExecutor(
            min(jobs, len(todo)), get_context("spawn"), _start_worker, (threads,)
        ) as pool,
    ):
        futures = {pool.submit(_attempt, one, work): one for one in todo}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            if told:
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
    """Pass SIGTERM on to this process's children; what was received."""
    told: list[int] = []

    def forward(number: int, _: object) -> None:
        told.append(number)
        for child in active_children():
            child.terminate()

    before = signal.signal(signal.SIGTERM, forward)
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)


def _start_worker(threads: int) -> None:
    import torch

    from mrpo_tools.references.loading import quiet_libraries

    torch.set_num_threads(threads)
    quiet_libraries()


def _attempt(one: Planned, work: Work) -> MrpoError | None:
    """`make` in a process of its own; errors travel as plain `MrpoError`s with their exit code.

    A signal ends the process, once training has saved: the pool must not give it another run.
    """
    name_lines(one.name)
    try:
        make(one, work)
    except Preempted as error:
        print(f"{one.name}: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)
    except MrpoError as error:
        plain = MrpoError(str(error))
        plain.exit_code = error.exit_code
        return plain
    return None


@lru_cache(maxsize=1)
def _read(dataset: str) -> Source:
    """The data, read once in each process."""
    return load_dataset(Dataset.model_validate_json(dataset))


def _failed(failures: Sequence[tuple[Planned, MrpoError]], runs: int) -> MrpoError:
    lines = [f"{len(failures)} of {runs} runs failed; the others are done"]
    lines += [f"  {one.name}: {error}" for one, error in failures]
    error = MrpoError("\n".join(lines), "the same command again tries them alone")
    error.exit_code = failures[0][1].exit_code
    return error
