"""The policy: which model it is before training, and that model loaded, with its adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mrpo_tools.cache import ReferenceStore
from mrpo_tools.config import Recipe, Reference, loaded_here
from mrpo_tools.errors import UsageError
from mrpo_tools.references.adapters import lora_settings
from mrpo_tools.references.devices import pick_device
from mrpo_tools.references.loading import add_lora, keep_dropout, load_model, train_on
from mrpo_tools.references.resolved import ResolvedReference, device_dtype, resolve
from mrpo_tools.scorer.scorer import ResponseScorer

INITIAL: dict[str, bool | str] = {"default": True, "gaussian": "gaussian"}
"""How an adapter begins, in peft's words."""


def resolve_policy(
    recipe: Recipe, stores: Sequence[ReferenceStore], references: Mapping[str, Reference]
) -> ResolvedReference:
    """The policy before training: reference 1 unless the recipe names another model.

    Args:
        recipe: the words.
        stores: the references' numbers, reference 1 first.
        references: by name, where the project knows them.

    Raises:
        UsageError: there is no model to start from, or it has an adapter that would be lost.
    """
    name, reference = _named(recipe, stores, references)
    changes: dict[str, object] = {
        word: value
        for word in ("quantization", "dtype", "autocast", "max_length")
        if (value := getattr(recipe, word)) is not None
    }
    if recipe.finetuning == "full" and recipe.dtype is None:
        changes["dtype"] = "float32"  # small steps are lost in 16-bit weights
        if device_dtype() != "float32":
            changes.setdefault("autocast", device_dtype())  # the products are not
    policy = resolve(name, reference.model_copy(update=changes))
    _refuse_unscaled(policy, recipe)
    if policy.files.adapter is not None and recipe.finetuning == "full":
        raise UsageError(
            f"the policy {name!r} is a model with a LoRA adapter, which finetuning full would lose",
            f"merge them first: mrpo merge {policy.files.adapter} --output DIR, then --policy DIR; "
            "or go on with the adapter: finetuning: lora",
        )
    return policy


def _refuse_unscaled(policy: ResolvedReference, recipe: Recipe) -> None:
    """float16 gradients vanish unless the loss is scaled, which CUDA's scaler does for float32
    ones."""
    if policy.products != "float16":
        return
    if pick_device().type != "cuda":
        raise UsageError(
            "float16 cannot be trained here: its gradients vanish unless the loss is scaled, and "
            "the scaler needs a CUDA device",
            "--set dtype=bfloat16, or --set dtype=float32",
        )
    if recipe.finetuning == "full" and policy.dtype == "float16":
        raise UsageError(
            "finetuning full cannot train float16 weights: small steps are lost in them",
            "--set dtype=float32 --set autocast=float16",
        )


def _named(
    recipe: Recipe, stores: Sequence[ReferenceStore], references: Mapping[str, Reference]
) -> tuple[str, Reference]:
    """The name and the words of the policy, before the recipe's own are put over them. Its weights
    are trained here, also where a server has those of the reference."""
    if recipe.policy is not None:
        named = references.get(recipe.policy)
        if named is None:
            return "policy", Reference(model=recipe.policy)
        return recipe.policy, loaded_here(named)
    if not stores:
        raise UsageError(f"{recipe.loss} has no reference 1 to start from", "--policy MODEL")
    first = stores[0]
    reference = references.get(first.name) or first.recorded_reference()
    if reference.dtype is None:
        cached_dtype = first.identity.fields["dtype"]
        reference = reference.model_copy(update={"dtype": cached_dtype})
    return first.name, loaded_here(reference)


def scorer_of(policy: ResolvedReference, recipe: Recipe, device: torch.device) -> ResponseScorer:
    """The model to train in its scorer, with a fresh adapter where the recipe trains one.

    Raises:
        ResourceError: it does not fit into memory.
        UsageError: its files cannot be loaded, or `lora_target_modules` names none of its layers.
    """
    model = load_model(policy.files, policy.reference, policy.dtype, device)
    return on_model(model, policy, recipe)


def _adapter_settings(policy: ResolvedReference, recipe: Recipe) -> dict[str, Any]:
    """The adapter's settings in peft's words: the recipe's, or those of one that goes on."""
    if policy.files.adapter is not None:
        return {"r": 8, "lora_alpha": 8, **lora_settings(policy.files.adapter)}
    return {
        "r": recipe.lora_r,
        "lora_alpha": recipe.lora_alpha,
        "target_modules": recipe.lora_target_modules,
        "lora_dropout": recipe.lora_dropout,
        "use_rslora": recipe.use_rslora,
        "use_dora": recipe.use_dora,
        "init_lora_weights": INITIAL[recipe.init_lora_weights],
        "modules_to_save": recipe.modules_to_save,
    }


def on_model(model: Any, policy: ResolvedReference, recipe: Recipe) -> ResponseScorer:
    """The scorer of a policy's bare model, whatever its weights are: a dry run has none."""
    if getattr(model, "peft_config", None) is not None:
        model = train_on(model)
    elif recipe.finetuning == "lora":
        model = add_lora(model, seed=recipe.seed, **_adapter_settings(policy, recipe))
    scorer = ResponseScorer(model, policy.reference.attention, getattr(torch, policy.products))
    keep_dropout(model, recipe.lora_dropout)
    return scorer
