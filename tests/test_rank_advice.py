"""The advice of `mrpo rank` where the truth is known, and the weights that take length out of it.

bench/rank.py does the same with many seeds.
"""

from __future__ import annotations

from statistics import fmean

import pytest
import torch
from known_truth import SCENARIOS, Truth, cache_of, draw, judge
from test_docs import measured

from mrpo_tools.cli import run
from mrpo_tools.evaluation.evidence import crossed_gain
from mrpo_tools.evaluation.leading import Shares, weights_at_equal_length
from mrpo_tools.evaluation.rank import Ranking, rank

KNOWERS = {name for name, scenario in SCENARIOS.items() if scenario.best}
COMBINED = {"complementary, loud where right", "complementary, equally loud", "three equal, noisy"}
LENGTHS = {1: "longer", 0: None, -1: "shorter"}
"""Which length predicts the label; liked by little it may go unseen, and no harm is done."""
LIKED = {name: scenario.liking for name, scenario in SCENARIOS.items()}


@pytest.fixture(scope="module")
def ranking_of(tmp_path_factory):
    """Rankings of one draw of a scenario, each made once."""
    made: dict[str, Ranking] = {}

    def of(name: str) -> Ranking:
        if name not in made:
            made[name] = rank(cache_of(tmp_path_factory.mktemp("known") / "cache", SCENARIOS[name]))
        return made[name]

    return of


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_truth_is_as_the_scenario_says(name):
    """Measured on 3,000 fresh groups: the best leads clearly, or nobody does or knows."""
    truth = Truth(SCENARIOS[name])
    first, second = sorted(truth.accuracies.values(), reverse=True)[:2]
    if truth.best:
        assert truth.accuracies[truth.best] == first > second + 0.02
    else:
        assert first - second < 0.03 or first < 0.53


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_advice_is_right_or_says_that_it_cannot_tell(name, ranking_of):
    ranking = ranking_of(name)
    assert "wrong" not in judge(ranking, Truth(SCENARIOS[name]))
    advice = ranking.recommendation
    assert (advice.confidence != "low") == (name in KNOWERS)
    assert bool(advice.others) == (name in COMBINED)
    if LIKED[name] in LENGTHS:
        assert ranking.better_length == LENGTHS[LIKED[name]]
    expected = "per_byte_at_equal_length" if ranking.better_length else "summed"
    assert ranking.leading_figure == expected


@pytest.mark.parametrize("name", ["all chance", *(n for n in SCENARIOS if n.endswith("without"))])
def test_nobody_is_called_a_knower_for_a_taste_in_length(name, ranking_of):
    assert "not above chance" in ranking_of(name).recommendation.why


def test_the_summed_figure_would_have_been_taken_in(ranking_of):
    """All three rank far above chance where the shorter is better, and know nothing."""
    ranking = ranking_of("shorter is better, without")
    assert all(reference.accuracy["summed"].low > 0.6 for reference in ranking.references)
    assert all(reference.leading.low < 0.5 < reference.leading.high
               for reference in ranking.references)  # fmt: skip


def test_a_choice_is_measured_where_it_was_not_made():
    """Thirty columns that guess: the best of them seems to gain, and on the other half does not."""
    seeming, crossed = [], []
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        right = torch.randint(2, (200, 31), generator=random).double()
        shares = Shares(right, torch.ones(200, dtype=torch.float64), torch.arange(200))
        seeming.append(float((shares.accuracies[1:] - shares.accuracies[0]).max()))
        crossed.append(float(crossed_gain(shares, 1).accuracies))
    assert fmean(seeming) > 0.05
    assert abs(fmean(crossed)) < 0.03


def test_a_taste_for_length_joins_no_knower(tmp_path):
    """A draw in which every interval says that it helps: it gains on one side of the length only.

    The label is known: where it follows the length, a knower's margins are small, and a taste
    helps; where it does not, they are large, and the same taste does little harm.
    """
    scenario = SCENARIOS["shorter is better, with a knower"]
    ranking = rank(cache_of(tmp_path / "cache", scenario, seed=6))
    best = max(ranking.virtual, key=lambda row: row.gain.value)
    assert best.gain.low > 0
    assert ranking.recommendation.combination_gain.low > 0
    assert Truth(scenario).gain(best) < 0.005
    assert ranking.recommendation.others == []
    assert "may be a taste for length: no gain is shown" in ranking.recommendation.why


