"""Damaged and hostile files: refused in words, in little memory, without an abort."""

from __future__ import annotations

import gzip
import textwrap
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_data import PRINT_PEAK, run_script
from test_bad_input import GOOD, PAIRS, packed_parquet, problems_of

from mrpo_tools.errors import DataError
from mrpo_tools.sources import load_groups


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_no_damaged_footer_ends_the_process() -> None:
    """A bit of every second byte of a footer, in a process of its own.

    pyarrow's accessors of column metadata abort on some of these files (uncaught C++ exceptions).
    """
    rows = [{"prompt": "Q", "responses": [{"content": "a"}, {"content": "b"}]}]
    Path("whole.parquet").write_bytes(packed_parquet(pa.Table.from_pylist(rows)))
    script = """
        from pathlib import Path
        from mrpo_tools.errors import UsageError
        from mrpo_tools.sources import load_groups
        whole = Path("whole.parquet").read_bytes()
        footer = int.from_bytes(whole[-8:-4], "little")
        refused = 0
        for place in range(len(whole) - 8 - footer, len(whole) - 8, 2):
            damaged = bytearray(whole)
            damaged[place] ^= 1
            Path("x.parquet").write_bytes(damaged)
            try:
                load_groups("x.parquet")
            except UsageError:
                refused += 1
        print(refused)
    """
    assert int(run_script(script)[0]) > 50


def test_bytes_flipped_in_parquet_are_noticed() -> None:
    """Page checksums are verified where the writer left any."""
    whole = bytearray(packed_parquet(PAIRS, compression="none", write_page_checksum=True))
    whole[whole.index(b"\x01\x00\x00\x00a") + 4] ^= 1
    (problem,) = problems_of("p.parquet", bytes(whole))
    assert problem.startswith(
        "p.parquet: Parquet: damaged, cut short or no Parquet (could not verify"
    )


def repeated(text: str, times: int) -> pa.DictionaryArray:
    """A column of one text, which takes no more memory here than in the file."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * times, pa.int32()), [text])


def repeated_pairs(text: str, times: int) -> pa.Table:
    columns = {name: repeated(name, times) for name in ("chosen", "rejected")}
    return pa.table({"prompt": repeated(text, times), **columns})


def repeated_groups(text: str, times: int) -> pa.Table:
    responses = pa.ListArray.from_arrays(
        range(0, 2 * times + 1, 2),
        pa.StructArray.from_arrays([repeated(text, 2 * times)], ["content"]),
    )
    return pa.table({"prompt": repeated("Q", times), "responses": responses})


BOMBS: dict[str, Callable[[], pa.Table]] = {
    "one text a thousand times": lambda: repeated_pairs("p" * 1_000_000, 1100),
    "one text a thousand times, nested": lambda: repeated_groups("p" * 500_000, 1100),
    "one long text": lambda: pa.table(
        {"prompt": ["p" * 300_000_000], "chosen": ["a"], "rejected": ["b"]}
    ),
    "one long list": lambda: pa.table(
        {
            "prompt": pa.array(["p"]),
            "responses": pa.ListArray.from_arrays([0, 60_000_000], pa.repeat("a", 60_000_000)),
            "rewards": pa.array([[1.0]]),
        }
    ),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_parquet_bomb_stays_small(kind: str) -> None:
    """A file of kilobytes that expands to a gigabyte is refused with memory under 1.5 GB."""
    pq.write_table(
        BOMBS[kind](),
        "bomb.parquet",
        compression="zstd",
        store_schema=False,
        write_statistics=False,
    )
    assert Path("bomb.parquet").stat().st_size < 200_000
    script = """
        from mrpo_tools.errors import DataError
        from mrpo_tools.sources import load_groups
        try:
            load_groups("bomb.parquet")
        except DataError as error:
            print(error.problems[-1])
    """
    problem, megabytes = run_script(textwrap.dedent(script) + PRINT_PEAK)
    assert problem.startswith("bomb.parquet")
    assert int(megabytes) < 1500, megabytes


def test_a_gzip_bomb_is_refused() -> None:
    """One endless line, and endless lines."""
    for line, reason in (
        (b" " * 2**20, "bomb.jsonl.gz:2: line: longer than 64 MiB; "),
        (b" " * 2**20 + b"\n", "bomb.jsonl.gz: file: 3"),
    ):
        with gzip.open("bomb.jsonl.gz", "wb", compresslevel=6) as file:
            file.write(GOOD)
            for _ in range(300):
                file.write(line)
        with pytest.raises(DataError) as error:
            load_groups("bomb.jsonl.gz")
        (problem,) = map(str, error.value.problems)
        assert problem.startswith(reason)
    assert " bytes expand to more than " in problem
