"""Every objective against hand-derived numbers and against the independent float64 oracle."""

import inspect
import math
from dataclasses import replace

import oracle
import pytest
import torch
from batches import (
    CASES,
    EVERY,
    KINDS,
    RANDOM_PAIR,
    SEVERAL,
    SHAPE_ERROR,
    TOGETHER,
    assert_close,
    assert_rows_close,
    compute,
    defaults,
    describe,
    group_with,
    loss_and_gradient,
    sample,
    tensors_of,
)
from oracle import Group

from mrpo_tools.maths import metrics, objectives
from mrpo_tools.maths.judgements import Judgements


def is_defined(name: str, hyper: dict, kind: str) -> bool:
    """Whether the methods page says, in so many words, what this case means for this kind.

    It leaves open who is cut by `top_bottom` on a tie or under labels.
    """
    return hyper.get("chosen") != "top_bottom" or kind == "scores"


def assert_by_hand(name: str, group: Group, expected: float, **hyper) -> None:
    """Both the implementation and the oracle give the number derived in the test."""
    assert oracle.losses(name, [group], **hyper)[0] == pytest.approx(expected, abs=1e-6)
    assert compute(name, [group], hyper).item() == pytest.approx(expected, abs=1e-6)


LOG_6_3_1 = [math.log(6), math.log(3), 0.0]


def test_names_are_those_of_the_methods_page():
    """Every row of the table but mrpo and mean_ref, which are dpo after `references.combine`."""
    assert set(objectives.NAMES) == set(oracle.LOSSES)


def test_every_hyper_parameter_is_varied():
    """One that the oracle does not know would be tried at its default alone."""
    assert set(oracle.HYPER) | {"seed"} == set(objectives.HYPER_PARAMETERS)


def test_dpo_by_hand():
    """h = β(Δ_w − Δ_l) with β = ln 3, Δ = (3, 2).

    h = ln 3 · (3 − 2)  = ln 3
    σ(h) = 3/(3+1)      = 3/4
    loss = −log(3/4)    = 0.287682
    smoothed by c = 0.1: −0.9 log(3/4) − 0.1 log(1/4) = 0.258914 + 0.138629 = 0.397543
    """
    group = group_with([3.0, 2.0], scores=[1.0, 0.0])
    assert_by_hand("dpo", group, 0.287682072, beta=math.log(3))
    assert_by_hand("dpo", group, 0.397543301, beta=math.log(3), label_smoothing=0.1)


def test_pairings_by_hand():
    """N = 4, β = 1, e^u = (6, 3, 1, 2), scores (2, 5, 5, 2): w is index 1, the first of the best.

    best_worst: l is index 0, the first of the worst: −log(3/(3+6)) = log 3       = 1.098612
    best_vs_rest: l in {0, 3}; index 2 is tied with w, so it is no pair
                  mean of −log(3/9), −log(3/5) = (1.098612 + 0.510826)/2          = 0.804719
    all: also (2, 0) and (2, 3): −log(1/7) = 1.945910, −log(1/3) = 1.098612
                  mean (1.098612 + 0.510826 + 1.945910 + 1.098612)/4              = 1.163490
    """
    group = group_with([*LOG_6_3_1, math.log(2)], scores=[2.0, 5.0, 5.0, 2.0])
    assert_by_hand("dpo", group, 1.098612289, beta=1.0, pairing="best_worst")
    assert_by_hand("dpo", group, 0.804718956, beta=1.0, pairing="best_vs_rest")
    assert_by_hand("dpo", group, 1.163489848, beta=1.0, pairing="all")


def test_labels_win_over_scores_by_hand():
    """β = 1, e^u = (6, 3, 1), scores (0, 5, 9), but the labels choose indices 0 and 1.

    dpo: w = argmax s over Y+ = index 1, l = index 2: −log(3/4)    = 0.287682
    mpo: −log((6 + 3)/(6 + 3 + 1))                                 = 0.105361
    mpo_1vsk: top1 over Y+ is index 1: −log(3/10)                  = 1.203973
    """
    group = group_with(LOG_6_3_1, scores=[0.0, 5.0, 9.0], chosen=[True, True, False])
    assert_by_hand("dpo", group, 0.287682072, beta=1.0)
    assert_by_hand("mpo", group, 0.105360516, beta=1.0)
    assert_by_hand("mpo_1vsk", group, 1.203972804, beta=1.0)


