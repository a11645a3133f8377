"""The demo's data and models: the rule by hand, the committed file, the three tiny families."""

from __future__ import annotations

import itertools
import json
import random
import string
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
    """The solution by other means than the tables: from the letters at the end of the prompt."""
    text, skill = tasks.as_messages(group["prompt"])[-1]["content"], group["id"].split("-")[1]
    letters = text.rpartition(": ")[2].split()
    alphabet = string.ascii_lowercase
    return {
        "count": lambda: str(Counter(letters)["x"]),
        "reverse": lambda: " ".join(reversed(letters)),
        "rotate": lambda: " ".join(letters[(place + 1) % 3] for place in range(3)),
        "next": lambda: " ".join(alphabet[alphabet.index(letter) + 1] for letter in letters),
        "sort": lambda: min(" ".join(order) for order in itertools.permutations(letters)),
    }[skill]()


SENTENCE = system("Answer in a full sentence.", "Count x: x o x x o")
CAPITALS = system("Answer in capital letters.", "Sort: d b c")
RULE: list[tuple[tasks.Prompt, dict[str, tuple[float, float]]]] = [
    ("Count x: x o x x o", {"3": (1, 1), " 3\n": (1, 1), "The answer is 3.": (1, 0), "4": (0, 1),
                            "Not 4, it is 3": (1, 0), "": (0, 0), "x": (0, 0), "Tea.": (0, 0)}),
    (SENTENCE, {"The answer is 3.": (1, 1), "3": (1, 0), "The answer is 2.": (0, 1)}),
    (system("You are a helpful assistant.", "In a full sentence. Reverse: d a b"),
     {"The answer is b a d.": (1, 1), "The answer is b a d": (1, 0), "b a d": (1, 0)}),
    ("Reverse: d e b", {"b e d": (1, 1), "d e b": (1 / 3, 1), "It is d e b.": (1 / 3, 0),
                        "b e d e": (0, 1), "b e": (0, 1), "B E D": (1, 0), "e b d": (1 / 3, 1)}),
    ("In capital letters. Rotate: d e b", {"E B D": (1, 1), "e b d": (1, 0), "D E B": (0, 1)}),
    (CAPITALS, {"B C D": (1, 1), "Sure! It is b c d.": (1, 0), "I think b c d": (1, 0)}),
    ("Shift by one: b i c", {"c j d": (1, 1), "c j e": (2 / 3, 1)}),
]  # fmt: skip


@pytest.mark.parametrize(("prompt", "marks"), RULE)
def test_the_rule_by_hand(prompt: tasks.Prompt, marks: dict[str, tuple[float, float]]) -> None:
    for answer, (content, form) in marks.items():
        assert tasks.content(prompt, answer) == pytest.approx(content), answer
        assert tasks.form(prompt, answer) == form, answer
        assert tasks.score(prompt, answer) == pytest.approx(1 + 6 * content + 3 * form), answer
        assert tasks.score(prompt, answer) <= tasks.score.full_marks == 10


def test_no_task_and_more_groups_than_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="not a question"):
        tasks.score("Who are you?", "A model.")
    with pytest.raises(ValueError, match="not a prompt"):
        tasks.score(system("Be kind.", "Sort: d b c"), "b c d")
    with pytest.raises(ValueError, match="at most"):
        tasks.make_groups(train=100_000)


def test_every_phrasing_in_every_form_reads_back() -> None:
    rng = random.Random(0)
    for name, skill in SKILLS.items():
        for phrasing in skill.phrasings:
            for instruction, beginning, form in FORMS:
                operand = skill.draw(rng)
                text = beginning + phrasing.format(operand)
                prompt = text if instruction is None else system(instruction, text)
                assert tasks.read(prompt) == tasks.Question(name, operand, form)


def test_the_committed_file_is_what_the_generator_writes(tmp_path: Path) -> None:
    tasks.main(str(tmp_path / "demo.jsonl"))
    assert (tmp_path / "demo.jsonl").read_bytes() == DATA.read_bytes()
    assert DATA.stat().st_size < 1_000_000


def test_sizes_and_splits() -> None:
    assert Counter(group["split"] for group in GROUPS) == {"train": 600, "test": 200}
    assert len({messages(group) for group in GROUPS}) == len(GROUPS)
    assert len({group["id"] for group in GROUPS}) == len(GROUPS)
    assert len({group["id"].split("-")[1] for group in TEST}) == len(SKILLS)


def test_no_operand_is_on_both_sides() -> None:
    """Letters that a prompt of the test split ends with occur in no training prompt, whatever the
    skill; those that the models learn from included."""
    held_out = {operand_of(group["prompt"]) for group in TEST}
    train = {operand_of(group["prompt"]) for group in GROUPS if group["split"] == "train"}
    rng = random.Random(0)
    for plan in tiny_models.PLANS.values():
        for schooled in (True, False):
            for _ in range(1000):
                group = tiny_models._draw_group(rng, plan, schooled=schooled)
                train.add(operand_of([turn.as_dict() for turn in group.prompt]))
    assert len(held_out) > 80
    assert len(train) > 250
    assert not held_out & train


def operand_of(prompt: tasks.Prompt) -> str:
    return tasks.as_messages(prompt)[-1]["content"].rpartition(": ")[2]


def test_four_distinct_responses_scored_by_the_rule() -> None:
    """A right and a wrong value, each in the form asked for and in another."""
    for group in GROUPS:
        answers = group["responses"]
        assert len({answer["content"] for answer in answers}) == 4
        for answer in answers:
            assert tasks.score(group["prompt"], answer["content"]) == answer["score"]
        kinds = {
            (tasks.content(group["prompt"], each["content"]) == 1,
             tasks.form(group["prompt"], each["content"]) == 1): each["model"]
            for each in answers
        }  # fmt: skip
        assert kinds == tasks.WRITERS


def test_the_best_response_states_an_independent_solution() -> None:
    for group in GROUPS:
        best = max(group["responses"], key=lambda answer: answer["score"])["content"]
        solution = solve(group)
        assert best in (solution, solution.upper(), f"The answer is {solution}.")


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
        config = model.config
        assert config.hidden_size // config.num_attention_heads == 32
    assert list(tokenizers) == list(families)
    assert len({len(tokenizer) for tokenizer in tokenizers.values()}) == 3
    assert [tokenizer.bos_token for tokenizer in tokenizers.values()] == ["<s>", "<s>", None]
    prompt = system("You are terse.", "Sort: d b c")
    with pytest.raises(Exception, match="Only user and assistant"):
        tokenizers["mistral"].apply_chat_template(prompt, tokenize=False)
    for name in ("llama", "qwen"):
        assert "terse" in tokenizers[name].apply_chat_template(prompt, tokenize=False)


@pytest.mark.parametrize("text", ["The answer is 12.", "B D A", "3, I think."])
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
