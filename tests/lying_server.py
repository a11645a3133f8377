"""A server of a tiny real model, as vLLM answers, with lies on request.

    with serving(Teller(folder)) as server: ...      # honest
    with serving(Tempered(folder)) as server: ...    # every log-softmax is of another temperature

A lie changes what the model says of a line (`logits`), or the reply that is made of it. The honest
numbers are those of the model in `transformers`, a line at a time.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fake_server import Body, Endpoint, FakeServer, RefusedByServer
from torch import Tensor

PATH = "/v1/completions"
CLAMPED = -9999.0
"""What vLLM writes for minus infinity."""
CONTEXT = 1024


class Teller:
    """`/v1/completions` of a model.

    Args:
        folder: of the model, which is read here by the library itself.
        dtype: that it computes in.
        context: tokens of prompt and answer.
        most: likeliest tokens that may be asked for; -1 for all.
        company: draw what stands to the right of a line in its batch, so that 16 bits are noisy.
    """

    def __init__(
        self,
        folder: Path,
        dtype: torch.dtype = torch.float32,
        *,
        context: int = CONTEXT,
        most: int = 20,
        company: bool = False,
    ) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self.context, self.most, self.company = context, most, company
        self.random, self.lock = random.Random(0), threading.Lock()
        self.asked = 0

    def __call__(self, body: Body) -> Body:
        ids = body["prompt"]
        if len(ids) + body["max_tokens"] > self.context:
            raise RefusedByServer(400, f"maximum context length is {self.context} tokens")
        count = body.get("prompt_logprobs")
        if count is not None and (count if count >= 0 else 10**9) > self.most >= 0:
            raise RefusedByServer(400, f"Requested {count}, greater than max allowed: {self.most}")
        with self.lock, torch.no_grad():
            self.asked += 1
            logps = self.logps(ids, body)
        return self.reply(body, logps)

    def reply(self, body: Body, logps: Tensor) -> Body:
        """[L, V] nats as vLLM says them."""
        ids, count = body["prompt"], body.get("prompt_logprobs")
        choice: Body = {"index": 0, "text": "x", "finish_reason": "length", "logprobs": None}
        if body.get("logprobs") is not None:
            choice["logprobs"] = self.generated(logps[-1])
        if count is not None:
            choice["prompt_logprobs"] = self.entries(logps, ids, count)
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1}
        return {"object": "text_completion", "model": "tiny", "choices": [choice], "usage": usage}

    def logits(self, ids: Sequence[int], body: Body) -> Tensor:
        """[L, V] float32."""
        right = self.random.choices(range(3, 90), k=self.random.randrange(40)) * self.company
        return self.model(torch.tensor([[*ids, *right]])).logits[0, : len(ids)].float()

    def logps(self, ids: Sequence[int], body: Body) -> Tensor:
        """[L, V] nats: of the token after each place."""
        return self.logits(ids, body).log_softmax(-1)

    def generated(self, logps: Tensor) -> Body:
        best = int(logps.argmax())
        return {"tokens": [f"token_id:{best}"], "token_logprobs": [said(float(logps[best]))]}

    def entries(self, logps: Tensor, ids: Sequence[int], count: int) -> list[Any]:
        """Of each place of the prompt."""
        before = zip(logps[:-1], ids[1:], strict=True)
        return [None, *(self.entry(own, token, count) for own, token in before)]

    def entry(self, logps: Tensor, token: int, count: int) -> Body:
        top = logps.topk(len(logps) if count < 0 else count).indices.tolist()
        every = list(dict.fromkeys([token, *top]))
        return {str(each): {"logprob": self.value(float(logps[each])), "rank": 1}
                for each in every}  # fmt: skip

    def value(self, logp: float) -> Any:
        return said(logp)


def said(logp: float) -> float:
    return CLAMPED if logp == -math.inf else logp


class Tempered(Teller):
    """Every log-softmax is of a temperature, in answers too."""

    def logits(self, ids: Sequence[int], body: Body) -> Tensor:
        return super().logits(ids, body) / 0.7


class TemperedAsAsked(Teller):
    """The request's temperature is applied to the prompt's log-probs."""

    def logits(self, ids: Sequence[int], body: Body) -> Tensor:
        return super().logits(ids, body) / (body["temperature"] or 1.0)


class DoubledBos(Teller):
    """A BOS before ours; the places are ours again."""

    def logits(self, ids: Sequence[int], body: Body) -> Tensor:
        return super().logits([ids[0], *ids], body)[1:]


class DoubledBosShown(Teller):
    """A BOS before ours, which has a place of its own in the reply."""

    def __call__(self, body: Body) -> Body:
        return super().__call__({**body, "prompt": [body["prompt"][0], *body["prompt"]]})


class Stale(Teller):
    """Lines that begin alike share what the first of them had, also where they differ.

    Attributes:
        same: tokens that must be alike.
        since: how many requests are answered honestly first.
    """

    same, since = 8, 0

    def __init__(self, *arguments: Any, **words: Any) -> None:
        super().__init__(*arguments, **words)
        self.cache: dict[tuple[int, ...], Tensor] = {}

    def logits(self, ids: Sequence[int], body: Body) -> Tensor:
        logits = super().logits(ids, body)
        if self.asked <= self.since or len(ids) < self.same:
            return logits
        known = self.cache.setdefault(tuple(ids[: self.same]), logits)
        length = min(len(known), len(logits))
        return torch.cat([known[:length], logits[length:]])


class AnotherRevision(Teller):
    """Weights of a later step: one in a thousand of each away.

    Attributes:
        step: of the weights, relative.
    """

    step = 1e-3

    def __init__(self, *arguments: Any, **words: Any) -> None:
        super().__init__(*arguments, **words)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in self.model.parameters():
                noise = torch.randn(weight.shape, generator=generator)
                weight += (self.step * weight.float().std() * noise).to(weight.dtype)


class Shifted(Teller):
    """Each token gets the number that it would have one place later."""

    def entries(self, logps: Tensor, ids: Sequence[int], count: int) -> list[Any]:
        return super().entries(logps.roll(-1, 0), ids, count)


class Int8(Teller):
    """Weights in 8 bits, a scale a row, which nobody declared."""

    def __init__(self, *arguments: Any, **words: Any) -> None:
        super().__init__(*arguments, **words)
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                if "proj" in name:
                    weight.copy_(self.rounded(weight))

    def rounded(self, weight: Tensor) -> Tensor:
        scale = weight.abs().amax(-1, keepdim=True) / 127
        return (weight / scale).round() * scale


NF4 = torch.tensor(
    [-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0,
     0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]
)  # fmt: skip
"""QLoRA (arXiv:2305.14314), appendix E."""


class Nf4(Int8):
    """The same in 4 bits, a scale for 64 weights."""

    def rounded(self, weight: Tensor) -> Tensor:
        blocks = weight.float().reshape(-1, 64)
        scale = blocks.abs().amax(-1, keepdim=True)
        nearest = (blocks / scale)[..., None].sub(NF4).abs().argmin(-1)
        return (NF4[nearest] * scale).reshape(weight.shape).to(weight.dtype)


class Infinite(Teller):
    """Tokens that are not among the likeliest 50 have no probability."""

    def logits(self, ids: Sequence[int], body: Body) -> Tensor:
        logits = super().logits(ids, body)
        least = logits.topk(50).values[:, -1:]
        return logits.masked_fill(logits < least, -math.inf)


class InfiniteInJson(Infinite):
    """The same, written as JSON has it not."""

    def value(self, logp: float) -> Any:
        return logp


class Null(Infinite):
    """The same, written as null."""

    def value(self, logp: float) -> Any:
        return logp if math.isfinite(logp) else None


class Missing(Teller):
    """Of long lines one place has no entry."""

    def entries(self, logps: Tensor, ids: Sequence[int], count: int) -> list[Any]:
        entries = super().entries(logps, ids, count)
        return [*entries[:5], *([{}] * (len(entries) > 5)), *entries[6:]]


class WithoutOwn(Teller):
    """The likeliest tokens alone, the prompt's own not besides."""

    def entry(self, logps: Tensor, token: int, count: int) -> Body:
        return super().entry(logps, int(logps.argmax()), count)


