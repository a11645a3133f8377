"""Sharing a policy out over processes: who asked for it, and FSDP2 applied to the scorer.

The files of accelerate and a recipe's `trainer` say that it is wanted. It is done here and not by
accelerate, which shards on GPUs alone: so it is the same on every device, checkpoints are whole
files whatever the processes, and only the first process reads the weights.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from mrpo_tools.config import Recipe
from mrpo_tools.errors import UsageError
from mrpo_tools.progress import is_first_process, rank_and_count
from mrpo_tools.references.resolved import ResolvedReference
from mrpo_tools.scorer.blueprint import blueprint_of
from mrpo_tools.scorer.scorer import ENTRANCES, ResponseScorer
from mrpo_tools.training.policy import on_model, scorer_of

ASKS = "ACCELERATE_USE_FSDP"
"""How `accelerate launch` says that its file asks for FSDP."""
REFUSED = {
    "ACCELERATE_MIXED_PRECISION": (("no",), "the recipe says it: dtype and autocast"),
    "ACCELERATE_DYNAMO_BACKEND": (("no",), "every pass has another shape"),
    "ACCELERATE_USE_MEGATRON_LM": (("false",), "the layers would be others than were checked"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (("false",), "groups are shared out, their tokens not"),
}
"""What `accelerate launch` may say of a run: the values that can be, and why no others."""
REFUSED_OF_FSDP = {
    "FSDP_VERSION": (("2",), "fully_shard is what is done here"),
    "FSDP_OFFLOAD_PARAMS": (("false",), "parameters stay on their devices"),
    "FSDP_ACTIVATION_CHECKPOINTING": (("false",), "the recipe says it: gradient_checkpointing"),
    "FSDP_AUTO_WRAP_POLICY": (
        ("transformer_based_wrap", "no_wrap"), "the model's own layers are shared out",
    ),
    "FSDP_STATE_DICT_TYPE": (
        ("full_state_dict",),
        "checkpoints are whole here; one in parts is described by a pickle, which may run code",
    ),
}  # fmt: skip
"""The same of its file for FSDP."""
FSDP_CONFIG = ("version", "reshard_after_forward")
"""Keys of `trainer.fsdp_config` that are read."""
KNOWN_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")
"""Those that compute on parts of tensors as on whole ones."""


@dataclass(frozen=True)
class Sharding:
    """How parameters, gradients and the optimizer's states are shared out.

    Attributes:
        reshard_after_forward: a layer's parameters are given back after its forward pass and
            fetched again for the backward pass (ZeRO-3), or kept in between (ZeRO-2).
    """

    reshard_after_forward: bool = True


def sharding_of(recipe: Recipe, environment: Mapping[str, str] = os.environ) -> Sharding | None:
    """What accelerate's file or the recipe asks for; None where each process has the whole.

    Args:
        recipe: the words.
        environment: where `accelerate launch` leaves what its file says.

    Raises:
        UsageError: they ask for what this engine does not do, and why; all of it together.
    """
    launched = environment.get(ASKS, "false").lower() == "true"
    words = dict(recipe.trainer.get("fsdp_config") or {}) if recipe.trainer.get("fsdp") else {}
    _refuse(_launcher_problems(environment, launched=launched), "see recipes/accelerate")
    if not launched and not recipe.trainer.get("fsdp"):
        return None
    _refuse(_problems(recipe, words), "mrpo recipe trainer")
    if rank_and_count(environment)[1] == 1:
        return None
    told = environment.get("FSDP_RESHARD_AFTER_FORWARD", "true")
    kept = words.get("reshard_after_forward", told)
    return Sharding(reshard_after_forward=str(kept).lower() not in ("false", "0", "no"))


def _launcher_problems(environment: Mapping[str, str], *, launched: bool) -> list[str]:
    """Words of accelerate's file that would be ignored, or change the numbers."""
    table = REFUSED | (REFUSED_OF_FSDP if launched else {})
    return [
        f"accelerate's {name.lower()}: {environment[name]} cannot be: {reason}"
        for name, (values, reason) in table.items()
        if environment.get(name, values[0]).lower() not in values
    ]


def _problems(recipe: Recipe, words: Mapping[str, Any]) -> list[str]:
    """What of a recipe cannot be shared out by FSDP."""
    problems = [
        f"trainer.fsdp_config.{word} is not read; there are: {', '.join(FSDP_CONFIG)}"
        for word in words
        if word not in FSDP_CONFIG
    ]
    if recipe.quantization == "nf4":
        problems.append(
            "nf4 weights cannot be shared out: one is a block of bytes with its own scales, and a "
            "part of it is none. recipes/accelerate/ddp.yaml keeps them whole in each process"
        )
    optimizer = str(recipe.trainer.get("optim", KNOWN_OPTIMIZERS[0]))
    if optimizer not in KNOWN_OPTIMIZERS:
        problems.append(
            f"trainer.optim: {optimizer} cannot compute on parts of tensors; these can: "
            f"{', '.join(KNOWN_OPTIMIZERS)}"
        )
    return problems


def refuse_deepspeed(trainer: Any) -> None:
    """Refuse what DeepSpeed would compute otherwise, once a trainer knows its plugin.

    Raises:
        UsageError: all of it together.
    """
    plugin = trainer.accelerator.state.deepspeed_plugin
    if plugin is None:
        return
    stage3 = plugin.zero_stage == 3
    problems = []
    if trainer.args.fp16:
        problems.append("DeepSpeed would make the weights of a float16 policy 16 bits wide")
    if stage3 and getattr(trainer.scorer.causal_lm, "is_loaded_in_4bit", False):
        problems.append("ZeRO-3 cannot share 4-bit weights out; ZeRO-2 and DDP keep them whole")
    if stage3 and trainer.args.load_best_model_at_end:
        problems.append("trainer.load_best_model_at_end: ZeRO-3 has no place for whole weights")
    _refuse(problems, "recipes/accelerate/ddp.yaml or fsdp2.yaml")


