"""Benchmarks' questions and the answers in their forms; RewardBench's subsets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mrpo_tools.errors import DataError
from mrpo_tools.groups import Response
from mrpo_tools.sampling.questions import answer, read_questions, rows_of
from mrpo_tools.sources import load_groups

ALPACA = [
    {"dataset": "helpful_base", "instruction": "Name a prime.", "output": "7", "generator": "old"},
    {"dataset": "koala", "instruction": "Count to 3.", "output": "1", "generator": "old"},
]
ARENA = [
    {"uid": "ab12", "category": "hard_prompt", "subcategory": "coding", "prompt": "Sort a list."},
    {"uid": "cd34", "category": "creative_writing", "subcategory": "c", "prompt": "A haiku."},
]
MT = [
    {"question_id": 81, "category": "writing", "turns": ["Write a post.", "Shorten it."]},
    {"question_id": 82, "category": "math", "turns": ["1+1?", "Times 3?"], "reference": ["2", "6"]},
    {"question_id": 83, "category": "one", "turns": ["Only once."]},
]


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def told(groups):
    """Answers that say what was asked; equal prompts come back once, in another order."""
    unique = {group.prompt_id: group for group in groups}
    return [
        type(group)(group.prompt, (Response(" / ".join(turn.content for turn in group.prompt)),))
        for group in reversed(unique.values())
    ]


def test_the_second_turn_follows_the_first_answer(tmp_path):
    questions = read_questions(lines(tmp_path / "question.jsonl", MT), "mt_bench")
    rows = list(rows_of(answer(questions, told), "mt_bench", "mine"))
    first, second = rows[0]["choices"][0]["turns"]
    assert first == "Write a post."
    assert second == "Write a post. / Write a post. / Shorten it."
    assert rows[2]["choices"] == [{"index": 0, "turns": ["Only once."]}]
    assert [row["question_id"] for row in rows] == [81, 82, 83]
    assert {row["model_id"] for row in rows} == {"mine"}
    assert len({row["answer_id"] for row in rows}) == 3
    assert set(rows[0]) == {"question_id", "answer_id", "model_id", "choices", "tstamp"}


def test_alpaca_eval_s_and_arena_hard_s_rows(tmp_path):
    """The published fields; what our own adapters read back, with another's as a group."""
    questions = read_questions(lines(tmp_path / "alpaca.jsonl", ALPACA), "alpaca_eval")
    mine = list(rows_of(answer(questions, told), "alpaca_eval", "mine"))
    assert mine[0] == {"dataset": "helpful_base", "instruction": "Name a prime.",
                       "output": "Name a prime.", "generator": "mine"}  # fmt: skip
    both = load_groups(lines(tmp_path / "both.jsonl", ALPACA + mine))
    assert both.adapter == "alpaca-eval"
    assert [(r.content, r.model) for r in both.groups[1].responses] == [
        ("1", "old"), ("Count to 3.", "mine"),
    ]  # fmt: skip
    questions = read_questions(lines(tmp_path / "arena.jsonl", ARENA), "arena_hard")
    answered = answer(questions, told)
    mine = list(rows_of(answered, "arena_hard", "mine"))
    assert mine[1]["messages"] == [
        {"role": "user", "content": "A haiku."},
        {"role": "assistant", "content": {"answer": "A haiku."}},
    ]
    assert (mine[1]["uid"], mine[1]["model"]) == ("cd34", "mine")


def test_other_rows_are_no_questions(tmp_path):
    with pytest.raises(DataError, match=r"which have question_id, turns") as caught:
        read_questions(lines(tmp_path / "a.jsonl", ARENA), "mt_bench")
    assert "row 2: turns: missing" in str(caught.value)
    assert len(read_questions(tmp_path / "a.jsonl", "arena_hard", limit=1)) == 1


def test_the_command(here, tiny_models, mrpo):
    """Two turns of a model here, AlpacaEval's list, and what cannot be meant."""
    lines(Path("question.jsonl"), MT[:2])
    line = f"generate {tiny_models['llama']} --max-new-tokens 4"
    printed = mrpo(f"{line} --answers-form mt_bench --dataset question.jsonl -o mine.jsonl")
    assert "4 answers to 2 questions of mt_bench in mine.jsonl" in printed.out
    rows = [json.loads(row) for row in Path("mine.jsonl").read_text().splitlines()]
    assert [len(row["choices"][0]["turns"]) for row in rows] == [2, 2]
    kept = [json.loads(row) for file in Path("mine.jsonl.answers").rglob("*.jsonl")
            for row in file.read_text().splitlines()]  # fmt: skip
    assert len(kept) == 4
    Path("alpaca.json").write_text(json.dumps(ALPACA))
    alpaca = f"{line} --answers-form alpaca_eval --dataset alpaca.json"
    mrpo(f"{alpaca} -o mine.json --limit 1")
    assert [row["generator"] for row in json.loads(Path("mine.json").read_text())] == [
        str(tiny_models["llama"])
    ]
    assert "a JSON list" in mrpo(f"{alpaca} -o mine.jsonl", 2).err
    assert "one answer to a question" in mrpo(f"{alpaca} --n 2 --temperature 1", 2).err
    assert "--dataset FILE" in mrpo(f"{line} --answers-form mt_bench", 2).err


BENCH = [
    {"id": str(n), "prompt": f"Question {n}?", "chosen": [f"good {n}"],
     "rejected": [f"bad {n} {k}" for k in range(3)], "num_correct": 1, "num_rejected": 3,
     "total_completions": 4, "models": ["m"] * 4, "subset": ("Factuality", "Math", "Focus")[n % 3]}
    for n in range(12)
]  # fmt: skip


def test_reward_bench_keeps_its_subsets(tmp_path):
    source = load_groups(lines(tmp_path / "bench.jsonl", BENCH))
    assert source.adapter == "sets"
    assert [group.source_id for group in source.groups[:3]] == ["Factuality/0", "Math/1", "Focus/2"]
    assert [r.chosen for r in source.groups[0].responses] == [True, False, False, False]
    assert "subset" not in source.unused
