"""What an objective is: one documented function, and the table that they are entered in.

    @objective(usable=HAS_PAIR, reward=implicit)
    def dpo(t: Terms, *, beta: float = 0.1, …) -> Tensor:
        '''−log σ(u_w − u_l)     the formula: the first paragraph

        …                        what there is to say

        Source: MRPO Eq. 5       paper and equation: the last paragraph
        '''

The signature holds the hyper-parameters and their defaults. The decorator says which groups are
usable, what the reward of a response is, and what the data must have. The function itself computes
[B] losses from a batch's terms; what stands in the module under its name takes a `Batch`, and gives
0 without gradient for groups that are not usable.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor

from mrpo_tools.maths.contrasts import Sides
from mrpo_tools.maths.shapes import fill
from mrpo_tools.maths.terms import Batch, Terms
from mrpo_tools.words import Chosen

Hyper = Mapping[str, Any]
OfTerms = Callable[..., Tensor]
"""Of terms, and of the hyper-parameters that its signature names."""
References = Literal["none", "one", "several"]

COMMON: Hyper = MappingProxyType({"chosen": "auto", "top_bottom": 2, "seed": None})
"""What every objective takes: who is chosen, and a seed for `best_random` without `Batch.seeds`."""


@dataclass(frozen=True)
class Condition:
    """When an objective can use a group.

    Attributes:
        reason: why it cannot, in words.
        holds: [B] bool of the terms.
    """

    reason: str
    holds: OfTerms


@dataclass(frozen=True)
class Objective:
    """A row of the table.

    Attributes:
        name: as in `mrpo train --loss NAME`.
        loss: [B] of the terms.
        usable: which groups it can use.
        reward: [B, N] of the terms: the reward of a response (docs/methods.md §5).
        references: how many reference log-probs of a response enter.
        scores: whether labels alone are too little.
        batchwise: whether a group's loss depends on the other groups of its batch.
        chosen: the rule that says who is chosen, unless the caller gives one.
        samples: whether it needs responses that were sampled, with b of each.
    """

    name: str
    loss: OfTerms
    usable: Condition
    reward: OfTerms
    references: References
    scores: bool
    batchwise: bool
    chosen: Chosen
    samples: bool

    @cached_property
    def _paragraphs(self) -> list[str]:
        text = inspect.getdoc(self.loss) or ""
        return [" ".join(part.split()) for part in text.split("\n\n")]

    @property
    def formula(self) -> str:
        """The loss of one group."""
        return self._paragraphs[0]

    @property
    def source(self) -> str:
        """Paper and equation."""
        return self._paragraphs[-1].removeprefix("Source: ")

    @cached_property
    def defaults(self) -> Hyper:
        """The objective's own hyper-parameters; no others but `COMMON` are accepted."""
        parameters = inspect.signature(self.loss).parameters.values()
        own = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        return own if self.chosen == "auto" else {**own, "chosen": self.chosen}

    def complete(self, hyper: Hyper) -> dict[str, Any]:
        """The defaults with the given hyper-parameters over them.

        Raises:
            ValueError: a hyper-parameter that this objective does not have.
        """
        defaults = {**COMMON, **self.defaults}
        unknown = sorted(hyper.keys() - defaults.keys())
        if unknown:
            raise ValueError(
                f"{self.name} has no hyper-parameter {', '.join(unknown)}; "
                f"it has {', '.join(sorted(defaults))}"
            )
        return {**defaults, **hyper}


class Applied:
    """An objective on one batch: each number is computed once, when it is first asked for.

    Args:
        row: the objective.
        batch: B groups of up to N responses.
        hyper: hyper-parameters over the objective's defaults.

    Raises:
        ValueError: it has no such hyper-parameter.
    """

    def __init__(self, row: Objective, batch: Batch, hyper: Hyper) -> None:
        self.row, self.batch = row, batch
        self._hyper = row.complete(hyper)
        common = {name: self._hyper[name] for name in COMMON}
        self._terms = Terms(row.name, batch, **common)

    @cached_property
    def losses(self) -> Tensor:
        """[B]; exactly 0 with no gradient where a group is not usable."""
        return fill(self._of_terms(self.row.loss), self.usable)

    @cached_property
    def usable(self) -> Tensor:
        """[B] bool: the groups that have something to contrast under this objective."""
        return self._of_terms(self.row.usable.holds)

    @cached_property
    def rewards(self) -> Tensor:
        """[B, N] rewards of the responses, detached; masked entries mean nothing."""
        return self._of_terms(self.row.reward).detach()

    @property
    def sides(self) -> Sides:
        """The chosen and rejected sets that this objective sees."""
        return self._terms.sides

    def _of_terms(self, function: OfTerms) -> Tensor:
        names = _keywords(function)
        return function(self._terms, **{name: self._hyper[name] for name in names})


