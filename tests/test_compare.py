"""`mrpo compare`: numbers of the files, golden files of every format, the same text twice.

`MRPO_WRITE_GOLDEN=1` writes the golden files anew; read their difference before committing it.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from made_up import made_up_run
from reference_changes import edit_json

from mrpo_tools.cli import run
from mrpo_tools.errors import UsageError
from mrpo_tools.report.references import ranking
from mrpo_tools.runs.compare import compare
from mrpo_tools.runs.formats import FORMATS, render
from mrpo_tools.runs.methods import by_method
from mrpo_tools.runs.read import read_results

GOLDEN = Path(__file__).parent / "golden"
THREE = ["llama", "mistral", "qwen"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Two baselines, mrpo at two radii, multi_dpo; three seeds each."""
    root = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        made_up_run(root / f"dpo-llama-{seed}", "dpo", ["llama"], seed)
        made_up_run(root / f"dpo-qwen-{seed}", "dpo", ["qwen"], seed)
        made_up_run(root / f"mrpo-{seed}", "mrpo", THREE, seed)
        made_up_run(root / f"mrpo-wide-{seed}", "mrpo", THREE, seed, epsilon_max=1e6)
        made_up_run(root / f"multi-{seed}", "multi_dpo", THREE, seed)
    return root


def with_accuracies(runs: Path, to: Path, accuracies: dict[str, list[float]]) -> Path:
    """A copy of some runs whose log-prob accuracy is given, by the start of their name."""
    for name, values in accuracies.items():
        for seed, value in enumerate(values):
            path = shutil.copytree(runs / f"{name}-{seed}", to / f"{name}-{seed}")
            edit_json(path / "evaluation/test.json", accuracies_logp=value)
    return to


