"""Objectives on samples against exact expectations: every answer of a tiny model is enumerated.

Three tokens, answers of length three: 27 answers, and every expectation is a finite sum. The mean
of an estimator over all groups of N samples, each weighted by how often it is drawn, must have the
gradient of the quantity that it estimates.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from mrpo_tools.maths import objectives, references

TOKENS, LENGTH = 3, 3
ANSWERS = list(itertools.product(range(TOKENS), repeat=LENGTH))
PREFIXES = [prefix for n in range(LENGTH) for prefix in itertools.product(range(TOKENS), repeat=n)]
BETA, ALPHAS = 0.7, (0.5, 0.2, 0.3)


def table(seed: int) -> torch.Tensor:
    """[prefixes, tokens] logits of a model."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(PREFIXES), TOKENS, generator=generator, dtype=torch.float64)


def logps(logits: torch.Tensor) -> torch.Tensor:
    """[27] the log-prob of each answer, token after token."""
    steps = logits.log_softmax(-1)
    return torch.stack(
        [
            sum(steps[PREFIXES.index(answer[:n]), token] for n, token in enumerate(answer))
            for answer in ANSWERS
        ]
    )


SCORES = torch.rand(len(ANSWERS), generator=torch.Generator().manual_seed(9)).double() * 10
OTHERS = torch.stack([logps(table(seed)) for seed in (1, 2, 3)], -1)
"""[27, 3] log-probs under three references."""


def kl(policy: torch.Tensor, k: int) -> torch.Tensor:
    """KL(π‖π_k), nats, over all answers."""
    return (policy.exp() * (policy - OTHERS[:, k])).sum()


def groups(size: int, policy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[G, size] which answers each possible group holds, and [G] how often it is drawn."""
    drawn = torch.tensor(list(itertools.product(range(len(ANSWERS)), repeat=size)))
    return drawn, policy.detach()[drawn].sum(-1).exp()


def estimate(name: str, logits: torch.Tensor, batch: dict, chances, **hyper) -> torch.Tensor:
    """The gradient of the estimator's mean."""
    losses = objectives.compute(name, objectives.Batch(**batch), beta=BETA, **hyper)
    (gradient,) = torch.autograd.grad((losses * chances).sum(), logits, retain_graph=True)
    return gradient


def rlhf_batch(size: int, policy: torch.Tensor) -> tuple[dict, torch.Tensor]:
    """Every group of samples with the numbers that the cache would hold."""
    drawn, chances = groups(size, policy)
    weights = torch.tensor(ALPHAS, dtype=torch.float64).expand(len(drawn), -1)
    return {
        "policy_logps": policy[drawn],
        "reference_logps": references.combine(OTHERS[drawn], weights, "geometric"),
        "lengths": torch.full(drawn.shape, LENGTH),
        "scores": SCORES[drawn],
        "chosen": None,
        "mask": torch.ones(drawn.shape, dtype=torch.bool),
        "behaviour_logps": policy.detach()[drawn],
    }, chances


def gradient_of_eq_6(logits: torch.Tensor, policy: torch.Tensor) -> torch.Tensor:
    """That of E[s] − β Σ_k α_k KL(π‖π_k), over all answers."""
    value = (policy.exp() * SCORES).sum()
    value = value - BETA * sum(alpha * kl(policy, k) for k, alpha in enumerate(ALPHAS))
    return torch.autograd.grad(value, logits, retain_graph=True)[0]


@pytest.fixture
def logits():
    return table(0).requires_grad_()


@pytest.mark.parametrize("size", [2, 3])
def test_the_mean_gradient_of_rlhf_is_that_of_eq_6(logits, size):
    """`leave_one_out` exactly, `centred` (N−1)/N of it."""
    policy = logps(logits)
    batch, chances = rlhf_batch(size, policy)
    assert float(chances.sum()) == pytest.approx(1)
    exact = gradient_of_eq_6(logits, policy)
    unbiased = estimate("rlhf", logits, batch, chances, advantage="leave_one_out")
    torch.testing.assert_close(unbiased, -exact, rtol=1e-9, atol=1e-9)
    centred = estimate("rlhf", logits, batch, chances, advantage="centred")
    torch.testing.assert_close(centred, -exact * (size - 1) / size, rtol=1e-9, atol=1e-9)


def test_what_would_bias_rlhf_is_seen(logits):
    """The same check fails for advantages over their spread, a penalty against one reference of
    the three, and samples of another policy than b."""
    policy = logps(logits)
    batch, chances = rlhf_batch(3, policy)
    exact = -gradient_of_eq_6(logits, policy)

    def off(changes: dict, advantage: str = "leave_one_out", weights=chances) -> float:
        gradient = estimate("rlhf", logits, {**batch, **changes}, weights, advantage=advantage)
        return float((gradient - exact).norm() / exact.norm())

    drawn, _ = groups(3, policy)
    assert off({}) < 1e-9
    assert off({}, "normalized") > 0.1
    assert off({"reference_logps": OTHERS[drawn][..., 0]}) > 0.01
    assert off({}, weights=groups(3, logps(table(4)))[1]) > 0.1


def test_the_mean_gradient_of_kd_is_that_of_dpo_and_the_kl_to_the_others(logits):
    """Beside a fixed labelled pair, β Σ_{k≥2} α_k KL(π‖π_k); reference 1 enters the pair alone."""
    policy = logps(logits)
    drawn, chances = groups(3, policy)
    pair = torch.tensor([5, 20]).expand(len(drawn), 2)
    places = torch.cat([pair, drawn], -1)
    sampled = torch.tensor([False, False, True, True, True]).expand(places.shape)
    batch = {
        "policy_logps": policy[places],
        "reference_logps": OTHERS[places],
        "weights": torch.tensor(ALPHAS, dtype=torch.float64).expand(len(drawn), -1),
        "lengths": torch.full(places.shape, LENGTH),
        "scores": None,
        "chosen": torch.tensor([True, False, False, False, False]).expand(places.shape),
        "mask": torch.ones(places.shape, dtype=torch.bool),
        "behaviour_logps": torch.where(sampled, policy.detach()[places], float("nan")),
        "unjudged": sampled,
    }
    margin = BETA * ((policy[5] - OTHERS[5, 0]) - (policy[20] - OTHERS[20, 0]))
    distance = sum(ALPHAS[k] * kl(policy, k) for k in (1, 2))
    value = -torch.nn.functional.logsigmoid(margin) + BETA * distance
    (exact,) = torch.autograd.grad(value, logits, retain_graph=True)
    torch.testing.assert_close(estimate("kd", logits, batch, chances), exact, rtol=1e-9, atol=1e-9)


def test_repeated_samples_count_as_often_as_they_were_drawn(logits):
    """Left out, the estimate is of something else: what is often drawn would count once."""
    policy = logps(logits)
    batch, chances = rlhf_batch(3, policy)
    drawn, _ = groups(3, policy)
    first = torch.stack([(drawn[:, :n] != drawn[:, n : n + 1]).all(-1) for n in range(3)], -1)
    exact = -gradient_of_eq_6(logits, policy)
    once = estimate("rlhf", logits, batch | {"mask": first}, chances, advantage="leave_one_out")
    assert float((once - exact).norm() / exact.norm()) > 0.05