def test_a_labelled_pair_is_a_pair_whatever_its_scores_by_hand():
    """Scores (5, 5, 9), index 0 chosen: tied with index 1, below index 2, and both are its losers.

    β = 1, e^u = (6, 3, 1):
    dpo best_worst: l = argmin s over Y− = index 1: −log(6/9)  = 0.405465
    best_vs_rest, all: also −log(6/7) = 0.154151; their mean   = 0.279808
    mpo: −log(6/10)                                            = 0.510826
    accuracies of rewards (2, 1, 3): index 1 right, 2 wrong    = 1/2
    p = (0.5, 0.25, 0.75), p_0 − p_1 = 0.25, p_0 − p_2 = −0.25:
    mns, mcs: −log σ(0.25) − log σ(−0.25) = 0.575939 + 0.825939 = 1.401878
    mnm, mcm: −log σ(0.25 − 0.25)                               = 0.693147
    """
    judged = {"scores": [5.0, 5.0, 9.0], "chosen": [True, False, False]}
    group = group_with(LOG_6_3_1, **judged)
    assert_by_hand("dpo", group, 0.405465108, beta=1.0)
    assert_by_hand("dpo", group, 0.279807894, beta=1.0, pairing="best_vs_rest")
    assert_by_hand("dpo", group, 0.279807894, beta=1.0, pairing="all")
    assert_by_hand("mpo", group, 0.510825624, beta=1.0)
    tensors = tensors_of([group])
    columns = (tensors[key] for key in ("mask", "scores", "chosen"))
    rewards = torch.tensor([[2.0, 1.0, 3.0]], dtype=torch.float64)
    assert_close(metrics.accuracies(rewards, Judgements(*columns)), [0.5])
    likely = group_with([20 + math.log(p) for p in (0.5, 0.25, 0.75)], **judged)
    for name, expected in (("mns", 1.401878), ("mnm", 0.693147), ("mcs", 1.401878)):
        assert_by_hand(f"mppo_pair_{name}", likely, expected)
    assert_by_hand("mppo_pair_mcm", likely, 0.693147181)


def test_a_response_tied_with_the_best_is_no_loser_by_hand():
    """Scores (5, 5, 1) without labels, p = (0.5, 0.75, 0.25): index 0 is best, 2 its one loser.

    mns, mnm: −log σ(0.5 − 0.25) = 0.575939
    """
    group = group_with([20 + math.log(p) for p in (0.5, 0.75, 0.25)], scores=[5.0, 5.0, 1.0])
    assert_by_hand("mppo_pair_mns", group, 0.575939)
    assert_by_hand("mppo_pair_mnm", group, 0.575939)


def test_mpo_by_hand():
    """N = 3, β = 1, e^u = (6, 3, 1), scores (5, 4, 0).

    s̄ = 3, δ = (2, 1, −3), so Y+ = {1st, 2nd}
    loss = −log((6 + 3)/(6 + 3 + 1)) = −log(9/10) = 0.105361
    with only the top chosen: −log(6/10)          = 0.510826
    """
    group = group_with(LOG_6_3_1, scores=[5.0, 4.0, 0.0])
    assert_by_hand("mpo", group, 0.105360516, beta=1.0)
    assert_by_hand("mpo", group, 0.510825624, beta=1.0, chosen="top1")
    assert_by_hand("mpo_1vsk", group, 0.510825624, beta=1.0)


def test_swepo_by_hand():
    """N = 3, β = 1, e^u = (6, 3, 1), scores (2, 1, 0): δ = (1, 0, −1), Y+ = {1st}, a = ln 2.

    p = 1: e^(a|δ|) = (2, 1, 2): −log(12/(12 + 3 + 2))                = 0.348307
    signed: e^(aδ) = (2, 1, 1/2): −log(12/(12 + 3 + 1/2))             = 0.255933
    p = 0: −log(6/10)                                                 = 0.510826
    p = 2, a = √(ln 2): e^((a|δ|)²) = (2, 1, 2): as p = 1             = 0.348307
    weight power, p = 1: |δ| = (1, 0, 1): −log(6/(6 + 0 + 1))         = 0.154151
    weight power, p = 0: 0⁰ = 1, so weights 1: −log(6/10)             = 0.510826
    """
    group = group_with(LOG_6_3_1, scores=[2.0, 1.0, 0.0])
    once = {"beta": 1.0, "deviation_scale": math.log(2)}
    assert_by_hand("swepo", group, 0.348306694, **once)
    assert_by_hand("swepo", group, 0.255933374, **once, signed=True)
    assert_by_hand("swepo", group, 0.510825624, **once, power=0)
    root = {"beta": 1.0, "deviation_scale": math.sqrt(math.log(2))}
    assert_by_hand("swepo", group, 0.348306694, **root, power=2)
    assert_by_hand("swepo", group, 0.154150680, beta=1.0, weight="power")
    assert_by_hand("swepo", group, 0.510825624, beta=1.0, weight="power", power=0)


def test_the_deviation_is_inside_beta_by_hand():
    """β = 2, e^u = 1 for all, scores (2, 1, 0), a = ln 2: β·a|δ| = (2 ln 2, 0, 2 ln 2).

    loss = −log(4/(4 + 1 + 4)) = 0.810930
    """
    group = group_with([0.0, 0.0, 0.0], scores=[2.0, 1.0, 0.0])
    assert_by_hand("w_mpo", group, 0.810930216, beta=2.0, deviation_scale=math.log(2))


