"""The same log-probs through TRL's own loss code: equal where the names mean the same.

Skipped without TRL (`pip install mrpo-tools[bench]`). TRL's loss is a method of its trainer; it is
called here on a stand-in that returns given log-probs instead of running a model.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from mrpo_tools.maths import objectives

trl = pytest.importorskip("trl")
PAIRS, TOKENS = 5, 9


@pytest.fixture
def numbers():
    """Token log-probs [2·PAIRS, TOKENS] (chosen rows first), ragged lengths, reference sums."""
    generator = torch.Generator().manual_seed(0)
    token_logps = -torch.rand(2 * PAIRS, TOKENS, generator=generator) * 3
    lengths = torch.randint(2, TOKENS + 1, (2 * PAIRS,), generator=generator)
    mask = torch.arange(TOKENS) < lengths.unsqueeze(-1)
    reference = -torch.rand(2 * PAIRS, generator=generator) * 12
    return token_logps * mask, mask, reference


def trl_loss(loss_type: str, beta: float, token_logps, mask, reference) -> float:
    """TRL's `_compute_loss`: a mean over the batch."""
    from trl.trainer.dpo_trainer import DPOTrainer

    def same(tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(device="cpu", gather=same, gather_for_metrics=same),
        aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=True, use_weighting=False,
        f_divergence_type="reverse_kl", loss_types=[loss_type], loss_weights=[1.0], beta=beta,
        label_smoothing=0.0, _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    zeros = torch.zeros_like(token_logps)
    outputs = SimpleNamespace(
        log_probs=token_logps, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
    )
    padded = torch.cat([torch.zeros(len(mask), 1, dtype=torch.bool), mask], dim=1).long()
    chosen, rejected = reference.chunk(2)
    inputs = {
        "input_ids": padded, "attention_mask": padded, "completion_mask": padded,
        "ref_chosen_logps": chosen, "ref_rejected_logps": rejected,
    }  # fmt: skip
    return float(DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False))


def our_loss(name: str, token_logps, mask, reference, **hyper) -> float:
    def pairs(rows: torch.Tensor) -> torch.Tensor:
        return torch.stack(rows.chunk(2), dim=-1)

    both = torch.ones(PAIRS, 2, dtype=torch.bool)
    batch = objectives.Batch(
        pairs(token_logps.sum(-1)), pairs(reference), pairs(mask.sum(-1)), None,
        torch.tensor([[True, False]]).expand(PAIRS, 2), both,
    )  # fmt: skip
    return float(objectives.compute(name, batch, **hyper).mean())


@pytest.mark.parametrize("beta", [0.01, 0.1, 0.5])
@pytest.mark.parametrize(
    ("theirs", "ours", "hyper"),
    [
        ("sigmoid", "dpo", {}),
        ("ipo", "ipo", {"length_normalized": True}),
        ("sppo_hard", "sppo", {}),
    ],
)
def test_equal_to_trl(theirs, ours, hyper, beta, numbers):
    expected = trl_loss(theirs, beta, *numbers)
    assert our_loss(ours, *numbers, beta=beta, **hyper) == pytest.approx(expected, rel=1e-6)


def test_nca_pair_of_trl_is_nca_with_one_hot_targets(numbers):
    """TRL fixes the target at (1, 0); ours is softmax(s/τ), which tends to it as τ falls."""
    expected = trl_loss("nca_pair", 0.1, *numbers)
    assert our_loss("nca", *numbers, beta=0.1, tau=0.02) == pytest.approx(expected, rel=1e-6)
    assert our_loss("nca", *numbers, beta=0.1) != pytest.approx(expected, rel=1e-3)
