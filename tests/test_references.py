"""From the log-probs of K references to the one an objective sees."""

import math
from functools import partial

import numpy as np
import oracle
import pytest
import torch
from batches import SHAPE_ERROR, assert_close, assert_rows_close, mask_of, padded

from mrpo_tools.maths import references

HOW = ("harmonic", "geometric", "arithmetic")
RADIUS = partial(references.trust_region_radius, epsilon_max=0.1)


def rows_of(sizes=range(1, 9), count: int = 3, seed: int = 0) -> list[list[list[float]]]:
    """Ragged groups of N rows of K log-probs, a few nats apart around the first."""
    rng = np.random.default_rng(seed)
    return [
        (rng.uniform(-80.0, -5.0, (size, 1)) + rng.normal(0.0, 4.0, (size, count))).tolist()
        for size in sizes
    ]


def tensors_of(groups, fill: float = math.nan, dtype=torch.float64):
    """[B, N, K] log-probs with `fill` in masked entries, and the [B, N] mask."""
    return padded(groups, fill, dtype), mask_of(groups)


def test_confidence_weights_by_hand():
    """MRPO Eq. 10 on a pair: spreads |−10 + 20| = 10 and |−14 + 18| = 4, so α = (5/7, 2/7).

    With a third response (−13, −20): the pairs' spreads are 10, 3, 7 and 4, 6, 2, with means
    20/3 and 4, so α = (20/32, 12/32) = (0.625, 0.375).
    """
    pair = [[-10.0, -14.0], [-20.0, -18.0]]
    logps, mask = tensors_of([pair, [*pair, [-13.0, -20.0]]])
    weights = references.confidence_weights(logps, mask)
    assert_close(weights, [[5 / 7, 2 / 7], [0.625, 0.375]])


def test_trust_region_radius_by_hand():
    """MRPO Eq. 9: row sums 24 and 38 of 62, so ε = 0.1·(24/62, 38/62) = (0.038710, 0.061290)."""
    logps, mask = tensors_of([[[-10.0, -14.0], [-20.0, -18.0]], [[-5.0, -6.0]]])
    radius = references.trust_region_radius(logps, mask, 0.1)
    assert_close(radius, [[2.4 / 62, 3.8 / 62], [0.1, 0.0]])


def test_clip_by_hand():
    """MRPO Eq. 8, ε = 0.1 around −10: from (1+ε)(−10) = −11 up to (1−ε)(−10) = −9."""
    logps = torch.tensor([[[-10.0, -14.0, -10.5, -2.0]]], dtype=torch.float64)
    clipped = references.clip_to_trust_region(logps, torch.tensor([[0.1]], dtype=torch.float64))
    assert_close(clipped, [[[-10.0, -11.0, -10.5, -9.0]]])


