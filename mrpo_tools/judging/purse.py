"""What a judge costs: estimated before it is asked, counted while it is, and never exceeded."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mrpo_tools.errors import UsageError
from mrpo_tools.server import ChatReply

BYTES_A_TOKEN = 4
"""Of English text, about."""
EXPECTED_REPLY = 150
"""Tokens of a judge's reply, about."""
OVERHEAD = 64
"""Tokens that a server's chat template may add to a question."""


@dataclass(frozen=True)
class Prices:
    """Of a million tokens, in any currency.

    Attributes:
        read: of prompts.
        written: of replies.
    """

    read: float
    written: float

    def of(self, read: float, written: float) -> float:
        """The price of so many tokens."""
        return (read * self.read + written * self.written) / 1e6


@dataclass(frozen=True)
class Budget:
    """What may be spent; None for as much as it takes."""

    calls: int | None = None
    money: float | None = None


def budget_of(word: str | None, prices: Prices | None) -> Budget:
    """`600` calls, or `2.50usd` (any letters) of money.

    Raises:
        UsageError: it is neither, or is money and no prices are known.
    """
    if word is None:
        return Budget()
    if re.fullmatch(r"[\d_,]+", word):
        return Budget(calls=int(re.sub(r"[_,]", "", word)))
    money = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", word)
    if money is None:
        raise UsageError(
            f"--budget {word}: neither calls nor money", "--budget 600, or --budget 2.50usd"
        )
    if prices is None:
        raise UsageError(
            f"--budget {word}: money, and no prices are known",
            "--price-in and --price-out, of a million tokens; or --budget CALLS",
        )
    return Budget(money=float(money[1]))


@dataclass(frozen=True)
class CostEstimate:
    """Of questions that are still to be asked; `price` None where no prices are known."""

    calls: int
    prompt_tokens: int
    completion_tokens: int
    price: float | None


def estimate(
    messages: Sequence[Sequence[Mapping[str, str]]], prices: Prices | None
) -> CostEstimate:
    """About what some questions cost, by their bytes."""
    read = sum(_bytes(each) // BYTES_A_TOKEN + 1 for each in messages)
    written = EXPECTED_REPLY * len(messages)
    price = None if prices is None else prices.of(read, written)
    return CostEstimate(len(messages), read, written, price)


class Purse:
    """Calls, tokens and money of a judge, from any number of threads.

    Before a question is asked its highest price is put aside: a token a byte, and as long a reply
    as it may be. So what is spent stays within the budget whatever is on its way.

    Args:
        budget: the limit.
        prices: needed where the limit is money.
        max_tokens: of a reply.
    """

    def __init__(self, budget: Budget, prices: Prices | None, max_tokens: int) -> None:
        self.budget, self.prices, self.max_tokens = budget, prices, max_tokens
        self.calls = self.prompt_tokens = self.completion_tokens = 0
        self.spent = self._aside = 0.0
        self._away = 0
        self._turn = threading.Condition()

    def take(self, messages: Sequence[Mapping[str, str]]) -> float | None:
        """Put aside what a question may cost at most; None where that is more than is left.

        What is on its way mostly costs less than was put aside for it, so that is waited for.
        """
        most = 0.0
        if self.prices is not None:
            most = self.prices.of(_bytes(messages) + OVERHEAD, self.max_tokens)
        calls, money = self.budget.calls, self.budget.money
        with self._turn:
            while money is not None and self.spent + self._aside + most > money:
                if not self._away:
                    return None
                self._turn.wait()
            if calls is not None and self.calls >= calls:
                return None
            self.calls += 1
            self._away += 1
            self._aside += most
            return most

    def settle(self, aside: float, reply: ChatReply | None) -> None:
        """Count what a reply cost in place of what was put aside; a failed request costs nothing.

        A server that counts no tokens is counted at the most.
        """
        with self._turn:
            self._aside -= aside
            self._away -= 1
            self._turn.notify_all()
            if reply is None:
                self.calls -= 1
                return
            read, written = reply.prompt_tokens, reply.completion_tokens
            self.prompt_tokens += read or 0
            self.completion_tokens += written or 0
            if self.prices is not None:
                counted = read is not None and written is not None
                self.spent += self.prices.of(read or 0, written or 0) if counted else aside

    @property
    def left(self) -> Budget:
        """What another judge may spend of the same budget."""
        calls, money = self.budget.calls, self.budget.money
        return Budget(
            None if calls is None else calls - self.calls,
            None if money is None else money - self.spent,
        )


def _bytes(messages: Sequence[Mapping[str, str]]) -> int:
    return sum(len(turn["content"].encode()) for turn in messages)
