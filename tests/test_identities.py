"""What must hold exactly between methods, whatever the numbers: section 6 of the methods page."""

import math
from dataclasses import replace
from functools import partial

import oracle
import pytest
import torch
from batches import KINDS, assert_close, sample, tensors_of

from mrpo_tools.maths import objectives, references

SEEDS = range(5)


def several(count: int = 3, seed: int = 0) -> dict:
    """Batch arguments with unclipped `reference_logps` [B, N, K], NaN where masked."""
    return tensors_of(sample("multi_dpo", seed=seed, count=count))


def pairs(kind: str = "scores", **layout) -> dict:
    """Batch arguments for twenty groups of two responses, padded to four."""
    return tensors_of(sample("dpo", kind, sizes=[2] * 20), width=4, **layout)


def loss(name: str, tensors: dict, **hyper) -> torch.Tensor:
    """The loss of every group of these batch arguments."""
    return objectives.compute(name, objectives.Batch(**tensors), **hyper)


def combined(
    tensors: dict, how: str = "harmonic", weights: str = "confidence", epsilon_max: float = 0.1
) -> dict:
    """The same batch against one reference: weights and radii, then clip, then combine."""
    logps, mask = tensors["reference_logps"], tensors["mask"]
    alpha = references.confidence_weights(logps, mask)
    if weights == "uniform":
        alpha = references.uniform_weights(logps)
    radius = references.trust_region_radius(logps, mask, epsilon_max)
    clipped = references.clip_to_trust_region(logps, radius)
    virtual = references.combine(clipped, alpha, how=how)
    return {**tensors, "reference_logps": virtual, "weights": None}


def mrpo(tensors: dict, epsilon_max: float = 0.1, **hyper) -> torch.Tensor:
    """dpo against the virtual reference."""
    return loss("dpo", combined(tensors, epsilon_max=epsilon_max), **hyper)


def mean_ref(tensors: dict, **hyper) -> torch.Tensor:
    """dpo against the clipped geometric mean of the references."""
    return loss("dpo", combined(tensors, "geometric", "uniform"), **hyper)


def against(tensors: dict, k: int) -> dict:
    """The same batch against its reference k alone."""
    return {**tensors, "reference_logps": tensors["reference_logps"][..., k], "weights": None}


def test_mrpo_by_hand():
    """MRPO Eq. 7-10 on a pair with two references, β = 0.1, ε_max = 0.1.

    r_w = (−10, −14), r_l = (−20, −18), ℓ = (−9, −21)
    spreads |−10 + 20| = 10 and |−14 + 18| = 4          α = (5/7, 2/7)
    sums 24 and 38 of 62                                ε = (0.0387097, 0.0612903)
    r̂_w2: −14 below (1 + 0.0387097)·(−10)              = −10.387097
    r̂_l2: −18 above (1 − 0.0612903)·(−20)              = −18.774194
    r_w = −10 − log(5/7 + 2/7·e^0.387097)               = −10 − 0.126683 = −10.126683
    r_l = −20 − log(5/7 + 2/7·e^−1.225806)              = −20 + 0.225460 = −19.774540
    h = 0.1·((−9 + 10.126683) − (−21 + 19.774540))      = 0.235214
    loss = log(1 + e^−h)                                = 0.582440
    """
    rows = [[-10.0, -14.0], [-20.0, -18.0]]
    group = oracle.Group([-9.0, -21.0], rows, [1, 1], scores=[1.0, 0.0], weights=[0.5, 0.5])
    tensors = tensors_of([group], width=3)
    virtual = combined(tensors)["reference_logps"][0, :2]
    assert_close(virtual, [-10.126682745, -19.774539801], 1e-9)
    assert oracle.virtual_reference(rows) == pytest.approx([-10.126682745, -19.774539801])
    assert mrpo(tensors).item() == pytest.approx(0.582439870, abs=1e-9)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_one_reference_makes_every_multi_reference_method_dpo(seed, count):
    """Listed once, or so many times: mrpo, mean_ref and multi_dpo are dpo against it."""
    tensors = several(count=count, seed=seed)
    first = tensors["reference_logps"][..., :1]
    tensors["reference_logps"] = first.expand(-1, -1, count)
    for method in (mrpo, mean_ref, partial(loss, "multi_dpo")):
        assert_close(method(tensors), loss("dpo", against(tensors, 0)))


@pytest.mark.parametrize("seed", SEEDS)
def test_mrpo_without_a_trust_region_is_dpo(seed):
    """ε_max = 0 clips every reference onto reference 1."""
    tensors = several(seed=seed)
    assert_close(mrpo(tensors, epsilon_max=0.0), loss("dpo", against(tensors, 0)))


