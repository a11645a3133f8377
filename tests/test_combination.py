"""How K cached references become one, and what the combination says of itself."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch

from mrpo_tools.errors import UsageError
from mrpo_tools.maths import references
from mrpo_tools.methods.combination import Combination, combine
from mrpo_tools.methods.tensors import look_up

NAMES = ["llama", "mistral", "qwen"]


def test_swapped_weights_reproduce_the_authors_code(cached, some_groups):
    """r = −log(α/π_1 + (1−α)/π_2) with α the confidence of reference 2."""
    tensors = look_up(stores=[cached.find(n) for n in NAMES[:2]], groups=some_groups)
    how = Combination(trust_region="none", weights_layout="swapped")
    found = combine(tensors.logps, tensors.mask, how).logps
    alpha = references.confidence_weights(tensors.logps, tensors.mask)[:, 1:]
    one, two = tensors.logps.unbind(-1)
    expected = -torch.logaddexp(alpha.log() - one, (1 - alpha).log() - two)
    torch.testing.assert_close(found[tensors.mask], expected[tensors.mask], rtol=0, atol=1e-9)
    three = look_up([cached.find(n) for n in NAMES], some_groups)
    with pytest.raises(UsageError, match="defined for two references, not 3"):
        combine(three.logps, three.mask, Combination(weights_layout="swapped"))


def test_the_report_says_what_the_combination_did(cached, some_groups):
    """Mean weights, share clipped and distance from reference 1, group by group."""
    tensors = look_up([cached.find(n) for n in NAMES], some_groups)
    combined = combine(tensors.logps, tensors.mask, Combination(epsilon_max=0.01))
    weights, moved, distances = [], [], []
    for g in range(len(some_groups)):
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


def test_radius_zero_is_dpo_on_reference_1(cached, some_groups):
    tensors = look_up([cached.find(n) for n in NAMES], some_groups)
    found = combine(tensors.logps, tensors.mask, Combination(epsilon_max=0.0)).logps
    torch.testing.assert_close(
        found[tensors.mask], tensors.logps[..., 0][tensors.mask], rtol=0, atol=1e-9
    )
