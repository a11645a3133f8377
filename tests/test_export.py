"""Groups in other tools' forms, and back through our own adapters."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import run_script, write_lines

from mrpo_tools.errors import UsageError
from mrpo_tools.groups import Group, Response, user_prompt
from mrpo_tools.maths import contrasts
from mrpo_tools.messages import Message
from mrpo_tools.pairing import pairs_of
from mrpo_tools.sources import load_groups
from mrpo_tools.sources.export import FORMS
from mrpo_tools.sources.write import BATCH_CHARACTERS, BATCH_ROWS, writing
from mrpo_tools.words import DeterministicPairing, choices

PROMPT = (
    Message("system", "Be short."),
    Message("user", "Hi\n "),
    Message("assistant", "Hello ☃"),
    Message("user", "1+1?"),
)


SUFFIXES = pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])


def scored(*scores: float | None, labels: str = "", prompt: Any = PROMPT) -> Group:
    """Responses y0, y1, … with these scores and labels (`+` chosen, `-` rejected)."""
    marks = [{"+": True, "-": False, " ": None}[mark] for mark in labels or " " * len(scores)]
    judged = enumerate(zip(scores, marks, strict=True))
    responses = (Response(f" y{number} ", score, chosen) for number, (score, chosen) in judged)
    return Group(prompt, tuple(responses), split="train")


def score(response: Response) -> float:
    return response.score


def named(group: Group, pairing: str) -> list[str]:
    return [f"{a.content.strip()}>{b.content.strip()}" for a, b in pairs_of(group, pairing)]


@pytest.mark.parametrize(
    ("group", "best_worst", "best_vs_rest", "every"),
    [
        (scored(2, 5, 1), "y1>y2", "y1>y0 y1>y2", "y0>y2 y1>y0 y1>y2"),
        (scored(5, 5, 1, 1), "y0>y2", "y0>y2 y0>y3", "y0>y2 y0>y3 y1>y2 y1>y3"),
        (scored(1, 1), "", "", ""),
        (scored(1, 3, 2, labels="+--"), "y0>y2", "y0>y1 y0>y2", "y0>y1 y0>y2"),
        (scored(1, 2, 2, labels="+-+"), "y2>y1", "y2>y1", "y0>y1 y2>y1"),
        (scored(1, 5, 3, labels="+--"), "y0>y2", "y0>y1 y0>y2", "y0>y1 y0>y2"),
        (scored(None, None, None, None, labels="-++-"), "y1>y0", "y1>y0 y1>y3",
         "y1>y0 y1>y3 y2>y0 y2>y3"),
        (scored(1, 9, None, labels="++-"), "y0>y2", "y0>y2", "y0>y2 y1>y2"),
        (scored(None, None), "", "", ""),
    ],
)  # fmt: skip
def test_which_pairs(group: Group, best_worst: str, best_vs_rest: str, every: str) -> None:
    """By scores, by labels, by both, where labels win; ties go by the order of the data."""
    assert named(group, "best_worst") == best_worst.split()
    assert named(group, "best_vs_rest") == best_vs_rest.split()
    assert named(group, "all") == every.split()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=2, max_size=5),
    st.booleans(),
    st.sampled_from(choices(DeterministicPairing)),
)
def test_the_pairs_are_those_that_training_uses(judged: Any, labelled: bool, pairing: str) -> None:
    """The same as `maths.contrasts.pairs`, which works on tensors."""
    scores, labels = zip(*judged, strict=True)
    group = scored(*scores, labels="".join("-+"[label] for label in labels) if labelled else "")
    chosen = torch.tensor([labels]) if labelled else None
    mask = torch.ones(1, len(scores), dtype=torch.bool)
    sides = contrasts.choose_sides(mask, torch.tensor([scores]).double(), chosen)
    matrix = contrasts.pairs(sides, pairing)[0]
    assert named(group, pairing) == [f"y{a}>y{b}" for a, b in matrix.nonzero().tolist()]


def groups() -> list[Group]:
    """Groups with every kind of field, more than a batch of a table, none tied."""
    rng = random.Random(0)
    return [
        scored(
            *rng.sample(range(10), 2 + number % 3),
            prompt=(*(PROMPT[:-1] if number % 2 else ()), Message("user", f"Q {number}")),
        )
        for number in range(BATCH_ROWS + 10)
    ]


def convert(source: list[Group], target: Path, form: str) -> list[dict[str, Any]]:
    """Write the best and the worst of each group; what stands in the file, if it is JSON lines."""
    with writing(target, FORMS[form].columns) as put:
        for group in source:
            for row in FORMS[form].rows(group, "best_worst"):
                put(row)
    text = target.read_text() if target.suffix == ".jsonl" else ""
    return [json.loads(line) for line in text.splitlines()]


@SUFFIXES
@pytest.mark.parametrize("form", FORMS)
def test_our_own_adapters_read_every_form_back(form: str, suffix: str, tmp_path: Path) -> None:
    """Prompts, texts, scores and splits come back exactly; canonical groups whole."""
    target = tmp_path / f"x{suffix}"
    responses = (Response("a", 1.5, True, "m"), Response("b", -0.25, False, None))
    named = Group(user_prompt("Q"), responses, "id 7", "test")
    source = [named, *groups()] if form == "canonical" else groups()
    convert(source, target, form)
    read = load_groups(target)
    assert read.adapter == FORMS[form].adapter
    if form == "canonical":
        assert read.groups == source
        return
    for original, group in zip(source, read.groups, strict=True):
        better, worse = max(original.responses, key=score), min(original.responses, key=score)
        labelled = (replace(better, chosen=True), replace(worse, chosen=False))
        assert group == Group(original.prompt, labelled, split="train")


def test_trl_accepts_the_rows(tmp_path: Path) -> None:
    """TRL's published conversational form: three lists of messages, the answers of one each."""
    rows = convert(groups()[:4], tmp_path / "x.jsonl", "trl")
    for row in rows:
        assert row["prompt"][-1]["role"] == "user"
        for column in ("chosen", "rejected"):
            assert [turn["role"] for turn in row[column]] == ["assistant"]
    trl = pytest.importorskip("trl.data_utils")
    assert all(trl.is_conversational(row) for row in rows)


