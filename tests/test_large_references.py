"""docs/large_references.md: its tables are computed as it says, and by laws derived once more."""

from __future__ import annotations

import importlib
import json
from typing import Any

import pytest
from test_docs import ROOT, measured, script

PAGE = (ROOT / "docs" / "large_references.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def bench() -> Any:
    """bench/large_references.py, and bench/plan.py beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "bench"))
        yield importlib.import_module("large_references"), importlib.import_module("plan")


def test_the_page_is_the_generated_one():
    assert script("docs/generate.py").large_references_page() == PAGE, (
        "python docs/generate.py writes it anew"
    )
    assert "{{" not in PAGE


def test_operations_are_those_of_the_other_plan(bench):
    """bench/plan.py counts a dense model by its own shape."""
    module, plan = bench
    data = plan.Data()
    shape = plan.Shape(hidden=8192, inner=28672, layers=80, keys=1024, vocabulary=128256)
    model = module.Model("Llama 3.1 70B")
    assert model.met == shape.decoder
    assert model.operations(data) == pytest.approx(data.prompts * data.operations(shape))


def test_a_token_meets_few_experts(bench):
    """22 billion parameters in the model's name, the two ends of 0.62 counted."""
    module, _ = bench
    assert module.Model("Qwen3 235B-A22B").met / 1e9 + 2 * 0.622 == pytest.approx(22.1, abs=0.1)


def test_rows_of_a_server_by_hand(bench):
    """One layer of one head, hidden 2, inner 3, vocabulary 5: 4·4 + 3·6 = 34 parameters.
    Two responses of 3 after a prompt of 2: rows of 5, twice."""
    module, plan = bench

    class Tiny(module.Model):
        @property
        def config(self) -> Any:
            return module.LlamaConfig(
                vocab_size=5, hidden_size=2, intermediate_size=3, num_hidden_layers=1,
                num_attention_heads=1, num_key_value_heads=1,
            )  # fmt: skip

    data = plan.Data(prompts=7, responses=2, prompt=2, response=3)
    tiny = Tiny("tiny")
    assert tiny.met == 34
    trees = 2 * 34 * 8 + 2 * 2 * 5 * 6 + 4 * 2 * (2 + 2 * (6 + 4.5))
    rows = 2 * 34 * 10 + 2 * 2 * 5 * 10 + 4 * 2 * 2 * 12.5
    assert tiny.operations(data) == 7 * trees
    assert tiny.operations(data, rows=True) == 7 * rows


def test_the_worked_example_by_hand():
    """86.0 M tokens at 2,835 a second are 8.42 hours; two cards pay 16.8, at $2.5 $42. 136.9 GB of
    layers at 5 GB/s are 27.4 s, and as many tokens: 77,600."""
    tables = measured("large_references.json")
    for words in ("86.0 M", "119.9 M", "2,835 tokens/s", "= 8.4 h", "= 27 s"):
        assert words in tables["facts"], words
    assert "| across 2 | 2 | 86.0 | 8.4 h | 16.8 | $42 |" in tables["ways"]
    tokens = 61_135 * (185.1 + 4 * 305.3)
    assert tokens / 2835 / 3600 == pytest.approx(8.42, abs=0.01)
    [even] = [
        int(line.split("|")[2].split()[0].replace(",", ""))
        for line in tables["facts"].splitlines()
        if "break-even" in line
    ]
    assert even == pytest.approx(136.9 / 5 * 2835, rel=2e-3)


def test_places_are_those_of_the_placement_of_a_run(bench):
    """One row of the table, computed now; `test_placement.py` has what it is made of."""
    module, _ = bench
    line = next(
        line for line in measured("large_references.json")["places"].splitlines() if "8B" in line
    )
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    machines = list(module.MACHINES)
    assert [module.cell("Llama 3.1 8B", name) for name in machines] == cells[3:-1]


@pytest.mark.long
def test_the_committed_tables_are_computed_now(bench):
    module, plan = bench
    assert json.loads(json.dumps(module.tables(plan.Data(), module.Rates()))) == measured(
        "large_references.json"
    )
