"""`mrpo data`: show, validate, convert, as a user types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_data import ROOT, run_script, write_lines

from mrpo_tools.cli import run
from mrpo_tools.sources import load_groups
from mrpo_tools.sources.summary import SAMPLE_GROUPS, Summary, quantiles


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


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
def source() -> str:
    return str(write_lines(Path("x.jsonl"), ROWS))


def test_show_counts_what_is_there(source, capsys):
    """Expected by hand: sizes 3 2 3 2, scores 1 1 9, 5 5, 1 5 9, 9 1."""
    assert run(["data", "show", source, "--json", "--rows", "2"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["adapter"] == "canonical"
    assert facts["because"].startswith("columns prompt")
    assert facts["rows"] == facts["groups"] == 4
    assert facts["tied_groups"] == 1
    assert facts["responses_per_group"] == {"2": 2, "3": 2}
    assert facts["splits"] == {"train": 3, "test": 1}
    assert facts["scores"] == {"1": 4, "5": 3, "9": 3}
    assert (facts["tied_pairs"], facts["scored_pairs"]) == (2, 3 + 1 + 3 + 1)
    assert [group["prompt"][0]["content"] for group in facts["first"]] == ["Why?", "How?"]


def test_show_is_readable(source, capsys):
    assert run(["data", "show", source]) == 0
    out = capsys.readouterr().out
    assert "tied pairs                2 of 8 (25.0%)" in out
    assert "    1          4  " + "█" * 40 in out
    assert "    9          3  " + "█" * 30 + "\n" in out
    assert "  user: Why?\n    [score 1] Why? 0\n" in out
    assert "Who?" not in out, "three groups are shown"


def test_show_cuts_long_texts_and_escapes_what_moves_the_cursor(capsys):
    row = {"prompt": "a\nb\x1b[2J\u202e", "chosen": "x" * 5000, "rejected": "no"}
    Path("x.jsonl").write_text(json.dumps(row))
    assert run(["data", "show", "x.jsonl"]) == 0
    out = capsys.readouterr().out
    assert "  user: a\n        b\\x1b[2J\\u202e\n" in out
    assert "x" * 600 + " … (5,000 characters)\n" in out
    assert "x" * 601 not in out


def test_show_counts_tokens_under_each_reference(tiny_models, source, capsys):
    """The numbers of the renderer that scoring uses; no weights are read."""
    from mrpo_tools.config import Reference
    from mrpo_tools.references.resolved import renderer_of, resolve

    refs = [word for name in ("llama", "qwen") for word in ("--ref", f"{name}={tiny_models[name]}")]
    assert run(["data", "show", source, *refs, "--json"]) == 0
    tokens = json.loads(capsys.readouterr().out)["tokens"]
    for name in ("llama", "qwen"):
        renderer = renderer_of(resolve(name, Reference(model=str(tiny_models[name]))))
        encoded = [renderer.encode(group) for group in load_groups(source).groups]
        assert tokens[name]["prompt"]["max"] == max(
            len(rendered.prompt_ids) for rendered in encoded
        )
        lengths = sorted(len(r.ids) for rendered in encoded for r in rendered.responses)
        assert tokens[name]["response"] == quantiles(lengths)
        assert tokens[name]["max_length"] == 8192
        assert (tokens[name]["groups"], tokens[name]["longer"]) == (4, 0)
    assert run(["data", "show", source, *refs]) == 0
    assert "tokens under" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["show", "validate", "convert"])
def test_split_limit_and_seed_mean_the_same_everywhere(command, source, capsys):
    target = ["out.jsonl"] if command == "convert" else []
    for words, expected in (
        (["--split", "test"], 1),
        (["--limit", "2"], 2),
        (["--split", "train", "--limit", "2"], 2),
    ):
        assert run(["data", command, source, *target, *words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["groups"] == expected
        Path("out.jsonl").unlink(missing_ok=True)


def test_the_seed_draws_other_prompts(capsys):
    rows = [{"prompt": f"Q{n}", "chosen": "a", "rejected": "b"} for n in range(300)]
    write_lines(Path("x.jsonl"), rows)

    def drawn(*words: str) -> set[str]:
        assert run(["data", "convert", "x.jsonl", "out.jsonl", "--overwrite", "--split", "test",
                    "--test-size", "0.2", *words]) == 0  # fmt: skip
        lines = Path("out.jsonl").read_text().splitlines()
        return {json.loads(line)["prompt"][0]["content"] for line in lines}

    zero, one = drawn("--seed", "0"), drawn("--seed", "1")
    assert drawn() == zero != one == drawn("--split-seed", "1")
    assert 30 < len(zero) < 95, "within 5 standard deviations (6.9) of 60"


@pytest.mark.parametrize(
    "words", [["--pairing", "all"], ["--pairs", "all"], ["--pairs", "x", "--pairing", "all"]]
)
def test_convert_says_which_pairs_and_what_made_none(words, source, capsys):
    """By the word of today and by the former one."""
    assert run(["data", "convert", source, "out.jsonl", "--to", "trl", *words]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out == [
        "wrote 6 all pairs of 4 groups to out.jsonl",
        "1 groups have no better response and made no pair",
    ]
    assert load_groups("out.jsonl").counts["groups"] == 6


def test_a_pairing_that_draws_cannot_be_written(source, capsys):
    assert run(["data", "convert", source, "out.jsonl", "--pairs", "best_random"]) == 2
    error = capsys.readouterr().err
    assert "'best_random' is not one of 'best_worst', 'best_vs_rest', 'all'" in error


def test_convert_replaces_only_what_it_is_told_to(source, capsys):
    before = Path(source).read_bytes()
    assert run(["data", "convert", source, source]) == 2
    assert capsys.readouterr().err == (
        "error: x.jsonl is there already\nnext:  --overwrite replaces it\n"
    )
    assert Path(source).read_bytes() == before
    assert run(["data", "convert", source, source, "--overwrite"]) == 0
    assert [group.as_dict()["split"] for group in load_groups(source).groups] == [
        row["split"] for row in ROWS
    ]


@pytest.mark.parametrize("target", ["out.jsonl", "out.parquet"])
def test_convert_writes_nothing_when_a_row_is_bad(target, source, capsys):
    with Path(source).open("a") as file:
        file.write('{"prompt": "late", "responses": []}\n')
    assert run(["data", "convert", source, target]) == 2
    assert "x.jsonl:5: responses: found none, expected at least 2" in capsys.readouterr().err
    assert os.listdir() == ["x.jsonl"]


def test_validate_counts_what_is_unusual(source, capsys):
    assert run(["data", "validate", source]) == 0
    assert capsys.readouterr().out == "x: 4 rows, 4 groups, 1 tied groups; no problem found\n"


def test_what_may_not_be_meant_is_a_warning(capsys):
    row = {"prompt": "Q", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 2}
    Path("x.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"score_chosen": 3}))
    for words in (["validate", "x.jsonl"], ["show", "x.jsonl"], ["convert", "x.jsonl", "y.jsonl"]):
        assert run(["data", *words]) == 0
        assert capsys.readouterr().err == (
            "warning: 1 groups whose scores contradict their labels, kept\n"
            "warning: 1 groups that were there before with other scores or labels, kept\n"
        )


def test_the_sample_is_even_and_the_same_every_time():
    """Over 20,000 groups the 1,000 that are drawn have their mean in the middle."""

    class Numbered:
        has_labels = has_scores = False
        responses = ()
        split = None

        def __init__(self, number: int) -> None:
            self.number = number

    def drawn() -> list[int]:
        summary = Summary()
        for number in range(20_000):
            summary.add(Numbered(number))
        return [group.number for group in summary.sample]

    sample = drawn()
    assert len(set(sample)) == SAMPLE_GROUPS
    assert abs(sum(sample) / len(sample) - 10_000) < 5 * 5774 / SAMPLE_GROUPS**0.5
    assert drawn() == sample


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([3, 1, 3], [("1", 1), ("3", 2)]),
        (
            [float(n) for n in range(21)],
            [(f"{2 * n} to {2 * n + 2}", 2 + (n == 9)) for n in range(10)],
        ),
    ],
)
def test_the_histogram_counts_every_score(scores, expected):
    """0 to 20 in ten ranges of 2: two in each, and the largest in the last."""
    summary = Summary()
    summary.scores.extend(scores)
    assert summary.histogram() == expected


def test_quantiles():
    assert quantiles(range(101)) == {"median": 50, "p95": 95, "max": 100}
    assert quantiles([7]) == {"median": 7, "p95": 7, "max": 7}


def test_no_model_library_is_loaded(source):
    """`validate` and `convert` work where torch, transformers and datasets cannot be imported."""
    run_script("""
        import sys
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
