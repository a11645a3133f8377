"""Every objective as one documented function, and as a row of one table.

    losses = objectives.dpo(batch, beta=0.1)                 # [B]
    losses = objectives.compute("dpo", batch, beta=0.1)      # the same, by name

Four shapes make all of them. A *score* of each response: the implicit reward u = β(ℓ − r), the
length-normalised v = βℓ/L, the geometric-mean token probability p = exp(ℓ/L), or ℓ itself. A
*contrast*: over pairs, between sets, against a target distribution, over a ranking, or pointwise.
A *pairing* or a rule of who is *chosen*. A *reference* (`references`), combined beforehand.

    table        what an objective is; compute, rewards, usable by name
    conditions   which groups are usable      reward   what the reward of a response is
    pairwise, sets, mppo, sampled             the objectives

Symbols are those of docs/methods.md: ℓ policy log-prob, r reference log-prob (nats, summed), L
response tokens under the policy's tokenizer, s score, δ deviation from the group's mean, Y+ and Y−
the chosen and rejected sets, w and l the winner and loser of a pair. Sources: MRPO (Le et al.
2025), MPO (Gupta et al. 2024), SWEPO (Gupta et al. 2024), MPPO (Xie et al. 2024), and those named
with the objectives.
"""

from collections.abc import Callable

from torch import Tensor

from mrpo_tools.maths.objectives import mppo, pairwise, sampled, sets
from mrpo_tools.maths.objectives.table import (
    COMMON,
    TABLE,
    Applied,
    Objective,
    apply,
    compute,
    find,
    rewards,
    usable,
)
from mrpo_tools.maths.terms import Batch

__all__ = [
    "COMMON",
    "HYPER_PARAMETERS",
    "NAMES",
    "TABLE",
    "Applied",
    "Batch",
    "Objective",
    "apply",
    "compute",
    "find",
    "rewards",
    "usable",
]

NAMES: tuple[str, ...] = tuple(TABLE)
HYPER_PARAMETERS = tuple(
    sorted({*COMMON, *(key for row in TABLE.values() for key in row.defaults)})
)
"""Every hyper-parameter of any objective."""


def __getattr__(name: str) -> Callable[..., Tensor]:
    """`objectives.dpo` and its like: every objective of the table is a function here."""
    for module in (pairwise, sets, mppo, sampled):
        if name in TABLE and hasattr(module, name):
            function: Callable[..., Tensor] = getattr(module, name)
            return function
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *NAMES]
