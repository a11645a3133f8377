"""Missing responses as ids, as trees, and as rows of a part."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mrpo_tools.cache import LogpRow
from mrpo_tools.groups import Group
from mrpo_tools.references.rendering import EncodedResponse, Renderer
from mrpo_tools.scorer.trees import Row


@dataclass
class EncodedPrompt:
    """A prompt's missing responses as ids of one reference."""

    group: Group
    prompt_ids: array[int]
    responses: list[EncodedResponse]


@dataclass(frozen=True)
class Place:
    """One response: its prompt, and its index among the prompt's responses."""

    prompt: EncodedPrompt
    index: int

    @property
    def response(self) -> EncodedResponse:
        """Its ids."""
        return self.prompt.responses[self.index]

    @property
    def response_id(self) -> str:
        """Its key in a part."""
        return self.prompt.group.response_ids[self.index]

    @property
    def text_bytes(self) -> float:
        """The part of its group's bytes that it stands for."""
        return text_bytes(self.prompt.group) / len(self.prompt.responses)

    def alone(self) -> Row:
        """It and its prompt as one tree."""
        return Row(self.prompt.prompt_ids, [self.response.ids], [0])

    def row(self, logp: float | None, status: str) -> LogpRow:
        """As a part stores it."""
        group, response = self.prompt.group, self.response
        return LogpRow(
            response_id=self.response_id,
            prompt_id=group.prompt_id,
            logp=logp,
            num_tokens=len(response.ids),
            num_bytes=len(group.responses[self.index].message.written.encode()),
            status=status,
            truncated=response.truncated,
            token_hash=response.token_hash,
        )


def encode(renderer: Renderer, groups: Sequence[Group]) -> list[EncodedPrompt]:
    """Ids of prompts and responses, as a reference's renderer makes them."""
    prompts = []
    for group in groups:
        ids = renderer.encode(group)
        responses = [replace(response, ids=array("l", response.ids)) for response in ids.responses]
        prompts.append(EncodedPrompt(group, array("l", ids.prompt_ids), responses))
    return prompts


def places_of(prompts: Sequence[EncodedPrompt]) -> list[Place]:
    """Every response of all prompts, in order."""
    return [Place(prompt, i) for prompt in prompts for i in range(len(prompt.responses))]


def trees_of(prompts: Sequence[EncodedPrompt], first: int = 0) -> list[Row]:
    """Each prompt with its responses that fit; a key is `first` more than a response's index in
    `places_of`."""
    trees = []
    for prompt in prompts:
        fitting = [i for i, response in enumerate(prompt.responses) if not response.overlong]
        if fitting:
            ids = [prompt.responses[i].ids for i in fitting]
            trees.append(Row(prompt.prompt_ids, ids, [first + i for i in fitting]))
        first += len(prompt.responses)
    return trees


def text_bytes(group: Group) -> int:
    """Bytes of a group's text."""
    texts = [turn.written for turn in group.prompt]
    texts += [response.message.written for response in group.responses]
    return sum(len(text.encode()) for text in [group.tools or "", *texts])
