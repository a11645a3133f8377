"""Memory before it is needed: the real code, run on tensors that have a shape and no storage."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mrpo_tools.maths.logprobs import token_logps
from mrpo_tools.scorer.blueprint import Blueprint
from mrpo_tools.scorer.scorer import ResponseScorer, to_device
from mrpo_tools.scorer.trees import Row, TokenBatch

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a weight in NF4: half a byte, for 64 weights a scale of one byte, for 256 scales one of four
(Dettmers et al. 2023, §3)."""


class LiveBytes(TorchDispatchMode):
    """While it is entered, counts the bytes of the storages that operations make.

    A storage counts once, however many tensors look at it, until the last of them is gone. What a
    kernel takes for itself while it runs is not seen.

    Attributes:
        live: bytes now.
        peak: the most since the beginning, or since `begin`.
    """

    def __init__(self) -> None:
        begin: Any = super().__init__  # torch does not type it
        begin()
        self.live = self.peak = 0
        self._storages: dict[int, weakref.ref[Any]] = {}

    def begin(self) -> int:
        """Forget the peak so far; the bytes now."""
        self.peak = self.live
        return self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note what it made."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return

        def gone(_: Any) -> None:
            self.live -= size
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)


class Unit(NamedTuple):
    """Bytes of some parameters, and of those among them that are trained."""

    total: int = 0
    trained: int = 0


class Weights(NamedTuple):
    """Bytes of a model's parameters and buffers, and how many of them are trained.

    Attributes:
        total: of all; tied ones once.
        trained: of those that require gradients.
        largest: of the largest matrix of the layers, in the dtype of the products.
        layer: the largest layer.
        root: what is in no layer: embeddings, the last norm, the head.
        embedding: of the root, what is trained of the embeddings; 0 where the head is tied to them.
        shapes: those that are trained, without storage.
        tensor: the largest parameter.
        width: bytes of a number of those that are most.
    """

    total: int
    trained: int
    largest: int
    layer: Unit = Unit()
    root: Unit = Unit()
    embedding: int = 0
    shapes: tuple[Tensor, ...] = ()
    tensor: int = 0
    width: int = 4


@contextlib.contextmanager
def imagined(blueprint: Blueprint) -> Iterator[tuple[ResponseScorer, LiveBytes]]:
    """The scorer of a blueprint on tensors without storage, on its fastest route, and the counter
    of the bytes that it would take."""
    scorer = blueprint.made(torch.device("meta"))
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
        scorer = scorer.to_empty(device=blueprint.device)
        scorer.causal_lm.tie_weights()
        scorer.take(scorer.routes[0])
        yield scorer, live


def weights_of(blueprint: Blueprint, *, quantized: bool = False) -> Weights:
    """Bytes of the weights at full depth.

    Args:
        blueprint: of the model.
        quantized: its layers' matrices are in NF4; embeddings, norms and the head stay as they are.
    """
    scorer = blueprint.made(torch.device("meta"))
    head = scorer.causal_lm.get_output_embeddings()
    matrices = _matrices(scorer)
    total = sum(tensor.nbytes for tensor in (*scorer.parameters(), *scorer.buffers()))
    if quantized:
        total -= int(sum(matrices.values()) * (blueprint.dtype.itemsize - NF4_BYTES))
    embeddings = scorer.causal_lm.get_input_embeddings().weight
    shapes = tuple(weight for weight in scorer.parameters() if weight.requires_grad)
    layers, root = _units(scorer)
    return Weights(
        total=total,
        trained=sum(weight.nbytes for weight in shapes),
        largest=max(matrices.values(), default=0) * blueprint.dtype.itemsize,
        layer=max(layers, default=Unit()),
        root=root,
        embedding=0 if head.weight is embeddings else _unit([embeddings]).trained,
        shapes=shapes,
        tensor=max(weight.nbytes for weight in scorer.parameters()),
        width=blueprint.dtype.itemsize,
    )


def streamed_bytes(weights: Weights, *, quantized: bool = False) -> int:
    """Bytes of a model that is computed a layer at a time: what is in no layer, two layers, and one
    as it came from its file, which is taken to be as wide as products.

    Args:
        weights: of the model in the dtype of the products.
        quantized: its layers are then in NF4.
    """
    whole = weights.layer.total
    layer = int(whole * NF4_BYTES / weights.width) if quantized else whole
    return weights.root.total + 2 * layer + whole


def sizes_of(scorer: ResponseScorer, *, quantized: bool = False) -> dict[str, int]:
    """Bytes of each parameter and buffer of a causal LM, by its name there.

    Args:
        scorer: of the model.
        quantized: as for `weights_of`.
    """
    model, matrices = scorer.causal_lm, _matrices(scorer) if quantized else {}
    buffers = model.named_buffers(remove_duplicate=False)
    named = [*model.named_parameters(remove_duplicate=False), *buffers]
    return {
        name: int(matrices[id(tensor)] * NF4_BYTES) if id(tensor) in matrices else tensor.nbytes
        for name, tensor in named
    }