def test_top_bottom_by_hand():
    """Scores (6, 10, 0, 7, 3), m = 2: index 0 is masked out before s̄ is taken.

    kept (10, 0, 7, 3): s̄ = 5, δ = (5, −5, 2, −2), with a = ln 2: e^(aδ) = (32, 1/32, 4, 1/4)
    Y+ = {10, 7}, e^u = 1: −log(36/(36 + 1/32 + 1/4)) = log(1 + 0.28125/36) = 0.007782
    N = 3 with m = 2 keeps ⌊3/2⌋ = 1 on each side: e^u = (6, 3, 1), scores (2, 1, 0): −log(6/7)
    """
    hyper = {"beta": 1.0, "chosen": "top_bottom", "top_bottom": 2}
    five = group_with([0.0] * 5, scores=[6.0, 10.0, 0.0, 7.0, 3.0])
    assert_by_hand("w_mpo", five, 0.007782141, **hyper, deviation_scale=math.log(2), signed=True)
    three = group_with(LOG_6_3_1, scores=[2.0, 1.0, 0.0])
    assert_by_hand("mpo", three, 0.154150680, **hyper)


def test_infonca_by_hand():
    """e^u = (6, 3, 1), scores (ln 2, 0, 0), τ = 1.

    softmax(s) = (1/2, 1/4, 1/4), softmax(u) = (0.6, 0.3, 0.1)
    loss = −(½ log 0.6 + ¼ log 0.3 + ¼ log 0.1)
         = 0.255413 + 0.300993 + 0.575646 = 1.132052
    τ = 1/2 doubles the scores: softmax = (4, 1, 1)/6: 0.340550 + 0.200662 + 0.383764 = 0.924976
    """
    group = group_with(LOG_6_3_1, scores=[math.log(2), 0.0, 0.0])
    assert_by_hand("infonca", group, 1.132052286, beta=1.0)
    assert_by_hand("infonca", group, 0.924976734, beta=1.0, tau=0.5)


def test_nca_by_hand():
    """N = 2, e^u = (3, 1), scores (ln 3, 0): softmax(s) = (3/4, 1/4), σ(u) = (3/4, 1/2).

    −Σ softmax·log σ(u)  = ¾·0.287682 + ¼·0.693147   = 0.389048
    −½ Σ log σ(−u)       = ½(log 4 + log 2)          = 1.039721
    loss                                             = 1.428769
    """
    group = group_with([math.log(3), 0.0], scores=[math.log(3), 0.0])
    assert_by_hand("nca", group, 1.428769120, beta=1.0)


def test_plackett_luce_by_hand():
    """e^u = (6, 3, 1), β = 1.

    scores 3 > 2 > 1:     −log(6/10) − log(3/4) − log(1/1)   = −log 0.45 = 0.798508
    scores 2 = 2 > 1:     −log(6/10) − log(3/10) − log(1/1)  = −log 0.18 = 1.714798
    scores 1 < 2 < 3:     −log(1/10) − log(3/9) − log(6/6)   = −log(1/30) = 3.401197
    """
    falling, tied, rising = (
        group_with(LOG_6_3_1, scores=scores) for scores in ([3, 2, 1], [2, 2, 1], [1, 2, 3])
    )
    assert_by_hand("plackett_luce", falling, 0.798507696, beta=1.0)
    assert_by_hand("plackett_luce", tied, 1.714798428, beta=1.0)
    assert_by_hand("plackett_luce", rising, 3.401197382, beta=1.0)


def test_grpo_offline_by_hand():
    """N = 2, scores (1, 0): δ = ±½, population std ½, A = (1, −1); ρ = (1.5, 0.5), ε = 0.2.

    surrogate: min(1.5, 1.2) = 1.2 and min(−0.5, −0.8) = −0.8, summed 0.4
    penalty:   (2/3 + ln 1.5 − 1) + (2 + ln 0.5 − 1) = 2/3 + ln 0.75 = 0.378985
    loss = −½(0.4 − 0.04 · 0.378985) = −0.192420
    Two-token responses with twice the log-ratio give the same.
    """
    group = group_with([math.log(1.5), math.log(0.5)], scores=[1.0, 0.0])
    assert_by_hand("grpo_offline", group, -0.192420308)
    longer = group_with([2 * math.log(1.5), 2 * math.log(0.5)], scores=[1.0, 0.0], lengths=[2, 2])
    assert_by_hand("grpo_offline", longer, -0.192420308)


def test_ipo_by_hand():
    """β = 0.1, so 1/(2β) = 5; Δ = (3, 1), L = (2, 4).

    (3 − 1 − 5)²            = 9
    length-normalised: (3/2 − 1/4 − 5)² = (−3.75)² = 14.0625
    """
    group = group_with([3.0, 1.0], scores=[1.0, 0.0], lengths=[2, 4])
    assert_by_hand("ipo", group, 9.0)
    assert_by_hand("ipo", group, 14.0625, length_normalized=True)


def test_sppo_by_hand():
    """β = 0.1, Δ = (3, 1): (3 − 5)² + (1 + 5)² = 4 + 36 = 40."""
    assert_by_hand("sppo", group_with([3.0, 1.0], scores=[1.0, 0.0]), 40.0)


def test_simpo_by_hand():
    """β = 2, γ = 1, ℓ = (−2, −12), L = (4, 8): mean token log-probs −0.5 and −1.5.

    h = 2·(−0.5) − 2·(−1.5) − 1 = 1
    loss = log(1 + e^−1)        = 0.313262
    """
    group = Group([-2.0, -12.0], [0.0, 0.0], [4, 8], scores=[1.0, 0.0])
    assert_by_hand("simpo", group, 0.313261688)
    assert_by_hand("mpo_reference_free", group, 0.313261688)


