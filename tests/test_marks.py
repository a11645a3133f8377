"""Marks of `mrpo compare`: by hand and by scipy's paired t; outcomes lead; false alarms.

The runs are directories with given numbers in them; no model is loaded.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import scipy.stats
from made_up import made_up_run
from reference_changes import edit_json
from test_docs import ROOT, measured, script

from mrpo_tools.errors import UsageError
from mrpo_tools.files import save_json
from mrpo_tools.runs.caption import FALSE_ALARMS, caption
from mrpo_tools.runs.compare import Comparison, compare
from mrpo_tools.runs.formats import render
from mrpo_tools.runs.read import read_results

BASE = [0.70, 0.72, 0.68, 0.71, 0.69]
BETTER_BY = [0.10, 0.12, 0.09, 0.11, 0.08]
UNSURE = [0.10, -0.09, 0.08, -0.07, 0.01]
THREE = ["llama", "mistral", "qwen"]
METHODS = {"mrpo": {}, "wide": {"epsilon_max": 1e6}}


def shifted(by: list[float], base: list[float] = BASE) -> list[float]:
    return [value + more for value, more in zip(base, by, strict=True)]


def measured_runs(root: Path, accuracies: dict[str, list[float]], first: int = 0) -> Path:
    """Runs whose log-prob accuracy is given for each seed: `dpo NAME`, or a name of `METHODS`."""
    for name, values in accuracies.items():
        for seed, value in enumerate(values, first):
            loss, _, reference = name.partition(" ")
            words = METHODS.get(name, {})
            loss, refs = ("dpo", [reference]) if loss == "dpo" else ("mrpo", THREE)
            path = made_up_run(root / f"{name.replace(' ', '-')}-{seed}", loss, refs, seed, **words)
            edit_json(path / "evaluation/test.json", accuracies_logp=value)
    return root


def marks(comparison: Comparison) -> list[str | None]:
    """Of the methods in the marked column, baselines left out."""
    key = comparison.marked.key
    return [row.cells[key].mark for row in comparison.rows if not row.baseline]


CASES = {
    "better": (BASE, shifted(BETTER_BY), "better"),
    "worse": (shifted(BETTER_BY), BASE, "worse"),
    "as good as": (BASE, shifted(UNSURE), None),
    "four seeds": (BASE[:4], shifted(BETTER_BY)[:4], None),
    "small, but in every seed": ([0.5, 0.6, 0.7, 0.8, 0.9], [0.51, 0.612, 0.711, 0.81, 0.909],
                                 "better"),
    "seeds change nothing": ([0.7] * 5, [0.71] * 5, None),
    "equal": (BASE, BASE, None),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_marks_of_one_method(tmp_path, case):
    """`small` has a Cohen's d of 0.07: only pairs can see it. Nothing but the first column is
    marked."""
    baseline, method, expected = CASES[case]
    runs = measured_runs(tmp_path, {"dpo llama": baseline, "mrpo": method})
    comparison = compare(read_results([runs]))
    assert comparison.marked.key == "accuracies_logp"
    assert marks(comparison) == [expected]
    others = {cell.mark for row in comparison.rows for key, cell in row.cells.items()
              if key != "accuracies_logp"}  # fmt: skip
    assert others == {None}


def test_the_difference_is_scipys(tmp_path):
    runs = measured_runs(tmp_path, {"dpo llama": BASE, "mrpo": shifted(UNSURE)})
    cell = compare(read_results([runs])).rows[1].cells["accuracies_logp"]
    expected = scipy.stats.ttest_rel(shifted(UNSURE), BASE)
    ends = expected.confidence_interval(0.95)
    assert cell.p == pytest.approx(expected.pvalue)
    assert (cell.difference.low, cell.difference.high) == pytest.approx((ends.low, ends.high))
    assert cell.difference.pairs == 5


def test_holm_over_the_methods(tmp_path):
    """Two methods with p of 0.03 to 0.05 each are marked alone, and neither beside the other."""
    by = [0.10, 0.01, 0.09, 0.02, 0.06]
    p = scipy.stats.ttest_rel(shifted(by), BASE).pvalue
    assert 0.025 < p < 0.05
    alone = measured_runs(tmp_path / "a", {"dpo llama": BASE, "mrpo": shifted(by)})
    assert marks(compare(read_results([alone]))) == ["better"]
    other = shifted([by[4], *by[:4]])
    both = measured_runs(tmp_path / "b", {"dpo llama": BASE, "mrpo": shifted(by), "wide": other})
    table = compare(read_results([both]))
    assert marks(table) == [None, None]
    assert table.rows[1].cells["accuracies_logp"].p == pytest.approx(
        2 * min(p, scipy.stats.ttest_rel(other, BASE).pvalue)
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_better_than_every_baseline_or_not_at_all(tmp_path, sign):
    """Clearly better than one baseline, by chance above or below the other: not marked."""
    method = shifted(BETTER_BY)
    other = shifted([sign * by for by in UNSURE], method)
    runs = measured_runs(tmp_path, {"dpo llama": BASE, "dpo qwen": other, "mrpo": method})
    results = read_results([runs])
    assert marks(compare(results)) == [None]
    assert marks(compare(results, baselines=["dpo llama"]))[-1] == "better"


def test_seeds_that_only_one_has_are_left_out_and_told(tmp_path, capsys):
    """Seeds 0 to 4 and 1 to 5: four pairs, so nothing is marked."""
    measured_runs(tmp_path, {"dpo llama": BASE})
    measured_runs(tmp_path, {"mrpo": shifted(BETTER_BY)}, first=1)
    comparison = compare(read_results([tmp_path]))
    assert comparison.pairs == [4]
    assert marks(comparison) == [None]
    assert "mrpo and dpo do not both have seed 0, seed 5: left out" in capsys.readouterr().err
    assert "4 seeds shared with every baseline: nothing is marked below 5" in caption(comparison)


def with_outcomes(root: Path, scores: dict[str, list[float]], **words) -> Path:
    """Runs with greedy and sampled outcomes of a rule; the sampled mean is given for each seed."""
    measured_runs(root, {name: [0.5] * len(values) for name, values in scores.items()})
    for name, values in scores.items():
        for seed, value in enumerate(values):
            about = {"scorer": "rules:score", "identity": "v1", "full": 0.25}
            greedy = {**about, "mean": 1.0, "decoding": "greedy"}
            sampled = {**about, "mean": value, "decoding": "sampled", "temperature": 1.0,
                       "kl_nats": 1.5}  # fmt: skip
            path = root / f"{name.replace(' ', '-')}-{seed}" / "outcomes" / "test.json"
            path.parent.mkdir()
            record = {"split": "test", "prompts_hash": "a", "outcomes": [greedy, sampled]}
            save_json(path, record)
    return root


def test_outcomes_lead_and_the_sampled_mean_is_marked(tmp_path):
    scores = {"dpo llama": BASE, "mrpo": shifted(BETTER_BY)}
    comparison = compare(read_results([with_outcomes(tmp_path, scores)]))
    assert [column.title for column in comparison.columns[:6]] == [
        "score, sampled", "full marks, sampled", "score, greedy", "full marks, greedy",
        "KL, nats", "log-prob",
    ]  # fmt: skip
    assert marks(comparison) == ["better"]
    mrpo = next(line for line in render(comparison, "markdown").splitlines() if "`mrpo`" in line)
    assert mrpo.split(" | ")[2:4] == ["**0.800 ± 0.031**", "+0.100 (+0.080 to +0.120)"]
    assert "1.50 ± 0.00" in mrpo
    assert r"\textbf{0.800 $\pm$ 0.031}" in render(comparison, "latex")
    values = json.loads(render(comparison, "json"))
    assert values["marked"] == "rules:score sampled mean"
    assert values["methods"][1]["metrics"]["rules:score sampled mean"]["mark"] == "better"
    assert "No answers were judged" not in caption(comparison)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts_hash": "b"}, r"of different prompts: .*prompts a.*prompts b"),
        ({"identity": "v2"}, r"rules:score greedy is not of the same version .*v1.*v2"),
        ({"temperature": 0.5}, r"rules:score sampled is not of the same temperature"),
    ],
)
def test_other_prompts_and_versions_are_not_compared(tmp_path, changes, message):
    runs = with_outcomes(tmp_path, {"dpo llama": BASE, "mrpo": BASE})
    path = runs / "mrpo-0/outcomes/test.json"
    values = json.loads(path.read_text())
    if "prompts_hash" in changes:
        values |= changes
    elif "identity" in changes:
        values["outcomes"][0] |= changes
    else:
        values["outcomes"][1] |= changes
    save_json(path, values)
    with pytest.raises(UsageError, match=message):
        compare(read_results([runs]))


def test_a_run_without_outcomes_is_told(tmp_path, capsys):
    runs = with_outcomes(tmp_path, {"dpo llama": BASE, "mrpo": shifted(BETTER_BY)})
    (runs / "mrpo-4/outcomes/test.json").unlink()
    assert marks(compare(read_results([runs]))) == [None]
    err = capsys.readouterr().err
    assert "mrpo-4 has no outcomes: mrpo evaluate" in err
    assert "do not both have seed 4" in err


def drawn(path: Path, split_seed: int, data: str = "d") -> None:
    """Make a run one of a split that was drawn anew, on groups that no other draw has."""
    text = (path / "recipe.yaml").read_text()
    (path / "recipe.yaml").write_text(f"{text}split_seed: {split_seed}\n".replace(
        "split_seed: null\n", ""))  # fmt: skip
    edit_json(path / "run.json", groups_hash=f"train-{split_seed}", data_hash=data)
    edit_json(path / "evaluation/test.json", groups_hash=f"{split_seed}" * 8)


def test_runs_of_one_draw_are_pairs_and_share_its_groups(tmp_path):
    """A draw for each seed: one method of five runs; of other groups in one draw: refused."""
    runs = measured_runs(tmp_path, {"dpo llama": BASE, "mrpo": shifted(BETTER_BY)})
    for path in runs.iterdir():
        drawn(path, split_seed=int(path.name[-1]))
    comparison = compare(read_results([runs]))
    assert [(row.label, len(row.seeds)) for row in comparison.rows] == [("dpo", 5), ("mrpo", 5)]
    assert marks(comparison) == ["better"]
    edit_json(runs / "mrpo-3/evaluation/test.json", groups_hash="another")
    with pytest.raises(UsageError, match=r"not the same groups .* of split seed 3"):
        compare(read_results([runs]))
    drawn(runs / "mrpo-3", 3, data="other data")
    assert len(compare(read_results([runs])).rows) == 3


def test_runs_of_one_split_are_averaged_first(tmp_path):
    """Two seeds on each of three draws are three pairs, not six: nothing is marked."""
    for split_seed in range(3):
        runs = measured_runs(
            tmp_path / str(split_seed), {"dpo llama": BASE[:2], "mrpo": shifted(BETTER_BY)[:2]}
        )
        for path in runs.iterdir():
            drawn(path, split_seed)
    comparison = compare(read_results([tmp_path]))
    assert len(comparison.rows[0].seeds) == 6
    assert comparison.pairs == [3]


def test_chance_is_marked_no_more_often_than_it_says():
    """200 sweeps of four methods and one baseline without an effect; then one of 2 std."""
    simulation = script("bench/false_alarms.py")
    alarms = simulation.measure(200, 5, 1, 4, 0.5)["compare"]
    assert alarms["low"] <= 0.05
    assert simulation.measure(40, 10, 3, 4, 0.5, 2.0)["found"]["rate"] >= 0.95
    assert simulation.measure(40, 3, 1, 1, 0.0)["compare"]["rate"] == 0.0


def test_measured_false_alarms_are_those_of_the_words():
    """What captions and docs/methods.md quote, and no kind of sweep above what chance allows."""
    rows = measured("false_alarms.json")["rows"]
    without = [row for row in rows if "compare" in row]
    assert all(row["compare"]["low"] <= 0.05 for row in without)
    plain = {"seeds": 3, "baselines": 1, "methods": 1, "shared": 0.0}
    (simple,) = [row for row in without if plain.items() <= row.items()]
    assert round(100 * simple["mrpos_rule"]["rate"]) == FALSE_ALARMS
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert f"{FALSE_ALARMS} %" in page
