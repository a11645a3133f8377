"""The bridge between the phases: what the cache gives is what live references would give.

The expected loss and gradient are computed here from the models themselves: plain logits, one row
at a time, all references in memory, combined with the public mathematics.
"""

from __future__ import annotations

import pytest
import torch
from batches import mask_of, padded
from independent import group_logps
from trained import NAMES
from transformers import AutoModelForCausalLM

from mrpo_tools.config import Recipe
from mrpo_tools.maths import objectives
from mrpo_tools.maths import references as maths_references
from mrpo_tools.references.loading import add_lora
from mrpo_tools.references.resolved import renderer_of, resolve
from mrpo_tools.scorer.scorer import ResponseScorer
from mrpo_tools.training.arguments import training_arguments
from mrpo_tools.training.groups import group_seeds
from mrpo_tools.training.prepare import prepare
from mrpo_tools.training.trainer import GroupTrainer

WITH_MRPO = (
    "mrpo", "mean_ref", *(name for name, row in objectives.TABLE.items() if not row.samples),
)  # fmt: skip
"""Those on samples need other data."""


def references_of(loss: str) -> list[str]:
    if loss in ("mrpo", "mean_ref", "multi_dpo", "mpo"):
        return NAMES
    return [] if objectives.TABLE[loss].references == "none" else ["llama"]


@pytest.fixture(scope="module")
def live(tiny_models, references, some_groups):
    """{reference: [G, N] log-probs} of the first groups from models in memory."""
    width = max(len(group.responses) for group in some_groups)
    logps = {}
    for name in NAMES:
        model = AutoModelForCausalLM.from_pretrained(tiny_models[name], dtype=torch.float32).eval()
        renderer = renderer_of(resolve(name, references[name]))
        with torch.no_grad():
            logps[name] = group_logps(
                model, [renderer.encode(group) for group in some_groups], width
            )
    return logps


def reference_side(loss: str, live, mask) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """What docs/methods.md §2 makes of the live numbers, written out with the public functions."""
    names = references_of(loss)
    if not names:
        return None, None
    logps = torch.stack([live[name] for name in names], dim=-1)
    if loss == "mean_ref":
        weights = torch.full((len(logps), len(names)), 1 / len(names), dtype=torch.float64)
    else:
        weights = maths_references.confidence_weights(logps, mask)
    radius = maths_references.trust_region_radius(logps, mask, 0.1)
    clipped = maths_references.clip_to_trust_region(logps, radius)
    if loss == "multi_dpo":
        return clipped, weights
    how = "geometric" if loss == "mean_ref" else "harmonic"
    return maths_references.combine(clipped, weights, how), None


def policy(path):
    """A policy away from reference 1: LoRA with a B that is not zero."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    model = add_lora(model, r=4, lora_alpha=8, target_modules="all-linear", seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    return model.train()


@pytest.mark.parametrize("loss", WITH_MRPO)
def test_first_step_equals_live_references(
    loss, tiny_models, references, some_groups, cached, live, tmp_path
):
    """Loss and gradient of the first optimizer step, to 1e-5."""
    recipe = Recipe(
        loss=loss, refs=references_of(loss), policy=str(tiny_models["llama"]), split="all",
        dtype="float32", per_device_train_batch_size=8,
    )  # fmt: skip
    prepared = prepare(recipe, some_groups, cached, references)
    model = policy(tiny_models["llama"])
    arguments = training_arguments(recipe, tmp_path)
    trainer = GroupTrainer(ResponseScorer(model), prepared.training, arguments)
    actual = trainer.compute_loss(trainer.model, trainer.data_collator(list(range(8))))
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(actual, list(parameters.values()))

    places = [some_groups.index(group) for group in prepared.groups[:8]]
    beside = {name: logps[places] for name, logps in live.items()}
    expected = live_loss(loss, prepared.groups[:8], model, references["llama"], beside)
    expected_gradients = torch.autograd.grad(expected, list(parameters.values()))
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
    for name, gradient, plain in zip(parameters, gradients, expected_gradients, strict=True):
        assert (gradient - plain).abs().max() <= 1e-5 * plain.abs().max().clamp(min=1), name


def live_loss(loss, groups, model, reference, live) -> torch.Tensor:
    """Mean over the same groups, with every number from a model in memory."""
    renderer = renderer_of(resolve("llama", reference))
    encoded = [renderer.encode(group) for group in groups]
    scores = [[response.score for response in group.responses] for group in groups]
    lengths = [[len(response.ids) for response in group.responses] for group in encoded]
    width = live["llama"].shape[1]
    mask = mask_of(scores, width)
    combined, weights = reference_side(loss, live, mask)
    batch = objectives.Batch(
        policy_logps=group_logps(model, encoded, width),
        reference_logps=combined,
        lengths=padded(lengths, 0, width=width),
        scores=padded(scores, 0, width=width),
        chosen=None,
        mask=mask,
        weights=weights,
        seeds=group_seeds([group.group_id for group in groups], 0, 0),
    )
    objective = "dpo" if loss in ("mrpo", "mean_ref") else loss
    return objectives.compute(objective, batch).mean()