def test_likelihood_losses_by_hand():
    """ℓ = (−2, −12), L = (4, 8), w the first; q = (−0.5, −1.5).

    slic:  max(0, 1 + 2 − 12) + 0.1·2                     = 0.2
    slic, labels swapped: max(0, 1 + 12 − 2) + 0.1·12     = 12.2
    rrhf:  max(0, −1.5 + 0.5) + 2                         = 2
    rrhf, labels swapped: max(0, −0.5 + 1.5) + 12         = 13
    cpo, β = 0.1: log(1 + e^−(0.1·10)) + 2                = 2.313262
    sft:   0.5
    orpo:  odds = q − log(1 − e^q) = −0.5 + 0.932752, −1.5 + 0.252482 = 0.432752, −1.247518
           0.5 + 0.1·log(1 + e^−(0.432752 + 1.247518)) = 0.5 + 0.1·0.170859 = 0.517086
    """
    group = Group([-2.0, -12.0], [0.0, 0.0], [4, 8], scores=[1.0, 0.0])
    swapped = replace(group, scores=[0.0, 1.0])
    assert_by_hand("slic", group, 0.2)
    assert_by_hand("slic", swapped, 12.2)
    assert_by_hand("rrhf", group, 2.0)
    assert_by_hand("rrhf", swapped, 13.0)
    assert_by_hand("cpo", group, 2.313261688)
    assert_by_hand("sft", group, 0.5)
    assert_by_hand("orpo", group, 0.517085922)


def test_r_dpo_by_hand():
    """Δ = (3, 2), β = 1, L = (5, 3), α = 0.5: h = 1 + 0.5·2 = 2, log(1 + e^−2) = 0.126928."""
    group = group_with([3.0, 2.0], scores=[1.0, 0.0], lengths=[5, 3])
    assert_by_hand("r_dpo", group, 0.126928011, beta=1.0, length_penalty=0.5)


def test_kto_pair_by_hand():
    """Two groups, β = 1, Δ = (2, 1) and (4, −3): z_w = (2 + 4)/2 = 3, z_l = max(0, −1) = 0.

    first:  (1 − σ(2 − 0)) + (1 − σ(3 − 1))  = 2·0.119203      = 0.238406
    second: (1 − σ(4 − 0)) + (1 − σ(3 + 3))  = 0.017986 + 0.002473 = 0.020459
    z is detached: by ℓ_w the gradient is −σ'(u_w − z_l), by ℓ_l it is σ'(z_w − u_l);
    first: σ'(2) = 0.104994 both ways; second: −σ'(4) = −0.017663, σ'(6) = 0.002467.
    """
    groups = [group_with([2.0, 1.0], scores=[1.0, 0.0]), group_with([4.0, -3.0], scores=[1.0, 0.0])]
    loss, gradient = loss_and_gradient("kto_pair", tensors_of(groups), {"beta": 1.0})
    expected = [0.238406, 0.020459]
    assert oracle.losses("kto_pair", groups, beta=1.0) == pytest.approx(expected, abs=1e-6)
    assert_close(loss, expected, 1e-5)
    assert_close(gradient, [[-0.104994, 0.104994], [-0.017663, 0.002467]], 1e-5)


def test_multi_dpo_by_hand():
    """α = (¼, ¾), β = 1; Δ against the first reference (ln 3, 0), against the second (0, 0).

    loss = ¼·(−log ¾) + ¾·log 2 = 0.071921 + 0.519860 = 0.591781
    """
    rows = [[-20.0 - math.log(3), -20.0], [-20.0, -20.0]]
    group = Group([-20.0, -20.0], rows, [1, 1], scores=[1.0, 0.0], weights=[0.25, 0.75])
    assert_by_hand("multi_dpo", group, 0.591780904, beta=1.0)


def test_mppo_pairs_by_hand():
    """p = (1/2, 1/4, 1/8), one-token responses, scores 3 > 2 > 1.

    mns: −log σ(1/4) − log σ(3/8)            = 0.575939 + 0.523124            = 1.099063
    mnm: N⁻ = 2, −log σ(2·½ − 3/8) = log(1 + e^−0.625)                        = 0.428701
    mcs: mns − log σ(1/8)                    = 1.099063 + 0.632599            = 1.731662
    mcm: −log σ(1/4 + 3/8 + 1/8) = log(1 + e^−0.75)                           = 0.386871
    list_mle: log(e^½ + e^¼ + e^⅛) − ½ + log(e^¼ + e^⅛) − ¼ = 0.902634 + 0.632599 = 1.535233
    """
    group = group_with([0.0, 0.0, 0.0], scores=[3.0, 2.0, 1.0])
    group = replace(group, policy=[math.log(1 / 2), math.log(1 / 4), math.log(1 / 8)])
    assert_by_hand("mppo_pair_mns", group, 1.099063)
    assert_by_hand("mppo_pair_mnm", group, 0.428700678)
    assert_by_hand("mppo_pair_mcs", group, 1.731662)
    assert_by_hand("mppo_pair_mcm", group, 0.386871)
    assert_by_hand("mppo_list_mle", group, 1.535233)


