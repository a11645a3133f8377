"""A causal LM whose layers stay in their files: its ends are in memory, and one layer at a time.

The *skeleton* is the model itself, with the weights of everything but its layers. Its `forward`
runs for every pass, so embeddings, masks, positions, the last norm and the head are the model's
own; only where it would enter a layer, a function of ours is asked instead (`Enter`).

A layer is loaded by `from_pretrained`, as the one layer of a copy of the model: so its tensors are
renamed, fused, cast and quantised as those of the whole model are.
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from mrpo_tools.errors import UsageError
from mrpo_tools.references.loading import keep_differentiable, loading_options, named_errors
from mrpo_tools.references.resolved import ResolvedReference
from mrpo_tools.references.sizes import missing_keys, refuse_missing
from mrpo_tools.references.tensors import WeightReader
from mrpo_tools.scorer.blueprint import Blueprint, blueprint_of
from mrpo_tools.scorer.scorer import ResponseScorer, remove_dropout

Enter = Callable[[int, Tensor, tuple[Any, ...], dict[str, Any]], Any]
"""(place of a layer, hidden states, what else the decoder hands it) -> what the layer gives."""

TINY = 8
"""Tokens of the vocabulary of a model that is made for the sake of one layer."""
NAMED = re.compile(r"^(.*?\.)?(\d+)\.")
"""The first number in a tensor's name is that of its layer."""
ELSEWHERE = "give it a card that holds it, several (device_map: auto), or a server that has it"


class Layered:
    """A reference's model, layer by layer.

    Args:
        resolved: the reference, without an adapter.
        products: dtype of products.
        device: where layers compute.

    Attributes:
        skeleton: the model; its layers have no weights.
        count: of layers.
        layer_bytes: of each, as its files have it.

    Raises:
        ResourceError: the ends do not fit into memory.
        UsageError: it is no decoder of embeddings, layers, norm and head, or its files cannot be
            read; says which.
    """

    def __init__(self, resolved: ResolvedReference, products: str, device: torch.device) -> None:
        reference = resolved.reference
        if resolved.files.adapter is not None:
            raise refused(reference.model, "it has an adapter", "merge it: mrpo merge --help")
        if reference.trust_remote_code:
            raise refused(reference.model, "its code is its own", ELSEWHERE)
        self.resolved, self.device = resolved, device
        self._dtype = resolved.dtype if products == resolved.products else products
        with named_errors(f"model {reference.model}"):
            plan = blueprint_of(resolved.files, reference, self._dtype, device, ResponseScorer)
            narrow = replace(plan, config=_narrow(plan.config))
            whole, self._narrow = (_without_weights(each) for each in (plan, narrow))
        self.count = plan.layers
        self._reader = WeightReader(resolved.files.model)
        self._names, ends = _by_layer(self._reader.places, self.count, reference.model)
        self.layer_bytes = [
            self._reader.bytes_of(self._names[place]) for place in range(self.count)
        ]
        self._path = _path_of_layers(whole, self.count)
        layers = whole.get_submodule(self._path)
        self.skeleton = self._loaded(whole, [], self._reader.read(ends))
        self.skeleton.set_submodule(self._path, layers)
        self.skeleton.name_or_path = str(resolved.files.model)

    def on_enter(self, enter: Enter) -> None:
        """Have the skeleton's `forward` ask a function wherever it would enter a layer."""
        for place, layer in enumerate(self.skeleton.get_submodule(self._path)):
            layer.__dict__["forward"] = partial(_entered, enter, place)

    def read(self, place: int) -> dict[str, Tensor]:
        """A layer's tensors as its files have them, on the CPU.

        Raises:
            ResourceError: the disk fails.
            UsageError: a file is not there any more, or torn.
        """
        return self._reader.read(self._names[place], pinned=self.device.type == "cuda")

    def made(self, place: int, tensors: dict[str, Tensor]) -> Any:
        """A model of this one layer, on the device.

        Args:
            place: of the layer.
            tensors: from `read`.

        Raises:
            ResourceError: it does not fit into memory.
            UsageError: tensors of it are missing.
        """
        layer = self._narrow.get_submodule(self._path)[place]
        renamed = {NAMED.sub(r"\g<1>0.", name, count=1): value for name, value in tensors.items()}
        return self._loaded(self._narrow, [layer], renamed)

    def layer_of(self, made: Any) -> nn.Module:
        """The layer of a model that `made` made."""
        layers: Any = made.get_submodule(self._path)
        return cast("nn.Module", layers[0])

    def _loaded(self, empty: Any, layers: Sequence[nn.Module], tensors: dict[str, Tensor]) -> Any:
        """A model like an empty one, with these of its layers, and the tensors as its weights."""
        reference, path = self.resolved.reference, self._path
        options = loading_options(reference, self._dtype, self.device)
        del options["use_safetensors"]
        with named_errors(f"model {reference.model}, a layer at a time,"):
            loaded: Any = _kind_like(empty, path, layers).from_pretrained(
                None, config=empty.config, state_dict=tensors, output_loading_info=True, **options
            )
        model, info = loaded
        missing = missing_keys(info)
        if layers:  # the ends are not asked of a model of one layer
            missing = [name for name in missing if name.startswith(f"{path}.")]
        refuse_missing(self.resolved.files.model, missing)
        remove_dropout(model)
        keep_differentiable(model)
        return model.eval()


