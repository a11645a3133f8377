"""`ResponseScorer`: a causal LM as a function from token batches to response log-probs.

Both phases use this one module, so a policy at step 0 gives the numbers of its cached reference.
It is the module that DDP and FSDP wrap: the decoder and its head are called inside `forward`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mrpo_tools.maths.logprobs import sequence_logps, token_logps
from mrpo_tools.references.transformers_private import attention_of
from mrpo_tools.scorer.attention import TREE
from mrpo_tools.scorer.trees import (
    PADDING,
    PROMPT,
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
        packed: trees in one line without padding, with the attention function `tree`.
        share: a row may hold several responses of a prompt.
        tiled: the head runs only where a response is predicted; otherwise the model's own
            `forward` makes the logits of every position.
    """

    packed: bool
    share: bool
    tiled: bool


ROUTES = (
    Route(packed=True, share=True, tiled=True),
    Route(packed=False, share=True, tiled=True),
    Route(packed=False, share=False, tiled=True),
    Route(packed=False, share=False, tiled=False),
)
"""The fastest first; the last one is right for every model."""


class ResponseScorer(nn.Module):
    """Response log-probs of a causal LM, with gradient. It has no dropout in any mode.

    Args:
        model: any Hugging Face causal LM, with or without a LoRA adapter.
        attention: `auto`, or one that is forced: `tree` allows packed lines only, `sdpa` and
            `eager` keep to masks and padding.

    Attributes:
        route: how `forward` computes; `self_check` chooses it.
        alone: rows are neither shared nor batched, because the model's rotary embeddings depend on
            the longest row of a call (`dynamic` and `longrope`).
    """

    def __init__(self, model: PreTrainedModel, attention: str = "auto") -> None:
        super().__init__()
        self.model = model
        self.own_attention = attention_of(self.config)
        self.routes = {"auto": ROUTES, TREE: ROUTES[:1]}.get(attention, ROUTES[1:])
        self.alone = _depends_on_length(self.config)
        if self.alone and attention != TREE:
            self.routes = ROUTES[2:]
        self.route = ROUTES[1]
        _remove_dropout(model)

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
        self.causal_lm.set_attn_implementation(TREE if route.packed else self.own_attention)
        self.route = route

    def batches(self, trees: Sequence[Row], max_tokens: int | None = None) -> list[list[Row]]:
        """Trees in the rows and batches of this route, longest first.

        Args:
            trees: prompts with their responses.
            max_tokens: of a batch, padding counted; None takes `BATCH_TOKENS` of the device.
        """
        packed = self.route.packed
        most = max_tokens or max(BATCH_TOKENS.values())
        trees = [part for tree in trees for part in split_tree(tree, most)]
        max_tokens = max_tokens or BATCH_TOKENS[next(self.parameters()).device.type == "cpu"]
        if self.alone:
            max_tokens = 1
        planned = plan_rows(
            trees, share=self.route.share, hidden_size=self.hidden_size, packed=packed
        )
        return batches(planned, max_tokens, packed=packed)

    def collate(self, rows: Sequence[Row]) -> TokenBatch:
        """A batch of rows in the form of this route."""
        return collate(rows, packed=self.route.packed)

    def forward(self, batches: Sequence[TokenBatch], sequences: int) -> Tensor:
        """Sum of the target tokens' log-probs for each sequence.

        Args:
            batches: in the form of the scorer's route; their owners are indices below `sequences`.
            sequences: S.

        Returns:
            [S] float64, nats; 0 for a sequence without tokens.
        """
        logps = [
            token_logps(states.flatten(0, 1)[batch["sources"]], batch["targets"], head)
            for batch in batches
            for states, head in [self._states(batch)]
        ]
        owners = torch.cat([batch["owners"] for batch in batches])
        return sequence_logps(torch.cat(logps), owners, sequences)

    def _states(self, batch: TokenBatch) -> tuple[Tensor, Any]:
        """[R, T, D] hidden states and the head that makes logits of them."""
        arguments: dict[str, Any] = {
            "input_ids": batch["input_ids"],
            "position_ids": batch["position_ids"],
            "use_cache": False,
        }
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
        dtype = next(self.parameters()).dtype
        dtype = dtype if dtype.is_floating_point else torch.float32
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def _depends_on_length(config: Any) -> bool:
    """Whether a call's longest row decides the positions of all."""
    text = config.get_text_config()
    words = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    kinds = [words, *(part for part in words.values() if isinstance(part, dict))]
    return any(
        name == "longrope" or "dynamic" in name
        for name in (str(kind.get("rope_type", kind.get("type"))) for kind in kinds)
    )


def _remove_dropout(model: nn.Module) -> None:
    """Make every dropout of a model one of probability 0 (its configuration stays as it is)."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


@torch.no_grad()
def response_logps(
    scorer: ResponseScorer, rows: Sequence[Row], device: torch.device
) -> list[float]:
    """Log-probs, in nats, of one batch of rows, in the order of the rows and their responses."""
    keys = [key for row in rows for key in row.keys]
    place = {key: index for index, key in enumerate(keys)}
    renamed = [Row(row.prompt, row.responses, [place[key] for key in row.keys]) for row in rows]
    batch = to_device(scorer.collate(renamed), device)
    logps: list[float] = scorer([batch], len(keys)).tolist()
    return logps


def to_device(batch: TokenBatch, device: torch.device) -> TokenBatch:
    """The batch with every tensor on a device."""
    moved: Any = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }
    return cast("TokenBatch", moved)
