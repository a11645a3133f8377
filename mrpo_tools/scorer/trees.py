"""From groups of ids to batches a decoder can run: a forest of prompts with their responses.

A tree is `[prompt | y_1 | … | y_n]`. Positions of every response restart after the prompt, and a
response attends to the prompt and itself, so the prompt is computed once for all its responses.
With one response a tree is an ordinary causal sequence: plain rows are trees with one branch.

A batch holds its trees in one of two forms. *Packed*: one line of tokens, tree after tree, no
padding; attention follows the `Forest`. *Padded*: a line for each tree; attention follows a mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

PADDING = -1
PROMPT = 0
WORTH_SHARING = 0.97
"""A shared prompt makes one more piece; below a saving of 3 % its calls cost what it saves."""


@dataclass(frozen=True)
class Row:
    """A prompt with some of its responses; `keys` name the responses to the caller."""

    prompt: Sequence[int]
    responses: Sequence[Sequence[int]]
    keys: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt) + sum(map(len, self.responses))


class Piece(NamedTuple):
    """Tokens `start:end` of a line; they see `prefix:prefix_end`, and each other causally."""

    start: int
    end: int
    prefix: int
    prefix_end: int


@dataclass(frozen=True)
class Forest:
    """Where the trees of a packed line lie.

    Attributes:
        pieces: in the order of the line, without gaps.
        memory: what an attention kernel wants to keep between layers (masks, indices).
    """

    pieces: tuple[Piece, ...]
    memory: dict[Any, Any] = field(default_factory=dict, compare=False)


class TokenBatch(TypedDict):
    """One batch for `ResponseScorer.forward`: R lines of T tokens, M target tokens.

    Keys:
        input_ids: [R, T].
        position_ids: [R, T] positions, restarting after the prompt for every response.
        segments: [R, T] 0 for the prompt, 1, 2, … for the line's responses, `PADDING` for padding.
        sources: [M] index into R·T of the position that predicts a target.
        targets: [M] the tokens of responses.
        owners: [M] the key of the response that a target belongs to.
        forest: of a packed line; None for padded ones.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: Tensor
    sources: Tensor
    targets: Tensor
    owners: Tensor
    forest: Forest | None


def split_tree(tree: Row, max_tokens: int) -> list[Row]:
    """The tree, or its responses in several trees that have at most `max_tokens` tokens each.

    A tree of one response may be longer.
    """
    parts: list[list[int]] = []
    used = 0
    for index, response in enumerate(tree.responses):
        if parts and used + len(response) <= max_tokens:
            parts[-1].append(index)
            used += len(response)
        else:
            parts.append([index])
            used = len(tree.prompt) + len(response)
    return [
        Row(tree.prompt, [tree.responses[i] for i in part], [tree.keys[i] for i in part])
        for part in parts
    ]


def branches(tree: Row) -> list[Row]:
    """A plain row for each response."""
    pairs = zip(tree.responses, tree.keys, strict=True)
    return [Row(tree.prompt, [response], [key]) for response, key in pairs]


def plan_rows(
    trees: Iterable[Row],
    *,
    share: bool = True,
    hidden_size: int = 4096,
    packed: bool = True,
    worth: float = WORTH_SHARING,
) -> list[Row]:
    """Rows to compute, longest first, so that running out of memory shows at once.

    A prompt is shared where that is cheaper than a plain row for each response.

    Args:
        trees: each prompt with all its responses.
        share: False gives plain rows only.
        hidden_size: of the model; it sets the price of attention against that of linear layers.
        packed: the form of the batches; a mask makes attention dearer.
        worth: the share of the plain rows' cost below which a prompt is shared.
    """
    rows: list[Row] = []
    for tree in trees:
        plain = branches(tree)
        price = cost([tree], hidden_size, packed=packed) / cost(plain, hidden_size, packed=packed)
        rows += [tree] if share and price < worth else plain
    return sorted(rows, key=len, reverse=True)


def cost(rows: Iterable[Row], hidden_size: int, *, packed: bool = True) -> float:
    """Relative work of computing rows, in tokens: 24·D² operations a token in linear layers, and
    4·D for each pair of tokens that attention computes."""
    return sum(len(row) + _pairs(row, packed=packed) / (6 * hidden_size) for row in rows)


