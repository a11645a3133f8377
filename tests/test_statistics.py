"""Means, effect sizes, kappa, Kendall and bootstrap against scipy and against hand calculation."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import scipy.stats
import torch

from mrpo_tools.maths import metrics, resampling, statistics
from mrpo_tools.maths.judgements import Judgements


def test_mean_and_std_are_numpys():
    values = [random.Random(0).gauss(3, 2) for _ in range(7)]
    mean, std = statistics.mean_and_std(values)
    assert mean == pytest.approx(np.mean(values))
    assert std == pytest.approx(np.std(values, ddof=1))
    assert statistics.mean_and_std([0.25]) == (0.25, None)


def test_cohens_d_by_hand_and_through_welch():
    """Equal sizes n: Welch's t is d·√(n/2). By hand: means 4 and 2, variances 1: d = 2."""
    assert statistics.cohens_d([3, 4, 5], [1, 2, 3]) == pytest.approx(2.0)
    rng = random.Random(1)
    a, b = ([rng.gauss(mean, 1) for _ in range(9)] for mean in (0.0, 0.7))
    t = scipy.stats.ttest_ind(a, b, equal_var=False).statistic
    assert statistics.cohens_d(a, b) == pytest.approx(t / math.sqrt(9 / 2))


def test_cohens_d_at_the_edges():
    assert statistics.cohens_d([1.0], [2.0, 3.0]) is None
    assert statistics.cohens_d([2.0, 2.0], [1.0, 1.0]) == math.inf
    assert statistics.cohens_d([1.0, 1.0], [2.0, 2.0]) == -math.inf
    assert statistics.cohens_d([1.0, 1.0], [1.0, 1.0]) == 0.0


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 10, 60])
def test_students_t_is_scipys(freedom):
    for t in (0.0, 0.3, 1.0, -2.5, 7.0):
        expected = 2 * scipy.stats.t.sf(abs(t), freedom)
        assert statistics.two_sided_p(t, freedom) == pytest.approx(expected, abs=1e-12)
    for confidence in (0.5, 0.95, 0.99):
        expected = scipy.stats.t.ppf((1 + confidence) / 2, freedom)
        assert statistics.t_quantile(freedom, confidence) == pytest.approx(expected)


def test_paired_difference_is_scipys():
    rng = random.Random(3)
    first, second = ([rng.gauss(mean, 1) for _ in range(7)] for mean in (0.4, 0.0))
    expected = scipy.stats.ttest_rel(first, second)
    ends = expected.confidence_interval(0.95)
    difference = statistics.paired_difference(first, second)
    assert difference.p == pytest.approx(expected.pvalue)
    assert (difference.low, difference.high) == pytest.approx((ends.low, ends.high))


def test_differences_without_spread_say_nothing_of_chance():
    """Rounding makes 0.1 + 0.2 − 0.2 and 0.3 + 0.1 − 0.3 differ in the last digit alone."""
    assert statistics.paired_difference([], []) is None
    assert statistics.paired_difference([2.0], [1.0]).p is None
    shifted = statistics.paired_difference([0.1 + 0.2, 0.3 + 0.1, 0.8], [0.2, 0.3, 0.7])
    assert (shifted.low, shifted.high, shifted.p) == (None, None, None)
    assert statistics.paired_difference([0.5, 0.7], [0.5, 0.7]).p == 1.0
    assert statistics.paired_difference([0.0, 0.0], [0.0, 0.0]).p == 1.0


def test_holm_is_bonferroni_in_every_family_that_holds_a_comparison():
    """Closed testing (Marcus et al. 1976): rejected where every family of it is, by Bonferroni."""
    rng = random.Random(8)
    for size in (1, 2, 3, 5):
        ps = [rng.random() ** 3 for _ in range(size)]
        families = [
            [place for place in range(size) if bits >> place & 1] for bits in range(1, 2**size)
        ]
        expected = [
            max(
                min(len(family) * min(ps[other] for other in family), 1.0)
                for family in families
                if place in family
            )
            for place in range(size)
        ]
        assert statistics.holm(ps) == pytest.approx(expected)


@pytest.mark.parametrize("counts", [(45, 15, 25, 15), (20, 5, 10, 15), (0, 3, 4, 0), (9, 0, 0, 1)])
def test_kappa_with_scipys_expected_counts(counts):
    both, first, second, neither = counts
    table = np.array([[both, first], [second, neither]])
    expected = scipy.stats.contingency.expected_freq(table)
    share, chance = np.trace(table) / table.sum(), np.trace(expected) / table.sum()
    kappa = statistics.cohens_kappa(both, first, second, neither)
    assert kappa == pytest.approx((share - chance) / (1 - chance))


def test_kappa_by_hand_and_undefined():
    """(20, 5, 10, 15): p_o = 35/50 = 0.7, p_e = 0.5·0.6 + 0.5·0.4 = 0.5, so 0.4."""
    assert statistics.cohens_kappa(20, 5, 10, 15) == pytest.approx(0.4)
    assert statistics.cohens_kappa(0, 0, 0, 0) is None
    assert statistics.cohens_kappa(7, 0, 0, 0) is None


