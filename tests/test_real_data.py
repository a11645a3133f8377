"""Three real data sets read word for word, and through the whole pipeline with tiny models.

They are looked for in the directory that MRPO_TEST_DATA names, and skipped without it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mrpo_tools.cache import Cache
from mrpo_tools.config import Recipe
from mrpo_tools.evaluation.evaluate import evaluate
from mrpo_tools.groups import split_of
from mrpo_tools.precomputing.precompute import precompute
from mrpo_tools.runs.run import load_run
from mrpo_tools.sources import load_groups
from mrpo_tools.training.train import train

FOLDER = os.environ.get("MRPO_TEST_DATA")
pytestmark = pytest.mark.skipif(not FOLDER, reason="MRPO_TEST_DATA names no directory")
GROUPS = 16
FILES = {
    "comparison_gpt4_pairs.json": (1095, 2, 0, "comparison-gpt4"),
    "chat_pairs_sharegpt.json": (300, 2, 0, "sharegpt"),
    "vicuna_scored4.jsonl": (80, 4, 6, "outputs"),
}
"""Rows, responses of each, tied groups, adapter."""


@pytest.mark.parametrize("file", FILES)
def test_every_row_is_read(file):
    rows, responses, tied, adapter = FILES[file]
    source = load_groups(Path(FOLDER) / file, test_size=0.25)
    assert (source.counts["rows"], len(source.groups), source.adapter) == (rows, rows, adapter)
    assert {len(group.responses) for group in source.groups} == {responses}
    assert source.counts["tied_groups"] == tied
    assert {group.split for group in source.groups} == {"train", "test"}
    assert all(group.split == split_of(group.prompt_id, 0.25) for group in source.groups)


@pytest.mark.parametrize(
    ("file", "loss"), [*((file, "mrpo") for file in FILES), ("vicuna_scored4.jsonl", "mpo")]
)
def test_the_pipeline(file, loss, references, tmp_path):
    """The shortest rows go through three references, training and evaluation."""
    source = load_groups(Path(FOLDER) / file, test_size=0.25)
    groups = sorted(source.groups, key=size)[:GROUPS]
    cache = Cache(tmp_path / "cache")
    summaries = precompute(references, groups, cache, source.name)
    responses = {key for group in groups for key in group.response_ids}
    for summary in summaries:
        assert summary.computed["ok"] == len(responses)
        assert summary.computed["overlong"] == 0
    recipe = Recipe(
        loss=loss, refs=list(references), learning_rate=1e-3, max_steps=4, logging_steps=1
    )
    result = train(recipe, groups, cache, references, tmp_path / "run")
    assert result.metrics.step0_difference_nats_per_token <= 1e-5
    tied = sum(
        len({response.score for response in group.responses}) == 1
        for group in groups
        if group.split == "train" and group.has_scores
    )
    assert sum(result.metrics.skipped_groups.values()) >= tied
    metrics = evaluate(load_run(tmp_path / "run"), groups, cache).record.as_json()
    for name in ("accuracies", "accuracies_step0", "accuracies_reference_1", "accuracies_logp"):
        assert 0 <= metrics[name] <= 1


def size(group) -> int:
    prompt = sum(len(turn.content) for turn in group.prompt)
    return prompt + max(len(response.content) for response in group.responses)


def test_real_conversations_are_read_word_for_word() -> None:
    path = Path(FOLDER) / "chat_pairs_sharegpt.json"
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    rows = json.loads(path.read_text(encoding="utf-8"))
    for row, group in zip(rows, load_groups(path).groups, strict=True):
        assert [turn.as_dict() for turn in group.prompt] == [
            {"role": roles[turn["from"]], "content": turn["value"]} for turn in row["conversations"]
        ]
        answers = [(row["chosen"]["value"], True), (row["rejected"]["value"], False)]
        assert [(r.content, r.chosen) for r in group.responses] == answers