def _pairs(row: Row, *, packed: bool) -> float:
    """Pairs that attention computes: all of a masked rectangle, half of a causal square."""
    if not packed:
        return len(row) ** 2
    if len(row.responses) == 1:
        return len(row) ** 2 / 2
    prompt = len(row.prompt)
    return prompt**2 / 2 + sum(len(ids) * (prompt + len(ids)) for ids in row.responses)


def batches(rows: Sequence[Row], max_tokens: int, *, packed: bool = True) -> list[list[Row]]:
    """Consecutive rows in batches of at most `max_tokens` tokens, padding counted.

    A row longer than that is a batch of its own. Rows are expected longest first.
    """
    planned: list[list[Row]] = []
    used = 0
    for row in rows:
        if packed:
            fits = used + len(row) <= max_tokens
        else:
            fits = bool(planned) and len(planned[-1][0]) * (len(planned[-1]) + 1) <= max_tokens
        if planned and fits:
            planned[-1].append(row)
            used += len(row)
        else:
            planned.append([row])
            used = len(row)
    return planned


def collate(rows: Sequence[Row], *, packed: bool = False) -> TokenBatch:
    """Tensors of a batch of at least one row."""
    lines = [_line(row) for row in rows]
    widths = [len(row) for row in rows]
    if packed:
        starts = [sum(widths[:index]) for index in range(len(rows))]
        shape = (1, sum(widths))
    else:
        starts = [index * max(widths) for index in range(len(rows))]
        shape = (len(rows), max(widths))
    batch = TokenBatch(
        input_ids=torch.zeros(shape, dtype=torch.long),
        position_ids=torch.zeros(shape, dtype=torch.long),
        segments=torch.full(shape, PADDING, dtype=torch.long),
        sources=torch.cat(
            [line.sources + start for line, start in zip(lines, starts, strict=True)]
        ),
        targets=torch.cat([line.targets for line in lines]),
        owners=torch.cat([line.owners for line in lines]),
        forest=_forest(rows, starts) if packed else None,
    )
    for start, width, line in zip(starts, widths, lines, strict=True):
        place = slice(start, start + width)
        batch["input_ids"].view(-1)[place] = line.ids
        batch["position_ids"].view(-1)[place] = line.positions
        batch["segments"].view(-1)[place] = line.segments
    return batch


class _Line(NamedTuple):
    """A row as tensors; `sources` count from its own first token."""

    ids: Tensor
    positions: Tensor
    segments: Tensor
    sources: Tensor
    targets: Tensor
    owners: Tensor


def _line(row: Row) -> _Line:
    prompt = torch.as_tensor(row.prompt, dtype=torch.long)
    ids, after = [prompt], len(prompt)
    positions, segments = [torch.arange(after)], [torch.full((after,), PROMPT)]
    sources, owners, start = [], [], after
    for branch, (response, key) in enumerate(zip(row.responses, row.keys, strict=True), 1):
        length = len(response)
        ids.append(torch.as_tensor(response, dtype=torch.long))
        positions.append(torch.arange(after, after + length))
        segments.append(torch.full((length,), branch))
        own = torch.arange(start, start + length) - 1
        own[:1] = after - 1  # the prompt's last token predicts every response's first
        sources.append(own)
        owners.append(torch.full((length,), key))
        start += length
    return _Line(
        ids=torch.cat(ids),
        positions=torch.cat(positions),
        segments=torch.cat(segments),
        sources=torch.cat(sources),
        targets=torch.cat(ids[1:]),
        owners=torch.cat(owners),
    )


def _forest(rows: Sequence[Row], starts: Sequence[int]) -> Forest:
    pieces = []
    for row, start in zip(rows, starts, strict=True):
        if len(row.responses) == 1:  # prompt and response are one causal sequence
            pieces.append(Piece(start, start + len(row), start, start))
            continue
        end = start + len(row.prompt)
        pieces.append(Piece(start, end, start, start))
        place = end
        for response in row.responses:
            if len(response):
                pieces.append(Piece(place, place + len(response), start, end))
            place += len(response)
    return Forest(tuple(pieces))


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
