"""Runs that differ in nothing but their seed, and the draw of their split, are one method."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from pydantic import JsonValue

from mrpo_tools.progress import say
from mrpo_tools.runs.read import Replicate, Result

Settings: TypeAlias = dict[str, JsonValue]
"""Everything that determines a method, by name, as it was resolved."""
COMBINATION = (
    "combine", "weights", "trust_region", "epsilon_max", "fixed_weights", "weights_layout",
)  # fmt: skip
BRIEFLY = {
    "refs": "{}", "epsilon_max": "ε={}", "trust_region": "{}", "weights": "{}", "combine": "{}",
    "beta": "β={}", "learning_rate": "lr={}",
    "policy_identity": "policy {:.8}", "groups_hash": "groups {:.8}",
}  # fmt: skip
"""How labels show the settings that sweeps vary most."""
HASHES = ("identities", "policy_identity", "groups_hash")
"""Of what `refs`, `policy` and `dataset` name."""
NO_SETTING = (
    "seed", "split_seed", "loss", "accuracies", "logging_steps", "save_steps", "save_total_limit",
    "eval_steps", "eval_split",
)  # fmt: skip
"""What labels show otherwise, or what changes no result: the log, checkpoints, measurements."""


@dataclass(frozen=True)
class MethodRuns:
    """A method with its runs, one for each seed.

    Attributes:
        label: the loss, and what tells it from other methods of that loss.
        settings: everything that determines the method, as it was resolved.
        runs: by seed, and draw of the split.
        baseline: whether it is DPO with a single reference.
    """

    label: str
    settings: Settings
    runs: tuple[Result, ...]
    baseline: bool

    @property
    def loss(self) -> str:
        """As the recipe names it."""
        return str(self.settings["loss"])


def by_method(results: Sequence[Result]) -> list[MethodRuns]:
    """Group runs by all settings but the seeds: baselines first, then by loss and settings.

    Of two runs with the same settings and seeds the first that was evaluated counts, and a warning
    names the other: counting both would make the spread over seeds smaller than it is.
    """
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(json.dumps(settings_of(result), sort_keys=True), []).append(result)
    settings: list[Settings] = [json.loads(key) for key in groups]
    methods = []
    for mine, runs in zip(settings, groups.values(), strict=True):
        repeats: dict[Replicate, Result] = {}
        for run in sorted(runs, key=lambda result: result.evaluation is None):
            if repeats.setdefault(run.replicate, run) is not run:
                say(f"warning: {run.path} is left out: {repeats[run.replicate].path} has its seed "
                    "and settings")  # fmt: skip
        ordered = [repeats[each] for each in sorted(repeats)]
        label = _label(mine, [other for other in settings if other["loss"] == mine["loss"]])
        methods.append(MethodRuns(label, mine, tuple(ordered), _is_baseline(mine)))
    return sorted(methods, key=_order)


def settings_of(result: Result) -> Settings:
    """Everything about a run but its seeds: the recipe, defaults resolved; policy and data.

    Where the split is drawn anew, runs of one method train on different groups of the same data.
    """
    recipe, record = result.run.recipe, result.run.record
    several = len(record.references) > 1
    combination = record.combination.model_dump() if several else {}
    if combination.get("weights_layout") == "paper":
        combination["weights_layout"] = None
    values: Settings = {
        **recipe.model_dump(mode="json"),
        **{word: combination.get(word) for word in COMBINATION},
        **record.hyper,
        "policy": Path(record.policy.model).name,
        "dataset": Path(record.dataset.source).name if record.dataset else None,
        "identities": list(record.references),
        "policy_identity": record.policy_identity,
        "groups_hash": record.groups_hash if recipe.split_seed is None else record.data_hash,
    }
    settings = {key: value for key, value in values.items() if key not in NO_SETTING}
    return {**settings, "loss": recipe.loss}


def differing(settings: Sequence[Settings]) -> list[str]:
    """The keys in which some settings differ; hashes only where nothing else tells them apart."""
    every_key = sorted({key for method in settings for key in method})
    keys = [key for key in every_key if _kinds(settings, [key]) > 1]
    for hashed in HASHES:
        others = [key for key in keys if key != hashed]
        if _kinds(settings, others) == _kinds(settings, keys):
            keys = others
    return keys


def _kinds(settings: Sequence[Settings], keys: Sequence[str]) -> int:
    return len({json.dumps([method.get(key) for key in keys]) for method in settings})


def setting_text(value: JsonValue) -> str:
    """A setting as a label shows it."""
    if value is None:
        return "–"
    if isinstance(value, list):
        return "+".join(map(setting_text, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _label(mine: Settings, rivals: Sequence[Settings]) -> str:
    """The loss and every setting that tells it from its rivals, the telling ones first."""
    keys = differing(rivals)
    ordered = [key for key in BRIEFLY if key in keys] + [key for key in keys if key not in BRIEFLY]
    words = [BRIEFLY.get(key, f"{key}={{}}").format(setting_text(mine.get(key))) for key in ordered]
    return " ".join([str(mine["loss"]), *words])


def _is_baseline(settings: Settings) -> bool:
    refs = settings.get("refs")
    return settings["loss"] == "dpo" and isinstance(refs, list) and len(refs) == 1


def _order(method: MethodRuns) -> tuple[bool, list[tuple[int, float, str]]]:
    """Baselines first, then by the words of the label, numbers by size."""
    words: list[tuple[int, float, str]] = []
    for word in method.label.split():
        try:
            words.append((0, float(word.rpartition("=")[2]), word))
        except ValueError:
            words.append((1, 0.0, word))
    return (not method.baseline, words)
