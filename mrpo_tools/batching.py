"""From groups of ids to batches a decoder can run: a forest of prompts with their responses.

A row is `[prompt | y_1 | … | y_n]`. Positions of every response restart after the prompt, and a
response attends to the prompt and itself, so the prompt is computed once for all its responses.
With one response a row is an ordinary causal sequence: plain rows are trees with one branch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

PADDING = -1
PROMPT = 0


class TokenBatch(TypedDict):
    """The arguments of `ResponseScorer.forward`.

    R rows of up to T tokens, M scored tokens, S sequences (responses).

    Keys:
        input_ids: [R, T].
        position_ids: [R, T] positions, restarting after the prompt for every response.
        segments: [R, T] 0 for the prompt, 1, 2, … for the row's responses, −1 for padding.
        sources: [M] index into R·T of the position that predicts a scored token.
        targets: [M] the scored tokens.
        owners: [M] the sequence a scored token belongs to.
        sequences: S.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: Tensor
    sources: Tensor
    targets: Tensor
    owners: Tensor
    sequences: int


@dataclass(frozen=True)
class Row:
    """A prompt with some of its responses; `keys` name the responses to the caller."""

    prompt: Sequence[int]
    responses: Sequence[Sequence[int]]
    keys: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt) + sum(map(len, self.responses))


def plan_rows(trees: Iterable[Row], *, share: bool = True, hidden_size: int = 4096) -> list[Row]:
    """Rows to compute, longest first, so that running out of memory shows at once.

    A prompt is shared where that is cheaper than a plain row for each response: the linear layers
    gain with every prompt not computed again, attention within one long row loses.

    Args:
        trees: each prompt with all its responses.
        share: False gives plain rows only.
        hidden_size: of the model; it sets the price of attention against that of linear layers.
    """
    rows: list[Row] = []
    for tree in trees:
        plain = [
            Row(tree.prompt, [response], [key])
            for response, key in zip(tree.responses, tree.keys, strict=True)
        ]
        shared = share and cost([tree], hidden_size) < cost(plain, hidden_size)
        rows += [tree] if shared else plain
    return sorted(rows, key=len, reverse=True)


def cost(rows: Iterable[Row], hidden_size: int) -> float:
    """Relative work of computing rows: 12·D² a token in linear layers, 2·T·D in attention."""
    return sum(len(row) * (1 + len(row) / (6 * hidden_size)) for row in rows)


def batches(rows: Sequence[Row], max_tokens: int) -> list[list[Row]]:
    """Consecutive rows in batches of at most `max_tokens` tokens, padding counted.

    A row longer than that is a batch of its own. Rows are expected longest first.
    """
    packed: list[list[Row]] = []
    for row in rows:
        if packed and len(packed[-1][0]) * (len(packed[-1]) + 1) <= max_tokens:
            packed[-1].append(row)
        else:
            packed.append([row])
    return packed


def collate(rows: Sequence[Row], sequences: int | None = None) -> TokenBatch:
    """Tensors of a batch; sequence s of the result is the response whose key is s.

    Args:
        rows: at least one.
        sequences: S when keys have gaps (padded groups), else the number of responses.
    """
    width = max(map(len, rows))
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    position_ids = torch.zeros(len(rows), width, dtype=torch.long)
    segments = torch.full((len(rows), width), PADDING, dtype=torch.long)
    sources, targets, owners = [], [], []
    for index, row in enumerate(rows):
        _place(input_ids[index], position_ids[index], segments[index], 0, row.prompt, 0, PROMPT)
        start, after = len(row.prompt), len(row.prompt)
        for branch, (response, key) in enumerate(zip(row.responses, row.keys, strict=True), 1):
            _place(
                input_ids[index],
                position_ids[index],
                segments[index],
                start,
                response,
                after,
                branch,
            )
            own = torch.arange(start, start + len(response)) - 1
            own[:1] = after - 1  # the prompt's last token predicts every response's first
            sources.append(own + index * width)
            targets.append(torch.as_tensor(response, dtype=torch.long))
            owners.append(torch.full((len(response),), key, dtype=torch.long))
            start += len(response)
    return TokenBatch(
        input_ids=input_ids,
        position_ids=position_ids,
        segments=segments,
        sources=torch.cat(sources),
        targets=torch.cat(targets),
        owners=torch.cat(owners),
        sequences=sequences or sum(len(row.keys) for row in rows),
    )


def attention_mask(segments: Tensor, position_ids: Tensor, window: int | None = None) -> Tensor:
    """[R, T], [R, T] -> [R, 1, T, T] bool: True where the row's token may look at the column's.

    A token sees earlier tokens of the prompt and of its own response, at most `window` positions
    back. A padding token sees itself, so that no row of the mask is empty.
    """
    query, key = segments.unsqueeze(-1), segments.unsqueeze(-2)
    seen = ((key == query) | (key == PROMPT)) & (key != PADDING) & (query != PADDING)
    length = segments.shape[-1]
    seen = seen & torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    if window is not None:
        distance = position_ids.unsqueeze(-1) - position_ids.unsqueeze(-2)
        seen = seen & (distance < window)
    itself = torch.eye(length, dtype=torch.bool, device=segments.device)
    return (seen | (itself & (query == PADDING))).unsqueeze(1)


def _place(
    ids: Tensor,
    positions: Tensor,
    segments: Tensor,
    start: int,
    tokens: Sequence[int],
    first_position: int,
    segment: int,
) -> None:
    end = start + len(tokens)
    ids[start:end] = torch.as_tensor(tokens, dtype=torch.long)
    positions[start:end] = torch.arange(first_position, first_position + len(tokens))
    segments[start:end] = segment
