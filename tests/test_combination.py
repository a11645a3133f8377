"""How K cached references become one, and what the combination says of itself."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from batches import assert_close
from trained import NAMES

from mrpo_tools.errors import UsageError
from mrpo_tools.maths import references
from mrpo_tools.methods.combination import Combination, combine
from mrpo_tools.methods.tensors import look_up


@pytest.fixture(scope="module")
def tensors(cached, some_groups):
    """The cached numbers of three references."""
    return look_up([cached.find(name) for name in NAMES], some_groups)


def test_swapped_weights_reproduce_the_authors_code(tensors):
    """r = −log(α/π_1 + (1−α)/π_2) with α the confidence of reference 2."""
    two, mask = tensors.logps[..., :2], tensors.mask
    alpha = references.confidence_weights(two, mask)[:, 1:]
    first, second = two.unbind(-1)
    expected = -torch.logaddexp(alpha.log() - first, (1 - alpha).log() - second)
    how = Combination(trust_region="none", weights_layout="swapped")
    assert_close(combine(two, mask, how).logps[mask], expected[mask])
    with pytest.raises(UsageError, match="defined for two references, not 3"):
        combine(tensors.logps, mask, Combination(weights_layout="swapped"))


def test_the_report_says_what_the_combination_did(tensors):
    """Mean weights, share clipped and distance from reference 1, group by group."""
    combined = combine(tensors.logps, tensors.mask, Combination(epsilon_max=0.01))
    weights, moved, distances = [], [], []
    for g in range(len(tensors)):
        rows = tensors.logps[g][tensors.mask[g]].tolist()
        clipped = oracle.clip(rows, oracle.adaptive_radius(rows, 0.01))
        weights.append(oracle.confidence_weights(rows))
        virtual = oracle.combine(clipped, weights[-1])
        for before, after, reference in zip(rows, clipped, virtual, strict=True):
            moved += [x != y for x, y in zip(before[1:], after[1:], strict=True)]
            distances.append(abs(reference - before[0]))
    report = combined.report()
    assert report.clipped_fraction == pytest.approx(sum(moved) / len(moved))
    assert report.mean_distance_from_reference_1_nats == pytest.approx(np.mean(distances))
    assert report.max_distance_from_reference_1_nats == pytest.approx(max(distances))
    assert report.mean_weights == pytest.approx(np.mean(weights, axis=0).tolist())


def test_radius_zero_is_dpo_on_reference_1(tensors):
    combined = combine(tensors.logps, tensors.mask, Combination(epsilon_max=0.0)).logps
    first = tensors.logps[..., 0]
    assert_close(combined[tensors.mask], first[tensors.mask])
