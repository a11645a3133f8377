"""Who is preferred in a group: what the data say, as tensors that travel together.

Shapes: G or B groups, padded to N responses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from mrpo_tools.maths import contrasts
from mrpo_tools.maths.shapes import require_shape
from mrpo_tools.words import Chosen


@dataclass(frozen=True)
class Judgements:
    """What the data say of G groups of up to N responses.

    Attributes:
        mask: [G, N] bool, True where a response takes part.
        scores: [G, N] s, higher is better; None: chosen counts as 1, the rest as 0.
        chosen: [G, N] bool labels of the data; None: no labels.
        unjudged: [G, N] bool: samples beside a labelled pair, which are compared with nothing;
            None: every response is judged.

    Masked entries of scores and labels may hold anything.

    Raises:
        ValueError: a shape does not fit, or there are neither scores nor labels.
    """

    mask: Tensor
    scores: Tensor | None
    chosen: Tensor | None
    unjudged: Tensor | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.mask.shape)
        for name in ("scores", "chosen", "unjudged"):
            tensor = getattr(self, name)
            if tensor is not None:
                require_shape(name, tensor, shape)
        if self.scores is None and self.chosen is None:
            raise ValueError("a batch needs scores or chosen")

    @cached_property
    def compared(self) -> Tensor:
        """[G, N] the responses that take part and are judged."""
        return self.mask if self.unjudged is None else self.mask & ~self.unjudged

    @cached_property
    def sides(self) -> contrasts.Sides:
        """The chosen and rejected sets by the data's own labels, else by the mean score."""
        return self.sides_by("auto", 1)

    def sides_by(self, chosen: Chosen, top_bottom: int) -> contrasts.Sides:
        """The sides by another rule of `choose_sides`."""
        return contrasts.choose_sides(
            self.mask,
            self.scores,
            self.chosen,
            self.unjudged,
            chosen=chosen,
            top_bottom=top_bottom,
        )

    @cached_property
    def pairs(self) -> Tensor:
        """[G, N, N] bool: the pairs that accuracies count, Y+ × Y− with labels, else s_a > s_b."""
        return contrasts.every_pair(self.sides)

    def within(self, mask: Tensor) -> Judgements:
        """The same with the responses of `mask`, [G, N], only."""
        require_shape("mask", mask, tuple(self.mask.shape))
        return replace(self, mask=mask)

    def of_groups(self, index: list[int]) -> Judgements:
        """The judgements of some groups, in the order of `index`."""
        return self._map(lambda values: values[index])

    def to(self, device: torch.device) -> Judgements:
        """The same on a device."""
        return self._map(lambda values: values.to(device))

    def _map(self, function: Callable[[Tensor], Tensor]) -> Judgements:
        return Judgements(
            function(self.mask),
            None if self.scores is None else function(self.scores),
            None if self.chosen is None else function(self.chosen),
            None if self.unjudged is None else function(self.unjudged),
        )
