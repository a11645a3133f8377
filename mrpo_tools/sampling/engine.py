"""A model that answers: left padding, prompts of like length together, cached keys and values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from mrpo_tools.errors import UsageError, shorten
from mrpo_tools.groups import Group, Response, user_prompt
from mrpo_tools.references.devices import free_memory, memory_errors, pick_device
from mrpo_tools.references.rendering import Renderer
from mrpo_tools.references.resolved import ResolvedReference, renderer_of
from mrpo_tools.sampling.answers import (
    GREEDY,
    Answer,
    Asked,
    Prompt,
    Sampling,
    every_asked,
    prompt_id_of,
    text_of,
)
from mrpo_tools.sampling.draws import Draws, row_key
from mrpo_tools.scorer.loaded import LoadedReference, load_reference
from mrpo_tools.scorer.scorer import ALONE, ResponseScorer
from mrpo_tools.scorer.self_check import check_sample
from mrpo_tools.scorer.trees import Row

BATCH_TOKENS = 32_768
"""Tokens of a batch with all that its answers may add."""
CHECKED_TREES, CHECKED_TOKENS = 4, 512
"""Prompts of each kind that a scorer's self-check sees, and their tokens at most."""


class _Line(NamedTuple):
    """One answer to be drawn: whose, its number, and the ids of the prompt."""

    prompt_id: str
    number: int
    prompt_ids: Sequence[int]