def _matrices(scorer: ResponseScorer) -> dict[int, int]:
    """Numbers of each weight that would be in NF4. Experts that are one tensor of all are none."""
    head = scorer.causal_lm.get_output_embeddings()
    return {
        id(layer.weight): layer.weight.numel()
        for layer in scorer.modules()
        if isinstance(layer, torch.nn.Linear)
        and layer is not head
        and not layer.weight.requires_grad
    }


def _units(scorer: ResponseScorer) -> tuple[list[Unit], Unit]:
    """The layers, as the model names them, and the rest."""
    names = set(getattr(scorer.causal_lm, "_no_split_modules", None) or ())
    layers = [module for module in scorer.modules() if type(module).__name__ in names]
    inside = {id(weight) for layer in layers for weight in layer.parameters()}
    rest = [weight for weight in scorer.parameters() if id(weight) not in inside]
    return [_unit(layer.parameters()) for layer in layers], _unit(rest)


def _unit(weights: Iterable[Tensor]) -> Unit:
    every = list(weights)
    trained = sum(weight.nbytes for weight in every if weight.requires_grad)
    return Unit(sum(weight.nbytes for weight in every), trained)


def working_bytes(blueprint: Blueprint, rows: Sequence[Row]) -> int:
    """The most bytes beside the weights that log-probs of one batch take, without gradient."""
    shallow = blueprint.of_layers(blueprint.sample())  # a layer is forgotten when the next is done
    with imagined(shallow) as (scorer, live), torch.no_grad():
        before = live.begin()
        scorer(*inputs(scorer, [rows], blueprint.device))
        return live.peak - before


class StepBytes(NamedTuple):
    """Bytes of a micro-batch with gradient, beside weights, gradients and optimizer states.

    Attributes:
        kept: what autograd keeps from the forward to the backward pass.
        peak: the most there is in both.
        head: of it, what a tile of the head takes beside `kept`.
        layer: what one layer takes beside `kept`.
    """

    kept: int
    peak: int
    head: int = 0
    layer: int = 0


def step_bytes(
    blueprint: Blueprint,
    trees: Sequence[Row],
    max_tokens: int | None = None,
) -> StepBytes:
    """What a micro-batch takes where gradients are there already, as in all but the first one.

    Args:
        blueprint: of the policy as it is trained, with activation checkpointing or without.
        trees: of the micro-batch.
        max_tokens: of one pass through the model.
    """

    def measure(shallow: Blueprint) -> tuple[float, ...]:
        with imagined(shallow) as (scorer, live):
            for weight in scorer.parameters():
                if weight.requires_grad:
                    weight.grad = torch.zeros_like(weight)
            batches, count = inputs(scorer, scorer.batches(trees, max_tokens), shallow.device)
            whole = _passes(lambda: scorer(batches, count), live)
            layers = _passes(lambda: _decoded(scorer, batches), live)
            _, *head = _passes(_head_of(scorer, batches[0]), live)
            return (*whole, *layers, max(head))

    kept, *peaks, waiting, forward, backward, head = blueprint.at_full_depth(measure)
    return StepBytes(  # either pass may be the larger when deep
        int(kept), int(max(peaks)), int(head), int(max(forward, backward) - waiting)
    )


def _decoded(scorer: ResponseScorer, batches: Sequence[TokenBatch]) -> Tensor:
    """A number for each batch that depends on its hidden states, without the head."""
    with scorer.arithmetic():
        return torch.stack([scorer._states(batch)[0].sum() for batch in batches])


def _head_of(scorer: ResponseScorer, batch: TokenBatch) -> Callable[[], Tensor]:
    """The head on a batch's hidden states, once the layers have made them."""
    with torch.no_grad(), scorer.arithmetic():
        states, head = scorer._states(batch)
    lines = states.flatten(0, 1).index_select(0, batch["sources"]).requires_grad_()

    def computed() -> Tensor:
        with scorer.arithmetic():
            return token_logps(lines, batch["targets"], head)

    return computed


def _passes(compute: Callable[[], Any], live: LiveBytes) -> tuple[int, int, int]:
    """Bytes kept after a forward pass, and the most in it and in the backward pass."""
    before = live.begin()
    result = compute()
    forward, kept = live.peak - before, live.begin() - before
    result.sum().backward()
    return kept, forward, live.peak - before


def inputs(
    scorer: ResponseScorer, planned: Sequence[Sequence[Row]], device: torch.device
) -> tuple[list[TokenBatch], int]:
    """What `ResponseScorer.forward` takes of some batches of rows, whatever their keys: each row
    is one sequence."""
    batches, count = [], 0
    for rows in planned:
        own = [
            Row(row.prompt, row.responses, [place] * len(row.keys))
            for place, row in enumerate(rows, count)
        ]
        batches.append(_moved(scorer.collate(own), device))
        count += len(rows)
    return batches, count


def _moved(batch: TokenBatch, device: torch.device) -> TokenBatch:
    """The batch on a device; on one that is imagined, its shapes are."""
    if not isinstance(torch.empty(0), FakeTensor):
        return to_device(batch, device)
    imagined: Any = {
        name: torch.empty_like(value, device=device) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }
    return cast("TokenBatch", imagined)