@pytest.mark.parametrize("pairing", ["best_worst", "best_vs_rest", "all"])
def test_multi_dpo_is_the_weighted_mean_of_dpo(pairing):
    """Σ_k α_k · dpo against reference k, under every pairing."""
    tensors = several()
    each = [loss("dpo", against(tensors, k), pairing=pairing) for k in range(3)]
    expected = (torch.stack(each, dim=-1) * tensors["weights"]).sum(-1)
    assert_close(loss("multi_dpo", tensors, pairing=pairing), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_multi_dpo_is_at_least_dpo_on_the_geometric_combination(seed):
    """Jensen: −log σ is convex, and the geometric combination averages its arguments."""
    tensors = several(seed=seed)
    mean = references.combine(tensors["reference_logps"], tensors["weights"], how="geometric")
    below = loss("dpo", {**tensors, "reference_logps": mean, "weights": None}, beta=0.5)
    above = loss("multi_dpo", tensors, beta=0.5)
    assert (above >= below - 1e-12).all()
    assert (above > below + 1e-6).any()


ON_A_PAIR = [
    # two responses deviate from their mean by the same |δ|, which cancels
    *(("scores", ("dpo", {"beta": beta}), (name, {"beta": beta, **hyper}))
      for beta in (0.01, 0.5)
      for name, hyper in [
          ("mpo", {}), ("mpo", {"chosen": "top1"}), ("mpo", {"chosen": "top_bottom"}),
          ("w_mpo", {}), ("w_mpo", {"deviation_scale": 3.0}),
          ("swepo", {"power": 2, "deviation_scale": 0.5}), ("swepo", {"weight": "power"}),
          ("mpo_1vsk", {}), ("plackett_luce", {}),
      ]),
    # labels alone count as scores 1 and 0
    *(("labels", ("dpo", {"beta": 0.5}), (name, {"beta": 0.5}))
      for name in ("mpo", "w_mpo", "mpo_1vsk", "plackett_luce")),
    # SimPO on sets of one
    *(("scores", ("simpo", hyper), ("mpo_reference_free", hyper))
      for hyper in ({}, {"beta": 1.0, "gamma": 0.25})),
    # one pair leaves nothing to merge, separate or draw
    *((kind, ("mppo_pair_mns", {}), (name, {}))
      for kind in ("scores", "labels")
      for name in ("mppo_pair_single", "mppo_pair_mnm", "mppo_pair_mcs", "mppo_pair_mcm",
                   "mppo_list_mle")),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "expected", "other"), ON_A_PAIR, ids=str)
def test_on_a_pair_these_are_one_loss(kind, expected, other):
    tensors = pairs(kind)
    assert_close(loss(other[0], tensors, **other[1]), loss(expected[0], tensors, **expected[1]))


@pytest.mark.parametrize("name", ["w_mpo", "swepo"])
def test_signed_deviations_on_a_pair_are_a_margin(name):
    """dpo with margin βa(s_w − s_l): −log σ(u_w − u_l + βa(s_w − s_l))."""
    beta, scale = 0.3, 0.7
    tensors = pairs(fill=0.0)
    shift = scale * tensors["scores"]
    moved = {**tensors, "reference_logps": tensors["reference_logps"] - shift}
    hyper = {"beta": beta, "deviation_scale": scale, "signed": True}
    assert_close(loss(name, tensors, **hyper), loss("dpo", moved, beta=beta))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_swepo_contains_mpo_and_w_mpo(kind, signed):
    """p = 0 adds nothing, with 0⁰ = 1 for weights; p = 1 is W-MPO, signed or not; a = 0 is MPO."""
    tensors = tensors_of(sample("swepo", kind))
    hyper = {"beta": 0.4, "deviation_scale": 2.0, "signed": signed}
    mpo = loss("mpo", tensors, beta=0.4)
    assert_close(loss("swepo", tensors, power=0, **hyper), mpo)
    assert_close(loss("swepo", tensors, power=0, beta=0.4, weight="power"), mpo)
    assert_close(loss("w_mpo", tensors, **{**hyper, "deviation_scale": 0.0}), mpo)
    assert_close(loss("swepo", tensors, power=1, **hyper), loss("w_mpo", tensors, **hyper))


@pytest.mark.parametrize("kind", KINDS)
def test_mpo_1vsk_is_mpo_on_the_top_response(kind):
    """With scores, with ties, and inside the labelled set."""
    tensors = tensors_of(sample("mpo", kind))
    assert_close(loss("mpo_1vsk", tensors), loss("mpo", tensors, chosen="top1"))


@pytest.mark.parametrize("how", ["harmonic", "geometric", "arithmetic"])
def test_the_policy_equal_to_the_combination_scores_chance(how):
    """dpo is ln 2 and mpo is −log(|Y+|/N)."""
    tensors = combined(several(), how)
    tensors["policy_logps"] = tensors["reference_logps"]
    assert_close(loss("dpo", tensors), torch.full((7,), math.log(2)).double(), 1e-7)
    scores, mask = tensors["scores"], tensors["mask"]
    average = torch.where(mask, scores, 0.0).sum(-1) / mask.sum(-1)
    positive = ((scores > average[:, None]) & mask).sum(-1)
    assert_close(loss("mpo", tensors), -torch.log(positive.double() / mask.sum(-1)))


def test_the_policy_equal_to_reference_1_does_not_score_chance_with_several():
    """With K > 1 the first loss of training differs from ln 2."""
    tensors = several(seed=1)
    tensors["policy_logps"] = tensors["reference_logps"][..., 0]
    assert ((mrpo(tensors, beta=1.0) - math.log(2)).abs() > 1e-3).all()


@pytest.mark.parametrize("name", ["mpo", "infonca", "plackett_luce", "ipo", "grpo_offline"])
def test_every_objective_takes_any_combination(name):
    """An objective with a Δ sees the combined number and nothing else of the references."""
    groups = sample("multi_dpo")
    for how in ("harmonic", "geometric", "arithmetic"):
        virtual = [
            replace(group, reference=oracle.virtual_reference(group.reference, 0.1, how))
            for group in groups
        ]
        actual = loss(name, combined(tensors_of(groups), how))
        assert_close(actual, oracle.losses(name, virtual))
