"""Groups in other tools' forms, and back through our own adapters."""

from __future__ import annotations

import itertools
import json
import os
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import run_script, write_lines

from mrpo_tools.cli import run
from mrpo_tools.errors import ResourceError, UsageError
from mrpo_tools.groups import Group, Message, Response, user_prompt
from mrpo_tools.maths import contrasts
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


def scored(*scores: float, labels: str = "", prompt: tuple[Message, ...] = PROMPT) -> Group:
    """Responses y0, y1, … with these scores and labels (`+` chosen, `-` rejected)."""
    marks = labels or " " * len(scores)
    return Group(
        prompt,
        tuple(
            Response(f" y{number} ", score, {"+": True, "-": False, " ": None}[mark])
            for number, (score, mark) in enumerate(zip(scores, marks, strict=True))
        ),
        split="train",
    )


def named(group: Group, pairing: str) -> list[str]:
    return [f"{a.content.strip()}>{b.content.strip()}" for a, b in pairs_of(group, pairing)]


@pytest.mark.parametrize(
    ("group", "best_worst", "best_vs_rest", "every"),
    [
        (scored(2, 5, 1), "y1>y2", "y1>y0 y1>y2", "y0>y2 y1>y0 y1>y2"),
        (scored(5, 5, 1, 1), "y0>y2", "y0>y2 y0>y3", "y0>y2 y0>y3 y1>y2 y1>y3"),
        (scored(1, 1), "", "", ""),
        (scored(1, 3, 2, labels="+--"), "y0>y2", "y0>y1 y0>y2", "y0>y1 y0>y2"),
        (scored(1, 2, 2, labels="+-+"), "", "", "y0>y1"),
    ],
)
def test_which_pairs(group: Group, best_worst: str, best_vs_rest: str, every: str) -> None:
    assert named(group, "best_worst") == best_worst.split()
    assert named(group, "best_vs_rest") == best_vs_rest.split()
    assert named(group, "all") == every.split()


def test_labels_alone_make_pairs_in_the_order_of_the_data() -> None:
    group = Group(PROMPT, tuple(Response(f"y{n}", None, n in (1, 2)) for n in range(4)))
    assert named(group, "best_worst") == ["y1>y0"]
    assert named(group, "best_vs_rest") == ["y1>y0", "y1>y3"]
    assert named(group, "all") == ["y1>y0", "y1>y3", "y2>y0", "y2>y3"]
    partly = Group(PROMPT, tuple(Response(f"y{n}", s, n < 2) for n, s in enumerate([1, 9, None])))
    assert named(partly, "best_worst") == ["y0>y2"]
    unjudged = Group(PROMPT, (Response("a"), Response("b")))
    assert not any(named(unjudged, pairing) for pairing in choices(DeterministicPairing))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=2, max_size=5).flatmap(
        lambda scores: st.tuples(
            st.just(scores),
            st.none() | st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)),
        )
    ),
    st.sampled_from(choices(DeterministicPairing)),
)
def test_the_pairs_are_those_that_training_uses(judged: Any, pairing: str) -> None:
    """The same as `maths.contrasts.pairs`, which works on tensors."""
    scores, labels = judged
    group = scored(*scores, labels="".join("+-"[not label] for label in labels) if labels else "")
    chosen = torch.tensor([labels]) if labels else None
    mask = torch.ones(1, len(scores), dtype=torch.bool)
    sides = contrasts.choose_sides(mask, torch.tensor([scores]).double(), chosen)
    matrix = contrasts.pairs(sides, pairing)[0]
    assert named(group, pairing) == [f"y{a}>y{b}" for a, b in matrix.nonzero().tolist()]


def groups() -> list[Group]:
    """Groups with every kind of field, more than a batch of a table, none tied."""
    rng = random.Random(0)
    several = []
    for number in range(BATCH_ROWS + 10):
        scores = rng.sample(range(10), 2 + number % 3)
        prompt = PROMPT if number % 2 else user_prompt("alone")
        prompt = (*prompt[:-1], Message("user", f"{prompt[-1].content} {number}"))
        several.append(scored(*scores, prompt=prompt))
    return several


