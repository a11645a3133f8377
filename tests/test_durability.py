"""Kills, full disks, several processes, rotten bytes: nothing is lost, nothing false is read."""

from __future__ import annotations

import errno
import gc
import itertools
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from simulated import Simulation

from mrpo_tools.cache import Cache, files, upkeep
from mrpo_tools.cli import run
from mrpo_tools.errors import CacheDamaged, CacheMissing, ResourceError
from mrpo_tools.methods.tensors import look_up
from mrpo_tools.precomputing.precompute import precompute
from mrpo_tools.sql import open_sql

HERE = Path(__file__).parent
ROOT = HERE.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}"}


@pytest.fixture(scope="module")
def data(tmp_path_factory, demo_groups) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    path.write_text("".join(json.dumps(group.as_dict()) + "\n" for group in demo_groups[:40]))
    return path


def serve(kind: str, count: int, model: Path, data: Path, folder: Path) -> dict[str, float]:
    """What `kill_server.py` counted."""
    command = [sys.executable, str(HERE / "kill_server.py"), kind, str(count), str(model),
               str(data), str(folder)]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert result.returncode == 0, result.stderr
    print(kind, result.stdout)
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    ("kind", "kills", "tolerance"),
    [
        ("simulated", 20, 0.0),
        ("real", 20, 1e-6),
        pytest.param("simulated", 200, 0.0, marks=pytest.mark.long),
    ],
)
def test_a_killed_precompute_resumes(tiny_models, data, tmp_path, kind, kills, tolerance):
    """kill -9 at random moments; after resuming the cache is that of an undisturbed run."""
    counts = serve(kind, kills, tiny_models["llama"], data, tmp_path)
    assert counts["midway"] > 0.2 * kills
    for count in ("lost", "duplicated", "damaged", "temporaries left"):
        assert counts[count] == 0, count
    assert counts["difference"] <= tolerance
    assert counts["scored again"] <= 2 * 16  # a part's rows, and its last batches


@pytest.mark.parametrize("kind", ["together", "sharded"])
def test_four_writers_make_one_cache(tiny_models, data, tmp_path, kind):
    """Each row is there, and is the row of a lone writer, with readers, `compact` and `repair`
    at work all the while. Without shards the four score the same rows."""
    counts = serve(kind, 4, tiny_models["llama"], data, tmp_path)
    assert counts["reads"] > 0
    for count in ("lost", "foreign", "damaged", "difference"):
        assert counts[count] == 0, count
    assert kind == "together" or counts["repeated"] == 0


@pytest.mark.long
def test_torchrun_splits_the_rows(tiny_models, data, tmp_path):
    """Two processes of torchrun: each row once, and all of them."""
    words = ["precompute", "--ref", f"llama={tiny_models['llama']}", "--dtype", "float32",
             "--dataset", str(data), "--cache", str(tmp_path / "both")]  # fmt: skip
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29533"]
    for launcher in (torchrun, []):
        command = [sys.executable, *launcher, "-m", "mrpo_tools", *words]
        subprocess.run(command, env=ENVIRONMENT, check=True)
        words[-1] = str(tmp_path / "alone")
    both, alone = (Cache(tmp_path / name).find("llama") for name in ("both", "alone"))
    assert both.keys() == alone.keys()
    assert sum(part.table.num_rows for part in both.parts()) == len(alone.keys())
    assert len(both.parts()) == 2


# Full disks.


@pytest.fixture
def command(tiny_models, some_groups, tmp_path, monkeypatch) -> list[str]:
    """A precompute of a few rows, in a directory of its own."""
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps(group.as_dict()) for group in some_groups[:3]]
    Path("data.jsonl").write_text("\n".join(lines))
    reference = f"llama={tiny_models['llama']}"
    return ["precompute", "--ref", reference, "--dataset", "data.jsonl", "--dtype", "float32"]


