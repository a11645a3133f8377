"""Mathematics of contests: logistic lines, Bradley-Terry, kappa, and intervals that hold."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch

from mrpo_tools.cache import VerdictRow
from mrpo_tools.evaluation.contest import win_rate
from mrpo_tools.judging.outcomes import decided
from mrpo_tools.judging.questions import Question
from mrpo_tools.maths.bradley_terry import bradley_terry
from mrpo_tools.maths.logistic import logistic_line
from mrpo_tools.maths.statistics import cohens_kappa, kappa


def test_a_line_through_two_values_of_x_has_a_closed_form():
    """x = ∓1 with 3 of 10 and 8 of 10 wins: logits −0.847 and 1.386, their mean and half their
    difference; the intercept's variance is that of the mean of two logits, (1/2.1 + 1/1.6) / 4."""
    outcomes = [1.0] * 3 + [0.0] * 7 + [1.0] * 8 + [0.0] * 2
    line = logistic_line(outcomes, [-1] * 10 + [1] * 10)
    low, high = math.log(3 / 7), math.log(8 / 2)
    assert line.intercept == pytest.approx((low + high) / 2)
    assert line.slope == pytest.approx((high - low) / 2)
    assert line.scale == 1.0
    error = math.sqrt((1 / (10 * 0.3 * 0.7) + 1 / (10 * 0.8 * 0.2)) / 4)
    assert line.intercept_error == pytest.approx(error * math.sqrt(20 / 19))
    assert line.slope_error == pytest.approx(error * math.sqrt(20 / 19))
    assert line.at_zero[0] == pytest.approx(1 / (1 + math.exp(-(low + high) / 2)))


def test_the_line_is_the_likeliest():
    """No neighbour on a grid has a higher likelihood, shares counted as so much of each."""
    rng = random.Random(3)
    xs = [rng.gauss(5, 20) for _ in range(60)]
    outcomes = [rng.choice((0.0, 0.5, 1.0)) if x < 0 else rng.choice((0.5, 1.0)) for x in xs]
    line = logistic_line(outcomes, xs)

    def likelihood(intercept: float, slope: float) -> float:
        ps = [1 / (1 + math.exp(-intercept - slope * x / line.scale)) for x in xs]
        return sum(y * math.log(p) + (1 - y) * math.log(1 - p)
                   for y, p in zip(outcomes, ps, strict=True))  # fmt: skip

    best = likelihood(line.intercept, line.slope)
    for one, other in itertools.product((-1e-3, 0, 1e-3), repeat=2):
        if one or other:
            assert likelihood(line.intercept + one, line.slope + other) < best


def test_ten_copies_of_each_prompt_make_nobody_surer():
    rng = random.Random(4)
    xs = [rng.gauss(0, 1) for _ in range(40)]
    outcomes = [float(rng.random() < 0.6) for _ in xs]
    once = logistic_line(outcomes, xs)
    tenfold = logistic_line(outcomes * 10, xs * 10, list(range(40)) * 10)
    assert tenfold.intercept_error == pytest.approx(once.intercept_error)
    assert logistic_line(outcomes * 10, xs * 10).intercept_error < once.intercept_error / 3


@pytest.mark.parametrize(
    ("outcomes", "xs"),
    [
        ([0.0, 0.0, 1.0, 1.0], [-2, -1, 1, 2]),
        ([0.0, 0.0, 0.5, 1.0], [-2, -1, 0, 2]),
        ([1.0] * 5, [1, 2, 3, 4, 5]),
        ([0.0] * 5, [1, 2, 3, 4, 5]),
        ([0.0, 1.0, 0.0, 1.0], [3, 3, 3, 3]),
        ([0.0, 1.0], [1, 2]),
        ([], []),
    ],
)
def test_where_no_line_is_likeliest_there_is_none(outcomes, xs):
    assert logistic_line(outcomes, xs) is None


def test_two_contestants_strengths_are_a_logit():
    """7.5 of 10: log 3 apart, half of it each way."""
    wins = torch.tensor([[0.0, 7.5], [2.5, 0.0]])
    half = math.log(3) / 2
    assert bradley_terry(wins).tolist() == pytest.approx([half, -half])


