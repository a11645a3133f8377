"""Rule-checkable tasks: the preference data of the demo, made without a network or a judge.

A question is a skill (reverse, sort, ...), its operand, a phrasing and a form (bare, sentence or
capitals). It can be read back from the prompt, so a score needs only the text of the prompt and of
the answer, and any generated answer can be checked by the same rule that scored the data:

    score = 1 + 6 · content + 3 · form

`content` is the share of places at which the stated value is right, `form` is 1 where the answer is
a value in the form that the prompt asks for, and nothing else. Of several values the last counts;
an answer that states none has neither.

Whether a prompt is for training or testing is a function of its operand alone (`split_of`): nothing
that is drawn for training, under whatever skill and phrasing, meets an operand of the test split.
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

from mrpo_tools.demo.skills import FORMS, SKILLS

Message = dict[str, str]
Prompt = str | list[Message]
Row = dict[str, Any]
"""A group, or a response of one, as the data's JSON has it."""

SEED = 0
TRAIN, TEST = 600, 200
MOST_TRAIN, MOST_TEST = 3000, 1000  # each skill has at least a sixth as many distinct prompts
LEAST, CONTENT, FORM = 1.0, 6.0, 3.0
FULL = LEAST + CONTENT + FORM
# Who wrote an answer, by whether its content is right and its form the one asked for.
WRITERS = {
    (True, True): "careful",
    (True, False): "chatty",
    (False, True): "hasty",
    (False, False): "dreamer",
}
OFF_FORMS = ("It is {}.", "Sure! It is {}.", "{}, I think.")  # whatever form a prompt asks for
PATTERNS = {"number": r"\d+", "letters": r"\b[a-z](?: [a-z]\b)+"}


@dataclass(frozen=True)
class Question:
    """What a prompt asks: everything a score depends on."""

    skill: str
    operand: str
    form: str

    @property
    def kind(self) -> str:
        """`number` or `letters`."""
        return SKILLS[self.skill].kind

    @property
    def solution(self) -> str:
        """The right answer without any form: `3`, `d b c`."""
        return SKILLS[self.skill].solve(self.operand)

    @property
    def slip(self) -> str:
        """The habitual wrong answer without any form."""
        return SKILLS[self.skill].slip(self.operand)

    def written(self, value: str) -> str:
        """`value` as the prompt wants it: the only text that earns full marks if it is right."""
        forms = {"bare": value, "sentence": f"The answer is {value}.", "capitals": value.upper()}
        return forms[self.form]

    def stated(self, answer: str) -> str | None:
        """The last value that an answer states; None where it states none."""
        values = re.findall(PATTERNS[self.kind], answer.lower())
        return values[-1] if values else None


def as_messages(prompt: Prompt) -> list[Message]:
    """A prompt in canonical form; a string is one user message."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def split_of(operand: str) -> str:
    """`test` for a quarter of all operands, by a hash; the same on every machine."""
    return "test" if hashlib.sha256(operand.encode()).digest()[0] % 4 == 0 else "train"


def read(prompt: Prompt) -> Question:
    """The question in a prompt of these tasks; any other text is a ValueError."""
    messages = as_messages(prompt)
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    text = messages[-1]["content"]
    wish = next((words for _, words, _ in FORMS if words and text.startswith(words)), "")
    for asked, beginning, form in FORMS:
        if (asked, beginning) == (system, wish):
            return _read_question(text.removeprefix(wish), form)
    raise ValueError(f"not a prompt of the demo tasks: {messages}")


def _read_question(text: str, form: str) -> Question:
    for name, skill in SKILLS.items():
        for phrasing in skill.phrasings:
            asked, operand = phrasing.removesuffix("{0}"), text[len(phrasing) - len("{0}") :]
            if text.startswith(asked) and re.fullmatch("[a-z](?: [a-z])+", operand):
                return Question(name, operand, form)
    raise ValueError(f"not a question of the demo tasks: {text!r}")


def score(prompt: Prompt, answer: str) -> float:
    """Marks for `answer`, 1 to 10, from the two texts alone: 1 + 6 · content + 3 · form."""
    return LEAST + CONTENT * content(prompt, answer) + FORM * form(prompt, answer)


def content(prompt: Prompt, answer: str) -> float:
    """Share of places at which the value that `answer` states is right, whatever its form."""
    question = read(prompt)
    right, stated = question.solution.split(), (question.stated(answer) or "").split()
    if len(stated) != len(right):
        return 0.0
    return sum(a == b for a, b in zip(right, stated, strict=True)) / len(right)


def form(prompt: Prompt, answer: str) -> float:
    """1 where `answer` is a value in the form asked for and nothing else, right or not; else 0."""
    question = read(prompt)
    value = question.stated(answer)
    return float(value is not None and answer.strip() == question.written(value))


score.full_marks = FULL  # type: ignore[attr-defined]
content.full_marks = 1.0  # type: ignore[attr-defined]
form.full_marks = 1.0  # type: ignore[attr-defined]


def draw_prompt(rng: random.Random, split: str, skill: str) -> Prompt:
    """A prompt of `skill` that belongs to `split`; a string unless it has a system message."""
    while True:
        chosen = SKILLS[skill]
        system, wish, asked = rng.choice(FORMS)
        operand = chosen.draw(rng)
        if split_of(operand) == split and not (asked == "capitals" and chosen.kind == "number"):
            text = wish + rng.choice(chosen.phrasings).format(operand)
            if system is None:
                return text
            return [{"role": "system", "content": system}, *as_messages(text)]


def draw_value(rng: random.Random, question: Question, quality: str) -> str:
    """A value of one quality: `right`, `slip`, or `near`, the right one with a fault."""
    if quality == "right":
        return question.solution
    if quality == "slip":
        return question.slip
    if question.kind == "number":
        return str(abs(int(question.solution) + rng.choice((-1, 1))))
    letters = question.solution.split()
    a, b = rng.sample(range(len(letters)), 2)
    letters[a], letters[b] = letters[b], letters[a]
    return " ".join(letters)


def make_groups(seed: int = SEED, train: int = TRAIN, test: int = TEST) -> list[Row]:
    """Canonical groups of four distinct scored answers; the skills take turns, no prompt repeats.

    The four are a right and a wrong value, each in the form asked for and in another. One wrong
    value in four is a near miss, the others are the skill's slip.

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
    responses = []
    for right, as_asked in WRITERS:
        quality = "right" if right else rng.choice(("slip", "slip", "slip", "near"))
        value = draw_value(rng, question, quality)
        text = question.written(value)
        if not as_asked:
            text = rng.choice(OFF_FORMS).format(value)
        responses.append(
            {"content": text, "score": score(prompt, text), "model": WRITERS[right, as_asked]}
        )
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