@pytest.mark.parametrize("name", FORMATS)
def test_golden_files(runs, name):
    text = render(compare(read_results([runs])), name)
    path = GOLDEN / f"compare.{FORMATS[name][0]}"
    if os.environ.get("MRPO_WRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text


def test_runs_that_differ_in_seed_alone_are_one_method(runs):
    methods = by_method(read_results([runs]))
    assert [(method.label, method.baseline, len(method.runs)) for method in methods] == [
        ("dpo llama", True, 3), ("dpo qwen", True, 3), ("mrpo ε=0.1", False, 3),
        ("mrpo ε=1e+06", False, 3), ("multi_dpo", False, 3),
    ]  # fmt: skip


def test_numbers_are_those_of_the_files(runs):
    """Every cell from the evaluation files by numpy-free means; the CSV says the same."""
    rows = list(csv.DictReader(io.StringIO(render(compare(read_results([runs])), "csv"))))
    stems = {
        "dpo llama": "dpo-llama", "dpo qwen": "dpo-qwen", "multi_dpo": "multi",
        "mrpo ε=0.1": "mrpo", "mrpo ε=1e+06": "mrpo-wide",
    }  # fmt: skip
    for row in (row for row in rows if row["metric"] not in ("accuracy", "accuracy_per_token")):
        files = [runs / f"{stems[row['method']]}-{n}/evaluation/test.json" for n in range(3)]
        values = [json.loads(file.read_text())[row["metric"]] for file in files]
        if row["metric"] == "accuracies_step0" and not any(values):  # all pairs are tied
            assert row["mean"] == row["std"] == ""
            continue
        assert float(row["mean"]) == pytest.approx(statistics.fmean(values))
        assert float(row["std"]) == pytest.approx(statistics.stdev(values))


def test_effects_are_against_the_best_baseline(runs, tmp_path):
    """Means 0.61 and 0.71 of the baselines, 0.75 of mrpo, each with variance 2e-4: d of mrpo is
    0.04/√2e-4, of the weaker baseline −0.10/√2e-4, and the best baseline has none."""
    root = with_accuracies(runs, tmp_path, {
        "dpo-llama": [0.60, 0.62], "dpo-qwen": [0.70, 0.72], "mrpo": [0.74, 0.76],
    })  # fmt: skip
    rows = {row.label: row.cells["accuracies_logp"] for row in compare(read_results([root])).rows}
    assert rows["mrpo"].d == pytest.approx(0.04 / 2e-4**0.5)
    assert rows["dpo llama"].d == pytest.approx(-0.10 / 2e-4**0.5)
    assert rows["dpo qwen"].d is None
    chosen = compare(read_results([root]), baselines=["dpo llama"])
    assert rows["mrpo"].difference.mean == pytest.approx(0.04)
    assert rows["dpo qwen"].difference is None
    assert {row.label: row.baseline for row in chosen.rows} == {
        "dpo llama": True, "dpo qwen": False, "mrpo": False,
    }  # fmt: skip
    with pytest.raises(UsageError, match="no method is labelled 'ppo'"):
        compare(read_results([root]), baselines=["ppo"])


def test_without_a_baseline_nothing_is_marked(runs):
    table = compare(read_results(sorted(runs.glob("m*"))))
    assert {cell.mark for row in table.rows for cell in row.cells.values()} == {None}
    assert "Without a baseline" in render(table, "markdown")


def test_other_data_and_policies_are_other_methods(tmp_path):
    """Seeds trained on groups or from weights of other hashes are not pooled; labels tell them."""
    for seed, (groups, policy) in enumerate([("a" * 64, "0" * 64), ("b" * 64, "0" * 64),
                                             ("b" * 64, "1" * 64)]):  # fmt: skip
        path = made_up_run(tmp_path / str(seed), "dpo", ["llama"], seed)
        edit_json(path / "run.json", groups_hash=groups, policy_identity=policy)
    methods = by_method(read_results([tmp_path]))
    assert [method.label for method in methods] == [
        "dpo policy 00000000 groups aaaaaaaa", "dpo policy 00000000 groups bbbbbbbb",
        "dpo policy 11111111 groups bbbbbbbb",
    ]  # fmt: skip
    two = by_method(read_results([tmp_path / "0", tmp_path / "1"]))
    assert [method.label for method in two] == ["dpo groups aaaaaaaa", "dpo groups bbbbbbbb"]


def test_other_groups_are_not_compared(runs, tmp_path):
    """Two hashes are refused and named with a run each; a run that has none is as it was."""
    for name in ("dpo-llama-0", "mrpo-0", "multi-0"):
        shutil.copytree(runs / name, tmp_path / name)
    for name in ("dpo-llama-0", "mrpo-0"):
        edit_json(tmp_path / name / "evaluation/test.json", groups_hash="a" * 64)
    assert len(compare(read_results([tmp_path])).rows) == 3
    edit_json(tmp_path / "mrpo-0/evaluation/test.json", groups_hash="b" * 64)
    with pytest.raises(UsageError, match=r"dpo-llama-0 \(groups aaaaaaaa\).*mrpo-0 \(groups bbb"):
        compare(read_results([tmp_path]))


def test_output_that_is_no_file(runs, tmp_path, capsys):
    for place in (tmp_path, tmp_path / "missing" / "table.md"):
        assert run(["compare", str(runs), "-o", str(place)]) == 2
        err = capsys.readouterr().err
        assert f"{place} cannot be written" in err
        assert "-o takes a file in a directory that is there" in err


def test_names_that_repeat_keep_their_digits(tmp_path):
    """Two identities of llama are two rows without training; the rest needs no digits."""
    for seed, digits in enumerate(["aaaa11112222", "bbbb11112222"]):
        path = made_up_run(tmp_path / str(seed), "mrpo", ["llama", "qwen"], seed)
        for name in ("run.json", "evaluation/test.json"):
            edit_json(path / name, references=[f"llama@{digits}", "qwen@0123456789ab"])
    results = read_results([tmp_path])
    names = {"llama@aaaa", "llama@bbbb", "qwen"}
    untrained = [row.what for row in compare(results).untrained]
    assert untrained == [*(f"{name} alone" for name in sorted(names)), "always the longer"]
    assert {row.name for row in ranking(by_method(results))} == {*names, "always the longer"}


def test_the_same_run_twice_counts_once(runs, tmp_path, capsys):
    path = runs / "mrpo-0"
    assert len(read_results([path, path, runs / ".." / runs.name / "mrpo-0"])) == 1
    shutil.copytree(path, tmp_path / "copy")
    (method,) = by_method(read_results([path, tmp_path / "copy"]))
    assert [result.path for result in method.runs] == [path]
    assert "has its seed and settings" in capsys.readouterr().err


def test_what_is_missing_is_said(runs, tmp_path, capsys):
    with pytest.raises(UsageError, match="is not there"):
        read_results([tmp_path / "nowhere"])
    with pytest.raises(UsageError, match="no finished run in"):
        read_results([tmp_path])
    with pytest.raises(UsageError, match="no run was evaluated on split 'dev'"):
        compare(read_results([runs], "dev"), "dev")
    for name in ("mrpo-0", "mrpo-1", "mrpo-2"):
        shutil.copytree(runs / name, tmp_path / name)
    (tmp_path / "mrpo-0" / "metrics.json").unlink()
    (tmp_path / "mrpo-1" / "evaluation" / "test.json").unlink()
    row = compare(read_results([tmp_path])).rows[0]
    assert row.seeds == (2,)  # of the runs that were evaluated
    assert len(row.cells["accuracies"].values) == 1
    err = capsys.readouterr().err
    assert "mrpo-0 has not finished training" in err
    assert "mrpo-1 was not evaluated on split 'test'" in err
    (tmp_path / "mrpo-2" / "run.json").write_text("{")
    with pytest.raises(UsageError, match=r"run\.json cannot be read"):
        read_results([tmp_path])


def test_the_command_twice_without_torch(runs, tmp_path, blocked):
    """The same bytes from two processes in which torch cannot be imported."""
    for name in ("one.tex", "two.tex"):
        command = [sys.executable, "-m", "mrpo_tools", "compare", str(runs), "--format", "latex",
                   "-o", name]  # fmt: skip
        subprocess.run(command, check=True, env=blocked, cwd=tmp_path, capture_output=True)
        assert (tmp_path / name).read_bytes() == (GOLDEN / "compare.tex").read_bytes()


def test_names_are_escaped(runs, tmp_path):
    """A label of a user's own names stays text in LaTeX and Markdown."""
    path = made_up_run(tmp_path / "a", "dpo", ["a_b.c"], 0)
    other = made_up_run(tmp_path / "b", "dpo", ["d"], 0)
    table = compare(read_results([path, other]))
    assert r"dpo a\_b.c *" in render(table, "latex")
    assert "| `dpo a_b.c` \\* |" in render(table, "markdown")


def test_printed(runs, capsys):
    assert run(["compare", str(runs)]) == 0
    assert capsys.readouterr().out == (GOLDEN / "compare.md").read_text(encoding="utf-8")
