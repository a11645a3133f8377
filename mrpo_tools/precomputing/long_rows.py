"""A word about rows of tens of thousands of tokens, before they run out of memory.

Where `max_length` is left open it is the model's context, and models of today say 131,072.
"""

from __future__ import annotations

from collections.abc import Sequence

from mrpo_tools.groups import Group
from mrpo_tools.precomputing.encoded import encode, text_bytes, trees_of
from mrpo_tools.progress import say
from mrpo_tools.references.devices import free_bytes, pick_device
from mrpo_tools.references.resolved import ResolvedReference, renderer_of
from mrpo_tools.scorer.memory import weights_of, working_bytes
from mrpo_tools.scorer.room import blueprint
from mrpo_tools.scorer.trees import Row

LONG = 16_384
"""Tokens of a prompt and its responses that are worth a word."""


def tell_long_rows(resolved: ResolvedReference, groups: Sequence[Group], long: int = LONG) -> None:
    """Say how long the longest row is and what it takes, where nobody has set `max_length`.

    Args:
        resolved: the reference.
        groups: what is to be computed.
        long: tokens up to which nothing is said.
    """
    longest = max(groups, key=text_bytes)
    if resolved.reference.max_length is not None or text_bytes(longest) <= long:
        return  # a token has a byte or more
    rows = trees_of(encode(renderer_of(resolved), [longest]))
    if not rows or len(rows[0]) <= long:
        return
    say(
        f"warning: {resolved.name}: the longest prompt with its responses has {len(rows[0]):,} "
        f"tokens{_bytes(resolved, rows[0])}; max_length is not set, so that only the model's "
        f"context of {resolved.identity.fields['max_length']:,} cuts. To set it: --max-length 8192"
    )


def _bytes(resolved: ResolvedReference, row: Row) -> str:
    """What it takes beside what is free, in words; nothing of a family that cannot be imagined."""
    device = pick_device()
    try:
        plan = blueprint(resolved, device)
        beside, weights = working_bytes(plan, [row]), weights_of(plan).total
    except Exception:  # a family's own code may fail in any way without real weights
        return ""
    return (
        f" and takes about {beside / 1e9:.1f} GB beside {weights / 1e9:.1f} GB of weights "
        f"({free_bytes(device) / 1e9:.1f} GB are free)"
    )