class FaultyOs:
    """Calls of the operating system that are counted, one of which fails.

    Args:
        call: which one, from 1.
        code: its error.
    """

    COUNTED = ("write", "fsync", "replace", "close", "open")

    def __init__(self, call: int, code: int) -> None:
        self.left, self.code, self.failed = call, code, ""

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name in self.COUNTED:
            patch.setattr(os, name, self.counted(name, getattr(os, name)))

    def counted(self, name: str, honest: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **words: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                self.failed = name
                if name == "close":
                    honest(*arguments)
                if name == "write":  # a full disk takes what still fits
                    honest(arguments[0], bytes(arguments[1])[:3])
                raise OSError(self.code, os.strerror(self.code))
            return honest(*arguments, **words)

        return call


@pytest.fixture
def few_objects() -> Iterator[None]:
    """What lives so far is never collected: so a collection takes no time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
@pytest.mark.usefixtures("few_objects")
def test_whichever_call_fails(references, some_groups, tmp_path, monkeypatch, code):
    """One line, exit 4, no temporary, nothing damaged; then it goes on where it was."""
    llama = {"llama": references["llama"].model_copy(update={"batch_tokens": 32})}

    def compute(path: Path) -> None:
        load = Simulation().load
        precompute(llama, some_groups[:3], Cache(path), "data", load=load, part_rows=4)

    compute(tmp_path / "whole")
    whole = Cache(tmp_path / "whole").find("llama").table().sort_by("response_id")
    path, failed, calls = tmp_path / "cache", set(), itertools.count(1)
    while True:
        shutil.rmtree(path, ignore_errors=True)
        faulty, error = FaultyOs(next(calls), code), None
        with monkeypatch.context() as patch:
            faulty.install(patch)
            try:
                compute(path)
            except ResourceError as raised:
                error = raised
        if not faulty.failed:
            break
        if error is None:  # clearing the links away that models are read through: nothing is lost
            assert faulty.failed in ("open", "close")
            assert Cache(path).find("llama").table().sort_by("response_id").equals(whole)
            continue
        failed.add(faulty.failed)
        assert error.exit_code == 4
        assert os.strerror(code) in error.what
        assert "\n" not in error.what
        assert error.hint
        check_nothing_half_written(path)
        compute(path)
        assert Cache(path).find("llama").table().sort_by("response_id").equals(whole)
    assert error is None
    assert next(calls) > 40
    assert failed == set(FaultyOs.COUNTED)


def check_nothing_half_written(path: Path) -> None:
    assert not list(path.rglob(".tmp-*"))
    assert not path.exists() or upkeep.damaged(Cache(path)) == []


def test_a_limit_on_file_sizes(command, capsys):
    """What the kernel itself refuses (RLIMIT_FSIZE) is a full disk too."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))
    try:
        exit_code = run(command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert exit_code == 4
    said = capsys.readouterr().err
    problem, way_out = said.splitlines()[-2:]
    assert problem.startswith("error: ")
    assert os.strerror(errno.EFBIG) in problem
    assert way_out.startswith("next:  ")
    assert "Traceback" not in said
    check_nothing_half_written(Path("cache"))
    assert run(command) == 0


def test_dev_full_is_a_full_disk(command):
    """A table that cannot be written: exit 4 also where the shell opens the file."""
    assert run(command) == 0
    status = [sys.executable, "-m", "mrpo_tools", "cache", "status"]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(status, stdout=full, stderr=subprocess.PIPE, text=True,
                                env=ENVIRONMENT, check=False)  # fmt: skip
    assert result.returncode == 4
    problem, _ = result.stderr.splitlines()
    assert "No space left on device" in problem


# Rotten bytes.


@pytest.fixture(scope="module")
def sound(tmp_path_factory, references, some_groups) -> Path:
    """A small cache of two references, with several parts; copy it before damaging it."""
    path = tmp_path_factory.mktemp("sound") / "cache"
    small = {"batch_tokens": 128}
    two = {name: references[name].model_copy(update=small) for name in ("llama", "qwen")}
    load = Simulation().load
    precompute(two, some_groups[:12], Cache(path), "some", load=load, part_rows=12)
    return path


@pytest.fixture
def rotten(sound, tmp_path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "cache"))


def check_refused(path: Path, victim: Path, groups: list[Any]) -> None:
    """By training, SQL and `verify`, the file named; training does not read saved data."""
    cache = Cache(path)
    with pytest.raises(CacheDamaged, match=victim.name):
        open_sql(path)
    assert [file.path for file in upkeep.damaged(cache)] == [victim]
    if victim.parent != cache.groups_path:
        with pytest.raises(CacheDamaged, match=victim.name) as error:
            look_up([cache.find("llama"), cache.find("qwen")], groups)
        assert error.value.hint == f"mrpo cache repair --cache {path}"


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.long)])
def test_a_flipped_bit_is_refused(rotten, some_groups, count):
    """One bit of one file at a time; every file has its turn."""
    generator = random.Random(count)
    files_of_cache = sorted(path for path in rotten.rglob("*") if path.is_file())
    assert len(files_of_cache) < count
    for _, victim in zip(range(count), itertools.cycle(files_of_cache), strict=False):
        honest = victim.read_bytes()
        content = bytearray(honest)
        content[generator.randrange(len(honest))] ^= 1 << generator.randrange(8)
        victim.write_bytes(content)
        check_refused(rotten, victim, some_groups[:12])
        victim.write_bytes(honest)
    assert upkeep.damaged(Cache(rotten)) == []