def test_strengths_are_the_likeliest_by_search():
    """Against a search that knows nothing of Newton: coordinate steps that only shrink."""
    wins = [[0, 6.5, 9, 2], [3.5, 0, 4, 5], [1, 6, 0, 3.5], [8, 5, 6.5, 0]]

    def likelihood(strengths):
        return sum(
            wins[i][j] * -math.log1p(math.exp(strengths[j] - strengths[i]))
            for i, j in itertools.permutations(range(4), 2)
        )

    found, step = [0.0] * 4, 1.0
    while step > 1e-7:
        moves = [
            [each + sign * step * (place == own) for own, each in enumerate(found)]
            for place in range(4)
            for sign in (-1, 1)
        ]
        better = max(moves, key=likelihood)
        if likelihood(better) > likelihood(found):
            found = better
        else:
            step /= 2
    mean = sum(found) / 4
    expected = [each - mean for each in found]
    assert bradley_terry(torch.tensor(wins)).tolist() == pytest.approx(expected, abs=1e-5)


def test_many_tables_at_once_are_each_alone():
    generator = torch.Generator().manual_seed(0)
    wins = torch.randint(1, 9, (5, 3, 3), generator=generator).double()
    alone = torch.stack([bradley_terry(each) for each in wins])
    assert torch.allclose(bradley_terry(wins), alone)
    assert torch.allclose(alone.sum(-1), torch.zeros(5, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize(
    "wins",
    [
        [[0, 5, 5], [0, 0, 3], [0, 2, 0]],
        [[0, 2, 0], [3, 0, 0], [5, 5, 0]],
        [[0, 2, 0, 0], [3, 0, 0, 0], [4, 4, 0, 1], [4, 4, 1, 0]],
    ],
)
def test_who_never_lost_has_no_finite_strength(wins):
    assert bradley_terry(torch.tensor(wins, dtype=torch.float64)).isnan().all()


def test_kappa_of_two_names_is_that_of_yes_and_no():
    first = ["yes"] * 30 + ["no"] * 20
    second = ["yes"] * 25 + ["no"] * 5 + ["yes"] * 8 + ["no"] * 12
    assert kappa(first, second) == pytest.approx(cohens_kappa(25, 5, 8, 12))


def test_kappa_is_undefined_without_two_names():
    assert kappa([], []) is None
    assert kappa(["tie"] * 3, ["tie"] * 3) is None


def orders() -> tuple[Question, Question]:
    return (Question("1", "p", "a", "b", 0, {}), Question("2", "p", "b", "a", 0, {}))


def row(key: str, preference: float | None, status: str = "ok") -> VerdictRow:
    return VerdictRow(key, "p", "", "", 0, preference, status=status)


@pytest.mark.parametrize(
    ("first", "second", "result", "flipped"),
    [
        (1.0, -1.0, 1.0, False),
        (0.5, -1.0, 1.0, False),
        (-1.0, 1.0, 0.0, False),
        (1.0, 1.0, 0.5, True),
        (-0.5, -1.0, 0.5, True),
        (0.0, 0.0, 0.5, False),
        (1.0, 0.0, 0.5, False),
        (0.0, 1.0, 0.5, False),
    ],
)
def test_both_orders_come_to_one_result(first, second, result, flipped):
    """`second` is the preference for b, who is shown first there."""
    told = decided(orders(), {"1": row("1", first), "2": row("2", second)})
    assert (told.result, told.flipped, told.why) == (result, flipped, "ok")


def test_without_two_usable_verdicts_there_is_no_result():
    refused = {"1": row("1", 1.0), "2": row("2", None, "refused")}
    assert decided(orders(), refused).why == "refused"
    assert decided(orders(), {"1": row("1", 1.0)}).why == "not asked"
    assert decided(orders(), {}).result is None


def test_intervals_hold_the_truth_in_about_95_of_100_simulated_judges():
    """Judges of 150 prompts each, of a rule with 45 % wins, 20 % ties, 35 % losses: truth 0.55.

    Of 200 judges a true 95 % is within 4.6 points by three standard errors.
    """
    rng = random.Random(11)
    held = 0
    for _ in range(200):
        results = rng.choices((1.0, 0.5, 0.0), (0.45, 0.2, 0.35), k=150)
        measured = win_rate(results)
        held += measured.low <= 0.55 <= measured.high
    assert 0.904 <= held / 200 <= 0.996


def test_a_line_holds_the_truth_at_equal_lengths_in_about_95_of_100_simulated_judges():
    """Truth 0.6 at equal lengths, 0.8 logits a deviation of length, lengths that lean one way."""
    rng = random.Random(12)
    truth, held = math.log(0.6 / 0.4), 0
    for _ in range(300):
        xs = [rng.gauss(0.7, 1.0) for _ in range(150)]
        outcomes = [float(rng.random() < 1 / (1 + math.exp(-truth - 0.8 * x))) for x in xs]
        _, low, high = logistic_line(outcomes, xs).at_zero
        held += low <= 0.6 <= high
    assert 0.91 <= held / 300 <= 0.988
