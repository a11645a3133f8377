"""Rules of the tests: marks that any text has."""

from __future__ import annotations


def letters(messages: list[dict[str, str]], answer: str) -> float:
    """The share of an answer that is vowels, of ten."""
    return 10 * sum(letter in "aeiou" for letter in answer) / max(len(answer), 1)


def length(messages: list[dict[str, str]], answer: str) -> float:
    """Characters of an answer."""
    return float(len(answer))
