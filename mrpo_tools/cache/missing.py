"""Which responses have no row in a store yet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from mrpo_tools.cache.store_of_parts import PartStore
from mrpo_tools.groups import Group, Response
from mrpo_tools.messages import Message

Shard = tuple[int, int]
"""(i, n): the prompts whose id is i modulo n, for several processes."""


def missing_from(
    store: PartStore, groups: Iterable[Group], shard: Shard = (0, 1)
) -> tuple[list[Group], int]:
    """Each prompt with its responses that have no row, and how many responses have one.

    Prompts that repeat are one group.
    """
    prompts = _by_prompt(groups, shard)
    wanted = {key for prompt in prompts for key in prompt.response_ids}
    absent = wanted - store.keys()
    parts = (_only(prompt, absent) for prompt in prompts)
    return [part for part in parts if part is not None], len(wanted) - len(absent)


def in_shard(group: Group, shard: Shard) -> bool:
    """Whether a group belongs to shard (i, n); all groups of a prompt belong to the same."""
    index, count = shard
    return int(group.prompt_id, 16) % count == index


def _by_prompt(groups: Iterable[Group], shard: Shard) -> list[Group]:
    """One group for each prompt of this shard, with every response of that prompt."""
    merged: dict[str, dict[Message, Response]] = {}
    first: dict[str, Group] = {}
    for group in groups:
        if in_shard(group, shard):
            first.setdefault(group.prompt_id, group)
            said = merged.setdefault(group.prompt_id, {})
            for response in group.responses:
                said.setdefault(response.message, response)
    return [replace(first[key], responses=tuple(merged[key].values())) for key in merged]


def _only(group: Group, response_ids: set[str]) -> Group | None:
    """The group with these responses only; None when none is left."""
    responses = tuple(
        response
        for response, key in zip(group.responses, group.response_ids, strict=True)
        if key in response_ids
    )
    if len(responses) == len(group.responses):
        return group
    return replace(group, responses=responses) if responses else None
