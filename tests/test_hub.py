"""Data sets of the `datasets` library: of the hub, by id or by name, and saved in folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_data import numbered, pairs, prompts, splits_of, write_lines
from test_adapters import PUBLISHED, SAMPLES

from mrpo_tools.cli.options import read_groups
from mrpo_tools.config import Dataset, pinned
from mrpo_tools.errors import UsageError
from mrpo_tools.sources import KNOWN, load_groups
from mrpo_tools.sources.readers.hub import recorded_revisions, revisions_file

datasets = pytest.importorskip("datasets")
ORCA = "Intel/orca_dpo_pairs"
Asked = tuple[str, str | None, str | None]
"""Hub id, configuration and revision."""
Answer = Callable[[str | None], Any]
"""A revision to a builder of `datasets`."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], list[Asked]]:
    """`hub(answer)` lets the library's builders come from `answer`; what was asked for is listed.

    The library's entry is replaced, as nothing else stands for the network.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    asked: list[Asked] = []

    def serve(answer: Answer) -> list[Asked]:
        def builder(hub_id: str, config: str | None, revision: str | None) -> Any:
            asked.append((hub_id, config, revision))
            return answer(revision)

        monkeypatch.setattr(datasets, "load_dataset_builder", builder)
        return asked

    return serve


def serving(rows: list[Any], *commits: str) -> Answer:
    """These rows as the split `train`, at these commits, one call after another."""
    left = list(commits or ["0" * 40])

    def answer(revision: str | None) -> Any:
        data = datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)})
        return SimpleNamespace(
            download_and_prepare=lambda: None,
            as_dataset=lambda: data,
            hash=revision or (left.pop(0) if len(left) > 1 else left[0]),
        )

    return answer


@pytest.mark.parametrize("name", KNOWN)
def test_a_named_data_set_is_read_by_its_adapter(name: str, hub: Any) -> None:
    """The published columns, under the name's hub id."""
    adapter, place = PUBLISHED[name]
    rows = SAMPLES[adapter][0]
    asked = hub(serving(rows[:2] if adapter == "helpsteer" else [rows[place]]))
    source = load_groups(name)
    assert asked == [(KNOWN[name].hub_id, KNOWN[name].config, None)]
    assert (source.name, source.adapter, source.revision) == (name, adapter, "0" * 40)
    assert len(source.groups) == 1


@pytest.mark.parametrize(
    ("name", "count", "options", "expected"),
    [
        ("comparison-gpt4", 3640, {}, {"train": 364, "test": 3276}),
        ("neural-dpo", 1004, {}, {"train": 502, "test": 502}),
        ("distilabel-math", 2420, {}, {"train": 2178, "test": 242}),
        ("neural-dpo", 1200, {}, {"train": 502, "test": 698}),  # more rows are tested on
        ("neural-dpo", 100, {}, {"train": 50, "test": 50}),  # fewer go by the paper's share
        ("neural-dpo", 1004, {"test_size": 0.0}, {"train": 1004}),  # the user's share
    ],
)
def test_the_papers_splits_come_out_exactly(name, count, options, expected, hub) -> None:
    """S1, S2 and S3 of MRPO (its Table 6)."""
    hub(serving(numbered(count)))
    source = load_groups(name, **options)
    assert splits_of(source) == expected
    assert source.counts["lacking_in_train"] == 0


def test_a_papers_split_is_by_prompt_and_seed_whatever_the_order_of_the_rows(hub: Any) -> None:
    rows = numbered(1004)
    trained = []
    for data, seed in ((rows, 0), (rows[::-1], 0), (rows, 1)):
        hub(serving(data))
        trained.append(set(prompts(load_groups("neural-dpo", split="train", seed=seed))))
    assert trained[0] == trained[1] != trained[2]


def test_a_papers_split_of_repeated_prompts(hub: Any) -> None:
    """All groups of a prompt stay together: exact where that can be, else counted."""
    once = pairs(*(f"Q{number}" for number in range(600)))
    thrice = [row | {"rejected": f"{n}"} for row in numbered(200) for n in range(3)]
    for rows, train, lacking in ((once + thrice, 502, 0), (thrice, 501, 1)):
        hub(serving(rows))
        source = load_groups("neural-dpo")
        assert splits_of(source) == {"train": train, "test": len(rows) - train}
        assert source.counts["lacking_in_train"] == lacking
        placed = {(group.prompt_id, group.split) for group in source.groups}
        assert len(placed) == len({prompt for prompt, _ in placed})


