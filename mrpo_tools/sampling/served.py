"""A server that answers: our ids or text go to it, and its text comes back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

from mrpo_tools.references.rendering import Renderer
from mrpo_tools.references.resolved import ResolvedReference, renderer_of
from mrpo_tools.sampling.answers import Answer, Asked, FinishReason, Prompt, Sampling, text_of
from mrpo_tools.sampling.draws import row_key
from mrpo_tools.sampling.engine import stop_tokens
from mrpo_tools.server import Client, Completion, Completions, together
from mrpo_tools.server import completions as protocol


class ServedSampler:
    """A model that a server runs, asked in the tokens of its tokenizer here.

    An answer is the server's text, without white space around it: its tokens and its log-probs are
    not taken. Each answer is a request of its own with a seed of its own.

    Args:
        resolved: the tokenizer and template, from `resolve_reader`.
        client: of the server, which must serve the model.

    Raises:
        ServerError: it does not answer, or does not serve the model.
    """

    def __init__(self, resolved: ResolvedReference, client: Client) -> None:
        self.resolved = resolved
        self._completions = Completions(client)

    @property
    def identity(self) -> dict[str, object]:
        """What determines the answers, as far as can be known: the URL is no part of it."""
        ends, served = list(self.resolved.ends), self._completions.model
        policy = self.resolved.identity.hash
        return {"engine": "server", "served": served, "policy": policy, "ends": ends}

    def draw(self, asked: Sequence[Asked], sampling: Sampling) -> Iterator[list[Answer]]:
        """An answer to each that is asked, those that have come in each list.

        Raises:
            ServerError: see `server.together`; or the server counts other tokens than ours.
            UsageError: the template cannot render a prompt.
        """
        way = self._way(sampling)
        prompts = self._settled(asked, way)

        def complete(each: Asked) -> Completion:
            first, _ = row_key(sampling.seed, each.prompt_id, each.index)
            return self._completions.complete(prompts[each.prompt_id], way, first % 2**31)

        for batch in together(complete, asked, self._completions.client.server.concurrency):
            yield [_answer(each, completion) for each, completion in batch]

    @cached_property
    def _renderer(self) -> Renderer:
        return renderer_of(self.resolved)

    def _settled(self, asked: Sequence[Asked], way: protocol.Way) -> dict[str, protocol.Prompt]:
        """The prompts as the server takes them; the shortest one is tried."""
        by_id: dict[str, Prompt] = {each.prompt_id: each.prompt for each in asked}
        ids = {key: self._renderer.encode_prompt(prompt) for key, prompt in by_id.items()}
        texts: dict[str, str | None] = dict.fromkeys(ids)
        shortest = min(ids, key=lambda key: len(ids[key]))
        probe = protocol.Prompt(ids[shortest], self._renderer.prompt_text(by_id[shortest]))
        self._completions.settle(probe, way)
        if self._completions.form == "text":
            texts = {key: self._renderer.prompt_text(prompt) for key, prompt in by_id.items()}
        return {key: protocol.Prompt(ids[key], texts[key]) for key in ids}

    def _way(self, sampling: Sampling) -> protocol.Way:
        return protocol.Way(
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            stop_ids=tuple(sorted(stop_tokens(self.resolved.ends, self._renderer))),
        )


def _answer(asked: Asked, completion: Completion) -> Answer:
    finish_reason: FinishReason = "length" if completion.finish_reason == "length" else "stop"
    return Answer(asked.prompt_id, asked.index, text_of(completion.text), (), finish_reason)
