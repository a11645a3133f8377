"""What `--loss NAME` means: an objective, its hyper-parameters, and a combination of references.

A name is a preset, or an objective of `maths.objectives`. Any objective with a reference in it
takes any combination.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from mrpo_tools.config import Recipe
from mrpo_tools.errors import UsageError, did_you_mean
from mrpo_tools.groups import Group, kinds_of_judgement
from mrpo_tools.maths import objectives
from mrpo_tools.maths.contrasts import Sides
from mrpo_tools.maths.judgements import Judgements
from mrpo_tools.methods.combination import Combination, Combined
from mrpo_tools.methods.presets import OWN_COMBINATIONS, PRESETS

COMBINATION_WORDS = ("combine", "weights", "trust_region", "epsilon_max", "fixed_weights")
"""Keys of a recipe that say how references are combined, beside the layout of the weights."""
SCORE_PARAMETERS = frozenset({"deviation_scale", "power", "weight", "signed", "tau"})
"""Hyper-parameters that act on scores themselves."""


LOSSES = (*PRESETS, *objectives.NAMES)


@dataclass(frozen=True)
class Method:
    """A resolved `--loss`.

    Attributes:
        name: as the user wrote it.
        row: the objective.
        hyper: every hyper-parameter with its value.
        combination: how K references become one.
    """

    name: str
    row: objectives.Objective
    hyper: Mapping[str, Any]
    combination: Combination

    def weighted_by(self, accuracies: Sequence[float]) -> Method:
        """The method with its references' held-out accuracies, for weights `accuracy`."""
        return replace(self, combination=replace(self.combination, accuracies=list(accuracies)))

    def sides(self, judged: Judgements) -> Sides:
        """Who is chosen and who is rejected; its mask is what the objective sees."""
        return judged.sides_by(self.hyper["chosen"], self.hyper["top_bottom"])

    def on(
        self,
        judged: Judgements,
        combined: Combined,
        *,
        policy_logps: Tensor,
        lengths: Tensor,
        seeds: Tensor | None = None,
    ) -> objectives.Applied:
        """The objective on G groups, on the policy's device.

        Args:
            judged: of the groups.
            combined: their references.
            policy_logps: [G, N] nats.
            lengths: [G, N] tokens under the policy's tokenizer.
            seeds: [G] int64, for pairing `best_random`.

        Raises:
            ValueError: a hyper-parameter that the objective refuses.
        """
        device = policy_logps.device
        several = combined.logps.dim() == 3
        batch = objectives.Batch.of(
            judged.to(device),
            policy_logps=policy_logps,
            reference_logps=None if self.row.references == "none" else combined.logps.to(device),
            lengths=lengths.to(device),
            weights=combined.weights.to(device) if several else None,
            seeds=None if seeds is None else seeds.to(device),
        )
        return objectives.Applied(self.row, batch, self.hyper)


def method_of(recipe: Recipe, groups: Sequence[Group]) -> Method:
    """The method of a recipe on these groups; see `resolve_method`."""
    has_scores, _ = kinds_of_judgement(groups)
    return resolve_method(recipe, scores=has_scores)


def resolve_method(recipe: Recipe, *, scores: bool) -> Method:
    """The method of a recipe.

    Args:
        recipe: the words.
        scores: whether every response of the data has a score, not only a label.

    Raises:
        UsageError: a combination that means nothing, with what to use instead.
    """
    name = find_loss(recipe.loss)
    row = objective_of(name)
    _refuse_references(name, row, recipe)
    _refuse_samples(name, row, recipe)
    if row.scores and not scores:
        raise UsageError(
            f"{name} needs scores; this data has only chosen and rejected",
            "use a pairwise or set objective: dpo, mrpo, mpo",
        )
    hyper = {**_preset_hyper(name), **_hyper(name, recipe, row)}
    return Method(name, row, row.complete(hyper), _combination(name, recipe))


def find_loss(name: str) -> str:
    """The name itself, or a `UsageError` with the nearest ones."""
    if name not in LOSSES:
        raise UsageError(f"no loss is named {name!r}", did_you_mean(name, LOSSES))
    return name


def objective_of(name: str) -> objectives.Objective:
    """The objective of a loss, of a preset too."""
    return objectives.TABLE[PRESETS[name].objective if name in PRESETS else name]


def _refuse_references(name: str, row: objectives.Objective, recipe: Recipe) -> None:
    count = len(recipe.refs)
    if row.references != "none" and count == 0:
        raise UsageError(f"{name} needs a reference", f"--loss {name} --refs NAME")
    if row.references == "several" and count < 2:
        raise UsageError(
            f"{name} needs two references or more, found {count}",
            "use --loss dpo for one reference",
        )
    if row.references == "several" and recipe.combine not in (None, "separate"):
        raise UsageError(
            f"{name} keeps its references separate; combine {recipe.combine} has no meaning",
            f"use --loss dpo --combine {recipe.combine}",
        )
    if row.references != "several" and recipe.combine == "separate":
        raise UsageError(
            f"{name} takes one reference log-prob per response; combine separate gives several",
            "use --loss multi_dpo, or --combine harmonic, geometric or arithmetic",
        )
    words = [word for word in COMBINATION_WORDS if getattr(recipe, word) is not None]
    if row.references == "none" and words:
        raise UsageError(
            f"{name} has no reference in it; {', '.join(words)} would change nothing",
            f"leave out {', '.join(words)}, or use an objective with a reference: dpo, mpo",
        )