def bytes_of_layers(resolved: ResolvedReference, count: int) -> list[int]:
    """Of each layer, as the files of a model have it.

    Args:
        resolved: the reference.
        count: of layers.

    Raises:
        UsageError: its weights are not so many layers, or a file is damaged.
    """
    reader = WeightReader(resolved.files.model)
    names, _ = _by_layer(reader.places, count, resolved.reference.model)
    return [reader.bytes_of(names[place]) for place in range(count)]


def _narrow(config: Any) -> Any:
    """The configuration of a model whose vocabulary, which no layer knows, is next to nothing."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.vocab_size = TINY
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if getattr(text, name, None) is not None:
            setattr(text, name, 0)
    return config


def _without_weights(plan: Blueprint) -> Any:
    """The whole model on the device `meta`."""
    return plan.made(torch.device("meta")).causal_lm


def _kind_like(empty: Any, path: str, layers: Sequence[nn.Module]) -> Any:
    """The class of a model, whose one instance is a copy of an empty model with other layers: each
    layer is what it is in the whole model, whatever it makes of its place there."""
    kind, whole = type(empty), empty.get_submodule(path)
    empty.set_submodule(path, nn.ModuleList(layers))
    try:
        copies = [copy.deepcopy(empty)]
    finally:
        empty.set_submodule(path, whole)

    def begin(self: Any, *_: Any, **__: Any) -> None:
        vars(self).update(vars(copies.pop()))  # a class lives on, and must not hold the weights

    return type(kind.__name__, (kind,), {"__init__": begin, "__module__": kind.__module__})


def refused(model: str, reason: str, hint: str) -> UsageError:
    """A model that cannot be computed a layer at a time."""
    return UsageError(f"{model} cannot be computed a layer at a time: {reason}", hint)


def _entered(enter: Enter, place: int, *args: Any, **kwargs: Any) -> Any:
    """A layer's `forward`: asks `enter`."""
    if args:
        states, *rest = args
    else:
        states, rest = kwargs.pop("hidden_states"), []
    return enter(place, states, tuple(rest), kwargs)


def _by_layer(
    names: Collection[str], count: int, model: str
) -> tuple[dict[int, list[str]], list[str]]:
    """The names of tensors by layer, and the rest."""
    stacks: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        if found := NAMED.match(name):
            stacks[found[1] or ""][int(found[2])].append(name)
    whole = [prefix for prefix, layers in stacks.items() if set(layers) == set(range(count))]
    if len(whole) != 1:
        reason = f"its weights are not {count} layers, each named by its number"
        raise refused(model, reason, ELSEWHERE)
    layers = stacks[whole[0]]
    inside = {name for names in layers.values() for name in names}
    return dict(layers), [name for name in names if name not in inside]


def _path_of_layers(model: Any, count: int) -> str:
    """Where the list of a model's layers is."""
    decoder = model.get_decoder()
    lists = [
        path
        for path, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    outermost = [path for path in lists if not any(path.startswith(f"{one}.") for one in lists)]
    if len(outermost) != 1:
        reason = f"its decoder has {len(outermost)} lists of {count} layers"
        raise refused(model.config.model_type, reason, ELSEWHERE)
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    return f"{prefix}.{outermost[0]}" if prefix else outermost[0]
