"""Any rows and any bytes become groups that all else can work with, or an error of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_data import ROOT
from test_bad_input import ARRAY, GOOD, PAIRS, packed_parquet

from mrpo_tools.errors import UsageError
from mrpo_tools.sources import ADAPTERS, load_groups

pytestmark = pytest.mark.usefixtures("here")
text = st.text(max_size=8) | st.sampled_from(
    ["Q", " ", "\n\nHuman: a\n\nAssistant: b", "Human:", "\ud800", "\0", "N/A", "user", "assistant"]
)
scalar = st.none() | st.booleans() | st.integers() | st.floats() | text
words = sorted(
    {column for adapter in ADAPTERS.values() for column in adapter.columns}
    | {"role", "content", "from", "value", "score", "model", "id", "split", "system", "history"}
    | {"output", "response", "answer", "rank", "annotations", "overall_score", "input"}
)
keys = st.sampled_from(words)
anything = st.recursive(
    scalar,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys | text, inner, max_size=4),
    max_leaves=8,
)


@st.composite
def rows_like_an_adapter(draw: st.DrawFn) -> dict[str, Any]:
    """The columns of an adapter with anything in them."""
    adapter = draw(st.sampled_from(list(ADAPTERS.values())))
    others = draw(st.dictionaries(keys, anything, max_size=2))
    return {column: draw(anything) for column in adapter.columns} | others


def check_file(path: Path, adapter: str | None = None) -> bool:
    """It becomes groups that anything else can work with, or an error of ours: whether it does."""
    try:
        groups = load_groups(path, adapter=adapter).groups
    except UsageError as error:
        str(error)
        return False
    assert groups
    for group in groups:
        assert len(group.responses) >= 2
        assert group.group_id
        assert group.prompt[-1].role in ("user", "assistant")
        json.dumps(group.as_dict(), allow_nan=False).encode()
    return True


def check_rows(rows: list[Any], adapter: str | None) -> None:
    path = Path("fuzz.jsonl")
    path.write_text("\n".join(map(json.dumps, rows)))
    check_file(path, adapter)


def check_bytes(file: tuple[str, bytes], flips: list[tuple[int, int]], length: int) -> None:
    """A damaged file is read as far as it is whole, or refused."""
    name, content = file
    damaged = bytearray(content)
    for place, byte in flips:
        damaged[place % len(damaged)] = byte
    Path(name).write_bytes(damaged[: length % len(damaged) + 1])
    check_file(Path(name))


some_rows = given(
    st.lists(rows_like_an_adapter() | anything, min_size=1, max_size=3),
    st.none() | st.sampled_from(list(ADAPTERS)),
)
TABLE = b'prompt,response,reward\nQ,"a, b",0.5\nQ,"c ""d""\ne",-1\n'
files = [
    ("f.jsonl", GOOD * 3), ("f.json", ARRAY), ("f.csv", TABLE),
    ("f.tsv", TABLE.replace(b",", b"\t")), ("f.parquet", packed_parquet(PAIRS)),
]  # fmt: skip
some_bytes = given(
    st.sampled_from(files),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 10_000),
)


def settled(examples: int) -> settings:
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples, deadline=None, suppress_health_check=quiet)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_ten_minutes_of_fuzzing(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Bytes that atheris finds by the paths they take: no traceback, no abort, under 2 GB."""
    pytest.importorskip("atheris")
    corpus = tmp_path_factory.mktemp("fuzz") / "corpus"
    limits = ("-max_total_time=600", "-rss_limit_mb=2048", "-timeout=60")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "fuzz_data.py"), str(corpus), *limits],
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "Done " in done.stderr


test_rows_of_anything = settled(300)(some_rows(check_rows))
test_damaged_files = settled(300)(some_bytes(check_bytes))
test_rows_of_anything_for_long = pytest.mark.long(settled(20_000)(some_rows(check_rows)))
test_damaged_files_for_long = pytest.mark.long(settled(20_000)(some_bytes(check_bytes)))