def test_combine_by_hand():
    """Probabilities 1/2 and 1/8 with α = (¼, ¾).

    harmonic:   1/(¼·2 + ¾·8) = 1/6.5        → −log 6.5
    geometric:  (1/2)^¼ (1/8)^¾ = 2^−2.5     → −2.5 log 2
    arithmetic: ¼·½ + ¾·⅛ = 0.21875          → log 0.21875
    """
    logps = torch.tensor([[[math.log(1 / 2), math.log(1 / 8)]]], dtype=torch.float64)
    weights = torch.tensor([[0.25, 0.75]], dtype=torch.float64)
    expected = {
        "harmonic": -math.log(6.5),
        "geometric": -2.5 * math.log(2),
        "arithmetic": math.log(0.21875),
    }
    for how, value in expected.items():
        assert_close(references.combine(logps, weights, how=how), [[value]])
    assert_close(references.combine(logps, weights), [[-math.log(6.5)]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_fixed_weights_are_normalised_in_float64(dtype):
    """(1, 0, 4, 2) of 7, for every group; float32 sevenths would cost 1e-4 nats near −10,000."""
    logps, _ = tensors_of(rows_of(sizes=(2, 3), count=4), dtype=dtype)
    weights = references.fixed_weights(logps, torch.tensor([1.0, 0.0, 4.0, 2.0], dtype=dtype))
    assert_close(weights, [[1 / 7, 0.0, 4 / 7, 2 / 7]] * 2)


@pytest.mark.parametrize("numbers", [[1.0, -0.5], [0.0, 0.0], [math.nan, 1.0]])
def test_fixed_weights_refuse_what_cannot_be_normalised(numbers):
    """Negative, all zero, not a number."""
    logps, _ = tensors_of(rows_of(sizes=(2,), count=2))
    with pytest.raises(ValueError, match="weights"):
        references.fixed_weights(logps, torch.tensor(numbers))


def test_accuracy_weights_by_hand():
    """Accuracies (0.7, 0.4, 0.6): (0.2, 0, 0.1) above chance, α = (2/3, 0, 1/3).

    None above chance: uniform, 1/K for every group.
    """
    logps, _ = tensors_of(rows_of(sizes=(2, 3), count=3))
    above = torch.tensor([0.7, 0.4, 0.6], dtype=torch.float64)
    assert_close(references.accuracy_weights(logps, above), [[2 / 3, 0.0, 1 / 3]] * 2)
    below = torch.tensor([0.5, 0.4, 0.1], dtype=torch.float64)
    assert_close(references.accuracy_weights(logps, below), [[1 / 3] * 3] * 2)
    assert_close(references.uniform_weights(logps), [[1 / 3] * 3] * 2)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_weights_and_radius_agree_with_the_oracle(count):
    """Ragged groups of 1 to 8 with NaN in every masked entry."""
    groups = rows_of(count=count)
    logps, mask = tensors_of(groups)
    weights = references.confidence_weights(logps, mask)
    radius = references.trust_region_radius(logps, mask, 0.3)
    assert_close(weights, [oracle.confidence_weights(rows) for rows in groups])
    assert_rows_close(radius, [oracle.adaptive_radius(rows, 0.3) for rows in groups])
    assert (radius[~mask] == 0).all()
    assert_close(weights.sum(-1), torch.ones(len(groups)))
    assert_close(radius.sum(-1), torch.full((len(groups),), 0.3, dtype=torch.float64))


@pytest.mark.parametrize("epsilon_max", [0.0, 0.1, 2.0])
def test_clip_agrees_with_the_oracle(epsilon_max):
    """Adaptive and fixed radii; reference 1 is untouched."""
    groups = rows_of()
    logps, mask = tensors_of(groups)
    adaptive = references.trust_region_radius(logps, mask, epsilon_max)
    fixed = torch.full(mask.shape, epsilon_max, dtype=torch.float64)
    for radius, rule in ((adaptive, oracle.adaptive_radius), (fixed, oracle.fixed_radius)):
        clipped = references.clip_to_trust_region(logps, radius)
        expected = [oracle.clip(rows, rule(rows, epsilon_max)) for rows in groups]
        assert_rows_close(clipped, expected)
        assert torch.equal(clipped[..., 0][mask], logps[..., 0][mask])


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_combine_agrees_with_the_oracle(how, count):
    """Under confidence, uniform and fixed weights, zeros among them."""
    groups = rows_of(count=count)
    logps, _ = tensors_of(groups)
    fixed = oracle.fixed_weights([1.0, 0.0, 3.0, 0.5, 0.0][:count])
    for rule in (oracle.confidence_weights, oracle.uniform_weights, lambda rows: fixed):
        weights = [rule(rows) for rows in groups]
        combined = references.combine(logps, torch.tensor(weights, dtype=torch.float64), how=how)
        assert_rows_close(combined, map(partial(oracle.combine, how=how), groups, weights))


@pytest.mark.parametrize("how", HOW)
def test_the_whole_reference_agrees_with_the_oracle(how):
    """Weights and radii from the unclipped log-probs, then clip, then combine."""
    groups = rows_of(seed=1)
    logps, mask = tensors_of(groups)
    weights = references.confidence_weights(logps, mask)
    radius = references.trust_region_radius(logps, mask, 0.1)
    combined = references.combine(references.clip_to_trust_region(logps, radius), weights, how=how)
    assert_rows_close(combined, [oracle.virtual_reference(rows, 0.1, how) for rows in groups])


@pytest.mark.parametrize("fill", [math.nan, math.inf, -math.inf, 7.0])
def test_masked_entries_reach_no_weight_and_no_radius(fill):
    """Whatever they hold."""
    groups = rows_of(sizes=(1, 2, 5))
    logps, mask = tensors_of(groups, fill)
    plain, _ = tensors_of(groups, fill=-1.0)
    for rule in (references.confidence_weights, RADIUS):
        assert torch.equal(rule(logps, mask), rule(plain, mask))


@pytest.mark.parametrize(
    ("rows", "alpha"),
    [
        ([[-1.0, -2.0, -3.0]], [1 / 3] * 3),  # one response
        ([[-1.0, -2.0, -3.0]] * 2, [1 / 3] * 3),  # references that rate all responses alike
        ([[-1.0, -4.0], [-3.0, -4.0]], [1.0, 0.0]),  # spreads 2 and 0
    ],
)
def test_where_nothing_spreads(rows, alpha):
    """All spreads 0 say nothing of confidence: uniform; a single one of 0 is no weight."""
    assert_close(references.confidence_weights(*tensors_of([rows])), [alpha])


def test_zero_sums_share_the_radius():
    """All row sums 0: ε_max/N each, N the real responses."""
    logps, mask = tensors_of([[[0.0, 0.0]] * 2, [[0.0, 0.0]] * 4])
    radius = references.trust_region_radius(logps, mask, 0.2)
    assert_close(radius, [[0.1, 0.1, 0.0, 0.0], [0.05] * 4])


def test_a_group_without_responses_is_harmless():
    """Uniform weights, radius 0."""
    logps = torch.full((1, 3, 2), math.nan, dtype=torch.float64)
    mask = torch.zeros(1, 3, dtype=torch.bool)
    assert_close(references.confidence_weights(logps, mask), [[0.5, 0.5]])
    assert_close(RADIUS(logps, mask), [[0.0, 0.0, 0.0]])


@pytest.mark.parametrize("how", HOW)
def test_a_zero_weight_drops_its_reference(how):
    """The same as never having listed it, even where it finds a response impossible."""
    logps, _ = tensors_of(rows_of(sizes=(3, 3), count=3))
    weights = torch.tensor([[0.3, 0.0, 0.7]] * 2, dtype=torch.float64)
    expected = references.combine(logps[..., [0, 2]], weights[:, [0, 2]], how=how)
    assert_close(references.combine(logps, weights, how=how), expected)
    logps[..., 1] = -math.inf
    assert_close(references.combine(logps, weights, how=how), expected)


@pytest.mark.parametrize("how", HOW)
def test_extreme_log_probs_stay_finite_and_exact(how):
    """−10,000 against −5,000: e^10000 is never formed."""
    rows = [[-10_000.0, -5_000.0], [-5_000.0, -10_000.0], [-1e-9, -10_000.0]]
    logps, mask = tensors_of([rows])
    weights = references.confidence_weights(logps, mask)
    radius = references.trust_region_radius(logps, mask, 0.1)
    moved = references.clip_to_trust_region(logps, radius)
    expected = oracle.clip(rows, oracle.adaptive_radius(rows, 0.1))
    for clipped, plain in ((logps, rows), (moved, expected)):
        combined = references.combine(clipped, weights, how=how)
        assert combined.isfinite().all()
        assert_close(combined[0], oracle.combine(plain, oracle.confidence_weights(rows), how))


@pytest.mark.parametrize("how", HOW)
def test_float32_caches_are_combined_in_float64(how):
    """Cached numbers may be float32; near −10,000 nats its grid of 0.001 must not be added."""
    rng = np.random.default_rng(3)
    rows = rng.uniform(-10_000.0, -9_990.0, (4, 3)).astype(np.float32)
    logps = torch.from_numpy(rows)[None]
    weights = torch.tensor([[0.5, 0.25, 0.25]])
    combined = references.combine(logps, weights, how=how)
    assert_close(combined[0], oracle.combine(rows.tolist(), [0.5, 0.25, 0.25], how))


def test_an_unknown_combination_is_refused():
    """The error is about the name, not a silent default."""
    with pytest.raises(ValueError, match="quadratic"):
        references.combine(torch.zeros(1, 2, 2), torch.full((1, 2), 0.5), how="quadratic")


LOGPS, MASK = torch.full((3, 3, 2), -5.0), torch.ones(3, 3, dtype=torch.bool)
HALVES = torch.full((3, 2), 0.5)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (references.confidence_weights, (LOGPS, MASK[:, :1])),
        (references.confidence_weights, (LOGPS, MASK[0])),
        (references.confidence_weights, (LOGPS[..., 0], MASK)),
        (references.trust_region_radius, (LOGPS, MASK[:, :1], 0.1)),
        (references.trust_region_radius, (LOGPS, MASK[0], 0.1)),
        (references.clip_to_trust_region, (LOGPS, torch.full((3, 1), 0.1))),
        (references.clip_to_trust_region, (LOGPS, torch.full((3,), 0.1))),
        (references.clip_to_trust_region, (LOGPS, torch.full((3, 3, 1), 0.1))),
        (references.combine, (LOGPS, HALVES[:, :1])),
        (references.combine, (LOGPS, HALVES[0])),
        (references.combine, (LOGPS, HALVES[:1])),
        (references.combine, (LOGPS[..., 0], HALVES)),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_refuses_to_broadcast(function, arguments):
    """Every shape is checked before any arithmetic."""
    with pytest.raises(ValueError, match=SHAPE_ERROR):
        function(*arguments)
