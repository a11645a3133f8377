"""`ResponseScorer`: a causal LM as a function from token batches to response log-probs.

Both phases use this one module, so a policy at step 0 gives the numbers of its cached reference.
It is the module that DDP and FSDP wrap: the decoder and its head are called inside `forward`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mrpo_tools.batching import PADDING, PROMPT, Row, attention_mask, collate
from mrpo_tools.maths.logprobs import sequence_logps, token_logps

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
COARSE_TOLERANCE = 0.2
"""nats per token between two exact routes: float32, and the 16-bit formats."""


class ResponseScorer(nn.Module):
    """Response log-probs of a causal LM, with gradient.

    Args:
        model: any Hugging Face causal LM, with or without a LoRA adapter.

    Attributes:
        share_prompts: whether a row may hold several responses of a prompt.
        tiled_head: whether the head runs on scored positions only; otherwise the model's own
            `forward` makes the logits of every position.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.share_prompts = True
        self.tiled_head = True

    @property
    def causal_lm(self) -> Any:
        """The Hugging Face model inside an adapter's wrapper."""
        get_base = getattr(self.model, "get_base_model", None)
        return get_base() if get_base else self.model

    @property
    def config(self) -> Any:
        return self.causal_lm.config

    @property
    def hidden_size(self) -> int:
        return int(self.config.get_text_config().hidden_size)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        segments: Tensor,
        sources: Tensor,
        targets: Tensor,
        owners: Tensor,
        sequences: int,
    ) -> Tensor:
        """Sum of the scored tokens' log-probs for each sequence.

        Args: those of `TokenBatch`.

        Returns:
            [sequences] float64, nats.
        """
        arguments = {
            "input_ids": input_ids,
            "position_ids": position_ids,
            "attention_mask": self._mask(segments, position_ids),
            "use_cache": False,
        }
        if self.tiled_head:
            states = self.causal_lm.get_decoder()(**arguments).last_hidden_state
            logps = token_logps(states.flatten(0, 1)[sources], targets, self._head)
        else:
            logits = self.causal_lm(**arguments).logits
            logps = token_logps(logits.flatten(0, 1)[sources], targets, lambda rows: rows)
        return sequence_logps(logps, owners, sequences)

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
        if self.config._attn_implementation != "eager":
            return mask
        dtype = next(self.parameters()).dtype
        dtype = dtype if dtype.is_floating_point else torch.float32
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


@torch.no_grad()
def score(scorer: ResponseScorer, rows: list[Row], device: torch.device) -> list[float]:
    """Log-probs of the rows' responses, in the order of the rows and their responses."""
    keys = [key for row in rows for key in row.keys]
    place = {key: index for index, key in enumerate(keys)}
    renamed = [Row(row.prompt, row.responses, [place[key] for key in row.keys]) for row in rows]
    batch = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in collate(renamed).items()
    }
    logps: list[float] = scorer(**batch).tolist()
    return logps


@torch.no_grad()
def plain_logps(scorer: ResponseScorer, row: Row, device: torch.device) -> list[float]:
    """The same by the shortest way there is: `log_softmax` of `model(ids).logits`, one row each."""
    sums = []
    for response in row.responses:
        ids = torch.tensor([[*row.prompt, *response]], device=device)
        logits = scorer.model(input_ids=ids, use_cache=False).logits[0, len(row.prompt) - 1 : -1]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        targets = ids[0, len(row.prompt) :, None]
        sums.append(float(logits.log_softmax(-1).gather(-1, targets).sum(dtype=torch.float64)))
    return sums


def self_check(scorer: ResponseScorer, rows: list[Row], device: torch.device) -> float:
    """Choose the fastest route that agrees with the model's own logits; returns the noise.

    Tries shared prompts with the tiled head, then plain rows, then the model's own logits, and
    leaves `scorer` set to the first that agrees.

    Returns:
        The largest difference, nats per token.
    """
    expected = [plain_logps(scorer, row, device) for row in rows]
    dtype = next(scorer.parameters()).dtype
    tolerance = TOLERANCE.get(dtype, COARSE_TOLERANCE)
    noise = float("inf")
    for share, tiled in ((True, True), (False, True), (False, False)):
        scorer.share_prompts, scorer.tiled_head = share, tiled
        noise = max(
            _difference(_own_route(scorer, row, device), wanted, row)
            for row, wanted in zip(rows, expected, strict=True)
        )
        if noise <= tolerance:
            break
    return noise


def _own_route(scorer: ResponseScorer, row: Row, device: torch.device) -> list[float]:
    if scorer.share_prompts:
        return score(scorer, [row], device)
    parts = [Row(row.prompt, [one], [0]) for one in row.responses]
    return [score(scorer, [part], device)[0] for part in parts]


def _difference(found: list[float], expected: list[float], row: Row) -> float:
    return max(
        abs(a - b) / max(len(response), 1)
        for a, b, response in zip(found, expected, row.responses, strict=True)
    )
