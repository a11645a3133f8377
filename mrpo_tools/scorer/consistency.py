"""What can be known of a server's log-probs without the model's weights: do they fit together?

Log-probs of a model are those of one distribution at each place, which depends on the tokens before
it and on nothing else. A server is asked for what must agree, each time in another way, and the
first disagreement is told. What is consistent may still be another model's: only weights tell that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mrpo_tools.server import PromptLogprobs, Refused
from mrpo_tools.server.prompt_logprobs import Position

FEW = 8
"""Lines that are asked about in every way."""
PER_LINE, ONCE = 11, 6
"""Requests of the checks: for each of these lines, and besides, at most."""
WHOLE, EVERY, TOTAL = 2, -1, 1e-3
"""Lines of which all tokens are asked for, how that is said, and how far they may be from 1."""
COUNTS = (20, 5, 1)
"""Of likeliest tokens that are asked for; vLLM gives 20 unless it is started otherwise."""
TOKEN = 1e-4
"""nats by which one token's exact log-probs may differ in float32."""
TIMES = 12.0
"""Times the root mean square: how far one token of a sample may be out."""
OVERFULL = {"float32": 1e-3}
OVERFULL_NARROW = 0.03
"""What more than 1 probabilities may add up to, rounded."""
EQUAL = 1e-6
"""nats: numbers that are nearer are the same number."""
ENOUGH = 32
"""Numbers or places, below which chance may look like a rule."""
DIGITS = 5
"""After the point: with so many a log-prob is rounded by less than float32 numbers may be apart."""
GRID = 2.0**-10
"""Logits in 16 bits, of which most are above 1, differ by multiples of this."""
ON_GRID = 2e-5
CERTAIN = 0.5
"""The share of differences on the grid; of float32 logits it is 4 %."""
COLDER = 0.5
"""A temperature that must change nothing."""


@dataclass(frozen=True)
class Line:
    """A prompt with one response.

    Attributes:
        ids: of both.
        start: where the response begins.
    """

    ids: tuple[int, ...]
    start: int

    def of_response(self, values: Sequence[float]) -> Sequence[float]:
        """Of the log-probs of every token after the first those of the response."""
        return values[self.start - 1 :]


