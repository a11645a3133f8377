"""Rule-checkable tasks: the preference data of the demo, made without a network or a judge.

A question is a skill (add, sort, ...), its operands, a phrasing and a form (bare, sentence or
capitals). It can be read back from the prompt, so a score needs only the text of the prompt and of
the answer, and any generated answer can be checked by the same rule that scored the data:

    10  the right answer in the form the prompt asks for, and nothing else
     7  the right answer in another form, or wrapped in chatter
     3  a near miss: off by one or two, the right letters in a wrong order, a related word
     1  anything else

Of several values in an answer the last one counts.

Whether a prompt is for training or testing is a function of its text (`split_of`), so whoever draws
training texts for the same tasks cannot meet a test prompt by chance.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrpo_tools.demo.skills import FORMS, LETTERS, RELATED, SKILLS, WORDS

Message = dict[str, str]
Prompt = str | list[Message]
Row = dict[str, Any]
"""A group, or a response of one, as the data's JSON has it."""

SEED = 0
TRAIN, TEST = 600, 200
MOST_TRAIN, MOST_TEST = 2000, 700  # each skill has at least a sixth as many distinct prompts
RIGHT, OFF_FORM, NEAR, WRONG = 10.0, 7.0, 3.0, 1.0
MARKS = {"right": RIGHT, "off_form": OFF_FORM, "near": NEAR, "wrong": WRONG}
# Who wrote an answer of each quality: the `model` field of the data.
WRITERS = {"right": "careful", "off_form": "chatty", "near": "hasty", "wrong": "dreamer"}

OFF_FORMS = {
    "bare": ("Sure! It is {}.", "{}, I think.", "The answer is {}."),
    "sentence": ("{}", "Sure! It is {}.", "{}, I think.", "Let me see. The answer is {}, I think."),
    "capitals": ("{}", "Sure! It is {}.", "The answer is {}."),
}
OFF_TOPIC = ("Why?", "No.", "Tea.", "No idea.", "I like green tea.", "Sorry, I do not know.")
PATTERNS = {
    "number": r"\d+",
    "letters": r"\b[a-z](?: [a-z])+\b",
    "word": r"\b(?:" + "|".join(WORDS) + r")\b",
}


@dataclass(frozen=True)
class Question:
    """What a prompt asks: everything a score depends on."""

    skill: str
    operands: tuple[str, ...]
    form: str

    @property
    def kind(self) -> str:
        """`number`, `letters` or `word`."""
        return SKILLS[self.skill].kind

    @property
    def solution(self) -> str:
        """The right answer without any form: `12`, `a b d`, `cold`."""
        return SKILLS[self.skill].solve(*self.operands)

    def written(self, value: str) -> str:
        """`value` as the prompt wants it: the only text that earns full marks if it is right."""
        forms = {"bare": value, "sentence": f"The answer is {value}.", "capitals": value.upper()}
        return forms[self.form]


