"""What a reward model reads: prompt and response in its own tokenizer and chat template.

They are rendered as references render them (`references.rendering`): BOS once, the end of turn as
the template writes it, user text never a control token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mrpo_tools.groups import Group
from mrpo_tools.references.resolved import ResolvedReference, renderer_of


class Line(NamedTuple):
    """A response with its prompt as ids of a reward model's tokenizer."""

    response_id: str
    prompt_id: str
    ids: Sequence[int]
    truncated: bool
    overlong: bool


def lines_of(resolved: ResolvedReference, groups: Sequence[Group]) -> Iterator[Line]:
    """Every response with its prompt as ids.

    Raises:
        UsageError: the template cannot render a group.
    """
    renderer = renderer_of(resolved)
    for group in groups:
        encoded = renderer.encode(group)
        for key, response in zip(group.response_ids, encoded.responses, strict=True):
            ids = [*encoded.prompt_ids, *response.ids]
            yield Line(key, group.prompt_id, ids, response.truncated, response.overlong)
