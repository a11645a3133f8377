"""Which runs a sweep makes: every combination of a grid and a seed that means something, once."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mrpo_tools.config import Recipe, parse, yaml_value
from mrpo_tools.errors import UsageError, did_you_mean
from mrpo_tools.maths import objectives
from mrpo_tools.methods.method import find_loss, objective_of, resolve_method
from mrpo_tools.runs.methods import COMBINATION

MOST_RUNS = 10_000
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_PLAIN = re.compile(r"[^A-Za-z0-9._+=-]+")


@dataclass(frozen=True)
class Planned:
    """A run to be made.

    Attributes:
        name: of its directory below the sweep's: `mrpo-epsilon_max=0.1/seed-0`.
        recipe: that determines it.
    """

    name: str
    recipe: Recipe


def parse_seeds(text: str) -> list[int]:
    """`0..4,7` -> [0, 1, 2, 3, 4, 7]: numbers and ranges with both ends, each seed once.

    Raises:
        UsageError: anything else.
    """
    seeds: dict[int, None] = {}
    for word in text.split(","):
        ends = _RANGE.fullmatch(word.strip())
        if ends and int(ends[1]) <= int(ends[2]) < int(ends[1]) + MOST_RUNS:
            seeds |= dict.fromkeys(range(int(ends[1]), int(ends[2]) + 1))
        elif word.strip().isdecimal():
            seeds[int(word)] = None
        else:
            raise UsageError(
                f"--seeds {text}: numbers and ranges FIRST..LAST are needed", "--seeds 0..4"
            )
    return list(seeds)


def parse_grid(settings: Iterable[str]) -> dict[str, list[Any]]:
    """`loss=dpo,mrpo` -> {"loss": ["dpo", "mrpo"]}.

    Values are YAML, so a set of references is a list: `refs=[a],[a,b]`, or shorter `refs=a,a+b`.

    Raises:
        UsageError: no `=`, no value, an unknown key, a key named twice, or `seed`.
    """
    grid: dict[str, list[Any]] = {}
    for setting in settings:
        key, _, text = setting.partition("=")
        values = yaml_value(f"[{text}]")
        if not values or not isinstance(values, list):
            raise UsageError(f"--grid {setting}: KEY=VALUE,… is needed", "--grid loss=dpo,mrpo")
        if key in grid or key == "seed":
            hint = "--seeds 0..4" if key == "seed" else f"--grid {key}=A,B names them all"
            raise UsageError(f"--grid {setting}: {key} has a place of its own already", hint)
        if key not in Recipe.model_fields:
            near = did_you_mean(key, Recipe.model_fields)
            raise UsageError(f"--grid {setting}: a recipe has no key {key}", near)
        if key == "refs":
            values = [
                str(refs).split("+") if not isinstance(refs, list) else refs for refs in values
            ]
        grid[key] = list({json.dumps(value): value for value in values}.values())
    return grid


def plan(
    words: Mapping[str, Any],
    grid: Mapping[str, Sequence[Any]],
    seeds: Sequence[int],
    *,
    baselines: bool = True,
    redraw_split: bool = False,
) -> list[Planned]:
    """The runs of a sweep, seed by seed within each method.

    A key that means nothing for a loss (ε_max without a second reference, γ without SimPO) is left
    out of its runs, so that no run is made twice under two names. `dpo` is the baseline and takes
    reference 1 alone, unless the grid names `refs`; `mrpo` is `dpo` with all of them. A loss
    without a reference starts from reference 1.

    Args:
        words: of the recipe, with `refs`.
        grid: values by key.
        seeds: each method is trained with all of them.
        baselines: add DPO with each single reference, trained from the same initial policy, for
            every combination of the grid's other keys.
        redraw_split: each seed is also the `split_seed` of its runs.

    Raises:
        UsageError: a recipe that cannot be meant, too many runs, no references, or two wishes of
            one `split_seed`.
    """
    if redraw_split and ("split_seed" in grid or words.get("split_seed") is not None):
        raise UsageError(
            "--redraw-split makes each seed the split_seed, which the grid or the recipe sets too",
            "leave one of them out",
        )
    refs = list(words.get("refs") or [])
    if not refs:
        raise UsageError("a sweep needs references", "mrpo sweep recipe.yaml --refs A,B")
    combinations = [
        dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
    ]
    single = [{"loss": "dpo", "refs": [name]} for name in refs] if baselines else []
    methods: dict[str, Planned] = {}
    for extra in [*single, {}]:
        for combination in combinations:
            given = {**words, **combination, **extra}
            mine = _meant(given, refs, refs_given="refs" in {**grid, **extra})
            mine.pop("seed", None)
            recipe = parse(Recipe, mine, "sweep")
            key = recipe.model_dump_json()
            if key not in methods:
                resolve_method(recipe, scores=True)
                methods[key] = Planned(_name(recipe, grid), recipe)
    if len(methods) * len(seeds) > MOST_RUNS:
        raise UsageError(f"{len(methods) * len(seeds):,} runs; at most {MOST_RUNS:,} are taken on")
    _check_names(list(methods.values()))
    return [
        Planned(f"{method.name}/seed-{seed}", method.recipe.model_copy(update=drawn))
        for method in methods.values()
        for seed in seeds
        for drawn in [{"seed": seed, "split_seed": seed} if redraw_split else {"seed": seed}]
    ]


def _meant(words: Mapping[str, Any], refs: list[str], *, refs_given: bool) -> dict[str, Any]:
    """A combination's words without those that mean nothing for its loss."""
    words = dict(words)
    loss = find_loss(str(words.get("loss") or "mrpo"))
    row = objective_of(loss)
    first = words.get("policy") or refs[0]
    if row.references == "none":
        words["refs"], words["policy"] = [], first
    elif loss == "dpo" and not refs_given:
        words["refs"] = refs[:1]
    if words["refs"] and words["refs"][0] != first:
        words["policy"] = first
    dropped = {
        key
        for key in objectives.HYPER_PARAMETERS
        if key not in row.defaults and key not in objectives.COMMON
    }
    if len(words["refs"]) < 2:
        dropped |= set(COMBINATION)
    if row.references == "several":
        dropped.add("combine")
    return {key: value for key, value in words.items() if key not in dropped}


def _name(recipe: Recipe, grid: Mapping[str, Sequence[Any]]) -> str:
    words = [recipe.loss]
    if (recipe.loss == "dpo" and len(recipe.refs) == 1) or "refs" in grid:
        words.append("+".join(recipe.refs) or "none")
    for key in grid:
        value = getattr(recipe, key)
        if key not in ("loss", "refs") and value is not None:
            words.append(f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}")
    return _PLAIN.sub("_", "-".join(words))


def _check_names(planned: Sequence[Planned]) -> None:
    names = [run.name for run in planned]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            f"two methods of the grid would share the directory {twice[0]}",
            "give values that differ in letters, digits, '.', '_', '+', '-' or '='",
        )
