"""Damaged and hostile files: refused in words, in little memory, without an abort."""

from __future__ import annotations

import gzip
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_data import PRINT_PEAK, run_script
from test_bad_input import GOOD, PAIRS, packed_parquet, problems_of

from mrpo_tools.errors import DataError
from mrpo_tools.sources import load_groups

pytestmark = pytest.mark.usefixtures("here")


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
    reason = "Parquet: damaged, cut short or no Parquet (could not verify"
    assert problem.startswith(f"p.parquet: {reason}")


def repeated(text: str, times: int) -> pa.DictionaryArray:
    """A column of one text, which takes no more memory here than in the file."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * times, pa.int32()), [text])


def repeated_groups(text: str, times: int) -> pa.ListArray:
    """Two responses of one text, so many times."""
    responses = pa.StructArray.from_arrays([repeated(text, 2 * times)], ["content"])
    return pa.ListArray.from_arrays(range(0, 2 * times + 1, 2), responses)


BOMBS: dict[str, Callable[[], dict[str, Any]]] = {
    "one text a thousand times": lambda: {
        "prompt": repeated("p" * 1_000_000, 1100),
        "chosen": repeated("chosen", 1100),
        "rejected": repeated("rejected", 1100),
    },
    "one text a thousand times, nested": lambda: {
        "prompt": repeated("Q", 1100),
        "responses": repeated_groups("p" * 500_000, 1100),
    },
    "one long text": lambda: {
        "prompt": ["p" * 300_000_000], "chosen": ["a"], "rejected": ["b"],
    },
    "one long list": lambda: {
        "prompt": ["p"],
        "responses": pa.ListArray.from_arrays([0, 60_000_000], pa.repeat("a", 60_000_000)),
        "rewards": [[1.0]],
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_a_parquet_bomb_stays_small(kind: str) -> None:
    """A file of kilobytes that expands to a gigabyte is refused with memory under 1.5 GB."""
    small = {"compression": "zstd", "store_schema": False, "write_statistics": False}
    pq.write_table(pa.table(BOMBS[kind]()), "bomb.parquet", **small)
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