def test_llama_factory_reads_roles_in_turn(tmp_path: Path) -> None:
    """Its converter drops rows whose turns are not human, gpt, human …, or that end with gpt."""
    for row in convert(groups()[:4], tmp_path / "x.jsonl", "llama-factory"):
        names = [turn["from"] for turn in row["conversations"]]
        assert names == list(itertools.islice(itertools.cycle(["human", "gpt"]), len(names)))
        assert names[-1] == "human"
        assert row["chosen"]["from"] == row["rejected"]["from"] == "gpt"


def test_openrlhf_finds_the_prompt_before_the_last_message(tmp_path: Path) -> None:
    """Its DPO data set takes all messages but the last of `chosen` as the prompt."""
    source = groups()[:4]
    rows = convert(source, tmp_path / "x.jsonl", "openrlhf")
    for row, group in zip(rows, source, strict=True):
        prompt = [turn.as_dict() for turn in group.prompt]
        assert row["chosen"][:-1] == row["rejected"][:-1] == prompt


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.csv", "cannot write .csv files"),
        ("x", "cannot write a file without a suffix"),
        ("none/x.jsonl", "there is no folder"),
        ("there.jsonl", "is there already"),
        ("folder.jsonl", "is a folder"),
    ],
)
def test_where_nothing_can_be_written(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "there.jsonl").write_text("precious")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(UsageError, match=message), writing(tmp_path / name, {}):
        pytest.fail("began to write")
    assert (tmp_path / "there.jsonl").read_text() == "precious"


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="no file system that refuses")
@SUFFIXES
def test_a_folder_that_refuses_is_told(suffix, tmp_path, mrpo):
    """As a user meets it: one line and exit code 4; nobody, not even root, makes files in /sys."""
    source = write_lines(tmp_path / "in.jsonl", [scored(1, 2).as_dict()])
    error = mrpo(f"data convert {source} /sys/kernel/x{suffix}", 4).err
    assert f"error: cannot write to /sys/kernel/x{suffix}: " in error


@SUFFIXES
def test_a_full_disk_is_told_and_nothing_is_left(suffix, tmp_path):
    """A limit on the size of files stands for the disk: the system refuses in the same way."""
    write_lines(tmp_path / "in.jsonl", [scored(1, 2).as_dict()])
    printed = run_script(
        f"""
        import contextlib, io, resource
        from mrpo_tools.cli import run
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            print(run(["data", "convert", "in.jsonl", "x{suffix}"]))
        print(errors.getvalue())
        """,
        tmp_path,
    )
    assert printed[0] == "4"
    assert "no space left" in printed[1]
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@SUFFIXES
def test_an_error_leaves_nothing_behind(suffix: str, tmp_path: Path) -> None:
    target = tmp_path / f"x{suffix}"
    target.write_text("old")

    def fail() -> None:
        with writing(target, {"a": "string"}, overwrite=True) as put:
            put({"a": "new"})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    assert target.read_text() == "old"


def test_long_rows_are_written_a_few_at_a_time(tmp_path: Path) -> None:
    """A table is flushed by its text too: four rows of half the limit are two tables."""
    with writing(tmp_path / "x.parquet", {"text": "string"}) as put:
        for _ in range(4):
            put({"text": "x" * (BATCH_CHARACTERS // 2)})
    assert pq.ParquetFile(tmp_path / "x.parquet").num_row_groups == 2