def test_mppo_points_by_hand():
    """p = (1/2, 1/4), scores (10, 5) of 10, so targets (1, 1/2).

    ce:  ½ [ −log ½ + ( −½ log ¼ − ½ log ¾ ) ] = ½ (0.693147 + 0.693147 + 0.143841) = 0.765068
    mse: ½ [ (1 − ½)² + (½ − ¼)² ] = ½ (0.25 + 0.0625) = 0.15625
    """
    group = Group([math.log(1 / 2), math.log(1 / 4)], [0.0, 0.0], [1, 1], scores=[10.0, 5.0])
    assert_by_hand("mppo_point_ce", group, 0.765067699)
    assert_by_hand("mppo_point_mse", group, 0.15625)


@pytest.mark.parametrize("score", [-0.1, 10.1])
def test_mppo_point_ce_refuses_a_score_outside_its_scale(score):
    """A target outside [0, 1] is no probability."""
    group = group_with([1.0, 0.0], scores=[score, 5.0])
    with pytest.raises(ValueError, match="score"):
        compute("mppo_point_ce", [group])


def check_against_the_oracle(name: str, hyper: dict, kind: str) -> None:
    """Ragged groups of 2 to 8, NaN in every masked entry: loss, usability and rewards, to 1e-9."""
    for seed in range(3):
        groups = sample(name, kind, seed=seed)
        expected = oracle.losses(name, groups, **hyper)
        applied = objectives.apply(name, objectives.Batch(**tensors_of(groups)), **hyper)
        assert_close(applied.losses, [loss or 0.0 for loss in expected])
        assert applied.usable.tolist() == [loss is not None for loss in expected]
        rewards = [oracle.rewards(name, group, **hyper) for group in groups]
        assert_rows_close(applied.rewards, rewards)


@pytest.mark.parametrize(
    ("name", "hyper", "kind"),
    [(*case, kind) for case in CASES for kind in KINDS if is_defined(*case, kind)],
    ids=describe,
)
def test_agrees_with_the_oracle(name, hyper, kind):
    check_against_the_oracle(name, hyper, kind)


@pytest.mark.parametrize("part", ["loss", "reward", "usable"])
@pytest.mark.parametrize("name", objectives.NAMES)
def test_a_wrong_formula_is_noticed(name, part, monkeypatch):
    """The same check fails for any objective whose loss is off by a thousandth, whose reward is,
    or that skips a group which it can use."""
    right = objectives.TABLE[name]
    wrong = {
        "loss": lambda t, **hyper: right.loss(t, **hyper) * 1.001,
        "reward": lambda t, **hyper: right.reward(t, **hyper) * 1.001,
        "usable": lambda t, **hyper: right.usable.holds(t, **hyper) & (t.mask.sum(-1) < 8),
    }[part]
    owner = right.usable.holds if part == "usable" else getattr(right, part)
    wrong.__signature__ = inspect.signature(owner)
    changed = replace(right.usable, holds=wrong) if part == "usable" else wrong
    monkeypatch.setitem(objectives.TABLE, name, replace(right, **{part: changed}))
    with pytest.raises(AssertionError):
        check_against_the_oracle(name, defaults(name), "scores")


@pytest.mark.parametrize("name", objectives.NAMES)
def test_an_objective_is_a_documented_function(name):
    """Callable under its name with its hyper-parameters; its docstring has formula and source."""
    function, row = getattr(objectives, name), objectives.TABLE[name]
    batch = objectives.Batch(**tensors_of(sample(name)))
    assert_close(function(batch, **defaults(name)), compute(name, sample(name), defaults(name)))
    assert list(inspect.signature(function).parameters) == ["batch", *row.complete({})]
    text = inspect.getdoc(function)
    assert " ".join(text.split("\n\n")[0].split()) == row.formula
    assert text.endswith(f"Source: {row.source}")


