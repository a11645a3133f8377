"""Prompts with responses as trees: masks, plans and batches by hand."""

from __future__ import annotations

import torch

from mrpo_tools.scorer.trees import Row, attention_mask, batches, cost, plan_rows, split_tree


def test_many_responses_keep_to_the_budget():
    tree = Row([1] * 50, [[2] * 20] * 64, range(64))
    parts = split_tree(tree, 256)
    assert all(len(part) <= 256 for part in parts)
    assert [key for part in parts for key in part.keys] == list(range(64))
    assert [len(part.keys) for part in split_tree(tree, 1)] == [1] * 64


def test_the_mask_by_hand():
    """Prompt of two, responses of one and two, one padding token; window of two."""
    segments = torch.tensor([[0, 0, 1, 2, 2, -1]])
    positions = torch.tensor([[0, 1, 2, 2, 3, 0]])
    assert attention_mask(segments, positions)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    near = attention_mask(segments, positions, window=2)[0, 0].int().tolist()
    assert near[4] == [0, 0, 0, 1, 1, 0]
    assert near[3] == [0, 1, 0, 1, 0, 0]


def test_the_plan_shares_only_where_it_pays():
    """A long prompt is shared; long responses after a short prompt are not, in a narrow model."""
    long_prompt = Row([1] * 100, [[1] * 10, [1] * 10], [0, 1])
    long_responses = Row([1] * 4, [[1] * 500, [1] * 500], [0, 1])
    planned = plan_rows([long_prompt, long_responses], hidden_size=64)
    assert [len(row.keys) for row in planned] == [1, 1, 2]
    assert [len(row) for row in planned] == sorted((len(row) for row in planned), reverse=True)
    assert cost([long_prompt], 64) < cost(plan_rows([long_prompt], share=False), 64)


def test_batches_respect_the_budget_with_padding():
    rows = [Row([1] * n, [[1]], [n]) for n in (30, 20, 10, 10, 9)]
    padded = batches(rows, 62, packed=False)
    assert [[len(row) for row in batch] for batch in padded] == [[31, 21], [11, 11, 10]]
    packed = batches(rows, 63)
    assert [[len(row) for row in batch] for batch in packed] == [[31, 21, 11], [11, 10]]