def test_a_clear_choice_is_the_same_on_both_halves():
    """Right on 60 of 100 prompts, of which the first reference has 30: +0.3, wherever measured."""
    places = torch.arange(100)
    right = torch.stack([places % 10 < 3, places % 10 < 6, places % 10 < 1], dim=-1).double()
    shares = Shares(right, torch.ones(100, dtype=torch.float64), places)
    assert float(crossed_gain(shares, 1).accuracies) == pytest.approx(0.3)


def test_a_note_where_weights_favour_the_worst(ranking_of, tmp_path, capsys):
    ranking = ranking_of("loud chance, quiet knowledge")
    worst = ranking.references[-1]
    (note,) = ranking.recommendation.notes
    assert worst.name == "shouting"
    assert worst.mean_weight > 0.6
    assert f"accuracy {worst.leading.value:.3f} and weight {worst.mean_weight:.3f}" in note
    assert ranking_of("three equal, noisy").recommendation.notes == []
    assert ranking_of("complementary, loud where right").recommendation.notes == []
    path = cache_of(tmp_path / "cache", SCENARIOS["loud chance, quiet knowledge"]).path
    assert run(["rank", "--cache", str(path)]) == 0
    assert f"note: {note}\n" in capsys.readouterr().out


def test_the_command_where_length_leads(tmp_path, capsys, ranking_of):
    name = "shorter is better, with a knower"
    assert run(["rank", "--cache", str(cache_of(tmp_path / "cache", SCENARIOS[name]).path)]) == 0
    out = capsys.readouterr().out
    leading = ranking_of(name).references[0].leading
    assert f"knower              {leading.value:.3f} [{leading.low:.3f}, {leading.high:.3f}]" in out
    assert "The shorter response is better more often than chance" in out


def test_weights_at_equal_length_by_hand():
    """Three pairs whose longer response (20 against 10 bytes) is better, and one the other way.

    They share a weight of 4: each kind gets 2. The pair of equal lengths keeps 1. The pair of 90
    against 10 bytes has no counterpart only where strata tell it from the others, and four groups
    are too few for a second stratum: it counts with the three.
    """
    lengths = torch.tensor([[20, 10], [20, 10], [20, 10], [10, 20], [10, 10]])
    better_first = torch.tensor([[False, True], [False, False]])
    pairs = better_first.expand(5, 2, 2)
    weights = weights_at_equal_length(pairs, lengths)
    torch.testing.assert_close(
        weights[:, 0, 1], torch.tensor([2 / 3, 2 / 3, 2 / 3, 2.0, 1.0], dtype=torch.float64)
    )
    assert float(weights.sum()) == pytest.approx(5.0)
    alone = weights_at_equal_length(pairs[:3], lengths[:3])
    assert float(alone.sum()) == 0.0


@pytest.mark.parametrize("liking", [1.0, -1.0, 2.0])
def test_a_taste_for_length_is_right_half_of_the_time(liking):
    """However strongly a length is liked; a rule about length exactly, a noisy taste nearly."""
    name = "longer is better, with a knower"
    drawn = draw(SCENARIOS[name], 10_000, 3, liking)
    scores, lengths = drawn.scores, drawn.num_bytes
    pairs = scores.unsqueeze(-1) > scores.unsqueeze(-2)
    weights = weights_at_equal_length(pairs, lengths)

    def accuracy(rewards: torch.Tensor) -> float:
        right = rewards.unsqueeze(-1) > rewards.unsqueeze(-2)
        return float(weights[right].sum() / weights.sum())

    longer = lengths.unsqueeze(-1) > lengths.unsqueeze(-2)
    shorter = lengths.unsqueeze(-1) < lengths.unsqueeze(-2)
    assert float(weights[longer].sum()) == pytest.approx(float(weights[shorter].sum()))
    wordy, knower, terse = (drawn.logps[..., k] / lengths for k in range(3))
    assert accuracy(wordy) == pytest.approx(0.5, abs=0.02)
    assert accuracy(terse) == pytest.approx(0.5, abs=0.02)
    assert accuracy(knower) > 0.75


def test_the_published_table_is_rarely_wrong():
    """docs/rank_simulated.json: at most one statement in twenty is false, in every scenario."""
    table = measured("rank_simulated.json")
    assert [row["scenario"] for row in table["rows"]] == list(SCENARIOS)
    for row in table["rows"]:
        for verdicts in (row["first"], row["combination"]):
            assert sum(verdicts.values()) == table["seeds"]
            assert verdicts.get("wrong", 0) <= 0.05 * table["seeds"]