@dataclass(frozen=True)
class Sample:
    """Lines, their log-probs asked for one at a time, and what is known of these.

    Attributes:
        lines: of the calibration.
        values: of every token after the first, a line each, nats.
        dtype: that the server is said to compute in.
        rms: of the noise of one token, nats.
    """

    lines: Sequence[Line]
    values: Sequence[Sequence[float]]
    dtype: str
    rms: float

    def few(self) -> list[tuple[Line, Sequence[float]]]:
        """Some lines with their log-probs, evenly chosen."""
        pairs = list(zip(self.lines, self.values, strict=True))
        step = max(1, len(pairs) // FEW)
        return pairs[::step][:FEW]

    def near(self, first: float, second: float) -> bool:
        """Whether two log-probs of one token can be the same but for noise."""
        return abs(first - second) <= max(TOKEN, TIMES * self.rms)


Check = Callable[[PromptLogprobs, Sample], str | None]
"""Why the numbers do not fit together; None where they do."""


def impossible(values: Sequence[Sequence[float]]) -> str | None:
    """Log-probs that no softmax gives."""
    every = [value for each in values for value in each]
    wrong = sum(not is_logp(value) for value in every)
    if wrong:
        return f"{wrong:,} of {len(every):,} log-probs are infinite, positive or no numbers"
    if len(every) >= ENOUGH and not any(every):
        return "every log-prob is 0"
    return None


def is_logp(value: float) -> bool:
    """Whether a token's number can be the log of a probability, rounded."""
    return math.isfinite(value) and value <= EQUAL


def rounded(sample: Sample) -> str | None:
    """Numbers of fewer digits than log-probs have: decimal ones, or those of a narrower dtype."""
    numbers = [value for each in sample.values for value in each if value]
    if len(numbers) < ENOUGH:
        return None
    for digits in range(DIGITS):
        if all(round(value, digits) == value for value in numbers):
            return f"every log-prob is rounded to {digits} digits after the point"
    if sample.dtype != "float32":
        return None
    every = torch.tensor(numbers, dtype=torch.float64)
    for dtype in (torch.bfloat16, torch.float16):
        if bool((every.to(dtype).double() == every).all()):
            return f"every log-prob is rounded to {str(dtype).removeprefix('torch.')}"
    return None


def distributions(asked: PromptLogprobs, sample: Sample) -> str | None:
    """The likeliest tokens at each place: with the prompt's own token they are part of one
    distribution, whose numbers do not depend on how many are asked for."""
    counts = _counts_given(asked, sample.lines[0])
    sums, differences = [], []
    for line, values in sample.few():
        every = [asked.likeliest(line.ids, count) for count in counts]
        for place, token in enumerate(line.ids[1:]):
            position = every[0][place]
            reason = _of_one(sample, position, token, values[place], counts[0])
            if reason is not None:
                return reason
            for other in (more[place] for more in every[1:]):
                if any(not sample.near(position[t], other[t]) for t in position.keys() & other):
                    return "log-probs depend on how many are asked for: they are renormalised"
            sums.append(math.fsum(math.exp(value) for value in position.values()))
            best = max(position.values())
            differences += [best - value for value in position.values() if value != best]
    if len(sums) >= ENOUGH and all(abs(total - 1) < EQUAL for total in sums):
        return "the likeliest tokens always have all the probability: they are renormalised"
    return _narrow(sample.dtype, differences)


def _counts_given(asked: PromptLogprobs, line: Line) -> tuple[int, ...]:
    """The numbers of likeliest tokens that the server gives."""
    for place, count in enumerate(COUNTS[:-1]):
        try:
            asked.likeliest(line.ids[:2], count)
        except Refused:
            continue
        return COUNTS[place:]
    return COUNTS[-1:]


def _of_one(sample: Sample, position: Position, token: int, alone: float, count: int) -> str | None:
    if len(position) < count:
        return f"it gives {len(position)} of {count} likeliest tokens"
    reason = impossible([list(position.values())])
    if reason is not None:
        return f"of the likeliest tokens {reason}"
    if not sample.near(position[token], alone):
        return (
            f"a token's log-prob is {alone:.4f}, and {position[token]:.4f} among the likeliest "
            "tokens"
        )
    total = math.fsum(math.exp(value) for value in position.values())
    if total > 1 + OVERFULL.get(sample.dtype, OVERFULL_NARROW):
        return f"probabilities of one place add up to {total:.4f}"
    return None


def _narrow(dtype: str, differences: Sequence[float]) -> str | None:
    """Logits in 16 bits where float32 is declared."""
    if dtype != "float32" or len(differences) < ENOUGH:
        return None
    on_grid = [abs(each / GRID - round(each / GRID)) * GRID < ON_GRID for each in differences]
    share = sum(on_grid) / len(on_grid)
    return f"its logits have 16 bits ({share:.0%} of them on one grid)" if share > CERTAIN else None


def whole(asked: PromptLogprobs, sample: Sample) -> str | None:
    """Probabilities of all tokens add up to 1; of a server that gives all (`--max-logprobs -1`)."""
    for line, _ in sample.few()[:WHOLE]:
        try:
            *_, position = asked.likeliest(line.ids[:3], EVERY)
        except Refused:
            return None
        total = math.fsum(math.exp(value) for value in position.values())
        if abs(total - 1) > TOTAL:
            return f"probabilities of all tokens at one place add up to {total:.4f}"
    return None


def prefixes(asked: PromptLogprobs, sample: Sample) -> str | None:
    """Another token in the middle: what stands before it keeps its numbers, and what comes after
    has others; and the line itself has its own again."""
    others = [token for line in sample.lines for token in line.ids]
    for line, values in sample.few():
        for place in sorted({1, len(line.ids) // 2}):
            if place < 1 or len(line.ids) - place < 3:
                continue
            token = next((each for each in others if each != line.ids[place]), None)
            if token is None:
                return None
            reason = _changed(asked, sample, line, values, place, token)
            if reason is not None:
                return reason
        again = asked.of(line.ids)
        if not all(sample.near(*pair) for pair in zip(values, again, strict=True)):
            return (
                "a line has other log-probs after one that begins as it does, as of a stale cache"
            )
    return None


def _changed(
    asked: PromptLogprobs,
    sample: Sample,
    line: Line,
    values: Sequence[float],
    place: int,
    token: int,
) -> str | None:
    """What is wrong with a line's log-probs once another token stands at a place of it."""
    changed = asked.of([*line.ids[:place], token, *line.ids[place + 1 :]])
    before = zip(values[: place - 1], changed[: place - 1], strict=True)
    if not all(sample.near(first, second) for first, second in before):
        return f"another token {place} changes log-probs of tokens before it"
    after = zip(values[place:], changed[place:], strict=True)
    if all(abs(first - second) < EQUAL for first, second in after):
        return f"another token {place} changes nothing after it, as of a stale cache"
    return None


def still_fresh(asked: PromptLogprobs, sample: Sample, turn: int) -> str | None:
    """The same of one line as nobody asked for it before: another place near its end, so that what
    is kept of a beginning is of this one too, and another token.

    Args:
        asked: the server.
        sample: of the calibration.
        turn: counts these questions.
    """
    usual, count = turn % len(sample.lines), turn // len(sample.lines)
    line, values = sample.lines[usual], sample.values[usual]
    last = len(line.ids) - 3
    if last < 1:
        return None
    place = last - count % max(1, last // 4)
    others = sorted({token for each in sample.lines for token in each.ids} - {line.ids[place]})
    if not others:
        return None
    return _changed(asked, sample, line, values, place, others[turn % len(others)])


def generation(asked: PromptLogprobs, sample: Sample) -> str | None:
    """The likeliest next token as it is generated, and as part of the prompt."""
    for line, _ in sample.few():
        for end in sorted({line.start, len(line.ids) - 1} - {0}):
            token, logp = asked.next(line.ids[:end])
            [*_, last] = asked.likeliest([*line.ids[:end], token], 1)
            if not sample.near(last[token], logp):
                return (
                    f"a token's log-prob is {logp:.4f} where it is generated and {last[token]:.4f} "
                    "where it is part of the prompt"
                )
            if not (max(last.values()) <= last[token] or sample.near(max(last.values()), logp)):
                return "the token that is generated at temperature 0 is not the prompt's likeliest"
    return None


def temperature(asked: PromptLogprobs, sample: Sample) -> str | None:
    """Log-probs of a prompt do not depend on how its answer is drawn."""
    for line, values in sample.few():
        colder = asked.of(line.ids, temperature=COLDER)
        if not all(sample.near(*pair) for pair in zip(values, colder, strict=True)):
            return "log-probs of a prompt depend on the temperature that is asked for"
    return None


CHECKS: tuple[Check, ...] = (distributions, whole, prefixes, generation, temperature)