class Renormalised(Teller):
    """The prompt's own token and those that are asked for share all the probability."""

    def entry(self, logps: Tensor, token: int, count: int) -> Body:
        entry = super().entry(logps, token, max(count, 1))
        total = math.log(sum(math.exp(each["logprob"]) for each in entry.values()))
        return {key: {"logprob": each["logprob"] - total} for key, each in entry.items()}


class RenormalisedOverTwenty(Teller):
    """The prompt's own token and the likeliest 20 share all the probability, whatever is asked."""

    def entry(self, logps: Tensor, token: int, count: int) -> Body:
        kept = list({token, *logps.topk(20).indices.tolist()})
        others = torch.full_like(logps, -math.inf)
        others[kept] = logps[kept].log_softmax(0)
        return super().entry(others, token, count)

    def generated(self, logps: Tensor) -> Body:
        best, others = int(logps.argmax()), logps.topk(20).values.log_softmax(0)
        return {"tokens": [f"token_id:{best}"], "token_logprobs": [float(others[0])]}


class Biased(Teller):
    """A constant is taken from every log-prob.

    Attributes:
        nats: the constant.
    """

    nats = -0.01

    def logps(self, ids: Sequence[int], body: Body) -> Tensor:
        return super().logps(ids, body) + self.nats


class BiasedUp(Biased):
    """A constant is added."""

    nats = 0.05


