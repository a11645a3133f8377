"""Log-probs of tokens and their sums: any tile, gradients, and no lost digits."""

from __future__ import annotations

import pytest
import torch

from mrpo_tools.maths.logprobs import sequence_logps, token_logps


def test_token_log_probs_do_not_depend_on_the_tile():
    """One tile, many tiles and the gradient through them agree with a plain log-softmax."""
    torch.manual_seed(0)
    hidden = torch.randn(11, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(30, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 30, (11,))
    expected = (hidden @ weight.T).log_softmax(-1)[torch.arange(11), targets]
    wanted = torch.autograd.grad(expected.sin().sum(), (hidden, weight))
    for tile in (1, 4, 100):
        found = token_logps(hidden, targets, lambda states: states @ weight.T, tile)
        torch.testing.assert_close(found, expected)
        got = torch.autograd.grad(found.sin().sum(), (hidden, weight))
        torch.testing.assert_close(got, wanted)


def test_sums_are_float64():
    """A million tokens of −1e-4 nats: float32 would lose them."""
    logps = torch.full((1_000_000,), -1e-4)
    total = sequence_logps(logps, torch.zeros(1_000_000, dtype=torch.long), 2)
    assert total.dtype == torch.float64
    assert total[0].item() == pytest.approx(-100.0, rel=1e-6)
    assert total[1].item() == 0.0