@functools.cache
def _keywords(function: OfTerms) -> tuple[str, ...]:
    """The hyper-parameters that a function of terms asks for."""
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


TABLE: dict[str, Objective] = {}
"""Every objective by its name, in the order of the modules."""


def objective(
    *,
    usable: Condition,
    reward: OfTerms,
    references: References = "one",
    scores: bool = False,
    batchwise: bool = False,
    chosen: Chosen = "auto",
    samples: bool = False,
) -> Callable[[OfTerms], Callable[..., Tensor]]:
    """Enter a function of terms in the table under its own name; arguments as of `Objective`.

    The decorated function takes a `Batch` in place of the terms, its own hyper-parameters, and
    those of `COMMON`; it returns [B] losses.
    """

    def enter(loss: OfTerms) -> Callable[..., Tensor]:
        row = Objective(
            name=loss.__name__,
            loss=loss,
            usable=usable,
            reward=reward,
            references=references,
            scores=scores,
            batchwise=batchwise,
            chosen=chosen,
            samples=samples,
        )
        TABLE[row.name] = row

        @functools.wraps(loss)
        def of_batch(batch: Batch, **hyper: Any) -> Tensor:
            return Applied(row, batch, hyper).losses

        of_batch.__signature__ = _signature(row)  # type: ignore[attr-defined]  # read by `inspect`
        return of_batch

    return enter


def _signature(row: Objective) -> inspect.Signature:
    """What a caller may write: a batch, the objective's hyper-parameters, and those of all."""
    first, kind = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    batch = inspect.Parameter("batch", first, annotation=Batch)
    hyper = [
        inspect.Parameter(name, kind, default=default) for name, default in row.complete({}).items()
    ]
    return inspect.Signature([batch, *hyper], return_annotation=Tensor)


def find(name: str) -> Objective:
    """The row of a name.

    Raises:
        ValueError: no objective has this name.
    """
    if name not in TABLE:
        raise ValueError(f"no objective is named {name!r}; there are {', '.join(TABLE)}")
    return TABLE[name]


def apply(name: str, batch: Batch, **hyper: Any) -> Applied:
    """An objective on a batch: losses, usable groups, rewards and sides, each computed once."""
    return Applied(find(name), batch, hyper)


def compute(name: str, batch: Batch, **hyper: Any) -> Tensor:
    """The loss of each group.

    Args:
        name: of an objective in the table.
        batch: B groups of up to N responses.
        hyper: hyper-parameters by the names of docs/methods.md §4; the rest take their defaults.

    Returns:
        [B]; exactly 0 with no gradient where `usable` is False. The mean over usable groups is the
        caller's.

    Example:
        A log-ratio margin of 1 nat at β = 0.1 costs −log σ(0.1):

        >>> policy, reference = torch.tensor([[-1.0, -3.0]]), torch.tensor([[-2.0, -3.0]])
        >>> mask = torch.ones(1, 2, dtype=torch.bool)
        >>> batch = Batch(policy, reference, mask * 4, None, torch.tensor([[True, False]]), mask)
        >>> compute("dpo", batch)
        tensor([0.6444])
    """
    return apply(name, batch, **hyper).losses


def usable(name: str, batch: Batch, **hyper: Any) -> Tensor:
    """[B] bool: the groups that have something to contrast under this objective."""
    return apply(name, batch, **hyper).usable


def rewards(name: str, batch: Batch, **hyper: Any) -> Tensor:
    """[B, N] rewards of the responses (docs/methods.md §5), detached; masked entries mean nothing.

    Deviation terms are no part of the reward, and `multi_dpo` is measured against reference 1.
    """
    return apply(name, batch, **hyper).rewards
