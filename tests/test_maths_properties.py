"""Properties of the mathematics over drawn groups: order, padding, scale and bounds."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from batches import (
    EVERY,
    RANDOM_PAIR,
    SEVERAL,
    TOGETHER,
    assert_close,
    compute,
    describe,
    loss_and_gradient,
    tensors_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Group

from mrpo_tools.maths import objectives, references

bounded = settings(max_examples=20, deadline=None, derandomize=True)
nats = st.floats(-80.0, -1.0)
factors = st.floats(0.1, 10.0)
COMBINATIONS = ("harmonic", "geometric", "arithmetic")
RADIUS = partial(references.trust_region_radius, epsilon_max=0.1)


@st.composite
def groups(draw, name: str = "dpo", tied: bool = False, sizes=(2, 6)) -> Group:
    """A group with distinct scores 0..N−1 (or, tied, any of 0..2) in any order."""
    size = draw(st.integers(*sizes))
    column = st.lists(nats, min_size=size, max_size=size)
    levels = st.lists(st.integers(0, 2), min_size=size, max_size=size)
    scores = draw(levels if tied else st.permutations(range(size)))
    several = name in SEVERAL
    group = Group(
        policy=draw(column),
        reference=[draw(st.tuples(nats, nats)) for _ in range(size)] if several else draw(column),
        lengths=draw(st.lists(st.integers(1, 40), min_size=size, max_size=size)),
        scores=[float(score) for score in scores],
        weights=[0.25, 0.75] if several else None,
        behaviour=draw(column),
        seed=draw(st.integers(-(2**63), 2**63 - 1)),
    )
    return group.beside(group.take([*range(size)][:-1] * 2)) if name == "kd" else group


def scaled(group: Group, **factor: float) -> Group:
    """The group with these columns multiplied."""
    return replace(
        group, **{key: [value * c for value in getattr(group, key)] for key, c in factor.items()}
    )


@pytest.mark.parametrize(("name", "hyper"), EVERY + TOGETHER, ids=describe)
@bounded
@given(data=st.data())
def test_permuting_responses_permutes(name, hyper, data):
    """The loss stays; rewards and gradients move with their responses."""
    tied = name in ("plackett_luce", "mppo_list_mle")
    group = data.draw(groups(name, tied=tied))
    order = data.draw(st.permutations(range(group.size)))
    before, after = tensors_of([group]), tensors_of([group.take(order)])
    loss, gradient = loss_and_gradient(name, before, hyper)
    moved_loss, moved_gradient = loss_and_gradient(name, after, hyper)
    assert_close(moved_loss, loss)
    assert_close(moved_gradient, gradient[:, order])
    rewards = objectives.rewards(name, objectives.Batch(**before), **hyper)
    moved = objectives.rewards(name, objectives.Batch(**after), **hyper)
    assert_close(moved, rewards[:, order])


@pytest.mark.parametrize(("name", "hyper"), EVERY + TOGETHER + RANDOM_PAIR, ids=describe)
@bounded
@given(data=st.data())
def test_padding_with_masked_responses_changes_nothing(name, hyper, data):
    """NaN columns before, between and after the real ones, best_random included."""
    group = data.draw(groups(name))
    extra = data.draw(st.integers(1, 4))
    slots = data.draw(st.permutations(range(group.size + extra)))[: group.size]
    slots = sorted(slots)
    empty = [i for i in range(group.size + extra) if i not in slots]
    plain, wide = tensors_of([group]), tensors_of([group], width=group.size + extra)
    origin = torch.tensor(slots + empty).argsort()
    spread = {
        key: value if value is None or key in ("weights", "seeds") else value[:, origin]
        for key, value in wide.items()
    }
    loss, gradient = loss_and_gradient(name, plain, hyper)
    padded_loss, padded_gradient = loss_and_gradient(name, spread, hyper)
    assert_close(padded_loss, loss, 1e-12)
    assert_close(padded_gradient[:, slots], gradient, 1e-12)
    assert (padded_gradient[:, empty] == 0).all()


@pytest.mark.parametrize(
    ("name", "hyper"), [case for case in EVERY if case[0] != "kto_pair"] + RANDOM_PAIR, ids=describe
)
@bounded
@given(data=st.data())
def test_a_group_does_not_see_its_batch(name, hyper, data):
    """Alone or beside others, the same loss; kto_pair is exempt by its definition."""
    first, second = data.draw(groups(name)), data.draw(groups(name))
    together = compute(name, [first, second], hyper)
    alone = torch.cat([compute(name, [group], hyper) for group in (first, second)])
    assert_close(together, alone, 1e-12)


def on_beta_times_the_log_ratio(group: Group, hyper: dict, c: float, _: float):
    """Log-probs times c and β over c: only their product counts."""
    return scaled(group, policy=c, reference=c), {"beta": hyper["beta"] / c}, 1


def on_its_square(group: Group, hyper: dict, c: float, _: float):
    """(cΔ − 1/(2β/c))² = c²(Δ − 1/(2β))²."""
    return scaled(group, policy=c, reference=c), {"beta": hyper["beta"] / c}, c**2


def on_log_probs_per_token(group: Group, hyper: dict, c: float, _: float):
    """Log-probs and lengths both times a whole number."""
    times = math.ceil(c) + 1
    return scaled(group, policy=times, reference=times, lengths=times), hyper, 1


def on_differences_in_a_prompt(group: Group, hyper: dict, _: float, shift: float):
    """What the geometric combination leaves out: one constant for all responses of a prompt."""
    return replace(group, reference=[value + shift for value in group.reference]), hyper, 1


def on_order_or_relative_deviation(group: Group, hyper: dict, c: float, shift: float):
    """Scores c·s + shift."""
    return replace(group, scores=[c * score + shift for score in group.scores]), hyper, 1


def on_scores_in_their_unit(group: Group, hyper: dict, c: float, shift: float):
    """Scores times c are undone by a over c, or by τ times c; a constant never counts."""
    moved, _, _ = on_order_or_relative_deviation(group, hyper, c, shift)
    units = {"deviation_scale": 1 / c, "tau": c}
    return moved, {key: value * units.get(key, 1) for key, value in hyper.items()}, 1


THIRD, POWER = {"beta": 0.3}, {"weight": "power"}
DEPENDS_ONLY = [
    *((on_beta_times_the_log_ratio, name, THIRD)
      for name in ("dpo", "mpo", "mpo_1vsk", "infonca", "nca", "plackett_luce", "kto_pair",
                   "r_dpo")),
    *((on_its_square, name, THIRD) for name in ("ipo", "sppo")),
    *((on_log_probs_per_token, name, {})
      for name in ("simpo", "mpo_reference_free", "orpo", "sft", "grpo_offline", "mppo_pair_single",
                   "mppo_pair_mns", "mppo_pair_mcm", "mppo_list_mle", "mppo_point_ce",
                   "mppo_point_mse")),
    (on_log_probs_per_token, "ipo", {"length_normalized": True}),
    *((on_differences_in_a_prompt, name, {})
      for name in ("dpo", "plackett_luce", "ipo", "r_dpo", "rlhf")),
    *((on_differences_in_a_prompt, name, THIRD) for name in ("mpo", "w_mpo", "infonca")),
    (on_differences_in_a_prompt, "swepo", THIRD | POWER),
    *((on_order_or_relative_deviation, name, {})
      for name in ("mpo", "mpo_1vsk", "plackett_luce", "grpo_offline", "sft", "mppo_pair_single",
                   "mppo_pair_mcs", "mppo_list_mle")),
    (on_order_or_relative_deviation, "dpo", {"pairing": "all"}),
    (on_order_or_relative_deviation, "mpo", {"chosen": "top_bottom"}),
    (on_order_or_relative_deviation, "swepo", POWER | {"power": 2}),
    *((on_scores_in_their_unit, "swepo",
       THIRD | {"power": power, "signed": signed, "deviation_scale": 0.5})
      for power in (1, 2) for signed in (False, True)),
    *((on_scores_in_their_unit, name, {"tau": 2.0}) for name in ("infonca", "nca")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "name", "hyper"), DEPENDS_ONLY, ids=lambda v: getattr(v, "__name__", describe(v))
)
@bounded
@given(group=groups(), c=factors, shift=st.floats(-100.0, 100.0))
def test_a_loss_depends_only(change, name, hyper, group, c, shift):
    """On what its formula shows."""
    moved, after, factor = change(group, hyper, c, shift)
    assert_close(compute(name, [moved], after), factor * compute(name, [group], hyper))


@st.composite
def reference_groups(draw, sizes=(1, 5), counts=(2, 4)):
    """[1, N, K] log-probs, a full mask, and [1, K] weights that sum to 1."""
    size, count = draw(st.integers(*sizes)), draw(st.integers(*counts))
    row = st.lists(nats, min_size=count, max_size=count)
    logps = draw(st.lists(row, min_size=size, max_size=size))
    parts = torch.tensor(draw(st.lists(factors, min_size=count, max_size=count))).double()
    mask = torch.ones(1, size, dtype=torch.bool)
    return torch.tensor([logps], dtype=torch.float64), mask, (parts / parts.sum())[None]


@bounded
@given(drawn=reference_groups())
def test_harmonic_below_geometric_below_arithmetic(drawn):
    """All three lie between the smallest and the largest reference."""
    logps, _, weights = drawn
    harmonic, geometric, arithmetic = (
        references.combine(logps, weights, how=how) for how in COMBINATIONS
    )
    slack = 1e-9
    assert (logps.amin(-1) <= harmonic + slack).all()
    assert (harmonic <= geometric + slack).all()
    assert (geometric <= arithmetic + slack).all()
    assert (arithmetic <= logps.amax(-1) + slack).all()


@bounded
@given(drawn=reference_groups(), data=st.data())
def test_permuting_references_2_to_k_changes_nothing(drawn, data):
    """Weights and clipped log-probs move with their reference; the combination stays."""
    logps, mask, _ = drawn
    order = [0, *data.draw(st.permutations(range(1, logps.shape[-1])))]
    moved = logps[..., order]
    weights, radius = references.confidence_weights(logps, mask), RADIUS(logps, mask)
    clipped = references.clip_to_trust_region(logps, radius)
    assert_close(references.confidence_weights(moved, mask), weights[:, order])
    assert_close(RADIUS(moved, mask), radius)
    assert_close(references.clip_to_trust_region(moved, radius), clipped[..., order])
    for how in COMBINATIONS:
        combined = references.combine(clipped, weights, how=how)
        moved = references.combine(clipped[..., order], weights[:, order], how=how)
        assert_close(moved, combined)


@bounded
@given(drawn=reference_groups(), data=st.data())
def test_permuting_responses_moves_radii_and_no_weight(drawn, data):
    """Weights belong to the group, radii to a response."""
    logps, mask, _ = drawn
    order = data.draw(st.permutations(range(logps.shape[1])))
    moved = logps[:, order]
    weights, radius = references.confidence_weights(logps, mask), RADIUS(logps, mask)
    assert_close(references.confidence_weights(moved, mask), weights)
    assert_close(RADIUS(moved, mask), radius[:, order])


@bounded
@given(drawn=reference_groups(), c=factors)
def test_weights_and_radii_have_no_unit(drawn, c):
    """Log-probs times c: weights and radii stay, clipped and geometric values scale by c."""
    logps, mask, weights = drawn
    alpha, radius = references.confidence_weights(logps, mask), RADIUS(logps, mask)
    assert_close(references.confidence_weights(c * logps, mask), alpha)
    assert_close(RADIUS(c * logps, mask), radius)
    assert_close(RADIUS(logps, mask, epsilon_max=0.1 * c), c * radius)
    for of_logps in (
        lambda logps: references.clip_to_trust_region(logps, radius),
        lambda logps: references.combine(logps, weights, how="geometric"),
    ):
        assert_close(of_logps(c * logps), c * of_logps(logps))


@pytest.mark.parametrize("how", COMBINATIONS)
@bounded
@given(drawn=reference_groups(), shift=st.floats(-5_000.0, 0.0))
def test_a_combination_moves_with_its_references(how, drawn, shift):
    """All references shifted by c nats: the combination too."""
    logps, _, weights = drawn
    expected = references.combine(logps, weights, how=how) + shift
    assert_close(references.combine(logps + shift, weights, how=how), expected)


@bounded
@given(drawn=reference_groups(), epsilon=st.floats(0.0, 0.9))
def test_clipping_keeps_to_the_region_and_repeats_to_itself(drawn, epsilon):
    """Within ε of reference 1, relatively; what was inside is untouched; twice is once."""
    logps, mask, _ = drawn
    radius = torch.full(mask.shape, epsilon, dtype=torch.float64)
    clipped = references.clip_to_trust_region(logps, radius)
    first = logps[..., :1]
    room = epsilon * first.abs()
    assert ((clipped - first).abs() <= room + 1e-9).all()
    inside = (logps - first).abs() < room - 1e-9
    assert torch.equal(clipped[inside], logps[inside])
    assert_close(references.clip_to_trust_region(clipped, radius), clipped, 1e-12)
