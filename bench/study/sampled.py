"""What a policy's answers are worth: the rule's mean score and KL to the base, of the same samples.

The same numbers as `mrpo evaluate --rule` measures (a run of the harness compares the two), in one
batch of all prompts: every prompt here has as many tokens, so nothing is padded. Every policy of a
replicate sees the same uniform draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

import torch
from models import TEMPLATES
from tasks import STEPS, score
from torch import Tensor

SAMPLES = 4
ROOM = STEPS + 5
"""Tokens that an answer may have."""
END = 1
"""The id that ends an answer, in every tokenizer of the study."""


@dataclass(frozen=True)
class Sampled:
    """Answers at temperature 1.

    Attributes:
        score: mean of the rule's score, of 10.
        kl: mean of ℓ − r_1 over the sampled ids, nats an answer.
        score_error: standard error of `score` over prompts.
        kl_error: of `kl`, over prompts.
        unended: share of answers that the limit cut.
    """

    score: float
    kl: float
    score_error: float
    kl_error: float
    unended: float

    def as_dict(self) -> dict[str, float]:
        """For JSON, five digits."""
        return {name: round(value, 5) for name, value in asdict(self).items()}


def measure(
    policy: Any,
    base: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    seed: int,
    temperature: float = 1.0,
) -> Sampled:
    """Draw four answers to each prompt, and score them."""
    ids = prompt_ids(tokenizer, prompts)
    answers, logps = draw(policy, ids, seed, temperature)
    distances = (logps - answer_logps(base, ids, answers)).view(-1, SAMPLES).mean(1)
    texts = [text for row in as_texts(tokenizer, answers) for text in row]
    marks = [
        score([{"role": "user", "content": prompts[place // SAMPLES]}], text)
        for place, text in enumerate(texts)
    ]
    means = torch.tensor(marks, dtype=torch.float64).view(-1, SAMPLES).mean(1)
    root = len(prompts) ** 0.5
    return Sampled(
        score=fmean(marks),
        kl=float(distances.mean()),
        score_error=stdev(means.tolist()) / root,
        kl_error=stdev(distances.tolist()) / root,
        unended=float((answers != END).all(1).double().mean()),
    )


def answer_texts(model: Any, tokenizer: Any, prompts: Sequence[str], seed: int) -> list[list[str]]:
    """Four answers to each prompt, as texts."""
    answers, _ = draw(model, prompt_ids(tokenizer, prompts), seed)
    return as_texts(tokenizer, answers)


def prompt_ids(tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """[4 P, T] ids of the base's prompts, each four times in a row."""
    before, after = TEMPLATES["llama"]
    texts = [f"{before}{prompt}{after}" for prompt in prompts]
    ids = torch.tensor(tokenizer(texts, add_special_tokens=False)["input_ids"])
    return ids.repeat_interleave(SAMPLES, 0)


def as_texts(tokenizer: Any, answers: Tensor) -> list[list[str]]:
    """The answers of each prompt, without their ends."""
    words = {number: word for word, number in tokenizer.get_vocab().items()}
    texts = [" ".join(words[number] for number in row if number != END) for row in answers.tolist()]
    return [texts[start : start + SAMPLES] for start in range(0, len(texts), SAMPLES)]


@torch.no_grad()
def draw(model: Any, ids: Tensor, seed: int, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """[R, P] prompts -> [R, T] sampled ids, `END` after an end; [R] their log-probs, nats.

    At another temperature the log-probs are those of the cooled distribution that was drawn from.
    """
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(len(ids), dtype=torch.float64)
    ended = torch.zeros(len(ids), dtype=torch.bool)
    logps, cache = _read(model, ids)
    columns = []
    for _ in range(ROOM):
        logps = (logps / temperature).log_softmax(-1)
        heights = torch.rand(len(ids), 1, generator=generator)
        chosen = (logps.exp().cumsum(-1) < heights).sum(-1).clamp(max=logps.shape[-1] - 1)
        mine = logps.gather(1, chosen[:, None])[:, 0].double()
        total += torch.where(ended, 0.0, mine)
        chosen = torch.where(ended, END, chosen)
        columns.append(chosen)
        ended |= chosen == END
        if ended.all():
            break
        output = model(input_ids=chosen[:, None], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logps = output.logits[:, -1].float().log_softmax(-1)
    return torch.stack(columns, 1), total


@torch.no_grad()
def answer_logps(model: Any, prompts: Tensor, answers: Tensor) -> Tensor:
    """[R] log-probs of answers up to their end, and with it, nats."""
    first, cache = _read(model, prompts)
    output = model(input_ids=answers[:, :-1], past_key_values=cache, use_cache=True)
    logps = torch.cat([first[:, None], output.logits.float().log_softmax(-1)], 1)
    tokens = logps.gather(2, answers[..., None])[..., 0].double()
    ends = (answers == END).long()
    counted = ends.cumsum(1) - ends == 0
    return (tokens * counted).sum(1)


def _read(model: Any, ids: Tensor) -> tuple[Tensor, Any]:
    """[R, V] log-probs of the first token of each answer, and what was read; each prompt once."""
    output = model(input_ids=ids[::SAMPLES], use_cache=True, logits_to_keep=1)
    cache = output.past_key_values
    cache.batch_repeat_interleave(SAMPLES)
    return output.logits[:, -1].float().log_softmax(-1).repeat_interleave(SAMPLES, 0), cache
