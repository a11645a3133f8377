"""The study's tasks: chains of operations on a digit, scored by the share of right steps.

A prompt is 20 letters and a digit, `c a f … : 4`. Each letter is an operation, a fixed permutation
of the ten digits; the answer has the digit after each operation in turn. A step is right when it
is the operation of its place applied to the digit *written before it*, so one slip costs one step
and not all that follow. Letters a and b are one skill, c and d the other.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

STEPS = 20
DIGITS = 10
LETTERS = "abcd"
LEFT = LETTERS[:2]
FULL_MARKS = 10.0


def _table(letter: str) -> tuple[int, ...]:
    digits = list(range(DIGITS))
    random.Random(f"operation {letter}").shuffle(digits)
    return tuple(digits)


OPERATIONS = {letter: _table(letter) for letter in LETTERS}
"""What each letter does to each digit."""


def draw_prompts(sizes: Mapping[str, int], seed: int) -> dict[str, str]:
    """The split of each prompt, by its text; no prompt stands in two splits."""
    rng = random.Random(f"prompts {seed}")
    prompts: dict[str, str] = {}
    for split, size in sizes.items():
        wanted = len(prompts) + size
        while len(prompts) < wanted:
            text = " ".join(rng.choices(LETTERS, k=STEPS)) + f" : {rng.randrange(DIGITS)}"
            prompts.setdefault(text, split)
    return prompts


def read_prompt(text: str) -> tuple[list[str], int]:
    """The letters and the first digit of a prompt."""
    letters, _, digit = text.rpartition(" : ")
    return letters.split(), int(digit)


def share_right(prompt: str, answer: str) -> float:
    """Right steps over the steps that were asked for, between 0 and 1.

    A word that is no digit is wrong, and so is the step after it; so are missing steps. Each word
    beyond the last step takes one right step away.
    """
    letters, before = read_prompt(prompt)
    words = answer.split()
    right = 0
    for letter, word in zip(letters, words, strict=False):
        known = word in "0123456789" and len(word) == 1
        right += known and before >= 0 and OPERATIONS[letter][before] == int(word)
        before = int(word) if known else -1
    return max(0, right - max(0, len(words) - len(letters))) / len(letters)


def score(prompt: Sequence[dict[str, str]], answer: str) -> float:
    """The rule: ten times the share of right steps."""
    return FULL_MARKS * share_right(prompt[-1]["content"], answer)
