"""How far exact ways of computing the same log-probs are apart, and what is farther than that.

In float32 two exact ways agree to 1e-5 nats a token. In 16 bits they do not: every product is
rounded, and a row in a batch takes other kernels than alone. What remains true is that the
differences have no direction, so that of L tokens they add up like √L, while those of a wrong
computation add up like L. A measured root mean square therefore tells noise from a fault.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

EXACT = 1e-5
"""nats per token by which float32 numbers of one row may differ, whatever their batches."""
RESPONSE = 10.0
"""Of one response: times rms·√L. Both numbers are noisy, and there may be millions."""
POOLED = 2.5
"""Of many responses together: times rms; of n of them 1 + 3/√n times that."""
UNITS = {"bfloat16": 2.0**-7, "float16": 2.0**-10}
"""What one unit in the last place is worth, of 1."""
MEAN = 8.0
"""Of the mean over T tokens: times rms/√T. Tokens of a response share some of their noise."""


@dataclass(frozen=True)
class Noise:
    """How far two ways of computing the same tokens' log-probs were apart.

    Attributes:
        rms: of a token's difference, nats.
        bias: mean difference, nats per token; of exact ways it is 0 but for chance.
        tokens: that were compared.
    """

    rms: float = 0.0
    bias: float = 0.0
    tokens: int = 0

    @classmethod
    def of(cls, differences: Iterable[float]) -> Noise:
        """The noise in tokens' differences, nats."""
        values = list(differences)
        if not values:
            return cls()
        squares = math.fsum(value * value for value in values)
        return cls(
            rms=math.sqrt(squares / len(values)),
            bias=math.fsum(values) / len(values),
            tokens=len(values),
        )


class Apart(NamedTuple):
    """A response's two log-probs: their difference in nats, and its tokens."""

    nats: float
    tokens: int

    @property
    def per_token(self) -> float:
        """nats per token, without sign; infinite where one of the two is no number."""
        distance = abs(self.nats) / max(self.tokens, 1)
        return distance if math.isfinite(distance) else math.inf


def allowed(tokens: int, noise: Noise, exact: float = EXACT) -> float:
    """nats by which two exact log-probs of a response may differ: `RESPONSE`·rms·√L, or `exact`·L.

    Args:
        tokens: L.
        noise: measured, of either number.
        exact: nats per token that are always allowed.
    """
    length = max(tokens, 1)
    return max(exact * length, RESPONSE * noise.rms * math.sqrt(length))


def least_noise(products: str | None) -> Noise:
    """What is expected of products in 16 bits even where a sample happened to give equal digits:
    half a unit in the last place; of other formats nothing.

    Args:
        products: their dtype, `bfloat16` or another.
    """
    return Noise(rms=UNITS.get(products or "", 0.0) / 2)


def loudest(noises: Iterable[Noise]) -> Noise:
    """The one with the largest rms, with the largest bias of any; silence where there is none."""
    every = [Noise(), *noises]
    largest = max(every, key=lambda noise: noise.rms)
    bias = max((noise.bias for noise in every), key=abs)
    return Noise(rms=largest.rms, bias=bias, tokens=largest.tokens)


def beyond(responses: Sequence[Apart], noise: Noise, exact: float = EXACT) -> str | None:
    """Why differences are more than noise; None where noise explains them all.

    Three questions: is any one response too far apart (`allowed`), are all together (the root mean
    square of D/√L), and do they lean to one side (the mean over tokens)?

    Args:
        responses: each with its two numbers' difference.
        noise: measured between exact ways.
        exact: nats per token that are always allowed.
    """
    if all(response.per_token <= exact for response in responses):
        return None
    worst = max(responses, key=lambda each: abs(each.nats) / allowed(each.tokens, noise, exact)
                if math.isfinite(each.nats) else math.inf)  # fmt: skip
    most = allowed(worst.tokens, noise, exact)
    if not abs(worst.nats) <= most:
        return (
            f"a response of {worst.tokens} tokens is {abs(worst.nats):.3g} nats apart, and noise "
            f"explains {most:.2g}"
        )
    count, tokens = len(responses), sum(max(each.tokens, 1) for each in responses)
    pooled = math.sqrt(math.fsum(each.nats**2 / max(each.tokens, 1) for each in responses) / count)
    most = POOLED * (1 + 3 / math.sqrt(count)) * max(noise.rms, exact)
    if pooled > most:
        return (
            f"{count} responses are {pooled:.3g} nats/√token apart (root mean square), and noise "
            f"explains {most:.2g}"
        )
    mean = math.fsum(each.nats for each in responses) / tokens
    most = exact + abs(noise.bias) + MEAN * noise.rms / math.sqrt(tokens)
    if abs(mean) > most:
        return (
            f"{count} responses lean to one side by {abs(mean):.3g} nats per token, and noise "
            f"explains {most:.2g}"
        )
    return None