class BiasedPrompts(Teller):
    """A constant is taken from the log-probs of prompts, and not from those of answers."""

    def value(self, logp: float) -> Any:
        return said(logp) - 0.01


class LastDropped(Teller):
    """The last token is not computed; it has the number of the one before it."""

    def logits(self, ids: Sequence[int], body: Body) -> Tensor:
        if body.get("prompt_logprobs") is None or len(ids) < 3:
            return super().logits(ids, body)
        logits = super().logits(ids[:-2], body)
        return torch.cat([logits, logits[-1:], logits[-1:]])


class LastDroppedShown(Teller):
    """The last token is not in the reply."""

    def entries(self, logps: Tensor, ids: Sequence[int], count: int) -> list[Any]:
        return super().entries(logps, ids, count)[:-1]


class Bits(Teller):
    """Logarithms to the base 2."""

    def logps(self, ids: Sequence[int], body: Body) -> Tensor:
        return super().logps(ids, body) / math.log(2)


class TwoDigits(Teller):
    """Numbers as they are printed."""

    def value(self, logp: float) -> Any:
        return round(said(logp), 2)


class Narrow(Teller):
    """float32 is declared, and the logits have 16 bits."""

    def logits(self, ids: Sequence[int], body: Body) -> Tensor:
        return super().logits(ids, body).bfloat16().float()


class InCompany(Teller):
    """A line's numbers depend on how many requests there were."""

    def logits(self, ids: Sequence[int], body: Body) -> Tensor:
        return super().logits(ids, body) * (1 + 1e-3 * (self.asked % 3))


def serving(endpoint: Endpoint, **words: Any) -> FakeServer:
    """vLLM with an endpoint, by its outside."""
    context = getattr(endpoint, "context", CONTEXT)
    card = {"owned_by": "vllm", "root": "/there/tiny", "max_model_len": context}
    pages = {"/version": {"version": "0.32.0"}, **words.pop("pages", {})}
    card |= words.pop("card", {})
    return FakeServer({PATH: endpoint}, card=card, pages=pages, **words)
