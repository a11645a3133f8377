"""`mrpo data`: show, validate, convert, as a user types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_data import ROOT, numbered, prompts, run_script, write_lines

from mrpo_tools.sources import load_groups
from mrpo_tools.sources.summary import SAMPLE_GROUPS, Summary, quantiles

pytestmark = pytest.mark.usefixtures("here")


def group(prompt: str, *scores: float, split: str = "train") -> dict[str, Any]:
    responses = [{"content": f"{prompt} {n}", "score": score} for n, score in enumerate(scores)]
    return {"prompt": prompt, "responses": responses, "split": split}


ROWS = [
    group("Why?", 1, 1, 9),
    group("How?", 5, 5),
    group("When?", 1, 5, 9, split="test"),
    group("Who?", 9, 1),
]


@pytest.fixture
def source() -> Path:
    return write_lines(Path("x.jsonl"), ROWS)


def test_show_counts_what_is_there(source, mrpo):
    """Expected by hand: sizes 3 2 3 2, scores 1 1 9, 5 5, 1 5 9, 9 1."""
    facts = json.loads(mrpo("data show x.jsonl --json --rows 2").out)
    assert facts["adapter"] == "canonical"
    assert facts["because"].startswith("columns prompt")
    assert facts["rows"] == facts["groups"] == 4
    assert facts["tied_groups"] == 1
    assert facts["responses_per_group"] == {"2": 2, "3": 2}
    assert facts["splits"] == {"train": 3, "test": 1}
    assert facts["scores"] == {"1": 4, "5": 3, "9": 3}
    assert (facts["tied_pairs"], facts["scored_pairs"]) == (2, 3 + 1 + 3 + 1)
    assert [group["prompt"][0]["content"] for group in facts["first"]] == ["Why?", "How?"]


def test_show_is_readable(source, mrpo):
    out = mrpo("data show x.jsonl").out
    assert "tied pairs                2 of 8 (25.0%)" in out
    assert "    1          4  " + "█" * 40 in out
    assert "    9          3  " + "█" * 30 + "\n" in out
    assert "  user: Why?\n    [score 1] Why? 0\n" in out
    assert "Who?" not in out, "three groups are shown"


def test_show_cuts_long_texts_and_escapes_what_moves_the_cursor(mrpo):
    row = {"prompt": "a\nb\x1b[2J\u202e", "chosen": "x" * 5000, "rejected": "no"}
    write_lines(Path("x.jsonl"), [row])
    out = mrpo("data show x.jsonl").out
    assert "  user: a\n        b\\x1b[2J\\u202e\n" in out
    assert "x" * 600 + " … (5,000 characters)\n" in out
    assert "x" * 601 not in out


def test_show_counts_tokens_under_each_reference(tiny_models, source, mrpo):
    """The numbers of the renderer that scoring uses; no weights are read."""
    from mrpo_tools.config import Reference
    from mrpo_tools.references.resolved import renderer_of, resolve

    names = ("llama", "qwen")
    show = "data show x.jsonl " + " ".join(f"--ref {name}={tiny_models[name]}" for name in names)
    tokens = json.loads(mrpo(f"{show} --json").out)["tokens"]
    for name in names:
        renderer = renderer_of(resolve(name, Reference(model=str(tiny_models[name]))))
        encoded = [renderer.encode(group) for group in load_groups(source).groups]
        assert tokens[name]["prompt"]["max"] == max(len(group.prompt_ids) for group in encoded)
        lengths = sorted(len(r.ids) for rendered in encoded for r in rendered.responses)
        assert tokens[name]["response"] == quantiles(lengths)
        assert tokens[name]["max_length"] == 8192
        assert (tokens[name]["groups"], tokens[name]["longer"]) == (4, 0)
    assert "tokens under" in mrpo(show).out


@pytest.mark.parametrize("command", ["show x.jsonl", "validate x.jsonl", "convert x.jsonl y.jsonl"])
def test_split_and_limit_mean_the_same_everywhere(command, source, mrpo):
    counts = {"--split test": 1, "--limit 2": 3, "--split train --limit 2": 2}
    for options, expected in counts.items():
        assert json.loads(mrpo(f"data {command} {options} --json").out)["groups"] == expected
        Path("y.jsonl").unlink(missing_ok=True)


def test_the_seed_draws_other_prompts(mrpo):
    write_lines(Path("x.jsonl"), numbered(300))

    def drawn(options: str = "") -> list[str]:
        mrpo(f"data convert x.jsonl y.jsonl --overwrite --split test --test-size 0.2 {options}")
        return prompts(load_groups("y.jsonl"))

    zero, one = drawn("--seed 0"), drawn("--seed 1")
    assert drawn() == zero != one == drawn("--split-seed 1")
    assert 30 < len(zero) < 95, "within 5 standard deviations (6.9) of 60"


@pytest.mark.parametrize("words", ["--pairing all", "--pairs all", "--pairs x --pairing all"])
def test_convert_says_which_pairs_and_what_made_none(words, source, mrpo):
    """By the word of today and by the former one."""
    assert mrpo(f"data convert x.jsonl out.jsonl --to trl {words}").out.splitlines() == [
        "wrote 6 all pairs of 4 groups to out.jsonl",
        "1 groups have no better response and made no pair",
    ]
    assert load_groups("out.jsonl").counts["groups"] == 6


def test_a_pairing_that_draws_cannot_be_written(source, mrpo):
    error = mrpo("data convert x.jsonl out.jsonl --pairs best_random", 2).err
    assert "'best_random' is not one of 'best_worst', 'best_vs_rest', 'all'" in error


def test_convert_replaces_only_what_it_is_told_to(source, mrpo):
    before = source.read_bytes()
    assert mrpo("data convert x.jsonl x.jsonl", 2).err == (
        "error: x.jsonl is there already\nnext:  --overwrite replaces it\n"
    )
    assert source.read_bytes() == before
    mrpo("data convert x.jsonl x.jsonl --overwrite")
    splits = [group.split for group in load_groups(source).groups]
    assert splits == [row["split"] for row in ROWS]


@pytest.mark.parametrize("target", ["out.jsonl", "out.parquet"])
def test_convert_writes_nothing_when_a_row_is_bad(target, source, mrpo):
    write_lines(source, [*ROWS, {"prompt": "late", "responses": []}])
    error = mrpo(f"data convert x.jsonl {target}", 2).err
    assert "x.jsonl:5: responses: found none, expected at least 2" in error
    assert os.listdir() == ["x.jsonl"]


def test_validate_counts_what_is_unusual(source, mrpo):
    out = mrpo("data validate x.jsonl").out
    assert out == "x: 4 rows, 4 groups, 1 tied groups; no problem found\n"


def test_what_may_not_be_meant_is_a_warning(mrpo):
    row = {"prompt": "Q", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 2}
    write_lines(Path("x.jsonl"), [row, row | {"score_chosen": 3}])
    for words in ("validate x.jsonl", "show x.jsonl", "convert x.jsonl y.jsonl"):
        assert mrpo(f"data {words}").err == (
            "warning: 1 groups whose scores contradict their labels, kept: labels win\n"
            "warning: 1 groups that were there before with other scores or labels, kept\n"
        )


def test_the_sample_is_even_and_the_same_every_time():
    """Over 20,000 groups the 1,000 that are drawn have their mean in the middle."""

    def drawn() -> list[int]:
        summary = Summary()
        nothing = {"has_labels": False, "has_scores": False, "responses": (), "split": None}
        for number in range(20_000):
            summary.add(SimpleNamespace(number=number, **nothing))
        return [group.number for group in summary.sample]

    sample = drawn()
    assert len(set(sample)) == SAMPLE_GROUPS
    assert abs(sum(sample) / len(sample) - 10_000) < 5 * 5774 / SAMPLE_GROUPS**0.5
    assert drawn() == sample


def test_the_histogram_counts_every_score():
    """Few scores one by one; 0 to 20 in ten ranges of 2, two in each, the largest in the last."""
    summary = Summary()
    summary.scores.extend([3, 1, 3])
    assert summary.histogram() == [("1", 1), ("3", 2)]
    summary = Summary()
    summary.scores.extend(range(21))
    assert summary.histogram() == [(f"{2 * n} to {2 * n + 2}", 2 + (n == 9)) for n in range(10)]


def test_quantiles():
    assert quantiles(range(101)) == {"median": 50, "p95": 95, "max": 100}
    assert quantiles([7]) == {"median": 7, "p95": 7, "max": 7}


def test_no_model_library_is_loaded(source):
    """Libraries load where a source needs them; the command works without those of models."""
    run_script("""
        import sys
        import mrpo_tools.sources
        assert not sys.modules.keys() & {"torch", "transformers", "datasets", "pandas", "pyarrow"}
        for name in ("torch", "transformers", "datasets"):
            sys.modules[name] = None
        from mrpo_tools.cli import run
        sys.exit(run(["data", "validate", "x.jsonl"])
                 or run(["data", "convert", "x.jsonl", "y.parquet"])
                 or run(["data", "show", "y.parquet"]))
    """)


@pytest.mark.long
def test_a_file_of_two_gigabytes(tmp_path):
    """Validated and converted in under 500 MB; `bench/data.py` measures the same and prints it."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "data.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    sizes, *measured = map(json.loads, done.stdout.splitlines())
    assert sizes["large_bytes"] > 2e9
    figures = {row["what"]: row for row in measured}
    assert list(figures) == ["validate", "convert", "index", "array", "array as a whole"]
    for what in ("validate", "convert", "index", "array"):
        assert figures[what]["peak_megabytes"] < 500
    assert figures["index"]["seconds"] < 180