HARM: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "empty": lambda path: path.write_bytes(b""),
    "foreign": lambda path: path.write_bytes(b"PAR1 another program's file"),
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"),
}


@pytest.mark.parametrize("kind", ["part", "identity", "groups"])
@pytest.mark.parametrize("harm", HARM)
def test_repair_then_precompute_restores(rotten, references, some_groups, harm, kind):
    """Each kind of damage to each kind of file; what can be kept is kept."""
    cache = Cache(rotten)
    store = cache.find("llama")
    before = store.table().sort_by("response_id")
    victims = {
        "part": store.part_paths()[0],
        "identity": store.identity_path,
        "groups": next(cache.groups_path.iterdir()),
    }
    HARM[harm](victims[kind])
    check_refused(rotten, victims[kind], some_groups[:12])
    assert run(["cache", "verify", "--cache", str(rotten)]) == 3
    assert run(["cache", "repair", "--cache", str(rotten)]) == 0
    assert (computed_again(references, some_groups[:12], cache) > 0) == (kind == "part")
    assert cache.find("llama").table().sort_by("response_id").equals(before)
    assert len(cache.group_tables()) == 1
    assert upkeep.damaged(cache) == []


def computed_again(references, groups: list[Any], cache: Cache) -> int:
    """Rows of reference llama that a precompute finds missing."""
    llama = {"llama": references["llama"]}
    return precompute(llama, groups, cache, "some", load=Simulation().load)[0].computed["ok"]


def test_what_is_missing_is_counted_or_named(rotten, references, some_groups):
    """A part that is gone leaves rows to score; an identity that is gone is named."""
    cache, groups = Cache(rotten), some_groups[:12]
    cache.find("llama").part_paths()[0].unlink()
    with pytest.raises(CacheMissing, match="has log-probs for"):
        look_up([cache.find("llama")], groups)
    assert computed_again(references, groups, cache) > 0
    look_up([cache.find("llama")], groups)
    identity = cache.find("llama").identity_path
    identity.unlink()
    check_refused(rotten, identity, groups)
    upkeep.repair(cache)
    assert computed_again(references, groups, cache) == 0


def test_an_identity_that_no_part_knows_goes_with_its_parts(rotten):
    """Parts of format 1 do not carry their identity's fields: nothing says whose they are."""
    cache = Cache(rotten)
    store = cache.find("llama")
    for path in store.part_paths():
        table, metadata = files.read_verified(path)
        path.unlink()
        del metadata["mrpo.identity_fields"]
        files.write_content_addressed(store.directory, "part-", table, metadata)
    store.identity_path.write_bytes(b"{}")
    assert "removed, with the" in upkeep.repair(cache)[0][1]
    assert [store.name for store in cache.references()] == ["qwen"]


# Readers beside the others.


def test_compact_and_repair_break_no_reader(rotten, some_groups):
    """Training's and SQL's readers run while parts are merged, come and go, over and over."""
    cache, groups = Cache(rotten), some_groups[:12]
    expected = look_up([cache.find("llama")], groups).logps
    rows = cache.find("llama").table()
    failures: list[BaseException] = []
    over = threading.Event()

    def read() -> None:
        try:
            while not over.is_set():
                logps = look_up([cache.find("llama")], groups).logps
                assert logps.nan_to_num().equal(expected.nan_to_num())
                with open_sql(rotten) as database:
                    count = database.query("SELECT count(*) AS n FROM logps").to_pylist()[0]["n"]
                assert count == 2 * rows.num_rows
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    until = time.monotonic() + 3
    store = cache.find("llama")
    merges = 0
    while time.monotonic() < until and not failures:
        for start in range(0, rows.num_rows, 12):  # the same rows in small parts again
            store.write(rows.slice(start, 12), time.time(), [])
        upkeep.compact(cache)
        upkeep.repair(cache)
        merges += 1
    over.set()
    for reader in readers:
        reader.join()
    assert failures == []
    assert merges > 1