def _refuse(problems: list[str], hint: str) -> None:
    if problems:
        raise UsageError("\n".join(problems), hint)


def wrapped_scorer_of(
    policy: ResolvedReference, recipe: Recipe, device: torch.device
) -> ResponseScorer:
    """The model to train, whole or shared out as the launcher and the recipe ask.

    Raises:
        ResourceError, UsageError: see `scorer_of`; its numbers cannot be shared out.
    """
    sharding = sharding_of(recipe)
    if sharding is None:
        return scorer_of(policy, recipe, device)
    return _sharded_scorer_of(policy, recipe, device, sharding)


def _sharded_scorer_of(
    policy: ResolvedReference, recipe: Recipe, device: torch.device, sharding: Sharding
) -> ResponseScorer:
    """The model to train, shared out: the first process reads it into the machine's memory, the
    others know its shape, and each device gets a layer at a time and keeps its part.
    """
    if policy.products == "float16" or policy.reference.quantization == "nf4":
        raise UsageError(
            f"a policy of {policy.reference.quantization or policy.products} cannot be shared out: "
            "the scale of a float16 loss, and that of a 4-bit weight, belong to the whole",
            "recipes/accelerate/ddp.yaml keeps the whole policy in each process",
        )
    os.environ.pop(ASKS, None)  # accelerate and transformers would each do it again
    if is_first_process():
        scorer = scorer_of(policy, recipe, torch.device("cpu"))
    else:
        imagined = blueprint_of(
            policy.files,
            policy.reference,
            policy.dtype,
            device,
            lambda model: on_model(model, policy, recipe),
        )
        scorer = imagined.made(torch.device("meta"))
    return shard(scorer, device, sharding)


def shard(scorer: ResponseScorer, device: torch.device, sharding: Sharding) -> ResponseScorer:
    """The same scorer with its parameters shared out over all processes, as they are in the first.

    Each layer is a unit of its own; the embeddings, the last norm and the head belong to the
    scorer, whose entrances gather them.

    Args:
        scorer: in the first process with weights, in the others possibly on the device `meta`.
        device: of this process.
        sharding: how.

    Raises:
        UsageError: the model does not name its layers.
    """
    layers = layers_of(scorer)
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    placed: dict[Tensor, Tensor] = {}
    for layer in layers:
        _place(layer, device, placed)
        _share(layer, mesh, reshard_after_forward=sharding.reshard_after_forward)
    _place(scorer, device, placed)
    _share(scorer, mesh, reshard_after_forward=None)
    return enter(scorer)


def enter(scorer: ResponseScorer) -> ResponseScorer:
    """The same scorer, to which `fully_shard` has been applied, with all of its entrances gathering
    what belongs to it, and left alone by accelerate, which would wrap it in DDP."""
    for name in ENTRANCES[1:]:  # the first is every module's
        register_fsdp_forward_method(scorer, name)
    scorer.__dict__["_is_accelerate_prepared"] = True
    return scorer


def _share(module: nn.Module, mesh: DeviceMesh, *, reshard_after_forward: bool | None) -> None:
    share: Any = fully_shard  # its overloads know one module or a list of them
    share(module, mesh=mesh, reshard_after_forward=reshard_after_forward)


def layers_of(scorer: ResponseScorer) -> list[nn.Module]:
    """The layers that the model says are to stay whole while one of them is computed.

    Raises:
        UsageError: it names none.
    """
    names = set(scorer._no_split_modules)
    layers = [module for module in scorer.modules() if type(module).__name__ in names]
    if not layers:
        raise UsageError(
            f"{type(scorer.causal_lm).__name__} does not name its layers (_no_split_modules), so "
            "it cannot be shared out",
            "recipes/accelerate/ddp.yaml keeps the whole model in each process",
        )
    return layers


def _place(unit: nn.Module, device: torch.device, placed: dict[Tensor, Tensor]) -> None:
    """Put a unit's tensors on the device, with the values that they have in the first process.

    Args:
        unit: whose parameters are not shared out yet.
        device: of this process.
        placed: what stood before in place of what stands now; a tied weight is in it.
    """
    for module in unit.modules():
        holders: list[dict[str, Any]] = [module._parameters, module._buffers, vars(module)]
        for values in holders:
            for name, tensor in list(values.items()):
                if isinstance(tensor, Tensor) and not isinstance(tensor, DTensor):
                    if tensor not in placed:
                        placed[tensor] = _from_first(tensor, device)
                    values[name] = placed[tensor]


def _from_first(tensor: Tensor, device: torch.device) -> Tensor:
    """The first process's tensor in place of this one, on the device."""
    if is_first_process():
        value = tensor.detach().to(device).contiguous()
    else:
        value = torch.empty_like(tensor, device=device, memory_format=torch.contiguous_format)
    distributed.broadcast(value, src=0)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(value, requires_grad=tensor.requires_grad)
    return value


def is_sharded(scorer: nn.Module) -> bool:
    """Whether a scorer's parameters are shared out by `shard`, or by `fully_shard` itself."""
    return isinstance(scorer, FSDPModule)


def give_back(scorer: nn.Module) -> None:
    """Leave each process its own parts alone: what was gathered for the last pass may be old."""
    for module in scorer.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
