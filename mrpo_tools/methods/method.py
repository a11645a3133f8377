"""What `--loss NAME` means: an objective, its hyper-parameters, and a combination of references.

`mrpo` and `mean_ref` are `dpo` after a combination of references; every other name is a row of
`maths.objectives.TABLE`. Any objective with a reference in it takes any combination.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mrpo_tools.config import Recipe
from mrpo_tools.errors import UsageError, did_you_mean
from mrpo_tools.maths import objectives
from mrpo_tools.methods.tensors import Combination

PRESETS: dict[str, tuple[str, str, dict[str, str], str]] = {
    "mrpo": (
        "dpo",
        "dpo against the virtual reference: harmonic, confidence weights, adaptive trust region",
        {"combine": "harmonic", "weights": "confidence", "trust_region": "adaptive"},
        "MRPO Eq. 7-10",
    ),
    "mean_ref": (
        "dpo",
        "dpo against the geometric mean of the references, adaptive trust region",
        {"combine": "geometric", "weights": "uniform", "trust_region": "adaptive"},
        "MRPO Table 1",
    ),
}
"""Name: (objective, formula, combination, source)."""

SCORE_PARAMETERS = frozenset({"deviation_scale", "power", "weight", "signed", "tau"})
"""Hyper-parameters that act on scores themselves."""

LOSSES = (*PRESETS, *objectives.NAMES)


@dataclass(frozen=True)
class Method:
    """A resolved `--loss`.

    Attributes:
        name: as the user wrote it.
        objective: the row's name.
        hyper: the hyper-parameters that differ from the row's defaults, and those the user set.
        combination: how K references become one.
    """

    name: str
    objective: str
    hyper: dict[str, Any]
    combination: Combination

    @property
    def row(self) -> objectives.Objective:
        return objectives.TABLE[self.objective]

    def weighted_by(self, accuracies: Sequence[float]) -> Method:
        """The method with its references' held-out accuracies, for weights `accuracy`."""
        return replace(self, combination=replace(self.combination, accuracies=list(accuracies)))

    @property
    def complete_hyper(self) -> dict[str, Any]:
        """Every hyper-parameter with its value."""
        return self.row.complete(self.hyper)


def resolve_method(recipe: Recipe, references: int, scores: bool, labels: bool) -> Method:
    """The method of a recipe on data with or without scores and labels.

    Args:
        recipe: the words.
        references: K, how many references the recipe names.
        scores: whether every response of the data has a score.
        labels: whether every response of the data has a label.

    Raises:
        UsageError: a combination that means nothing, with what to use instead.
    """
    name = find_loss(recipe.loss)
    preset = PRESETS.get(name)
    row = objectives.TABLE[preset[0] if preset else name]
    _refuse_references(name, row, references, recipe)
    if row.scores and not scores:
        raise UsageError(
            f"{name} needs scores; this data has only chosen and rejected",
            "use a pairwise or set objective: dpo, mrpo, mpo",
        )
    return Method(
        name, row.name, _hyper(name, recipe, row), _combination(recipe, preset, references)
    )


def _refuse_references(
    name: str, row: objectives.Objective, references: int, recipe: Recipe
) -> None:
    if row.reference and references == 0:
        raise UsageError(f"{name} needs a reference", f"--loss {name} --refs NAME")
    if name == "multi_dpo" and references < 2:
        raise UsageError(
            f"multi_dpo needs two references or more, found {references}",
            "use --loss dpo for one reference",
        )
    if name == "multi_dpo" and recipe.combine not in (None, "separate"):
        raise UsageError(
            f"multi_dpo keeps its references separate; combine {recipe.combine} has no meaning",
            f"use --loss dpo --combine {recipe.combine}",
        )
    if name != "multi_dpo" and recipe.combine == "separate":
        raise UsageError(
            f"{name} takes one reference log-prob per response; combine separate gives several",
            "use --loss multi_dpo, or --combine harmonic, geometric or arithmetic",
        )
    words = ("combine", "weights", "trust_region", "epsilon_max", "fixed_weights")
    given = [word for word in words if getattr(recipe, word) is not None]
    if not row.reference and given:
        raise UsageError(
            f"{name} has no reference in it; {', '.join(given)} would change nothing",
            f"leave out {', '.join(given)}, or use an objective with a reference: dpo, mpo",
        )


