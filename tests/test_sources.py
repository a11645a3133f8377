"""Sources to groups: folders, splits, counts, limits, streams."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from small_data import lines, numbered, pairs, prompts, splits_of, write_lines

from mrpo_tools.errors import UsageError
from mrpo_tools.sources import GroupStream, load_groups


def group(prompt: str, *responses: tuple[Any, ...]) -> dict[str, Any]:
    keys = ("content", "score", "chosen")
    answers = [dict(zip(keys, response, strict=False)) for response in responses]
    return {"prompt": prompt, "responses": answers}


def test_what_is_unusual_is_counted(tmp_path: Path) -> None:
    rows = [
        group("tied", ("a", 1), ("b", 1)),
        group("merged", ("a", 1), ("a", 2), ("b", 3)),
        group("below", ("a", 1, True), ("b", 2, False), ("c", 0, False)),
        group("twice", ("a", 1), ("b", 2)),
        group("twice", ("b", 2), ("a", 1)),
        group("twice", ("a", 2), ("b", 1)),
        group("unjudged", ("a",), ("b",)),
    ]
    source = load_groups(write_lines(tmp_path / "x.jsonl", rows))
    unusual = ("tied_groups", "merged_responses", "chosen_scored_below_rejected",
               "duplicate_groups", "contradicting_groups", "unjudged_groups")  # fmt: skip
    counts = {name: count for name, count in source.counts.items() if count}
    assert counts == {"rows": 7, "groups": 7, **dict.fromkeys(unusual, 1)}
    merged = [(response.content, response.score) for response in source.groups[1].responses]
    assert merged == [("a", 1.5), ("b", 3)]


def test_files_in_a_folder_name_the_splits(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_lines(tmp_path / "test.jsonl", pairs("t", "both"))
    (tmp_path / "train-00000-of-00002.json").write_text(json.dumps(pairs("a", "both")))
    write_lines(tmp_path / "data" / "train-00001-of-00002.jsonl", pairs("b"))
    (tmp_path / "val.jsonl.gz").write_bytes(gzip.compress(lines(pairs("v"))))
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / "README.md").write_text("not data")
    source = load_groups(tmp_path)
    splits = sorted((group.split, group.prompt[0].content) for group in source.groups)
    trained = [("train", prompt) for prompt in ("a", "b", "both", "both")]
    assert splits == [("test", "t"), *trained, ("validation", "v")]
    assert source.counts["prompts_in_two_splits"] == 1
    assert source.name == tmp_path.name
    assert prompts(load_groups(tmp_path, split="test")) == ["t"]


def test_a_rows_own_split_comes_first(tmp_path: Path) -> None:
    rows = [row | {"split": split} for row, split in zip(pairs("a", "b", "c"), "xyx", strict=True)]
    write_lines(tmp_path / "train.jsonl", rows)
    assert [group.split for group in load_groups(tmp_path).groups] == ["x", "y", "x"]
    assert prompts(load_groups(tmp_path, split="x")) == ["a", "c"]
    assert prompts(load_groups(tmp_path, split="all")) == ["a", "b", "c"]


def test_prompts_without_a_split_are_drawn_by_their_id(tmp_path: Path) -> None:
    """A tenth goes to test, whatever the order, and all groups of a prompt go together."""
    rows = numbered(2000) + [row | {"rejected": "?"} for row in numbered(2000)]
    write_lines(tmp_path / "x.jsonl", rows)
    write_lines(tmp_path / "y.jsonl", rows[::-1])
    assert splits_of(load_groups(tmp_path / "x.jsonl")) == {"train": 4000}

    def drawn(name: str, seed: int) -> set[str]:
        return set(prompts(load_groups(tmp_path / name, split="test", test_size=0.1, seed=seed)))

    test = drawn("x.jsonl", 0)
    assert 140 < len(test) < 260, "within 4.5 standard deviations (13.4) of 200"
    assert drawn("y.jsonl", 0) == test
    assert drawn("x.jsonl", 1) != test
    train = load_groups(tmp_path / "x.jsonl", split="train", test_size=0.1)
    assert not test & set(prompts(train))
    assert len(train.groups) + 2 * len(test) == 4000


def test_data_that_is_all_train_can_be_split(tmp_path: Path) -> None:
    """One folder of `train` files alone; with a `test` beside it the names are what counts."""
    write_lines(tmp_path / "train.jsonl", numbered(50))
    assert splits_of(load_groups(tmp_path)) == {"train": 50}
    assert set(splits_of(load_groups(tmp_path, test_size=0.5))) == {"train", "test"}
    write_lines(tmp_path / "test.jsonl", pairs("t"))
    assert splits_of(load_groups(tmp_path, test_size=0.5)) == {"train": 50, "test": 1}


def test_rows_that_say_train_are_drawn_from_when_asked(tmp_path: Path) -> None:
    """What `convert` wrote says `train` in every row: --test-size holds some out all the same, and
    rows of another split stay there."""
    rows = [row | {"split": "test" if n < 3 else "train"} for n, row in enumerate(numbered(60))]
    path = write_lines(tmp_path / "data.jsonl", rows)
    assert splits_of(load_groups(path)) == {"train": 57, "test": 3}
    drawn = load_groups(path, test_size=0.3)
    assert {"0", "1", "2"} <= {g.prompt[0].content for g in drawn.groups if g.split == "test"}
    assert 8 < splits_of(drawn)["test"] < 35


def test_what_is_held_out_for_validation_comes_from_train_alone(tmp_path: Path) -> None:
    """The prompts of `test` are those without it; a fifth of the rest moves, by prompt and seed."""
    path = write_lines(tmp_path / "x.jsonl", numbered(1000) + numbered(1000))
    plain = load_groups(path, test_size=0.2)
    drawn = load_groups(path, test_size=0.2, validation_size=0.2)
    by_split = {
        split: {group.prompt_id for group in drawn.groups if group.split == split}
        for split in ("train", "validation", "test")
    }
    assert by_split["test"] == {g.prompt_id for g in plain.groups if g.split == "test"}
    trained = {g.prompt_id for g in plain.groups if g.split == "train"}
    assert by_split["train"] | by_split["validation"] == trained
    assert not by_split["train"] & by_split["validation"]
    share = len(by_split["validation"]) / len(trained)
    assert 0.14 < share < 0.26, "within 4.5 standard deviations (0.0141) of 0.2"
    other = load_groups(path, test_size=0.2, validation_size=0.2, seed=1, split="validation")
    assert {group.prompt_id for group in other.groups} != by_split["validation"]


def test_a_split_that_the_data_names_gives_validation_too(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", numbered(200))
    write_lines(tmp_path / "test.jsonl", pairs("t", "u"))
    splits = splits_of(load_groups(tmp_path, validation_size=0.5))
    assert splits["test"] == 2
    assert splits["train"] + splits["validation"] == 200
    assert 68 < splits["validation"] < 132, "within 4.5 standard deviations (7.1) of 100"


def test_a_limit_holds_in_each_split(tmp_path: Path) -> None:
    """The first so many of each, whether the data names the splits or they are drawn."""
    names = ["train", "train", "test", "train", "test", "test", "dev"]
    rows = [row | {"split": s} for row, s in zip(numbered(7), names, strict=True)]
    named = load_groups(write_lines(tmp_path / "named.jsonl", rows), limit=2)
    found = [(group.split, group.prompt[0].content) for group in named.groups]
    assert found == [("train", "0"), ("train", "1"), ("test", "2"), ("test", "4"),
                     ("validation", "6")]  # fmt: skip
    assert named.counts["groups"] == 5
    plain = write_lines(tmp_path / "plain.jsonl", numbered(300))
    whole = load_groups(plain, test_size=0.3, validation_size=0.3)
    first = load_groups(plain, test_size=0.3, validation_size=0.3, limit=5)
    for split in ("train", "validation", "test"):
        of_split = [group for group in first.groups if group.split == split]
        assert of_split == [group for group in whole.groups if group.split == split][:5]
    only = load_groups(plain, test_size=0.3, validation_size=0.3, limit=5, split="test")
    assert only.groups == [group for group in first.groups if group.split == "test"]


def test_prompts_of_another_split_are_found_whatever_their_spelling(tmp_path: Path) -> None:
    """`A b` of train is ` a  B` of test but for white space and case; `c` twice is one prompt."""
    prompts_and_splits = [("A b", "train"), (" a  B", "test"), ("a B", "train"), ("c", "train"),
                          ("c", "test"), ("d", "test")]  # fmt: skip
    rows = [pairs(prompt)[0] | {"split": split} for prompt, split in prompts_and_splits]
    counts = load_groups(write_lines(tmp_path / "x.jsonl", rows)).counts
    assert counts["similar_prompts"] == 2
    assert counts["similar_prompts_in_two_splits"] == 1
    assert counts["prompts_in_two_splits"] == 1


def test_scores_beside_labels_are_counted(tmp_path: Path) -> None:
    """Tied, against the label, on one side only, and as they should be."""
    scores = [(1, 1), (1, 2), (None, 3), (4, None), (5, 4), (None, None)]
    rows = [
        row | {"score_chosen": better, "score_rejected": worse}
        for row, (better, worse) in zip(numbered(6), scores, strict=True)
    ]
    source = load_groups(write_lines(tmp_path / "x.jsonl", rows))
    names = ("chosen_tied_with_rejected", "chosen_scored_below_rejected", "one_sided_scores")
    assert [source.counts[name] for name in names] == [1, 1, 2]
    assert [group.has_scores for group in source.groups] == [True, True, False, False, True, False]


def test_limit_stops_reading(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(lines(numbered(200)) + b"not read\n")
    source = load_groups(tmp_path / "x.jsonl", limit=3)
    assert prompts(source) == ["0", "1", "2"]
    assert source.counts["groups"] == 3


def test_a_stream_yields_before_the_end_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(lines(numbered(100)) + b"oops\n")
    stream = GroupStream(tmp_path / "x.jsonl")
    assert (stream.name, stream.adapter.name) == ("x", "pairs")
    groups = iter(stream)
    assert next(groups).prompt[0].content == "0"
    assert not stream.problems
    with pytest.raises(UsageError):
        list(groups)
    assert len(stream.problems) == 1


def test_a_map_repeats_and_takes_commas(here, mrpo):
    Path("data.JSONL").write_text('{"q": "x", "best": "a", "worst": "b"}\n')
    assert "--map prompt=q,chosen=BETTER," in mrpo("data validate data.JSONL", 2).err
    mrpo("data validate data.JSONL --map prompt=q --map chosen=best --map rejected=worst")
    mrpo("data validate data.JSONL --map prompt=q,chosen=best --map rejected=worst")