def test_nectar_is_split_nine_to_one(hub: Any) -> None:
    hub(serving(pairs(*(f"\n\nHuman: {n}\n\nAssistant: " for n in range(4000)))))
    drawn = splits_of(load_groups("nectar-binarized"))
    assert abs(drawn["test"] - 400) < 5 * (4000 * 0.1 * 0.9) ** 0.5
    assert drawn.total() == 4000


def test_the_commit_is_recorded_when_it_is_first_seen(hub: Any) -> None:
    first, second = "a" * 40, "b" * 40
    asked = hub(serving(pairs("x"), first, first, second))
    assert recorded_revisions() == {}
    assert load_groups("orca-dpo").revision == first
    assert list(recorded_revisions()[ORCA]) == [first]
    earlier = {ORCA: {first: "2020-01-01T00:00:00+00:00"}}
    revisions_file().write_text(json.dumps(earlier))
    load_groups("orca-dpo")
    assert recorded_revisions() == earlier, "the time of the first download stays"
    assert load_groups("orca-dpo").revision == second
    assert list(recorded_revisions()[ORCA]) == [first, second]
    assert load_groups(f"orca-dpo@{first}").revision == first
    assert asked[-1] == (ORCA, None, first)
    revisions_file().write_text("broken")
    assert load_groups("orca-dpo").revision == second
    revisions_file().unlink()
    revisions_file().mkdir()  # cannot be written
    assert load_groups("orca-dpo").revision == second


def test_the_commit_is_shown_and_goes_into_the_record_of_a_run(hub, tmp_path, mrpo, capsys):
    commit = "c" * 40
    hub(serving([{"question": "Q", "chosen": "a", "rejected": "b"}], commit))
    assert json.loads(mrpo("data show orca-dpo --json").out)["revision"] == commit
    assert read_groups(Dataset(source="orca-dpo")).revision == commit
    assert f"orca-dpo at {commit}: 1 rows" in capsys.readouterr().err
    for word, revision, recorded in (
        ("orca-dpo", commit, f"orca-dpo@{commit}"),
        ("a/b:c@main", commit, f"a/b:c@{commit}"),
        (str(tmp_path), commit, str(tmp_path)),
        ("x", None, "x"),
    ):
        assert pinned(Dataset(source=word), revision).source == recorded


def test_a_folder_of_save_to_disk(tmp_path: Path) -> None:
    train, test = map(datasets.Dataset.from_list, (pairs("a", "b"), pairs("c")))
    datasets.DatasetDict(train=train, test=test).save_to_disk(tmp_path / "both")
    test.save_to_disk(tmp_path / "one")
    both = load_groups(tmp_path / "both")
    assert prompts(both) == ["a", "b", "c"]
    assert [group.split for group in both.groups] == ["train", "train", "test"]
    assert prompts(load_groups(tmp_path / "one")) == ["c"]
    (tmp_path / "one" / "state.json").write_text("{}")
    with pytest.raises(UsageError, match="cannot be read as a saved data set"):
        load_groups(tmp_path / "one")


def test_a_data_set_of_the_hub(hub: Any, tmp_path: Path) -> None:
    """With a builder of the real library on files, as the hub would give."""
    rows = {"train": pairs("a", "b"), "test": pairs("c")}
    files = {name: str(write_lines(tmp_path / f"{name}.jsonl", rows[name])) for name in rows}
    real = datasets.load_dataset_builder
    asked = hub(lambda _: real("json", data_files=files, cache_dir=str(tmp_path / "cache")))
    source = load_groups("someone/some_pairs:default@main")
    assert (source.name, source.adapter) == ("some_pairs", "pairs")
    assert source.revision
    assert [group.split for group in source.groups] == ["train", "train", "test"]
    assert load_groups("comparison-gpt4").name == "comparison-gpt4"
    load_groups("orca-dpo@abc123", split="train")
    load_groups("helpsteer3@abc", adapter="pairs")
    assert asked == [
        ("someone/some_pairs", "default", "main"),
        (KNOWN["comparison-gpt4"].hub_id, None, None),
        (ORCA, None, "abc123"),
        ("nvidia/HelpSteer3", "preference", "abc"),
    ]
    write_lines(tmp_path / "test.jsonl", [{"prompt": "d", "chosen": "", "rejected": "x"}])
    with pytest.raises(UsageError) as error:
        load_groups("someone/some_pairs")
    assert error.value.problems[0].where == "someone/some_pairs[test]:row 1"


def test_a_hub_that_does_not_answer(hub: Any) -> None:
    def answer(_: str | None) -> Any:
        raise ConnectionError("no\nnetwork")

    hub(answer)
    with pytest.raises(UsageError) as error:
        load_groups("someone/pairs")
    assert str(error.value) == (
        "someone/pairs: no such file, and it cannot be loaded from the Hugging Face hub: no network"
    )
