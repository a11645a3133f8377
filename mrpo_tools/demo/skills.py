"""What the demo's tasks can ask: skills, phrasings and forms, as tables.

The tables are used both ways, to write a prompt and to read it back (`tasks.read`), so no two rows
may fit the same text: `tests/test_demo_data.py` reads back every combination it meets.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

# a word, its opposite, and a relative of each: the near miss for the other one's opposite
OPPOSITES = (
    ("hot", "cold", "warm", "cool"),
    ("big", "small", "large", "tiny"),
    ("fast", "slow", "quick", "lazy"),
    ("up", "down", "above", "below"),
    ("old", "new", "aged", "fresh"),
    ("happy", "sad", "glad", "upset"),
    ("light", "dark", "bright", "dim"),
    ("open", "closed", "ajar", "locked"),
    ("rich", "poor", "wealthy", "broke"),
    ("wet", "dry", "damp", "arid"),
    ("hard", "soft", "firm", "gentle"),
    ("loud", "quiet", "noisy", "silent"),
)
OPPOSITE = {a: b for a, b, _, _ in OPPOSITES} | {b: a for a, b, _, _ in OPPOSITES}
RELATED = {a: n for a, _, _, n in OPPOSITES} | {b: n for _, b, n, _ in OPPOSITES}
WORDS = sorted(OPPOSITE) + sorted(RELATED.values())
LETTERS = "abcdef"


@dataclass(frozen=True)
class Skill:
    """One kind of question. `draw` makes operands, `solve` the right answer from them."""

    kind: str  # "number", "letters" or "word": how an answer is found in a text
    phrasings: tuple[str, ...]
    draw: Callable[[random.Random], tuple[str, ...]]
    solve: Callable[..., str]


def _draw_sum(rng: random.Random) -> tuple[str, ...]:
    return str(rng.randint(1, 9)), str(rng.randint(1, 9))


def _draw_sequence(rng: random.Random) -> tuple[str, ...]:
    start, step = rng.randint(1, 9), rng.randint(1, 3)
    return (" ".join(str(start + step * i) for i in range(3)),)


def _draw_letters(rng: random.Random) -> tuple[str, ...]:
    return (" ".join(rng.sample(LETTERS, 3)),)


def _draw_marks(rng: random.Random) -> tuple[str, ...]:
    return (" ".join(rng.choice("xo") for _ in range(rng.randint(4, 6))),)


def _next_number(numbers: str) -> str:
    terms = [int(n) for n in numbers.split()]
    return str(2 * terms[-1] - terms[-2])


SKILLS = {
    "sum": Skill(
        "number",
        ("What is {0} + {1}?", "Add {0} and {1}.", "How much is {0} plus {1}?", "{0} + {1} = ?"),
        _draw_sum,
        lambda a, b: str(int(a) + int(b)),
    ),
    "sequence": Skill(
        "number",
        ("Which number comes next: {0}?", "Continue the sequence {0}.", "{0} and then?"),
        _draw_sequence,
        _next_number,
    ),
    "count": Skill(
        "number",
        ("How many x are in {0}?", "Count the letter x in {0}.", "In {0}, how often is x?"),
        _draw_marks,
        lambda marks: str(marks.count("x")),
    ),
    "reverse": Skill(
        "letters",
        ("Write {0} backwards.", "Reverse the letters {0}.", "What is {0} from right to left?"),
        _draw_letters,
        lambda letters: letters[::-1],
    ),
    "sort": Skill(
        "letters",
        ("Sort the letters {0}.", "Put {0} in alphabetical order.", "What is {0} in order?"),
        _draw_letters,
        lambda letters: " ".join(sorted(letters.split())),
    ),
    "opposite": Skill(
        "word",
        (
            "What is the opposite of {0}?",
            "Name the opposite of {0}.",
            "Not {0} but?",
            "Which word means the reverse of {0}?",
        ),
        lambda rng: (rng.choice(sorted(OPPOSITE)),),
        OPPOSITE.__getitem__,
    ),
}

# (system message, words after the question, the form they ask for); two system messages ask nothing
FORMS = (
    (None, "", "bare"),
    ("You are terse.", "", "bare"),
    ("You are a helpful assistant.", "", "bare"),
    (None, " Answer in a full sentence.", "sentence"),
    ("Answer in a full sentence.", "", "sentence"),
    ("You are terse.", " Answer in a full sentence.", "sentence"),
    ("You are a helpful assistant.", " Answer in a full sentence.", "sentence"),
    (None, " Use capital letters.", "capitals"),
    ("Answer in capital letters.", "", "capitals"),
)