def test_kendall_is_scipys():
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randint(0, 5, (200, 6), generator=generator).double()
    scores = torch.randint(0, 5, (200, 6), generator=generator).double()
    sizes = torch.randint(2, 7, (200,), generator=generator)
    mask = torch.arange(6) < sizes.unsqueeze(1)
    taus = metrics.kendall_tau(rewards, Judgements(mask, scores, None))
    for row, size in enumerate(sizes.tolist()):
        expected = scipy.stats.kendalltau(rewards[row, :size], scores[row, :size]).statistic
        assert float(taus[row]) == pytest.approx(float(expected), nan_ok=True)


def test_bootstrap_interval_is_scipys():
    """Percentile intervals of 20,000 resamples agree within what resampling itself scatters."""
    values = torch.rand(120, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    means = resampling.bootstrap_means(values, 20_000)
    low, high = resampling.percentile_interval(means)[0].tolist()
    expected = scipy.stats.bootstrap(
        (values[:, 0].numpy(),), np.mean, n_resamples=20_000, method="percentile", rng=0
    )
    assert low == pytest.approx(expected.confidence_interval.low, abs=2e-3)
    assert high == pytest.approx(expected.confidence_interval.high, abs=2e-3)
    assert float(means.std()) == pytest.approx(expected.standard_error, rel=0.03)


def test_bootstrap_leaves_groups_without_a_value_out():
    """A column with every second value NaN: its draws are means of the others alone."""
    values = torch.full((40, 2), 3.0)
    values[::2, 1] = math.nan
    assert torch.equal(resampling.bootstrap_means(values, 50), torch.full((50, 2), 3.0).double())
    nothing = resampling.bootstrap_means(torch.full((4, 1), math.nan), 5)
    assert bool(nothing.isnan().all())
    assert resampling.bootstrap_means(torch.zeros(0, 3), 5).shape == (5, 3)


def test_bootstrap_is_paired_and_repeatable():
    """Columns see the same draws, in one chunk or in many; another seed draws others."""
    values = torch.rand(30, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    shifted = torch.cat([values, values + 1], dim=1)
    means = resampling.bootstrap_means(shifted, 200)
    assert torch.allclose(means[:, 1] - means[:, 0], torch.ones(200).double())
    assert torch.equal(means, resampling.bootstrap_means(shifted, 200))
    assert not torch.equal(means, resampling.bootstrap_means(shifted, 200, seed=1))
    assert torch.allclose(means, resampling.bootstrap_means(shifted, 200, drawn_at_once=100))


def test_bootstrap_draws_prompts_with_all_of_their_groups():
    """Groups 0, 2 and 4 of one prompt, 1 and 3 of another: sums and counts of whole prompts.

    A draw of two prompts is (3·a + 2·b)/5, a or b, with a = 1 and b = 0: 0.6, 1 or 0.
    """
    values = torch.tensor([[1.0], [0.0], [1.0], [0.0], [1.0]])
    clusters = torch.tensor([0, 1, 0, 1, 0])
    means = resampling.bootstrap_means(values, clusters=clusters)
    shares = {mean: float((means == mean).double().mean()) for mean in (0.0, 0.6, 1.0)}
    assert shares == pytest.approx({0.0: 0.25, 0.6: 0.5, 1.0: 0.25}, abs=0.04)
    alone = resampling.bootstrap_means(values, clusters=torch.arange(5))
    assert torch.equal(alone, resampling.bootstrap_means(values))


def test_simultaneous_intervals_are_those_of_independent_normals():
    """Ten independent columns: ± the normal quantile of (1 + 0.95^(1/10))/2, 2.80, not 1.96."""
    deviates = torch.randn(20_000, 10, generator=torch.Generator().manual_seed(5)).double()
    scales = torch.linspace(0.5, 3, 10, dtype=torch.float64)
    centre = torch.arange(10).double()
    ends = resampling.simultaneous_intervals(centre + scales * deviates, centre)
    expected = scipy.stats.norm.ppf((1 + 0.95**0.1) / 2) * scales
    assert torch.allclose(centre - ends[:, 0], expected, rtol=0.03)
    assert torch.allclose(ends[:, 1] - centre, expected, rtol=0.03)
    alike = resampling.simultaneous_intervals(deviates[:, :1].expand(-1, 10), torch.zeros(10))
    assert alike.abs().numpy() == pytest.approx(1.96, rel=0.03)  # copies of one are one
    assert resampling.simultaneous_intervals(torch.full((9, 1), 0.1), torch.full((1,), 0.1)).tolist(
    ) == [pytest.approx([0.1, 0.1])]  # fmt: skip


def test_an_interval_covers_the_truth_as_often_as_it_says():
    """Means of 200 samples of 60 from a known distribution: about 95 % of intervals hold 0.5."""
    generator = torch.Generator().manual_seed(4)
    samples = torch.rand(60, 200, generator=generator, dtype=torch.float64)
    ends = resampling.percentile_interval(resampling.bootstrap_means(samples, 1000))
    covered = ((ends[:, 0] <= 0.5) & (ends[:, 1] >= 0.5)).double().mean()
    assert 0.89 <= float(covered) <= 0.99