def _hyper(name: str, recipe: Recipe, row: objectives.Objective) -> dict[str, Any]:
    words = {**row.defaults, **objectives.COMMON}
    given = {
        key: value
        for key in (*objectives.HYPER_PARAMETERS, "pairing")
        if key not in objectives.COMMON and (value := getattr(recipe, key)) is not None
    }
    for key in sorted(given.keys() - words.keys()):
        raise _foreign(name, row, key)
    if recipe.chosen != "auto":
        given["partition"] = recipe.chosen
        given["top_bottom"] = recipe.top_bottom
    return given


def _foreign(name: str, row: objectives.Objective, key: str) -> UsageError:
    """The refusal of a hyper-parameter that belongs to other objectives."""
    owners = [one.name for one in objectives.TABLE.values() if key in one.defaults]
    hint = f"{key} belongs to {', '.join(owners)}; {name} has {', '.join(sorted(row.defaults))}"
    if key == "pairing":
        return UsageError(f"{name} compares sets, not pairs; pairing has no meaning", hint)
    if key in SCORE_PARAMETERS and "pairing" in row.defaults:
        return UsageError(
            f"{name} takes scores into account only through pairs; {key} has no meaning", hint
        )
    return UsageError(f"{name} has no hyper-parameter {key}", hint)


def _combination(
    recipe: Recipe, preset: tuple[str, str, dict[str, str], str] | None, references: int
) -> Combination:
    """The preset's combination, MRPO's for any other name, with the recipe's words over it."""
    base = dict((preset or PRESETS["mrpo"])[2])
    if recipe.loss == "multi_dpo":
        base["combine"] = "separate"
    if references < 2:
        base["trust_region"] = "none"
    given = {
        word: value
        for word in ("combine", "weights", "trust_region", "epsilon_max", "fixed_weights")
        if (value := getattr(recipe, word)) is not None
    }
    if recipe.fixed_weights is not None and recipe.weights is None:
        given["weights"] = "fixed"
    return Combination(**{**base, **given}, weights_layout=recipe.weights_layout)  # type: ignore[arg-type]


def find_loss(name: str) -> str:
    """The name itself, or a `UsageError` with the nearest ones."""
    if name not in LOSSES:
        raise UsageError(f"no loss is named {name!r}", did_you_mean(name, LOSSES))
    return name


def describe(name: str) -> dict[str, Any]:
    """A loss in words: name, formula, source, needs, defaults, and a recipe line."""
    preset = PRESETS.get(name)
    row = objectives.TABLE[preset[0] if preset else name]
    defaults = {**row.defaults}
    if preset:
        defaults |= {**preset[2], "epsilon_max": Combination().epsilon_max}
    references = "a reference, made for several" if preset else "a reference"
    references = "two references or more" if name == "multi_dpo" else references
    needs = [references] if row.reference else ["no reference"]
    needs += ["scores"] if row.scores else ["scores or labels"]
    settings = " ".join(f"--set {key}={value}" for key, value in list(row.defaults.items())[:1])
    refs = "--refs A,B " if name in (*PRESETS, "multi_dpo") else "--refs A "
    policy = refs if row.reference else "--policy MODEL "
    return {
        "name": name,
        "formula": preset[1] if preset else row.formula,
        "source": preset[3] if preset else row.source,
        "needs": ", ".join(needs),
        "defaults": defaults,
        "recipe": f"mrpo train --loss {name} {policy}{settings} --output RUN".replace("  ", " "),
    }