def as_messages(prompt: Prompt) -> list[Message]:
    """A prompt in canonical form; a string is one user message."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def split_of(prompt: Prompt) -> str:
    """`test` for a quarter of all prompts, by a hash of the messages; the same on every machine."""
    text = json.dumps(as_messages(prompt), sort_keys=True)
    return "test" if hashlib.sha256(text.encode()).digest()[0] % 4 == 0 else "train"


def read(prompt: Prompt) -> Question:
    """The question in a prompt of these tasks; any other text is a ValueError."""
    messages = as_messages(prompt)
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    text = messages[-1]["content"]
    suffix = next((s for _, s, _ in FORMS if s and text.endswith(s)), "")
    for asked, ending, form in FORMS:
        if (asked, ending) == (system, suffix):
            return _read_question(text.removesuffix(suffix), form)
    raise ValueError(f"not a prompt of the demo tasks: {messages}")


def _read_question(text: str, form: str) -> Question:
    for name, skill in SKILLS.items():
        for phrasing in skill.phrasings:
            pattern = re.sub(r"\\\{(\d)\\\}", r"(?P<x\1>[a-z0-9 ]+)", re.escape(phrasing))
            if match := re.fullmatch(pattern, text):
                operands = match.groupdict()
                return Question(name, tuple(operands[key] for key in sorted(operands)), form)
    raise ValueError(f"not a question of the demo tasks: {text!r}")


def score(prompt: Prompt, answer: str) -> float:
    """Marks for `answer`, from the two texts alone; see the table at the top of this file."""
    question = read(prompt)
    if answer.strip() == question.written(question.solution):
        return RIGHT
    stated = re.findall(PATTERNS[question.kind], answer.lower())
    if not stated:
        return WRONG
    if stated[-1] == question.solution:
        return OFF_FORM
    return NEAR if _is_near(question, stated[-1]) else WRONG


score.full_marks = RIGHT  # type: ignore[attr-defined]


def is_right(prompt: Prompt, answer: str) -> bool:
    """Whether an answer earns full marks: right, in the form asked for, and nothing around it."""
    return score(prompt, answer) == RIGHT


def _is_near(question: Question, value: str) -> bool:
    if question.kind == "number":
        return abs(int(value) - int(question.solution)) <= 2
    if question.kind == "letters":
        return sorted(value.split()) == sorted(question.solution.split())
    return value == RELATED[question.operands[0]]


def draw_prompt(rng: random.Random, split: str, skill: str) -> Prompt:
    """A prompt of `skill` that belongs to `split`; a string unless it has a system message."""
    while True:
        chosen = SKILLS[skill]
        system, suffix, form = rng.choice(FORMS)
        text = rng.choice(chosen.phrasings).format(*chosen.draw(rng)) + suffix
        prompt: Prompt = text
        if system is not None:
            prompt = [{"role": "system", "content": system}, *as_messages(text)]
        if split_of(prompt) == split and not (form == "capitals" and chosen.kind == "number"):
            return prompt


def draw_answer(rng: random.Random, question: Question, quality: str) -> str:
    """An answer of one quality, a key of `WRITERS`. Its score follows from the rule alone."""
    if quality == "right":
        return question.written(question.solution)
    if quality == "off_form":
        return rng.choice(OFF_FORMS[question.form]).format(question.solution)
    if quality == "wrong" and rng.random() < 0.5:
        return rng.choice(OFF_TOPIC)
    value = _draw_near(rng, question) if quality == "near" else _draw_wrong(rng, question)
    if rng.random() < 3 / 4:
        return question.written(value)
    return rng.choice(OFF_FORMS[question.form]).format(value)


def _draw_near(rng: random.Random, question: Question) -> str:
    if question.kind == "number":
        return str(abs(int(question.solution) + rng.choice((-2, -1, 1, 2))))
    if question.kind == "letters":
        letters = question.solution.split()
        return " ".join(rng.sample(letters, len(letters)))
    return RELATED[question.operands[0]]


def _draw_wrong(rng: random.Random, question: Question) -> str:
    if question.kind == "number":
        return str(int(question.solution) + rng.randint(3, 9))
    if question.kind == "letters":
        return " ".join(rng.sample(LETTERS, 3))
    return rng.choice(WORDS)


def make_groups(seed: int = SEED, train: int = TRAIN, test: int = TEST) -> list[Row]:
    """Canonical groups of four distinct scored answers; the skills take turns, no prompt repeats.

    One group in six has no answer in another form but a second near miss or a second wrong one, so
    that ties of scores occur, as in real data.

    Raises:
        ValueError: more groups than there are distinct prompts to draw in reasonable time.
    """
    if train > MOST_TRAIN or test > MOST_TEST:
        raise ValueError(f"at most {MOST_TRAIN} train and {MOST_TEST} test groups: {train}, {test}")
    rng = random.Random(seed)
    groups, seen = [], set()
    for split, count in (("train", train), ("test", test)):
        for index in range(count):
            skill = list(SKILLS)[index % len(SKILLS)]
            while str(prompt := draw_prompt(rng, split, skill)) in seen:
                pass
            seen.add(str(prompt))
            responses = _draw_responses(rng, prompt)
            name = f"{split}-{skill}-{index // len(SKILLS):03d}"
            groups.append({"id": name, "split": split, "prompt": prompt, "responses": responses})
    return groups


def _draw_responses(rng: random.Random, prompt: Prompt) -> list[Row]:
    """Four distinct answers in random order, each with its score and its writer."""
    question = read(prompt)
    second = rng.choices(("off_form", "near", "wrong"), weights=(10, 1, 1))[0]
    answers: dict[str, str] = {}
    for quality in ("right", second, "near", "wrong"):
        # The rule has the last word: a draw that earns other marks is drawn again.
        while True:
            answer = draw_answer(rng, question, quality)
            if answer not in answers and score(prompt, answer) == MARKS[quality]:
                break
        answers[answer] = WRITERS[quality]
    responses = [
        {"content": answer, "score": score(prompt, answer), "model": writer}
        for answer, writer in answers.items()
    ]
    rng.shuffle(responses)
    return responses


def longer_preferred(groups: Iterable[Row]) -> float:
    """Accuracy of always preferring the longer of two answers; equal lengths count one half."""
    marks = []
    for group in groups:
        for a, b in itertools.combinations(group["responses"], 2):
            if a["score"] != b["score"]:
                sign = (a["score"] - b["score"]) * (len(a["content"]) - len(b["content"]))
                marks.append(0.5 if sign == 0 else float(sign > 0))
    return sum(marks) / len(marks)


def write(path: Path, groups: Iterable[Row]) -> None:
    """One group a line, the same bytes for the same groups on every machine."""
    lines = (json.dumps(group, ensure_ascii=False) + "\n" for group in groups)
    path.write_bytes("".join(lines).encode())


def main(path: str = "data/demo.jsonl") -> None:
    """Write the demo's data and print the figures that its README quotes."""
    groups = make_groups()
    write(Path(path), groups)
    print(f"{path}: {len(groups)} groups, {Path(path).stat().st_size} bytes")
    print(f"longer preferred: {longer_preferred(groups):.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
