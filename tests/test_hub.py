"""Data sets of the `datasets` library: of the hub, by id or by name, and saved in folders."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_data import numbered, pairs, prompts, write_lines
from test_adapters import PUBLISHED, SAMPLES

from mrpo_tools.cli import run
from mrpo_tools.cli.options import read_groups
from mrpo_tools.config import Dataset, pinned
from mrpo_tools.errors import UsageError
from mrpo_tools.sources import KNOWN, load_groups
from mrpo_tools.sources.readers.hub import recorded_revisions, revisions_file

datasets = pytest.importorskip("datasets")
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


def splits_of(source: Any) -> Counter[str]:
    return Counter(group.split for group in source.groups)


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
    ("name", "train", "test"),
    [("comparison-gpt4", 364, 3276), ("neural-dpo", 502, 502), ("distilabel-math", 2178, 242)],
)
def test_the_papers_splits_come_out_exactly(name: str, train: int, test: int, hub: Any) -> None:
    """S1, S2 and S3 of MRPO (its Table 6), by prompt, the same whatever the order of the rows."""
    rows = numbered(train + test)
    hub(serving(rows))
    source = load_groups(name)
    assert splits_of(source) == {"train": train, "test": test}
    assert source.counts["lacking_in_train"] == 0
    hub(serving(rows[::-1]))
    again = set(prompts(load_groups(name, split="train")))
    assert again == {g.prompt[0].content for g in source.groups if g.split == "train"}
    assert set(prompts(load_groups(name, split="train", seed=1))) != again


def test_a_papers_split_of_repeated_prompts(hub: Any) -> None:
    """All groups of a prompt stay together: exact where that can be, else counted."""
    once = pairs(*(f"Q{number}" for number in range(600)))
    thrice = [row | {"rejected": f"{n}"} for row in numbered(200) for n in range(3)]
    hub(serving(once + thrice))
    source = load_groups("neural-dpo")
    assert splits_of(source) == {"train": 502, "test": 698}
    assert source.counts["lacking_in_train"] == 0
    train, test = (
        {group.prompt_id for group in source.groups if group.split == split}
        for split in ("train", "test")
    )
    assert not train & test
    hub(serving(thrice))
    source = load_groups("neural-dpo")
    assert splits_of(source) == {"train": 501, "test": 99}
    assert source.counts["lacking_in_train"] == 1


@pytest.mark.parametrize(
    ("count", "options", "expected"),
    [
        (1200, {}, {"train": 502, "test": 698}),
        (100, {}, {"train": 50, "test": 50}),
        (1004, {"test_size": 0.0}, {"train": 1004}),
    ],
    ids=["more rows are tested on", "fewer go by the paper's share", "the user's share"],
)
def test_a_named_data_set_of_another_size_or_share(count, options, expected, hub) -> None:
    hub(serving(numbered(count)))
    assert splits_of(load_groups("neural-dpo", **options)) == expected


def test_nectar_is_split_nine_to_one(hub: Any) -> None:
    rows = [
        {"prompt": f"\n\nHuman: {n}\n\nAssistant: ", "chosen": "a", "rejected": "b"}
        for n in range(4000)
    ]
    hub(serving(rows))
    drawn = splits_of(load_groups("nectar-binarized"))
    assert abs(drawn["test"] - 400) < 5 * (4000 * 0.1 * 0.9) ** 0.5
    assert drawn.total() == 4000


def test_the_commit_is_recorded_when_it_is_first_seen(hub: Any) -> None:
    first, second = "a" * 40, "b" * 40
    asked = hub(serving(pairs("x"), first, first, second))
    assert recorded_revisions() == {}
    assert load_groups("orca-dpo").revision == first
    recorded = recorded_revisions()
    assert list(recorded["Intel/orca_dpo_pairs"]) == [first]
    load_groups("orca-dpo")
    assert recorded_revisions() == recorded, "the time of the first download stays"
    assert load_groups("orca-dpo").revision == second
    assert list(recorded_revisions()["Intel/orca_dpo_pairs"]) == [first, second]
    assert load_groups(f"orca-dpo@{first}").revision == first
    assert asked[-1] == ("Intel/orca_dpo_pairs", None, first)
    revisions_file().write_text("broken")
    assert load_groups("orca-dpo").revision == second
    revisions_file().unlink()
    revisions_file().mkdir()  # cannot be written
    assert load_groups("orca-dpo").revision == second


def test_the_commit_is_shown_and_goes_into_the_record_of_a_run(
    hub: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub(serving([{"question": "Q", "chosen": "a", "rejected": "b"}], "c" * 40))
    assert run(["data", "show", "orca-dpo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["revision"] == "c" * 40
    source = read_groups(Dataset(source="orca-dpo"))
    assert f"orca-dpo at {'c' * 40}: 1 rows" in capsys.readouterr().err
    for word, recorded in (
        ("orca-dpo", f"orca-dpo@{'c' * 40}"),
        ("a/b:c@main", f"a/b:c@{'c' * 40}"),
        (str(tmp_path), str(tmp_path)),
    ):
        assert pinned(Dataset(source=word), source.revision).source == recorded
    assert pinned(Dataset(source="x"), None).source == "x"


def test_a_configuration_of_a_named_data_set_is_asked_for(hub: Any) -> None:
    asked = hub(serving(SAMPLES["helpsteer3"][0][1:2]))
    assert load_groups("helpsteer3@abc").adapter == "helpsteer3"
    assert asked == [("nvidia/HelpSteer3", "preference", "abc")]


def test_a_folder_of_save_to_disk(tmp_path: Path) -> None:
    splits = {"train": pairs("a", "b"), "test": pairs("c")}
    data = datasets.DatasetDict(
        {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}
    )
    data.save_to_disk(tmp_path / "both")
    data["test"].save_to_disk(tmp_path / "one")
    both = load_groups(tmp_path / "both")
    assert prompts(both) == ["a", "b", "c"]
    assert [group.split for group in both.groups] == ["train", "train", "test"]
    assert prompts(load_groups(tmp_path / "one")) == ["c"]
    (tmp_path / "one" / "state.json").write_text("{}")
    with pytest.raises(UsageError, match="cannot be read as a saved data set"):
        load_groups(tmp_path / "one")


def test_a_data_set_of_the_hub(hub: Any, tmp_path: Path) -> None:
    """With a builder of the real library on files, as the hub would give."""
    for split, rows in (("train", pairs("a", "b")), ("test", pairs("c"))):
        write_lines(tmp_path / f"{split}.jsonl", rows)
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "test")}
    real = datasets.load_dataset_builder
    asked = hub(lambda _: real("json", data_files=files, cache_dir=str(tmp_path / "cache")))
    source = load_groups("someone/some_pairs:default@main")
    assert (source.name, source.adapter) == ("some_pairs", "pairs")
    assert source.revision
    assert [group.split for group in source.groups] == ["train", "train", "test"]
    assert load_groups("comparison-gpt4").name == "comparison-gpt4"
    load_groups("orca-dpo@abc123", split="train")
    assert asked == [
        ("someone/some_pairs", "default", "main"),
        (KNOWN["comparison-gpt4"].hub_id, None, None),
        (KNOWN["orca-dpo"].hub_id, None, "abc123"),
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
