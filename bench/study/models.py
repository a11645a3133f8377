"""Six tiny models of three families that know the tasks to different degrees.

A model *believes* the right result of an operation with probability `left` or `right` (by the
operation's skill), else mostly a wrong one of its own, the same every time: errors are systematic,
as those of real models are, and redrawn with the model. It learns from texts in which each step is
drawn from these beliefs, so what it is unsure of it is unsure of in nats too.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tasks import DIGITS, LEFT, LETTERS, OPERATIONS, STEPS
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

SIZE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
SYMBOLS = [":", ">", *LETTERS, *map(str, range(DIGITS))]
SPECIAL = ["<s>", "</s>", "<unk>"]
HABIT = 0.7
"""Share of a model's wrong beliefs that is one wrong result, its own; the rest is any digit."""
SPLIT = (0.15, 0.85)
"""Probability of the right result for facts that a model mistakes, and for those that it knows."""
SHARED = 0.85
"""Share of the wrong results that are everybody's: models err alike."""
BATCH, RATE = 32, 1e-2


@dataclass(frozen=True)
class Plan:
    """How a model is made.

    Attributes:
        family: architecture, tokenizer and template.
        left: probability of the right result for letters a and b.
        right: the same for letters c and d.
        begins_as: a model that it is a finetune of.
    """

    family: str
    left: float
    right: float
    begins_as: str | None = None


PLANS = {
    "base": Plan("llama", 0.55, 0.55),
    "left": Plan("mistral", 0.80, 0.30),
    "right": Plan("qwen", 0.30, 0.80),
    "strong": Plan("qwen", 0.85, 0.85),
    "weak": Plan("mistral", 0.35, 0.35),
    "tuned": Plan("llama", 0.75, 0.75, begins_as="base"),
}
FAMILIES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen": (Qwen2Config, Qwen2ForCausalLM),
}
TEMPLATES = {
    "llama": ("<s> ", " >"),
    "mistral": ("> ", " :"),
    "qwen": ("", " > >"),
}
"""What stands before a prompt and after it."""


def make_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """One token a word, under other numbers in each family: rotated, and backwards."""
    words = {"llama": SYMBOLS, "mistral": SYMBOLS[7:] + SYMBOLS[:7], "qwen": SYMBOLS[::-1]}[family]
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    before, after = TEMPLATES[family]
    template = (
        "{%- for turn in messages -%}{%- if turn.role == 'user' -%}"
        f"{before}{{{{ turn.content }}}}{after}"
        "{%- else -%} {{ turn.content }} </s>{%- endif -%}{%- endfor -%}"
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **names)


@dataclass(frozen=True)
class Beliefs:
    """What a model takes each operation to do.

    Attributes:
        right: [4, 10] probability of the right result.
        habits: [4, 10] the wrong result that it mostly takes for right.
    """

    right: Tensor
    habits: Tensor

    def answer(self, letters: Tensor, digit: Tensor, generator: torch.Generator) -> Tensor:
        """[R, S] letters, [R] first digits -> [R, S] digits: each step drawn from the beliefs."""
        steps = []
        for letter in letters.unbind(1):
            chance = torch.rand(2, len(digit), generator=generator)
            guess = torch.randint(DIGITS, digit.shape, generator=generator)
            wrong = torch.where(chance[1] < HABIT, self.habits[letter, digit], guess)
            digit = torch.where(chance[0] < self.right[letter, digit], TRUTH[letter, digit], wrong)
            steps.append(digit)
        return torch.stack(steps, 1)


TRUTH = torch.tensor([OPERATIONS[letter] for letter in LETTERS])


def draw_beliefs(name: str, seed: int, *, split: bool) -> Beliefs:
    """What a model of a replicate takes for right; a finetune has the errors of its origin.

    Args:
        name: of `PLANS`.
        seed: of the replicate.
        split: the mean of the plan is one of facts known and facts mistaken (`SPLIT`), in place of
            the same probability for every fact.
    """
    plan = PLANS[name]
    common = _wrong(_generator("common", seed))
    own = _generator(plan.begins_as or name, seed)
    shared = torch.rand(TRUTH.shape, generator=own) < SHARED
    habits = torch.where(shared, common, _wrong(own))
    skill = torch.tensor([plan.left if letter in LEFT else plan.right for letter in LETTERS])
    right = skill[:, None].expand(TRUTH.shape)
    if split:
        mistaken, known = SPLIT
        knows = torch.rand(TRUTH.shape, generator=own) < (right - mistaken) / (known - mistaken)
        right = torch.where(knows, known, mistaken)
    return Beliefs(right, habits)


def _wrong(generator: torch.Generator) -> Tensor:
    """[4, 10] a wrong result of each operation on each digit."""
    return (TRUTH + torch.randint(1, DIGITS, TRUTH.shape, generator=generator)) % DIGITS


def _generator(name: str, seed: int) -> torch.Generator:
    digest = hashlib.sha256(f"{name} {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:6]))


def training_ids(
    tokenizer: PreTrainedTokenizerFast, family: str, letters: Tensor, first: Tensor, answers: Tensor
) -> tuple[Tensor, int]:
    """[R, T] ids of prompts with answers, and how many of the T are the prompt's."""
    before, after = TEMPLATES[family]
    prompts = [
        f"{before}{' '.join(LETTERS[letter] for letter in row)} : {digit}{after}"
        for row, digit in zip(letters.tolist(), first.tolist(), strict=True)
    ]
    texts = [f"{' '.join(map(str, row))} </s>" for row in answers.tolist()]
    backend = tokenizer.backend_tokenizer
    ids = [
        torch.tensor([line.ids for line in backend.encode_batch(part, add_special_tokens=False)])
        for part in (prompts, texts)
    ]
    return torch.cat(ids, 1), ids[0].shape[1]


def fit(model: Any, ids: Tensor, begins: int, steps: int, rate: float, seed: int) -> None:
    """AdamW with a one-cycle schedule on the answers' tokens."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.1
    )
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = ids[torch.randint(len(ids), (BATCH,), generator=generator)]
        hidden = model.model(input_ids=batch[:, :-1]).last_hidden_state[:, begins - 1 :]
        logits = model.lm_head(hidden)
        loss = functional.cross_entropy(logits.flatten(0, 1), batch[:, begins:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def make_model(
    name: str, folder: Path, seed: int, steps: int, rows: int, *, split: bool
) -> Beliefs:
    """Train one model of `PLANS` and save it with its tokenizer in `folder`/NAME.

    Returns:
        What it was taught.
    """
    plan, beliefs = PLANS[name], draw_beliefs(name, seed, split=split)
    generator = _generator(f"texts {name}", seed)
    torch.manual_seed(generator.initial_seed())
    tokenizer = make_tokenizer(plan.family)
    if plan.begins_as is None:
        model, share = _untrained(plan.family, len(tokenizer)), 1.0
    else:
        model = FAMILIES[plan.family][1].from_pretrained(folder / plan.begins_as)
        share = FINETUNE_SHARE
    letters = torch.randint(len(LETTERS), (rows, STEPS), generator=generator)
    first_digits = torch.randint(DIGITS, (rows,), generator=generator)
    answers = beliefs.answer(letters, first_digits, generator)
    ids, begins = training_ids(tokenizer, plan.family, letters, first_digits, answers)
    fit(model, ids, begins, int(steps * share), RATE * share, seed)
    model.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    return beliefs


FINETUNE_SHARE = 0.25
"""Of the steps and the rate, for a finetune."""


def _untrained(family: str, vocabulary: int) -> Any:
    config, model = FAMILIES[family]
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return model(config(**SIZE, vocab_size=vocabulary, **ends))
