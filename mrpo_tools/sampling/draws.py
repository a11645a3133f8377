"""Exact draws of tokens that are functions of a key, the place in the answer and the token.

Gumbel-max (Gumbel 1954; Maddison et al. 2014): the largest of logit + G over a vocabulary, with
independent G = −log E, E exponential, is a draw from the softmax. Every E is made by hashing
integers (the finaliser of MurmurHash3), so an answer depends neither on the other rows of its
batch nor on the device, and two models that are alike draw alike with equal keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from mrpo_tools.sampling.answers import Sampling

FIRST, SECOND = 0x85EBCA6B - 2**32, 0xC2B2AE35 - 2**32
"""Multipliers of MurmurHash3's finaliser, as signed 32-bit integers."""
GOLDEN = 0x9E3779B9 - 2**32
"""2^32 over the golden ratio: keeps neighbouring counters apart."""
BITS = 31


def row_key(seed: int, prompt_id: str, index: int) -> tuple[int, int]:
    """Two signed 32-bit integers for one answer to one prompt."""
    digest = hashlib.sha256(f"{seed}:{prompt_id}:{index}".encode()).digest()
    return (
        int.from_bytes(digest[:4], "big", signed=True),
        int.from_bytes(digest[4:8], "big", signed=True),
    )


class Draws:
    """The noise of one batch: adds G to logits, so that their largest is a draw.

    Args:
        keys: of the R rows.
        sampling: temperature, top-k and top-p.
        device: of the logits.
    """

    def __init__(
        self, keys: Sequence[tuple[int, int]], sampling: Sampling, device: torch.device
    ) -> None:
        self.keys = torch.tensor(keys, dtype=torch.int32, device=device).unsqueeze(-1)
        self.sampling = sampling
        self.tokens = torch.empty(0, dtype=torch.int32, device=device)

    def perturbed(self, logits: Tensor, step: int) -> Tensor:
        """[R, V] scores whose argmax is a draw from the softmax of the filtered logits.

        Args:
            logits: [R, V].
            step: place of the token in the answer, from 0.
        """
        scores = filtered(logits.float() / self.sampling.temperature, self.sampling)
        return scores.sub_(self._exponentials(step, logits.shape[1]).log_())

    def _exponentials(self, step: int, vocabulary: int) -> Tensor:
        """[R, V] draws from the exponential distribution with mean 1, from 31 random bits each."""
        if len(self.tokens) != vocabulary:
            counters = torch.arange(vocabulary, dtype=torch.int32, device=self.tokens.device)
            self.tokens = counters * GOLDEN
        first, second = _mixed(self.keys + (step + 1) * 0x632BE5A7 % 2**31).unbind(1)
        bits = self.tokens + first
        bits = bits.bitwise_xor_(_shifted(bits, 16)).mul_(FIRST).add_(second)
        bits = bits.bitwise_xor_(_shifted(bits, 13)).mul_(SECOND)
        bits = bits.bitwise_xor_(_shifted(bits, 16)).bitwise_and_(2**BITS - 1)
        # −log(1 − u): floating point is fine near u = 0, where the largest G come from
        uniform = bits.float().add_(0.5).mul_(2.0**-BITS)
        return uniform.neg_().log1p_().neg_()


def filtered(logits: Tensor, sampling: Sampling) -> Tensor:
    """[R, V] the logits, −∞ where top-k or top-p leave a token out; of equal ones all stay."""
    if 0 < sampling.top_k < logits.shape[1]:
        least = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if sampling.top_p < 1:
        ordered = logits.sort(descending=True)
        shares = ordered.values.softmax(-1)
        before = shares.cumsum(-1) - shares  # the likeliest token always stays
        last = (before < sampling.top_p).sum(-1, keepdim=True) - 1
        least = ordered.values.gather(-1, last)
        logits = logits.masked_fill(logits < least, float("-inf"))
    return logits


def _mixed(values: Tensor) -> Tensor:
    """MurmurHash3's finaliser of 32-bit integers; products wrap around."""
    values = (values ^ _shifted(values, 16)) * FIRST
    values = (values ^ _shifted(values, 13)) * SECOND
    return values ^ _shifted(values, 16)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """32-bit integers, moved to the right as if they had no sign."""
    moved: Tensor = (values >> bits) & (2 ** (32 - bits) - 1)
    return moved