@pytest.mark.parametrize(("name", "hyper"), CASES, ids=describe)
def test_gradcheck(name, hyper):
    """The analytic gradient is the numerical one, through padding, on usable groups."""
    groups = sample(name, sizes=(2, 3, 5), seed=7)
    if name == "kto_pair":  # with mean log-ratios below 0 its detached z are constant
        groups = [
            replace(group, policy=[r - 1.0 - 0.1 * i for i, r in enumerate(group.reference)])
            for group in groups
        ]
    tensors = tensors_of(groups, fill=-1.0)
    policy = tensors["policy_logps"].requires_grad_()

    def loss(logps):
        batch = objectives.Batch(**{**tensors, "policy_logps": logps})
        return objectives.compute(name, batch, **hyper)

    assert objectives.usable(name, objectives.Batch(**tensors), **hyper).all()
    assert loss(policy).abs().max() > 0
    assert torch.autograd.gradcheck(loss, (policy,), eps=1e-6, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("fill", [math.nan, math.inf, -math.inf, 0.0])
@pytest.mark.parametrize(("name", "hyper"), EVERY + TOGETHER + RANDOM_PAIR, ids=describe)
def test_masked_entries_reach_nothing(name, hyper, fill):
    """Whatever masked entries hold, values are the same and their gradient is exactly 0."""
    groups = sample(name, sizes=(2, 4, 5))
    strange = tensors_of(groups, fill=fill)
    loss, gradient = loss_and_gradient(name, strange, hyper)
    plain_loss, plain_gradient = loss_and_gradient(name, tensors_of(groups, fill=-1.0), hyper)
    assert_close(loss, plain_loss, 1e-12)
    assert_close(gradient, plain_gradient, 1e-12)
    assert (gradient[~strange["mask"]] == 0).all()
    rewards = objectives.rewards(name, objectives.Batch(**strange), **hyper)
    assert not rewards.isnan().any()
    assert not rewards.requires_grad


ALL_EQUAL = group_with([1.0, 2.0, 3.0], scores=[4.0, 4.0, 4.0])
NEARLY_EQUAL = group_with([1.0, 2.0], scores=[4.0, 4.0 + 1e-12])
SINGLE = group_with([1.0], scores=[4.0])
NOTHING = group_with([], scores=[])
ALL_CHOSEN = group_with([1.0, 2.0], scores=[1.0, 0.0], chosen=[True, True])
NONE_CHOSEN = group_with([1.0, 2.0], scores=[1.0, 0.0], chosen=[False, False])
ENDS_CHOSEN = group_with([1.0, 2.0, 3.0], scores=[2.0, 1.0, 0.0], chosen=[True, False, True])
MIDDLE_CHOSEN = replace(ENDS_CHOSEN, chosen=[False, True, False])
PAIRWISE = oracle.PAIR_LOSSES.keys() - SEVERAL
SETS = oracle.SET_LOSSES.keys() - {"mpo_1vsk"}
LABELLED = SETS | {name for name in PAIRWISE if not name.startswith("mppo_pair_m")}
UNUSABLE_BY = [
    (PAIRWISE | SETS | {"sft", "grpo_offline", "rlhf"}, ALL_EQUAL),
    (SETS | {"sft", "grpo_offline", "rlhf"}, NEARLY_EQUAL),
    (oracle.LOSSES.keys() - SEVERAL - oracle.POINT_LOSSES.keys(), SINGLE),
    (oracle.LOSSES.keys() - SEVERAL, NOTHING),
    (LABELLED, ALL_CHOSEN),
    (LABELLED | {"mpo_1vsk", "sft"}, NONE_CHOSEN),
]
UNUSABLE = [
    *((name, {}, group) for names, group in UNUSABLE_BY for name in sorted(names)),
    # δ = (1, 0, −1): a weight |δ| of 0 on the only rejected response, or on the only chosen one
    ("swepo", {"weight": "power"}, ENDS_CHOSEN),
    ("swepo", {"weight": "power"}, MIDDLE_CHOSEN),
    ("mpo", {"chosen": "top_bottom"}, SINGLE),
]


@pytest.mark.parametrize(("name", "hyper", "group"), UNUSABLE, ids=describe)
def test_an_unusable_group_is_skipped(name, hyper, group):
    """Exactly 0 loss, exactly 0 gradient, usable False, and its neighbour is undisturbed."""
    neighbour = group_with([2.0, 1.0, 0.5], scores=[3.0, 1.0, 0.0])
    if group.chosen is not None:
        neighbour = replace(neighbour, chosen=[True, False, False])
    assert not oracle.usable(name, group, **hyper)
    tensors = tensors_of([neighbour, group])
    loss, gradient = loss_and_gradient(name, tensors, hyper)
    usable = objectives.usable(name, objectives.Batch(**tensors), **hyper)
    assert usable.tolist() == [True, False]
    assert loss[1] == 0
    assert (gradient[1] == 0).all()
    assert gradient[0].abs().max() > 0
    assert_close(loss[:1], compute(name, [neighbour], hyper))


@pytest.mark.parametrize("name", ["dpo", "mpo", "grpo_offline", "plackett_luce", "sft"])
def test_a_batch_of_only_unusable_groups_still_has_a_zero_gradient(name):
    """A micro-batch with nothing to learn from must not stop the backward pass."""
    loss, gradient = loss_and_gradient(name, tensors_of([SINGLE, NOTHING]))
    assert loss.tolist() == [0.0, 0.0]
    assert (gradient == 0).all()


NEARLY_TIED = group_with([1.0, 2.0], scores=[4.0, 4.0 + 1e-7])
USABLE = [
    *((name, SINGLE) for name in ("mppo_point_ce", "mppo_point_mse")),
    *((name, ALL_EQUAL) for name in ("infonca", "nca", "plackett_luce", "mppo_list_mle")),
    ("sft", replace(SINGLE, chosen=[True])),
    ("sft", ALL_CHOSEN),
    ("mpo", NEARLY_TIED),
]


@pytest.mark.parametrize(("name", "group"), USABLE, ids=describe)
def test_a_degenerate_group_that_is_usable(name, group):
    """The least that an objective needs is enough."""
    batch = objectives.Batch(**tensors_of([group]))
    assert objectives.usable(name, batch).tolist() == [True]
    assert_close(objectives.compute(name, batch), oracle.losses(name, [group]))


EXTREME = [
    Group([-1e4, -5e3, -15e3, -1e4], [-5e3, -1e4, -1e4, -15e3], [1, 1000, 2, 5000], [3, 9, 1, 6]),
    Group([-1e4, -5e3], [-5e3, -1e4], [1, 1], [10, 0]),
    Group([-1e-9, -1e4, -5e3], [-5e3, -5e3, -1e-9], [1, 1, 1], [0, 10, 5]),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("name", "hyper"), CASES + RANDOM_PAIR, ids=describe)
def test_finite_at_extreme_log_probs(name, hyper, dtype):
    """Log-probs of −10,000 and differences of ±5,000: no overflow, in float32 either."""
    groups = EXTREME
    if name == "rlhf":
        groups = [replace(g, behaviour=g.reference[::-1]) for g in groups]
    if name in SEVERAL:
        groups = [
            replace(g, reference=[[r, r - 5_000.0] for r in g.reference], weights=[0.5, 0.5],
                    behaviour=g.reference[::-1])
            for g in groups
        ]  # fmt: skip
    if name == "kd":
        groups = [group.beside(group) for group in groups]
    tensors = tensors_of(groups, dtype=dtype)
    loss, gradient = loss_and_gradient(name, tensors, hyper)
    batch = objectives.Batch(**tensors)
    assert objectives.usable(name, batch, **hyper).all()
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
    assert objectives.rewards(name, batch, **hyper).isfinite().all()
    if dtype == torch.float64 and (name, hyper) not in RANDOM_PAIR:
        assert_close(loss, oracle.losses(name, groups, **hyper))


@pytest.mark.parametrize("name", objectives.NAMES)
def test_an_absent_reference_is_not_needed_or_it_is_said(name):
    """Without one the loss of a reference-free objective is the same; 0 is never taken for it."""
    tensors = tensors_of(sample(name))
    without = objectives.Batch(**{**tensors, "reference_logps": None})
    if name in oracle.REFERENCE_FREE:
        expected = objectives.compute(name, objectives.Batch(**tensors))
        assert_close(objectives.compute(name, without), expected, 1e-12)
        assert objectives.rewards(name, without).shape == tensors["mask"].shape
    else:
        with pytest.raises(ValueError, match="reference"):
            objectives.compute(name, without)


@pytest.mark.parametrize("name", ["rlhf", "kd"])
def test_samples_without_the_log_probs_they_were_drawn_with_are_refused(name):
    tensors = tensors_of(sample(name)) | {"behaviour_logps": None}
    with pytest.raises(ValueError, match="behaviour_logps"):
        objectives.compute(name, objectives.Batch(**tensors))


def test_scores_are_compared_in_float64():
    """1 and 1 + 2e-8 are one number in float32 and two in the data: |δ| = 1e-8 > 1e-9."""
    group = group_with([1.0, 2.0], scores=[1.0, 1.0 + 2e-8])
    batch = objectives.Batch(**tensors_of([group], dtype=torch.float32))
    for name in ("dpo", "mpo"):
        assert objectives.usable(name, batch).all()
        assert_close(objectives.compute(name, batch), oracle.losses(name, [group]), 1e-5)


@pytest.mark.parametrize("name", ["simpo", "grpo_offline", "orpo", "r_dpo", "mppo_pair_mcs"])
def test_lengths_may_be_integers(name):
    """Token counts come as int64 from a tokenizer."""
    groups = sample(name)
    tensors = tensors_of(groups, fill=0.0)
    tensors["lengths"] = tensors["lengths"].long()
    loss = objectives.compute(name, objectives.Batch(**tensors))
    assert_close(loss, oracle.losses(name, groups))


@pytest.mark.parametrize(("name", "hyper"), RANDOM_PAIR, ids=describe)
class TestBestRandom:
    """The seed of a group alone decides which rejected response it meets."""

    @staticmethod
    def seeded(count: int) -> list[Group]:
        """The same group of six under consecutive seeds."""
        (group,) = sample("dpo", sizes=(6,))
        return [replace(group, seed=seed) for seed in range(count)]

    def test_draws_a_rejected_response(self, name, hyper):
        """Labels or scores, ties or none: every loss is one of the candidates', usable or not."""
        for kind in KINDS:
            groups = sample(name, kind, seed=3)
            loss = compute(name, groups, hyper)
            for value, group in zip(loss.tolist(), groups, strict=True):
                candidates = oracle.candidate_losses(name, group, **hyper) or [0.0]
                assert min(abs(value - candidate) for candidate in candidates) < 1e-9

    def test_does_not_touch_or_use_the_global_generator(self, name, hyper):
        """Neither the state before nor the state after a call depends on the other."""
        groups = self.seeded(20)
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first = compute(name, groups, hyper)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(2)
        assert torch.equal(compute(name, groups, hyper), first)

    def test_draws_every_rejected_response_about_equally_often(self, name, hyper):
        """400 seeds, 5 candidates: 80 each, standard deviation 8, accepted within 5 of them."""
        groups = self.seeded(400)
        candidates = torch.tensor(oracle.candidate_losses(name, groups[0], **hyper)).double()
        gaps = (compute(name, groups, hyper)[:, None] - candidates).abs()
        counts = gaps.argmin(dim=1).bincount(minlength=5)
        assert len(counts) == 5
        assert counts.min() > 40
        assert counts.max() < 120


PAIR = tensors_of(sample("dpo", "labels_and_scores", sizes=(4, 4, 4)))
COLUMNS = [key for key in PAIR if key not in ("weights", "seeds", "unjudged")]
SEVERAL_REFERENCES = tensors_of(sample("multi_dpo", sizes=(4, 4, 4)))
WEIGHTS, SEEDS = SEVERAL_REFERENCES["weights"], PAIR["seeds"]
WRONG_SHAPES = [
    *(("dpo", PAIR, {key: PAIR[key][:, :1]}) for key in COLUMNS),
    *(("dpo", PAIR, {key: PAIR[key][0]}) for key in COLUMNS),
    ("dpo", SEVERAL_REFERENCES, {}),
    ("multi_dpo", PAIR, {}),
    ("multi_dpo", SEVERAL_REFERENCES, {"weights": WEIGHTS[:, :1]}),
    ("multi_dpo", SEVERAL_REFERENCES, {"weights": WEIGHTS[0]}),
    ("mppo_pair_single", PAIR, {"seeds": SEEDS[:, None]}),
    ("mppo_pair_single", PAIR, {"seeds": SEEDS[:1]}),
]
"""Arguments that broadcasting would accept in silence, one per case."""
WRONG = [f"{name} {' '.join(wrong)}" for name, _, wrong in WRONG_SHAPES]


@pytest.mark.parametrize(("name", "tensors", "wrong"), WRONG_SHAPES, ids=WRONG)
def test_refuses_to_broadcast(name, tensors, wrong):
    """A [B] against a [B, 1] is an error, not a [B, B]."""
    with pytest.raises(ValueError, match=SHAPE_ERROR):
        objectives.compute(name, objectives.Batch(**{**tensors, **wrong}))


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_agree_with_the_oracle(kind):
    """Ragged groups, rewards rounded so that some tie, NaN in masked entries."""
    groups = sample("dpo", kind, sizes=(1, 2, 3, 5, 8, 8))
    tensors = tensors_of(groups)
    rewards = (tensors["policy_logps"] / 10).round()
    rows = [row[: group.size].tolist() for row, group in zip(rewards, groups, strict=True)]
    judged = Judgements(tensors["mask"], tensors["scores"], tensors["chosen"])
    for metric in ("accuracies", "margins", "top1", "kendall_tau"):
        if metric != "kendall_tau" or kind != "labels":
            expected = list(map(getattr(oracle, metric), rows, groups))
            assert_close(getattr(metrics, metric)(rewards, judged), expected)


def test_metrics_by_hand():
    """Rewards (3, 1, 1, 2), scores (4, 3, 2, 2).

    pairs s_a > s_b: (0,1) (0,2) (0,3) right; (1,2) tied reward and (1,3) wrong: 3/5
    s̄ = 2.75: Y+ = {0, 1}: margin (3 + 1)/2 − (1 + 2)/2 = 0.5
    top1: the argmax reward is index 0, the best score: 1
    tau-b: C = 3, D = 1; one tie in the rewards, one in the scores: 2/√(5·5) = 0.4
    """
    rewards = torch.tensor([[3.0, 1.0, 1.0, 2.0]], dtype=torch.float64)
    scores = torch.tensor([[4.0, 3.0, 2.0, 2.0]], dtype=torch.float64)
    judged = Judgements(torch.ones(1, 4, dtype=torch.bool), scores, None)
    assert_close(metrics.accuracies(rewards, judged), [0.6])
    assert_close(metrics.margins(rewards, judged), [0.5])
    assert_close(metrics.top1(rewards, judged), [1.0])
    assert_close(metrics.kendall_tau(rewards, judged), [0.4])


def test_top1_of_tied_responses_says_nothing():
    """All of one score, or of one label, or alone: NaN; a tie for the best still says something."""
    rewards = torch.tensor([[3.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True], [True, False]])
    tied = torch.full_like(rewards, 2.0)
    assert bool(metrics.top1(rewards, Judgements(mask, tied, None)).isnan().all())
    labels = torch.tensor([[True, True], [False, False]])
    assert bool(metrics.top1(rewards, Judgements(mask, None, labels)).isnan().all())
    three = torch.tensor([[2.0, 2.0, 1.0]], dtype=torch.float64)
    whole = torch.ones(1, 3, dtype=torch.bool)
    assert_close(metrics.top1(three.flip(-1), Judgements(whole, three, None)), [1.0])


@pytest.mark.parametrize("metric", ["accuracies", "margins", "top1", "kendall_tau"])
def test_metrics_refuse_to_broadcast(metric):
    """A [B, 1] against a [B, N] is an error in every argument."""
    tensors = tensors_of(sample("dpo", sizes=(4, 4)))
    rewards, mask, scores = (tensors[key] for key in ("policy_logps", "mask", "scores"))
    with pytest.raises(ValueError, match=SHAPE_ERROR):
        getattr(metrics, metric)(rewards[:, :1], Judgements(mask, scores, None))
    for wrong in ((mask[:, :1], scores, None), (mask, scores[:, :1], None)):
        with pytest.raises(ValueError, match=SHAPE_ERROR):
            Judgements(*wrong)