def convert(source: list[Group], target: Path, form: str, pairing: str = "best_worst") -> None:
    with writing(target, FORMS[form].columns) as put:
        for group in source:
            for row in FORMS[form].rows(group, pairing):
                put(row)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("form", FORMS)
def test_our_own_adapters_read_every_form_back(form: str, suffix: str, tmp_path: Path) -> None:
    """Prompts, texts, scores and splits come back exactly; canonical groups whole."""
    target = tmp_path / f"x{suffix}"
    source = groups()
    convert(source, target, form)
    read = load_groups(target)
    assert read.adapter == FORMS[form].adapter
    if form == "canonical":
        assert read.groups == source
        return
    expected = [(group, pair) for group in source for pair in pairs_of(group, "best_worst")]
    assert len(expected) == len(source)
    for (original, pair), group in zip(expected, read.groups, strict=True):
        assert group.prompt == original.prompt
        assert [(r.content, r.score) for r in group.responses] == [
            (r.content, r.score) for r in pair
        ]
        assert [r.chosen for r in group.responses] == [True, False]
        assert group.split == "train"


def test_ids_and_models_survive_the_canonical_form(tmp_path: Path) -> None:
    responses = (Response("a", 1.5, True, "m"), Response("b", -0.25, False, None))
    source = [Group(user_prompt("Q"), responses, "id 7", "test"), scored(1, 2)]
    for name in ("x.jsonl", "x.parquet"):
        convert(source, tmp_path / name, "canonical")
        assert load_groups(tmp_path / name).groups == source


def test_trl_accepts_the_rows(tmp_path: Path) -> None:
    """TRL's published conversational form: three lists of messages, the answers of one each."""
    target = tmp_path / "x.parquet"
    convert(groups()[:4], target, "trl")
    rows = pq.read_table(target).to_pylist()
    for row in rows:
        assert [turn["role"] for turn in row["prompt"]][-1] == "user"
        for column in ("chosen", "rejected"):
            assert [turn["role"] for turn in row[column]] == ["assistant"]
    trl = pytest.importorskip("trl.data_utils")
    assert all(trl.is_conversational(row) for row in rows)


def test_llama_factory_reads_roles_in_turn(tmp_path: Path) -> None:
    """Its converter drops rows whose turns are not human, gpt, human …, or that end with gpt."""
    target = tmp_path / "x.jsonl"
    convert(groups()[:4], target, "llama-factory")
    for row in map(json.loads, target.read_text().splitlines()):
        names = [turn["from"] for turn in row["conversations"]]
        assert names == list(itertools.islice(itertools.cycle(["human", "gpt"]), len(names)))
        assert names[-1] == "human"
        assert row["chosen"]["from"] == row["rejected"]["from"] == "gpt"


def test_openrlhf_finds_the_prompt_before_the_last_message(tmp_path: Path) -> None:
    """Its DPO data set takes all messages but the last of `chosen` as the prompt."""
    target = tmp_path / "x.jsonl"
    source = groups()[:4]
    convert(source, target, "openrlhf")
    for row, group in zip(map(json.loads, target.read_text().splitlines()), source, strict=True):
        assert row["chosen"][:-1] == row["rejected"][:-1]
        assert row["chosen"][:-1] == [turn.as_dict() for turn in group.prompt]


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
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_folder_that_refuses_is_told(suffix, tmp_path, capsys):
    """As a user meets it: one line and exit code 4; nobody, not even root, makes files in /sys."""
    source = write_lines(tmp_path / "in.jsonl", [scored(1, 2).as_dict()])
    assert run(["data", "convert", str(source), f"/sys/kernel/x{suffix}"]) == 4
    assert f"error: cannot write to /sys/kernel/x{suffix}: " in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
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


@pytest.mark.skipif(os.getuid() == 0, reason="nothing is refused to root")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(ResourceError, match="Permission denied"):
        writing(tmp_path / "x.jsonl", {}).__enter__()


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
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
    text = "x" * (BATCH_CHARACTERS // 2)
    with writing(tmp_path / "x.parquet", {"text": "string"}) as put:
        for _ in range(4):
            put({"text": text})
    assert pq.ParquetFile(tmp_path / "x.parquet").num_row_groups == 2
