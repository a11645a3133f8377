"""What the demo's tasks can ask: skills, phrasings and forms, as tables.

The tables are used both ways, to write a prompt and to read it back (`tasks.read`), so no two rows
may fit the same text: `tests/test_demo_data.py` reads back every combination it meets.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

LETTERS = "bcdefghi"  # the one before and the one after each are letters too
LENGTH = 3
MARKS = (5, 7)  # odd, so that a row never has as many x as o


@dataclass(frozen=True)
class Skill:
    """One kind of question: a procedure, and another that is easily mistaken for it.

    Attributes:
        kind: `letters` or `number`: how an answer is found in a text.
        phrasings: with `{0}` in place of the operand.
        solve: the right answer, from the operand.
        slip: the habitual wrong one: letters as they were, or the other mark's number. It has no
            place in common with the right one.
    """

    kind: str
    phrasings: tuple[str, ...]
    solve: Callable[[str], str]
    slip: Callable[[str], str]

    def draw(self, rng: random.Random) -> str:
        """An operand for which `slip` is wrong: distinct letters, or marks."""
        while True:
            if self.kind == "number":
                operand = " ".join(rng.choice("xo") for _ in range(rng.choice(MARKS)))
            else:
                operand = " ".join(rng.sample(LETTERS, LENGTH))
            if self.slip(operand) != self.solve(operand):
                return operand


def _on_letters(change: Callable[[list[str]], list[str]]) -> Callable[[str], str]:
    return lambda operand: " ".join(change(operand.split()))


def _shifted(step: int) -> Callable[[str], str]:
    return _on_letters(lambda letters: [chr(ord(letter) + step) for letter in letters])


def _unchanged(operand: str) -> str:
    return operand


SKILLS = {
    "reverse": Skill(
        "letters",
        ("Reverse: {0}", "Write backwards: {0}"),
        _on_letters(lambda letters: letters[::-1]),
        _unchanged,
    ),
    "sort": Skill(
        "letters",
        ("Sort: {0}", "In alphabetical order: {0}"),
        _on_letters(sorted),
        _unchanged,
    ),
    "rotate": Skill(
        "letters",
        ("Rotate: {0}", "Move the first to the end: {0}"),
        _on_letters(lambda letters: [*letters[1:], letters[0]]),
        _unchanged,
    ),
    "next": Skill(
        "letters",
        ("Shift by one: {0}", "The letter after each: {0}"),
        _shifted(1),
        _unchanged,
    ),
    "count": Skill(
        "number",
        ("Count x: {0}", "How often is x here: {0}"),
        lambda marks: str(marks.count("x")),
        lambda marks: str(marks.count("o")),
    ),
}

# (system message, words before the question, the form they ask for); two of the system messages ask
# for none
FORMS = (
    (None, "", "bare"),
    ("You are a helpful assistant.", "", "bare"),
    (None, "In a full sentence. ", "sentence"),
    ("Answer in a full sentence.", "", "sentence"),
    ("You are a helpful assistant.", "In a full sentence. ", "sentence"),
    (None, "In capital letters. ", "capitals"),
    ("Answer in capital letters.", "", "capitals"),
)
