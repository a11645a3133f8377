"""Many machines: which part is whose, and that who is done takes what others have not written."""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from simulated import Simulation, simulated_logp
from small_data import write_lines
from stores import logps_of
from test_durability import serve

from mrpo_tools.cache import Cache, ReferenceStore
from mrpo_tools.cli import run
from mrpo_tools.cli.shards import shard_of
from mrpo_tools.errors import UsageError
from mrpo_tools.groups import Group
from mrpo_tools.precomputing.precompute import precompute
from mrpo_tools.references.identity import Identity
from mrpo_tools.scorer.self_check import Checked
from mrpo_tools.scorer.trees import Row
from mrpo_tools.sources import load_groups

Words = dict[str, str]


def words(**values: object) -> Words:
    """An environment of nothing but these."""
    return {name: str(value) for name, value in values.items()}


def array(task: int, count: int, first: int = 0, step: int = 1) -> Words:
    """What Slurm tells a task of an array."""
    return words(SLURM_ARRAY_TASK_ID=task, SLURM_ARRAY_TASK_COUNT=count,
                 SLURM_ARRAY_TASK_MIN=first, SLURM_ARRAY_TASK_STEP=step)  # fmt: skip


def pod(index: int, count: int) -> Words:
    return words(JOB_COMPLETION_INDEX=index, JOB_COMPLETIONS=count)


def pool(rank: int, count: int) -> Words:
    return words(SKYPILOT_JOB_RANK=rank, SKYPILOT_NUM_JOBS=count)


def node(rank: int, count: int) -> Words:
    return words(SKYPILOT_NODE_RANK=rank, SKYPILOT_NUM_NODES=count)


def process(rank: int, count: int, local: int | None = None) -> Words:
    """What torchrun tells a process, on a machine that has so many of them."""
    alone = {} if local is None else words(LOCAL_WORLD_SIZE=local)
    return words(RANK=rank, WORLD_SIZE=count) | alone


