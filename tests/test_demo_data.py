"""The demo's data and models: the rule by hand, the committed file, the three tiny families."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mrpo_tools.demo import tasks, tiny_models
from mrpo_tools.demo.skills import FORMS, SKILLS

DATA = Path(__file__).parents[1] / "data" / "demo.jsonl"
GROUPS = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
TEST = [group for group in GROUPS if group["split"] == "test"]


def system(text: str, question: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": text}, {"role": "user", "content": question}]


def messages(group: dict) -> str:
    return json.dumps(tasks.as_messages(group["prompt"]))


def solve(group: dict) -> str:
    """The solution by other means than the tables: from the numbers or letters in the prompt."""
    text, skill = tasks.as_messages(group["prompt"])[-1]["content"], group["id"].split("-")[1]
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    letters = max(re.findall(r"\b[a-z](?: [a-z]\b)*", text), key=len, default="").split()
    return {
        "sum": lambda: str(sum(numbers)),
        "sequence": lambda: str(numbers[2] + numbers[1] - numbers[0]),
        "count": lambda: str(Counter(letters)["x"]),
        "reverse": lambda: " ".join(reversed(letters)),
        "sort": lambda: " ".join(sorted(letters)),
    }[skill]()


SENTENCE = system("Answer in a full sentence.", "4 6 8 and then?")
CAPITALS = system("Answer in capital letters.", "Not hot but?")
RULE: list[tuple[tasks.Prompt, dict[str, float]]] = [
    ("What is 3 + 4?", {"7": 10, " 7\n": 10, "The answer is 7.": 7, "Not 9, it is 7": 7,
                        "8": 3, "9": 3, "10": 1, "": 1}),
    (system("You are terse.", "Add 3 and 4."), {"7": 10}),
    ("2 + 9 = ? Answer in a full sentence.", {"The answer is 11.": 10}),
    (SENTENCE, {"The answer is 10.": 10, "10": 7}),
    ("Count the letter x in x o x x.", {"3": 10}),
    ("Write a d b backwards.", {"b d a": 10, "b a d": 3, "b a f": 1}),
    ("Write a d b backwards. Use capital letters.", {"B D A": 10, "b d a": 7}),
    ("Sort the letters d a b.", {"Sure! It is a b d.": 7}),
    ("Not hot but?", {"cold": 10, "cool": 3, "warm": 1}),
    (CAPITALS, {"COLD": 10, "Cold": 7}),
]  # fmt: skip


@pytest.mark.parametrize(("prompt", "marks"), RULE)
def test_the_rule_by_hand(prompt: tasks.Prompt, marks: dict[str, float]) -> None:
    for answer, expected in marks.items():
        assert tasks.score(prompt, answer) == expected, answer
        assert tasks.is_right(prompt, answer) == (expected == 10), answer


def test_no_task_and_more_groups_than_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="not a question"):
        tasks.score("Who are you?", "A model.")
    with pytest.raises(ValueError, match="not a prompt"):
        tasks.score(system("Be kind.", "What is 3 + 4?"), "7")
    with pytest.raises(ValueError, match="at most"):
        tasks.make_groups(train=100_000)


def test_every_phrasing_in_every_form_reads_back() -> None:
    rng = random.Random(0)
    for name, skill in SKILLS.items():
        for phrasing in skill.phrasings:
            for instruction, ending, form in FORMS:
                operands = skill.draw(rng)
                text = phrasing.format(*operands) + ending
                prompt = text if instruction is None else system(instruction, text)
                assert tasks.read(prompt) == tasks.Question(name, operands, form)


def test_the_committed_file_is_what_the_generator_writes(tmp_path: Path) -> None:
    tasks.main(str(tmp_path / "demo.jsonl"))
    assert (tmp_path / "demo.jsonl").read_bytes() == DATA.read_bytes()
    assert DATA.stat().st_size < 1_000_000


def test_sizes_and_splits() -> None:
    assert Counter(group["split"] for group in GROUPS) == {"train": 600, "test": 200}
    assert len({messages(group) for group in GROUPS}) == len(GROUPS)
    assert len({group["id"] for group in GROUPS}) == len(GROUPS)
    assert len({group["id"].split("-")[1] for group in TEST}) == len(SKILLS)


def test_four_distinct_responses_scored_by_the_rule() -> None:
    for group in GROUPS:
        assert len({answer["content"] for answer in group["responses"]}) == 4
        for answer in group["responses"]:
            assert tasks.score(group["prompt"], answer["content"]) == answer["score"]
        scores = sorted(answer["score"] for answer in group["responses"])
        assert scores in ([1, 3, 7, 10], [1, 3, 3, 10], [1, 1, 3, 10])


def test_the_best_response_states_an_independent_solution() -> None:
    checked = 0
    for group in GROUPS:
        if "opposite" not in group["id"]:
            best = max(group["responses"], key=lambda answer: answer["score"])["content"]
            solution = solve(group)
            assert best in (solution, solution.upper(), f"The answer is {solution}.")
            checked += 1
    assert checked == 667  # 6 skills take turns: 500 of 600, and 167 of 200


def test_length_says_nothing() -> None:
    """Also an independent count: longer against shorter, ties of length half a point each."""
    wins = total = 0.0
    for group in GROUPS:
        ranked = sorted((answer["score"], len(answer["content"])) for answer in group["responses"])
        for (low, short), (high, long) in itertools.combinations(ranked, 2):
            if low < high:
                wins += (long > short) + 0.5 * (long == short)
                total += 1
    assert 0.4 <= wins / total <= 0.6
    assert tasks.longer_preferred(GROUPS) == pytest.approx(wins / total, abs=1e-12)


def test_training_texts_meet_no_test_prompt() -> None:
    held_out = {messages(group) for group in TEST}
    rng = random.Random(0)
    for plan in tiny_models.PLANS.values():
        for _ in range(1000):
            prompt = [turn.as_dict() for turn in tiny_models._draw_group(rng, plan).prompt]
            assert json.dumps(prompt) not in held_out


@pytest.fixture(scope="module")
def short_models(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Path]]:
    """The three models after eight steps, made twice."""
    make = tiny_models.make_models
    return [make(tmp_path_factory.mktemp("tiny"), seed=3, steps=8) for _ in range(2)]


@pytest.fixture(scope="module")
def tokenizers(short_models: list[dict[str, Path]]) -> dict[str, Any]:
    from transformers import AutoTokenizer

    return {name: AutoTokenizer.from_pretrained(path) for name, path in short_models[0].items()}


def test_tiny_models_are_three_families(short_models, tokenizers) -> None:
    from transformers import AutoModelForCausalLM

    families = {"llama": "Llama", "mistral": "Mistral", "qwen": "Qwen2"}
    for name, path in short_models[0].items():
        model = AutoModelForCausalLM.from_pretrained(path)
        assert type(model).__name__ == f"{families[name]}ForCausalLM"
    assert list(tokenizers) == list(families)
    assert len({len(tokenizer) for tokenizer in tokenizers.values()}) == 3
    assert [tokenizer.bos_token for tokenizer in tokenizers.values()] == ["<s>", "<s>", None]
    prompt = system("You are terse.", "Not hot but?")
    with pytest.raises(Exception, match="Only user and assistant"):
        tokenizers["mistral"].apply_chat_template(prompt, tokenize=False)
    for name in ("llama", "qwen"):
        assert "terse" in tokenizers[name].apply_chat_template(prompt, tokenize=False)


@pytest.mark.parametrize("text", ["The answer is 12.", "B D A", "cold, I think."])
def test_tiny_tokenizers_round_trip(tokenizers, text: str) -> None:
    for tokenizer in tokenizers.values():
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids


def test_the_same_seed_gives_the_same_bytes(short_models: list[dict[str, Path]]) -> None:
    first, second = short_models
    for name in first:
        for file in first[name].iterdir():
            assert file.read_bytes() == (second[name] / file.name).read_bytes(), file.name