def _refuse_samples(name: str, row: objectives.Objective, recipe: Recipe) -> None:
    if row.samples and recipe.behaviour is None:
        raise UsageError(
            f"{name} trains on samples, and needs the log-probs that they were drawn with",
            "--set behaviour=NAME: the cached reference that the answers were sampled from; "
            "mrpo round does both",
        )
    if not row.samples and recipe.behaviour is not None:
        raise UsageError(
            f"{name} does not ask who wrote a response; behaviour would change nothing",
            "leave it out, or use rlhf or kd",
        )
    if name == "rlhf" and recipe.combine not in (None, "geometric"):
        raise UsageError(
            f"rlhf is held to each reference by a KL; combine {recipe.combine} has no meaning",
            "leave combine out: Σ_k α_k KL(π‖π_k) is the geometric one",
        )


def _preset_hyper(name: str) -> Mapping[str, Any]:
    return PRESETS[name].hyper if name in PRESETS else {}


def _hyper(name: str, recipe: Recipe, row: objectives.Objective) -> dict[str, object]:
    """The hyper-parameters that the recipe sets."""
    own = {*row.defaults} - {*objectives.COMMON}
    words: dict[str, object] = {
        key: value
        for key in objectives.HYPER_PARAMETERS
        if key not in objectives.COMMON and (value := getattr(recipe, key)) is not None
    }
    for key in sorted(words.keys() - own):
        raise _foreign(name, row, key)
    if recipe.chosen != "auto":
        words |= {"chosen": recipe.chosen, "top_bottom": recipe.top_bottom}
    return words


def _foreign(name: str, row: objectives.Objective, key: str) -> UsageError:
    """The refusal of a hyper-parameter that belongs to other objectives."""
    owners = [other.name for other in objectives.TABLE.values() if key in other.defaults]
    hint = f"{key} belongs to {', '.join(owners)}; {name} has {', '.join(sorted(row.defaults))}"
    if key == "pairing":
        return UsageError(f"{name} compares sets, not pairs; pairing has no meaning", hint)
    if key in SCORE_PARAMETERS and "pairing" in row.defaults:
        return UsageError(
            f"{name} takes scores into account only through pairs; {key} has no meaning", hint
        )
    return UsageError(f"{name} has no hyper-parameter {key}", hint)


def _combination(name: str, recipe: Recipe) -> Combination:
    """The preset's combination, MRPO's for any other name, with the recipe's words over it."""
    own = OWN_COMBINATIONS.get(name, PRESETS["mrpo"].combination)
    base = PRESETS[name].combination if name in PRESETS else own
    words: dict[str, Any] = {"weights_layout": recipe.weights_layout}
    if objective_of(name).references == "several":
        words["combine"] = "separate"
    if len(recipe.refs) < 2:
        words["trust_region"] = "none"
    share = PRESETS[name].first_weight if name in PRESETS else None
    if share is not None:
        words["fixed_weights"] = _shared(share, len(recipe.refs))
    if recipe.fixed_weights is not None:
        words["weights"] = "fixed"
    set_words = {word: getattr(recipe, word) for word in COMBINATION_WORDS}
    words |= {word: value for word, value in set_words.items() if value is not None}
    return replace(base, **words)


def _shared(first: float, count: int) -> list[float]:
    """Weights of `count` references: the first one's, and what the others share."""
    others = count - 1
    return [first, *[(1 - first) / others] * others] if others else [1.0]


@dataclass(frozen=True)
class Description:
    """A loss in words.

    Attributes:
        name: of `--loss`.
        formula: the loss of one group.
        source: paper and equation.
        needs: of references and judgements.
        defaults: of its hyper-parameters.
        recipe: a command that trains with it.
    """

    name: str
    formula: str
    source: str
    needs: str
    defaults: dict[str, object]
    recipe: str


def describe(name: str) -> Description:
    """A loss in words."""
    row, preset = objective_of(name), PRESETS.get(name)
    defaults: dict[str, object] = {**row.defaults, **_preset_hyper(name)}
    if preset:
        words = ("combine", "weights", "trust_region", "epsilon_max")
        defaults |= {word: getattr(preset.combination, word) for word in words}
    judged = "scores" if row.scores else "scores or labels"
    needs = {
        "none": "no reference",
        "one": "a reference, made for several" if preset else "a reference",
        "several": "two references or more",
    }[row.references]
    several = preset is not None or row.references == "several"
    refs = "--refs A,B" if several else "--refs A"
    settings = [f"--set {key}={value}" for key, value in list(row.defaults.items())[:1]]
    settings += ["--set behaviour=SAMPLER"] * row.samples
    command = ["mrpo train", "--loss", name,
               "--policy MODEL" if row.references == "none" else refs, *settings,
               "--output RUN"]  # fmt: skip
    return Description(
        name=name,
        formula=preset.formula if preset else row.formula,
        source=preset.source if preset else row.source,
        needs=f"{needs}, {judged}{', samples of the policy' if row.samples else ''}",
        defaults=defaults,
        recipe=" ".join(command),
    )