class Sampler:
    """A model that answers prompts and computes log-probs of answers; loaded when first asked.

    Args:
        resolved: the model.
        batch_tokens: of a batch, with all that its answers may add.
    """

    def __init__(self, resolved: ResolvedReference, *, batch_tokens: int = BATCH_TOKENS) -> None:
        self.resolved, self.batch_tokens = resolved, batch_tokens
        self._device = pick_device()

    @property
    def identity(self) -> dict[str, object]:
        """What determines the answers, besides how they are drawn."""
        ends, policy = list(self.resolved.ends), self.resolved.identity.hash
        return {"engine": "transformers", "policy": policy, "ends": ends}

    @cached_property
    def _renderer(self) -> Renderer:
        return renderer_of(self.resolved)

    @cached_property
    def _loaded(self) -> LoadedReference:
        with memory_errors(f"loading {self.resolved.reference.model}", "use a smaller model"):
            return load_reference(self.resolved, self.resolved.products, self._device)

    @cached_property
    def _stops(self) -> frozenset[int]:
        named = self._loaded.scorer.causal_lm.generation_config.eos_token_id
        return stop_tokens(named, self._renderer)

    def release(self) -> None:
        """Give the model's memory back; asked again, it is loaded again."""
        if self.__dict__.pop("_loaded", None) is not None:
            free_memory()

    def sample(self, prompts: Sequence[Prompt], sampling: Sampling = GREEDY) -> list[list[Answer]]:
        """Answers to each prompt, rendered and tokenised as in phase 1.

        An answer is a function of the model, the prompt, its number and the sampling's seed, as
        far as the model's own arithmetic does not depend on the batch.

        Raises:
            ResourceError: out of memory.
            UsageError: the model's files cannot be used, or its template cannot render a prompt.
        """
        answers: dict[tuple[str, int], Answer] = {}
        for batch in self.draw(every_asked(prompts, sampling.n), sampling):
            answers.update({(answer.prompt_id, answer.index): answer for answer in batch})
        return [
            [answers[prompt_id_of(prompt), number] for number in range(sampling.n)]
            for prompt in prompts
        ]

    def draw(self, asked: Sequence[Asked], sampling: Sampling) -> Iterator[list[Answer]]:
        """Answers as `sample` gives them, a batch at a time, those to the longest prompts first.

        Raises:
            As `sample`.
        """
        prompts = {each.prompt_id: each.prompt for each in asked}
        ids = dict(zip(prompts, self._prompt_ids(list(prompts.values())), strict=True))
        lines = [_Line(each.prompt_id, each.index, ids[each.prompt_id]) for each in asked]
        with memory_errors("generating", "lower --max-new-tokens, or use a smaller model"):
            for places in self._batches(lines, sampling.max_new_tokens):
                yield self._answered([lines[place] for place in places], sampling)

    def logps(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[Answer]]) -> list[float]:
        """Log-probs (nats) of the tokens that were drawn, answer after answer.

        Args:
            prompts: messages each.
            answers: to each of them, drawn with this tokenizer and template.

        Raises:
            ResourceError: out of memory.
        """
        trees, first = [], 0
        for prompt_ids, own in zip(self._prompt_ids(prompts), answers, strict=True):
            keys = range(first, first + len(own))
            trees.append(Row(prompt_ids, [answer.ids for answer in own], keys))
            first += len(own)
        with memory_errors("computing log-probs", "use a smaller model"):
            return self._logps(trees, first)

    def _logps(self, trees: Sequence[Row], count: int) -> list[float]:
        """By the keys of the trees, which are numbers below `count`."""
        logps = [0.0] * count
        sample = check_sample(
            trees,
            size=len,
            responses=lambda tree: len(tree.responses),
            count=CHECKED_TREES,
            quick=CHECKED_TOKENS,
        )
        self._loaded.self_check(sample)
        for batch in self._loaded.batches(trees, self.resolved.reference.batch_tokens):
            keys = [key for row in batch for key in row.keys]
            for key, logp in zip(keys, self._loaded.logps(batch), strict=True):
                logps[key] = logp
        return logps

    def _prompt_ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        return [self._renderer.encode_prompt(prompt) for prompt in prompts]

    def _batches(self, lines: Sequence[_Line], max_new_tokens: int) -> Iterator[list[int]]:
        """Places of lines that are answered together, the longest prompts first."""
        order = sorted(range(len(lines)), key=lambda place: -len(lines[place].prompt_ids))
        while order:
            width = len(lines[order[0]].prompt_ids) + max_new_tokens
            count = max(1, self.batch_tokens // width)
            yield order[:count]
            order = order[count:]

    def _answered(self, lines: Sequence[_Line], sampling: Sampling) -> list[Answer]:
        """An answer for each line of a batch."""
        rows = [self._until_end(row) for row in self._drawn(lines, sampling)]
        texts = self._renderer.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [
            Answer(
                prompt_id=line.prompt_id,
                index=line.number,
                content=text_of(text),
                ids=tuple(row),
                finish_reason="stop" if row and row[-1] in self._stops else "length",
            )
            for line, row, text in zip(lines, rows, texts, strict=True)
        ]

    @torch.no_grad()
    def _drawn(self, lines: Sequence[_Line], sampling: Sampling) -> list[list[int]]:
        """The tokens after each line's prompt, padding after an end not taken away."""
        scorer, tokenizer = self._loaded.scorer, self._renderer.tokenizer
        padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        ids, seen = _left_padded([line.prompt_ids for line in lines], padding)
        width = ids.shape[1]
        processors = LogitsProcessorList()
        if sampling.temperature:
            keys = [row_key(sampling.seed, line.prompt_id, line.number) for line in lines]
            processors.append(_Noise(Draws(keys, sampling, self._device), width))
        model, stops = scorer.causal_lm, sorted(self._stops)
        # what a model's own files say of sampling (penalties, temperatures) is not its distribution
        model.generation_config = GenerationConfig(
            eos_token_id=stops, pad_token_id=padding, do_sample=False, use_cache=True,
            max_new_tokens=sampling.max_new_tokens,
        )  # fmt: skip
        with _own_attention(scorer), scorer.arithmetic():
            output: Tensor = model.generate(
                input_ids=ids.to(self._device),
                attention_mask=seen.to(self._device),
                logits_processor=processors,
            )
        drawn: list[list[int]] = output[:, width:].tolist()
        return drawn

    def _until_end(self, ids: list[int]) -> list[int]:
        """A row up to the token that ended it."""
        end = next((place for place, token in enumerate(ids, 1) if token in self._stops), len(ids))
        return ids[:end]


def prompts_of(groups: Sequence[Group]) -> list[Prompt]:
    """What a model is asked.

    Raises:
        UsageError: a prompt offers tools, which nobody would answer for.
    """
    for group in groups:
        if group.tools:
            raise UsageError(
                f"the prompt {shorten(group.prompt[-1].written)} offers tools, and answers to such "
                "are not generated",
                "drop the column tools, or leave these rows out",
            )
    return [group.prompt for group in groups]


def stop_tokens(named: int | Sequence[int] | None, renderer: Renderer) -> frozenset[int]:
    """Tokens that end an answer: those that the model's files name, its tokenizer's end, and what
    its template writes after an answer, which log-probs of answers count."""
    tokenizer: Any = renderer.tokenizer
    stops = {tokenizer.eos_token_id, *(named if isinstance(named, Sequence) else [named])}
    probe = renderer.encode(Group(user_prompt("Probe."), (Response("Yes."),)))
    special = set(tokenizer.all_special_ids)
    stops |= set([token for token in probe.responses[0].ids if token in special][:1])
    return frozenset(stops - {None})


@contextlib.contextmanager
def _own_attention(scorer: ResponseScorer) -> Iterator[None]:
    """The model as it generates: with its own attention, and no memory of longer rows."""
    route = scorer.route
    scorer.take(ALONE)
    scorer.forget_lengths()
    try:
        yield
    finally:
        scorer.take(route)


class _Noise(LogitsProcessor):
    """Draws in the form in which the library takes them."""

    def __init__(self, draws: Draws, width: int) -> None:
        self.draws, self.width = draws, width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self.draws.perturbed(scores, input_ids.shape[1] - self.width)


def _left_padded(rows: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:
    """[R, T] ids that end together, and [R, T] 1 where they are no padding."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), padding, dtype=torch.long)
    seen = torch.zeros(len(rows), width, dtype=torch.long)
    for line, row in enumerate(rows):
        ids[line, width - len(row) :] = torch.tensor(row)
        seen[line, width - len(row) :] = 1
    return ids, seen
