"""Losses that are an objective after a combination of references, with their papers' numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from mrpo_tools.methods.combination import Combination


@dataclass(frozen=True)
class Preset:
    """A `--loss` that is an objective after a combination of references.

    Attributes:
        objective: its name.
        combination: of the references.
        formula: in words.
        source: paper and equation.
        hyper: hyper-parameters in place of the objective's defaults.
        first_weight: what reference 1 weighs unless `fixed_weights` says it; the others share the
            rest. None: the combination's rule says it.
    """

    objective: str
    combination: Combination
    formula: str
    source: str
    hyper: Mapping[str, Any] = field(default_factory=dict)
    first_weight: float | None = None


NASH = Combination(combine="geometric", weights="fixed", trust_region="none")
"""Reference 1 and policies of earlier rounds, none of them clipped."""
NASH_HYPER = {"beta": 0.0075, "length_normalized": True}
"""η and the mean over tokens of MNPO's published code."""
PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "mrpo": Preset(
            "dpo",
            Combination(combine="harmonic", weights="confidence", trust_region="adaptive"),
            "dpo against the virtual reference: harmonic, confidence weights, adaptive trust "
            "region",
            "MRPO Eq. 7-10",
        ),
        "mean_ref": Preset(
            "dpo",
            Combination(combine="geometric", weights="uniform", trust_region="adaptive"),
            "dpo against the geometric mean of the references, adaptive trust region",
            "MRPO Table 1",
        ),
        "inpo": Preset(
            "ipo",
            NASH,
            "length-normalized ipo against the geometric mean of reference 1, weight 1/3, and the "
            "last round's policy, 2/3",
            "Zhang et al. 2024, arXiv 2407.00617",
            NASH_HYPER,
            first_weight=1 / 3,
        ),
        "mnpo": Preset(
            "ipo",
            NASH,
            "length-normalized ipo against the geometric mean of reference 1, weight 1/3, and the "
            "policies of earlier rounds, which share 2/3",
            "Wu et al. 2025, arXiv 2509.23102",
            NASH_HYPER,
            first_weight=1 / 3,
        ),
    }
)
OWN_COMBINATIONS: Mapping[str, Combination] = MappingProxyType(
    {
        "rlhf": Combination(combine="geometric", weights="uniform", trust_region="none"),
        "kd": Combination(combine="separate", weights="uniform", trust_region="adaptive"),
    }
)
"""How references are combined for objectives that do not take MRPO's way."""