SCHEDULERS: dict[str, list[Words]] = {
    "array from 0": [array(task, 4) for task in range(4)],
    "array from 1": [array(task, 8, first=1) for task in range(1, 9)],
    "array by 2": [array(task, 3, first=0, step=2) for task in (0, 2, 4)],
    "array of 10-18:4": [array(task, 3, first=10, step=4) for task in (10, 14, 18)],
    "array of one": [array(7, 1, first=7)],
    "pods": [pod(index, 5) for index in range(5)],
    "jobs of a pool": [pool(rank, 3) for rank in range(3)],
    "nodes": [node(rank, 2) for rank in range(2)],
    "a pool of jobs of two nodes": [pool(job, 3) | node(rank, 2)
                                    for job in range(3) for rank in range(2)],
    "processes": [process(rank, 4, local=4) for rank in range(4)],
    "processes of two machines": [process(rank, 4, local=2) for rank in range(4)],
    "two processes in each task of an array": [array(task, 3, first=1) | process(rank, 2, local=2)
                                               for task in (1, 2, 3) for rank in range(2)],
    "two processes in each of two pods": [pod(index, 2) | process(rank, 2, local=2)
                                          for index in range(2) for rank in range(2)],
    "processes that span two nodes": [node(rank // 2, 2) | process(rank, 4, local=2)
                                      for rank in range(4)],
    "pods that are one world": [pod(rank, 3) | process(rank, 3) for rank in range(3)],
}  # fmt: skip
"""What a scheduler tells each of the processes that it starts, in their order."""


@pytest.mark.parametrize("environments", SCHEDULERS.values(), ids=SCHEDULERS)
def test_every_process_gets_a_part_of_its_own(environments):
    """The n-th process that a scheduler starts of N gets part n of N: no part twice, none left."""
    count = len(environments)
    parts = [shard_of("auto", environment) for environment in environments]
    assert parts == [(index, count) for index in range(count)]


@pytest.mark.parametrize("environments", SCHEDULERS.values(), ids=SCHEDULERS)
def test_a_part_that_is_named_beats_the_scheduler(environments):
    assert {shard_of("2/3", environment) for environment in environments} == {(1, 3)}


def without(environment: Words, name: str) -> Words:
    return {key: value for key, value in environment.items() if key != name}


BY_HAND = "or name the part: --shard 1/4"
REFUSED: dict[str, tuple[Words, str, str]] = {
    "nothing": ({}, "no scheduler says which part is this process's (looked for a Slurm array: SLU",
                "--shard 1/4, the first of four parts"),
    "RANK alone": (words(RANK=1), "no scheduler says which part", "--shard 1/4"),
    "no count of pods": (words(JOB_COMPLETION_INDEX=1),
                         "JOB_COMPLETION_INDEX is set, and JOB_COMPLETIONS is not",
                         "Kubernetes tells a pod its index and not how many there are: write "
                         "JOB_COMPLETIONS, the job's `completions`, into its `env`"),
    "no index of pods": (words(JOB_COMPLETIONS=4),
                         "JOB_COMPLETIONS is set, and JOB_COMPLETION_INDEX is not", BY_HAND),
    "no count of an array": (without(array(1, 4), "SLURM_ARRAY_TASK_COUNT"),
                             "SLURM_ARRAY_TASK_ID is set, and SLURM_ARRAY_TASK_COUNT is not",
                             "set SLURM_ARRAY_TASK_COUNT in the job's file"),
    "no beginning of an array": (without(array(1, 4), "SLURM_ARRAY_TASK_MIN"),
                                 "SLURM_ARRAY_TASK_MIN is not set", "set SLURM_ARRAY_TASK_MIN"),
    "WORLD_SIZE alone": (words(WORLD_SIZE=2), "no scheduler says which part", "--shard 1/4"),
    "a pod too many": (pod(4, 4), "JOB_COMPLETION_INDEX=4, JOB_COMPLETIONS=4: that is no piece of",
                       "correct JOB_COMPLETION_INDEX or JOB_COMPLETIONS"),
    "of none": (pool(0, 0), "SKYPILOT_JOB_RANK=0, SKYPILOT_NUM_JOBS=0: that is no piece of",
                "correct SKYPILOT_JOB_RANK or SKYPILOT_NUM_JOBS"),
    "a rank too many": (process(2, 2), "RANK=2, WORLD_SIZE=2: that is no piece of so many",
                        "correct RANK or WORLD_SIZE"),
    "an array with gaps": (array(7, 3, first=1), "SLURM_ARRAY_TASK_ID=7, SLURM_ARRAY_TASK_COUNT=3",
                           "submit an array without gaps, sbatch --array=0-3"),
    "a task between steps": (array(13, 3, first=10, step=4), "SLURM_ARRAY_TASK_ID=13 is no task of "
                             "an array that begins at SLURM_ARRAY_TASK_MIN=10 with SLURM_ARRAY_TASK"
                             "_STEP=4", "submit an array without gaps"),
    "a task before the first": (array(1, 3, first=2), "SLURM_ARRAY_TASK_ID=1 is no task", BY_HAND),
    "a step of nothing": (array(1, 3, step=0), "SLURM_ARRAY_TASK_ID=1 is no task", BY_HAND),
    "below 0": (process(-1, 2), "RANK is '-1', no whole number from 0", "set RANK"),
    "a word": (node(0, 2) | words(SKYPILOT_NUM_NODES="two"),
               "SKYPILOT_NUM_NODES is 'two', no whole number from 0", "set SKYPILOT_NUM_NODES"),
    "empty": (pod(0, 2) | words(JOB_COMPLETIONS=""), "JOB_COMPLETIONS is '', no whole number",
              "set JOB_COMPLETIONS"),
    "other digits": (pod(0, 2) | words(JOB_COMPLETION_INDEX="²"),
                     "JOB_COMPLETION_INDEX is '²', no whole number", "set JOB_COMPLETION_INDEX"),
    "one of two is wrong": (array(0, 2) | process(5, 2, local=2), "RANK=5, WORLD_SIZE=2: that is",
                            "correct RANK or WORLD_SIZE"),
}  # fmt: skip
"""What is set, and the words of the error and of the way out."""


@pytest.mark.parametrize(("environment", "what", "hint"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_meant_is_refused(environment, what, hint):
    with pytest.raises(UsageError) as error:
        shard_of("auto", environment)
    said = str(error.value)
    assert said.startswith(f"--shard auto: {what}")
    assert error.value.hint is not None
    assert hint in error.value.hint
    assert "\n" not in said + error.value.hint


@pytest.fixture
def unscheduled(here: Path, some_groups, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with data, and no scheduler's variable."""
    for environments in SCHEDULERS.values():
        for name in set().union(*environments):
            monkeypatch.delenv(name, raising=False)
    write_lines(here / "data.jsonl", (group.as_dict() for group in some_groups[:6]))
    return here


def test_the_command_ends_before_it_reads_anything(unscheduled, monkeypatch, capsys):
    """Exit code 2, two lines, and no cache; the data and the model are not even there."""
    line = ["precompute", "--ref", "x=absent", "--dataset", "absent.jsonl", "--shard", "auto"]
    for setting, said in ((None, "no scheduler says which part"), ("4", "JOB_COMPLETIONS is not")):
        if setting is not None:
            monkeypatch.setenv("JOB_COMPLETION_INDEX", setting)
        assert run(line) == 2
        printed = capsys.readouterr().err.strip().splitlines()
        assert len(printed) == 2
        assert said in printed[0]
        assert "--shard 1/4" in printed[1]
        assert not (unscheduled / "cache").exists()


def test_the_command_takes_over_where_the_scheduler_divides(
    unscheduled, tiny_models, monkeypatch, mrpo
):
    """With auto the rest too, with I/N or --no-take-over its part alone."""
    groups = load_groups("data.jsonl").groups
    total = len({key for group in groups for key in group.response_ids})
    line = f"precompute --ref llama={tiny_models['llama']} --dtype float32 --dataset data.jsonl"
    for name, value in pod(1, 3).items():
        monkeypatch.setenv(name, value)
    scored, taken = {}, {}
    for options in ("auto", "auto --no-take-over", "2/3", "2/3 --take-over"):
        cache = f"--cache {options.replace(' ', '')}"
        [row] = json.loads(mrpo(f"{line} --shard {options} {cache} --json").out)
        scored[options], taken[options] = row["scored"], row.get("taken over")
    part = scored["2/3"]
    assert 0 < part < total
    assert scored == {"auto": total, "auto --no-take-over": part, "2/3": part,
                      "2/3 --take-over": total}  # fmt: skip
    assert taken == {"auto": total - part, "auto --no-take-over": None, "2/3": None,
                     "2/3 --take-over": total - part}  # fmt: skip
    assert "computing what others have not written" in mrpo(f"{line} --shard auto --cache x").err


# Who is done takes what others have not written.


class Death(BaseException):
    """Nothing of the package expects it."""


class Started(Simulation):
    """Begins when all others are there."""

    barrier: threading.Barrier | None = None

    def self_check(self, rows: object) -> Checked:
        if self.barrier is not None:
            self.barrier.wait(60)
        return super().self_check(rows)


class Mortal(Started):
    """Dies in a batch.

    Args:
        batch: which, from 1.
        others: see `Simulation`.
    """

    def __init__(self, batch: float = math.inf, **others: Any) -> None:
        super().__init__(**others)
        self.left = batch

    def logps(self, rows: list[Row]) -> list[float]:
        self.left -= 1
        if self.left <= 0:
            raise Death
        return super().logps(rows)


class Ahead(Simulation):
    """Draws batches before it gives the numbers of the first, as a sweep of a streamed model.

    Args:
        batches: of a sweep.
        given: is told how many numbers were given and taken.
    """

    def __init__(
        self, batches: int, given: Callable[[int], None] = lambda _: None, **others: Any
    ) -> None:
        super().__init__(**others)
        self.size, self.given = batches, given

    def computed(
        self, batches: Iterable[Sequence[Row]], _tell: object = None
    ) -> Iterator[tuple[Sequence[Row], list[float]]]:
        drawn = iter(batches)
        while sweep := [batch for _, batch in zip(range(self.size), drawn, strict=False)]:
            for batch in sweep:
                logps = self.logps(list(batch))
                yield batch, logps
                self.given(len(logps))


class Deaf(ReferenceStore):
    """A store that never tells what others have added: a planted fault."""

    def keys_since(self, seen: Any) -> tuple[set[str], set[str]]:
        return {path.name for path in self.part_paths()}, set()


class DeafCache(Cache):
    """A cache of such stores."""

    def store(self, name: str, identity: Identity) -> Deaf:
        honest = super().store(name, identity)
        return Deaf(honest.directory, identity)


class Work:
    """Some data, to be computed by several processes, which are threads here."""

    def __init__(self, reference: Any, groups: list[Group], cache: Cache) -> None:
        words = reference.model_copy(update={"batch_tokens": 64})
        self.references, self.groups, self.cache = {"llama": words}, groups, cache
        self.every = {key for group in groups for key in group.response_ids}
        self.taken_over = 0

    def do(self, shard: tuple[int, int], model: Simulation, *, take_over: bool = True) -> None:
        """What one process does."""
        [summary] = precompute(self.references, self.groups, self.cache, "some", shard=shard,
                               load=model.load, part_rows=64, take_over=take_over)  # fmt: skip
        self.taken_over += summary.taken_over

    def at_once(self, *models: Started | None) -> None:
        """All shards at once, from the first batch on; one of no model never begins."""
        barrier = threading.Barrier(len(models) - models.count(None))
        for model in filter(None, models):
            model.barrier = barrier

        def live(index: int, model: Simulation) -> None:
            try:
                self.do((index, len(models)), model)
            except Death:
                return

        threads = [threading.Thread(target=live, args=(index, model))
                   for index, model in enumerate(models) if model is not None]  # fmt: skip
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def rows(self) -> Counter[str]:
        """How many parts have a row of each response."""
        tables = [part.table for part in self.cache.find("llama").parts()]
        return Counter(key for table in tables for key in table["response_id"].to_pylist())

    @property
    def missing(self) -> int:
        return len(self.every - self.rows().keys())

    @property
    def twice(self) -> int:
        """Rows more than responses."""
        return sum(count - 1 for count in self.rows().values())


@pytest.fixture
def work(references, demo_groups, tmp_path) -> Work:
    return Work(references["llama"], demo_groups[:120], Cache(tmp_path / "cache"))


def whole_of(work: Work, folder: Path) -> dict[str, float]:
    """The numbers of one process that does everything, by a rule of the ids alone."""
    alone = Work(work.references["llama"], work.groups, Cache(folder))
    alone.do((0, 1), Simulation(), take_over=False)
    return logps_of(alone.cache, "llama")


def alike(count: int, seconds: float = 0.002) -> list[Started | None]:
    """Living ones."""
    return [Started(seconds=seconds) for _ in range(count)]


CASES: dict[str, Callable[[], list[Started | None]]] = {
    "all live": lambda: alike(4),
    "one never begins": lambda: [*alike(2), None, *alike(1)],
    "one dies": lambda: [*alike(1), Mortal(15, seconds=0.002), *alike(2)],
    "two die": lambda: [Mortal(5, seconds=0.002), Mortal(15, seconds=0.002), *alike(2)],
    "one is slow": lambda: [*alike(1, 0.02), *alike(3)],
    "two of eight are left": lambda: [None, *alike(1), None, None, None, *alike(1), None, None],
    "one of four is left": lambda: [None, None, None, *alike(1)],
}
"""What the processes are."""


@pytest.mark.parametrize("models", CASES.values(), ids=CASES)
def test_nothing_is_missing_and_little_is_computed_twice(models, work, tmp_path):
    """Every response has the number of a lone process, once in the end; no more than a third of the
    rows are computed twice: of so few, as a batch of each is a part of the whole."""
    work.at_once(*models())
    assert work.missing == 0
    assert work.twice <= len(work.every) / 3
    assert logps_of(work.cache, "llama") == whole_of(work, tmp_path / "whole")
    table = work.cache.find("llama").table()
    assert len(table) == len(set(table["response_id"].to_pylist())) == len(work.every)


def test_who_does_not_take_over_leaves_the_dead_one_s_rows(work):
    """The check of what is missing can fail: these are the rows of part 3."""
    for index in (0, 1, 3):
        work.do((index, 4), Simulation(), take_over=False)
    part = {key for group in work.groups if int(group.prompt_id, 16) % 4 == 2
            for key in group.response_ids}  # fmt: skip
    assert work.missing == len(part) > 0
    work.do((0, 4), Simulation())
    assert (work.missing, work.twice, work.taken_over) == (0, 0, len(part))


def test_who_never_lists_again_is_caught(work):
    """A planted fault: two of eight are left, and each takes the parts of six over without hearing
    of the other, so 6/8 of the rows would be twice if both were as fast."""
    work.cache = DeafCache(work.cache.path)
    work.at_once(*CASES["two of eight are left"]())
    assert work.missing == 0
    assert work.twice > len(work.every) / 2


def test_a_late_one_finds_nothing_to_do(work):
    """It loads no model either."""
    work.do((0, 3), Simulation())
    late = Simulation()
    work.do((2, 3), late)
    assert (late.loads, work.missing, work.twice) == (0, 0, 0)


@pytest.mark.parametrize("batches", [1, 7, 10_000])
def test_an_engine_may_draw_ahead(work, tmp_path, batches):
    """A lone one that takes everything over computes each response once, however many batches it
    has drawn before it gives a number; so do two of which one dies within its first sweep."""
    log = tmp_path / "log"
    work.do((1, 3), Ahead(batches, log=log))
    assert (work.missing, work.twice) == (0, 0)
    assert len(log.read_text().splitlines()) == len(work.every)
    assert work.taken_over > len(work.every) / 2


def test_what_an_engine_gives_is_seen_in_time(work):
    """However far ahead it draws: of the rows of its part, those that are given and not written are
    a fifth of those to come, and the last batch; and there are few parts.

    By the rule alone there is a part whenever a fifth of the rest has come: the rest shrinks to
    5/6 each time, so 160 rows make log(160) / log(6/5) = 28 parts at most.
    """
    given, late = [0], []
    own = {key for group in work.groups if int(group.prompt_id, 16) % 3 == 1
           for key in group.response_ids}  # fmt: skip

    def look(count: int) -> None:
        given[0] += count
        written = own & work.rows().keys() if list(work.cache.path.rglob("part-*")) else ()
        if given[0] <= len(own) and given[0] - len(written) >= 0.2 * (len(own) - given[0]) + 1:
            late.append((given[0], len(written)))

    work.do((1, 3), Ahead(10_000, look))
    assert given == [len(work.every)]
    assert late == []
    parts = len(work.cache.find("llama").part_paths())
    assert parts <= math.log(len(own)) / math.log(6 / 5) + len(work.every) / 32 + 2


def test_the_numbers_are_the_rule_s(work):
    """`simulated_logp` of ids that are read once more: nothing above compares a thing to itself."""
    from mrpo_tools.references.resolved import renderer_of, resolve

    work.at_once(Started(), None, Started())
    renderer = renderer_of(resolve("llama", work.references["llama"]))
    numbers = logps_of(work.cache, "llama")
    for group in work.groups[:20]:
        for key, response in zip(group.response_ids, renderer.encode(group).responses, strict=True):
            ids = list(response.ids)
            assert numbers[key] == pytest.approx(simulated_logp(ids), rel=1e-6)


@pytest.fixture(scope="module")
def data(tmp_path_factory, demo_groups) -> Path:
    lines = (group.as_dict() for group in demo_groups[:40])
    return write_lines(tmp_path_factory.mktemp("data") / "data.jsonl", lines)


@pytest.mark.parametrize(
    ("kind", "kills"),
    [("outlived-real", 3), pytest.param("outlived", 20, marks=pytest.mark.long),
     pytest.param("outlived-real", 20, marks=pytest.mark.long)],
)  # fmt: skip
def test_who_outlives_a_kill_finishes_everything(tiny_models, data, tmp_path, kind, kills):
    """Two processes at work, one killed (SIGKILL) at a random moment after a first batch:
    the cache is that of an undisturbed one, to 1e-6 nats a token where the model is real, as
    batches differ. In one round more nobody takes over, and rows are missing."""
    counts = serve(kind, kills, tiny_models["llama"], data, tmp_path)
    for count in ("lost", "foreign", "damaged"):
        assert counts[count] == 0, count
    assert counts["difference"] <= (0.0 if kind == "outlived" else 1e-6)
    assert counts["midway"] > kills / 2
    assert counts["repeated"] <= 0.15 * kills * counts["responses"]
    assert counts["lost without"] > 0
