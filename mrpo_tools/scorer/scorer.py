"""`ResponseScorer`: a causal LM as a function from token batches to response log-probs.

Both phases use this one module, so a policy at step 0 gives the numbers of its cached reference.
It is the module that DDP, FSDP and DeepSpeed wrap: the decoder and its head are called inside
`forward` and the other `ENTRANCES`, and nowhere else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mrpo_tools.maths.logprobs import sequence_logps, token_logps
from mrpo_tools.references.transformers_private import attention_of
from mrpo_tools.scorer.across import devices_of
from mrpo_tools.scorer.attention import (
    TREE,
    TREE_PIECES,
    missing_variable_length,
    uses_variable_length,
)
from mrpo_tools.scorer.head import SIXTEEN_BITS, widen_logits
from mrpo_tools.scorer.rotary import Rotary
from mrpo_tools.scorer.trees import (
    PADDING,
    PROMPT,
    WORTH_SHARING,
    Row,
    TokenBatch,
    attention_mask,
    batches,
    collate,
    plan_rows,
    split_tree,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH_TOKENS = {True: 2048, False: 8192}
"""Tokens of a batch on a CPU, whose caches hold few, and on an accelerator."""


class Route(NamedTuple):
    """How log-probs are computed; all routes are exact.

    Attributes:
        name: what the records call it.
        attention: the attention function of trees packed into one line without padding; None for
            padded lines with the model's own.
        share: a row may hold several responses of a prompt.
        tiled: the head runs only where a response is predicted; otherwise the model's own
            `forward` makes the logits of every position.
        batched: several rows in one call.
    """

    name: str
    attention: str | None = None
    share: bool = False
    tiled: bool = True
    batched: bool = True

    @property
    def packed(self) -> bool:
        """Whether a batch is one line without padding."""
        return self.attention is not None


ROUTES = (
    Route("tree", attention=TREE, share=True),
    Route("mask", share=True),
    Route("rows"),
    Route("own logits", tiled=False),
    Route("alone", tiled=False, batched=False),
)
"""The fastest first; the last one is right for every model, because it is the model."""
OWN_LOGITS, ALONE = ROUTES[-2:]
PIECES = Route("tree_pieces", attention=TREE_PIECES, share=True)
"""The second fastest, where `tree` has a kernel for all pieces at once."""
ENTRANCES = ("forward", "token_logps", "own_logits")
"""Methods that begin a pass through the model; none of them calls another."""
EMPTY = Row([0], [[0]], [0])
"""The least that a pass can be of, where one is needed that counts for nothing."""


class ResponseScorer(nn.Module):
    """Response log-probs of a causal LM, with gradient. It has no dropout in any mode.

    Args:
        model: any Hugging Face causal LM, with or without a LoRA adapter.
        attention: `auto`, or one that is forced: `tree` allows packed lines only, `sdpa` and
            `eager` keep to masks and padding.
        dtype: of the products; None is that of the weights. Weights that are wider than 16-bit
            products (an adapter's, or all of them) are cast where they are used (`autocast`).

    Attributes:
        route: how `forward` computes; `self_check` chooses it.
        dtype: of the products.
    """

    def __init__(
        self, model: PreTrainedModel, attention: str = "auto", dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.own_attention = attention_of(self.config)
        self.route = ROUTES[1]
        weights = next(each for each in model.parameters() if each.is_floating_point()).dtype
        self.dtype = dtype or weights
        adapted = getattr(model, "peft_config", None) is not None
        self._autocast = self.dtype in SIXTEEN_BITS and (adapted or weights != self.dtype)
        self._asked_attention = attention
        self._rotary = Rotary(self.causal_lm)
        widen_logits(self.causal_lm)
        if self._autocast:
            _keep_narrow(model)
        remove_dropout(model)

    @cached_property
    def routes(self) -> tuple[Route, ...]:
        """Those to choose among on the device where the weights are, the fastest first."""
        packed: tuple[Route, ...] = ROUTES[:1]
        padded = ROUTES[1:]
        if uses_variable_length(self._device, self.dtype):
            packed += (PIECES,)
        return {"auto": packed + padded, TREE: packed}.get(self._asked_attention, padded)

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """Where its layers are computed; the first is where ids go to."""
        return devices_of(self.causal_lm)

    @property
    def _device(self) -> torch.device:
        return self.devices[0]

    @property
    def causal_lm(self) -> Any:
        """The Hugging Face model inside an adapter's wrapper."""
        get_base = getattr(self.model, "get_base_model", None)
        return get_base() if get_base else self.model

    @property
    def config(self) -> Any:
        """The configuration of that model, in transformers' own class."""
        return self.causal_lm.config

    @property
    def _no_split_modules(self) -> list[str]:
        """Classes of the layers that are shared out whole: the model's own word for them."""
        return list(self.causal_lm._no_split_modules or ())

    @property
    def takes_positions(self) -> bool:
        """Whether the decoder can be told each token's position, as shared prompts need it. One
        that counts by itself may look beyond its table, which a GPU does not survive."""
        return "position_ids" in inspect.signature(self.causal_lm.get_decoder().forward).parameters

    @property
    def attention(self) -> str:
        """The attention function that the model uses now."""
        return attention_of(self.config)

    @property
    def hidden_size(self) -> int:
        """Numbers of a token's hidden state."""
        return int(self.config.get_text_config().hidden_size)

    def useful_flops(self, tokens: int, targets: int) -> int:
        """Two operations for each parameter and token: of the decoder for all `tokens`, of the head
        for those of responses, the `targets`. Attention's own products are not counted."""
        model = self.causal_lm
        embedding, head = (
            layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings())
        )
        outside = {id(weight): int(weight.numel()) for weight in (embedding, head)}
        decoder = int(model.num_parameters()) - sum(outside.values())  # tied ones count once
        return 2 * (decoder * tokens + outside[id(head)] * targets)

    def take(self, route: Route) -> None:
        """Use a route from now on, with the attention function it needs."""
        self.causal_lm.set_attn_implementation(route.attention or self.own_attention)
        self.route = route

    def batches(
        self,
        trees: Sequence[Row],
        max_tokens: int | None = None,
        *,
        worth: float = WORTH_SHARING,
    ) -> list[list[Row]]:
        """Trees in the rows and batches of this route, longest first.

        Rows for which the model has other rotary frequencies stand in batches of their own.

        Args:
            trees: prompts with their responses.
            max_tokens: of a batch, padding counted; None takes `BATCH_TOKENS` of the device.
            worth: see `plan_rows`.
        """
        packed = self.route.packed
        most = max_tokens or max(BATCH_TOKENS.values())
        max_tokens = max_tokens or BATCH_TOKENS[self._device.type == "cpu"]
        planned = []
        for alike, together in self._rotary.kinds(trees):
            rows = plan_rows(
                [part for tree in alike for part in split_tree(tree, most)],
                share=self.route.share and together,
                hidden_size=self.hidden_size,
                packed=packed,
                worth=worth,
            )
            limit = max_tokens if self.route.batched and together else 1
            planned += batches(rows, limit, packed=packed)
        return planned

    def collate(self, rows: Sequence[Row]) -> TokenBatch:
        """A batch of rows in the form of this route."""
        return collate(rows, packed=self.route.packed)

    def forward(
        self, batches: Sequence[TokenBatch], sequences: int, empty: Sequence[TokenBatch] = ()
    ) -> Tensor:
        """Sum of the target tokens' log-probs for each sequence.

        Args:
            batches: in the form of the scorer's route; their owners are indices below `sequences`.
            sequences: S.
            empty: further ones that add 0, with a gradient of 0: other processes have as many.

        Returns:
            [S] float64, nats; 0 for a sequence without tokens.
        """
        logps = [self._token_logps(batch) for batch in batches]
        owners = [batch["owners"] for batch in batches]
        for batch in empty:
            logps.append(0 * self._token_logps(batch).nan_to_num(neginf=0))
            owners.append(batch["owners"])
        return sequence_logps(torch.cat(logps), torch.cat(owners), sequences)

    def token_logps(self, batch: TokenBatch) -> Tensor:
        """[M] nats of a batch's target tokens, float32 or better."""
        return self._token_logps(batch)

    def own_logits(self, ids: Tensor, **last: int) -> Tensor:
        """[1, T, V] logits by the model's own `forward`, of all positions or of the `last`."""
        self.forget_lengths()
        logits: Tensor = self.model(input_ids=ids, use_cache=False, **last).logits
        return logits

    def empty_batch(self, device: torch.device) -> TokenBatch:
        """A batch of one token, in the form of this route."""
        return to_device(self.collate([EMPTY]), device)

    def _token_logps(self, batch: TokenBatch) -> Tensor:
        with self.arithmetic():
            states, head = self._states(batch)
            lines = states.flatten(0, 1).index_select(0, batch["sources"].to(states.device))
            return token_logps(lines, batch["targets"], head)

    def forget_lengths(self) -> None:
        """See `Rotary.begin`; before every pass through the model."""
        self._rotary.begin()

    def unavailable(self) -> dict[str, str]:
        """Faster kernels that this device should have and this torch does not, with the reason."""
        if not self.routes[0].packed:
            return {}
        reason = missing_variable_length(self._device, self.dtype, self.causal_lm)
        return {} if reason is None else {"one call for all pieces": reason}

    def arithmetic(self) -> AbstractContextManager[Any]:
        """The precision of products, for a pass through the model."""
        return torch.autocast(self._device.type, self.dtype, enabled=self._autocast)

    def _states(self, batch: TokenBatch) -> tuple[Tensor, Any]:
        """[R, T, D] hidden states and the head that makes logits of them."""
        self._rotary.begin()
        arguments: dict[str, Any] = {"input_ids": batch["input_ids"], "use_cache": False}
        if not self.route.batched:  # as the model counts positions: some do not begin at 0
            return self.causal_lm(**arguments).logits, lambda rows: rows
        arguments["position_ids"] = batch["position_ids"]
        if batch["forest"] is not None:
            arguments["forest"] = batch["forest"]
        else:
            arguments["attention_mask"] = self._mask(batch["segments"], batch["position_ids"])
        if self.route.tiled:
            return self.causal_lm.get_decoder()(**arguments).last_hidden_state, self._head
        return self.causal_lm(**arguments).logits, lambda rows: rows

    def _head(self, states: Tensor) -> Tensor:
        """Logits of hidden states, with the scale and soft-cap that some families add."""
        logits: Tensor = self.causal_lm.get_output_embeddings()(states)
        config = self.config.get_text_config()
        scale = getattr(config, "logit_scale", None)
        if scale is not None:
            logits = logits * scale
        divisor = getattr(config, "logits_scaling", None)
        if divisor is not None:
            logits = logits / divisor
        cap = getattr(config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _mask(self, segments: Tensor, position_ids: Tensor) -> Any:
        """What the decoder takes as `attention_mask`: a 4-D mask where a row has branches."""
        if int(segments.max()) <= PROMPT + 1:
            return (segments != PADDING).long()
        config = self.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        kinds = set(getattr(config, "layer_types", None) or ())
        if "sliding_attention" in kinds:
            return {
                "full_attention": self._additive(attention_mask(segments, position_ids)),
                "sliding_attention": self._additive(attention_mask(segments, position_ids, window)),
            }
        return self._additive(attention_mask(segments, position_ids, None if kinds else window))

    def _additive(self, mask: Tensor) -> Tensor:
        """The form the attention kernel reads: eager attention adds its mask, and a boolean one
        would be silently wrong."""
        if self.own_attention != "eager":
            return mask
        least = torch.finfo(self.dtype).min
        return torch.zeros_like(mask, dtype=self.dtype).masked_fill(~mask, least)


def _keep_narrow(model: nn.Module) -> None:
    """Keep an adapter from widening its inputs: autocast narrows its weights instead, and what
    autograd keeps of a token stays 16 bits wide."""
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.__dict__["cast_input_dtype_enabled"] = False


def remove_dropout(model: nn.Module) -> None:
    """Make every dropout of a model one of probability 0 (its configuration stays as it is)."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def response_logps(
    scorer: ResponseScorer, rows: Sequence[Row], device: torch.device
) -> list[float]:
    """Log-probs, in nats, of one batch of rows, in the order of the rows and their responses."""
    return logp_pass(scorer, rows, device)()


def response_token_logps(
    scorer: ResponseScorer, rows: Sequence[Row], device: torch.device
) -> list[Tensor]:
    """The same before they are summed: [L] nats of each response's tokens, on the CPU."""
    return token_pass(scorer, rows, device)()


def logp_pass(
    scorer: ResponseScorer, rows: Sequence[Row], device: torch.device
) -> Callable[[], list[float]]:
    """`response_logps` that begins when it is called."""
    batch, count = _prepared(scorer, rows, device)

    @torch.no_grad()
    def begin() -> list[float]:
        logps = scorer.token_logps(batch)
        sums: list[float] = sequence_logps(logps, batch["owners"], count).tolist()
        return sums

    return begin


def token_pass(
    scorer: ResponseScorer, rows: Sequence[Row], device: torch.device
) -> Callable[[], list[Tensor]]:
    """`response_token_logps` that begins when it is called."""
    batch, count = _prepared(scorer, rows, device)

    @torch.no_grad()
    def begin() -> list[Tensor]:
        logps, owners = scorer.token_logps(batch).cpu(), batch["owners"].cpu()
        return [logps[owners == place] for place in range(count)]

    return begin


def _prepared(
    scorer: ResponseScorer, rows: Sequence[Row], device: torch.device
) -> tuple[TokenBatch, int]:
    """A batch whose owners are places of responses, and the number of these."""
    keys = [key for row in rows for key in row.keys]
    place = {key: index for index, key in enumerate(keys)}
    renamed = [Row(row.prompt, row.responses, [place[key] for key in row.keys]) for row in rows]
    return to_device(scorer.collate(renamed), device), len(keys)


def to_device(batch: TokenBatch, device: torch.device) -> TokenBatch:
    """The batch with every tensor on a device."""
    moved: Any = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }
    return cast("TokenBatch", moved)
