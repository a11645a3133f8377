"""Runs that differ in nothing but their seed are one method."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrpo_tools.progress import say
from mrpo_tools.runs.read import Result

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
    "seed", "loss", "accuracies", "logging_steps", "save_steps", "save_total_limit", "eval_steps",
    "eval_split",
)  # fmt: skip
"""What labels show otherwise, or what changes no result: the log, checkpoints, measurements."""


@dataclass(frozen=True)
class MethodRuns:
    """A method with its runs, one for each seed.

    Attributes:
        label: the loss, and what tells it from other methods of that loss.
        settings: everything that determines the method, as it was resolved.
        runs: by seed.
        baseline: whether it is DPO with a single reference.
    """

    label: str
    settings: dict[str, Any]
    runs: tuple[Result, ...]
    baseline: bool

    @property
    def loss(self) -> str:
        return str(self.settings["loss"])


def by_method(results: Sequence[Result]) -> list[MethodRuns]:
    """Group runs by all of their settings but the seed: baselines first, then by loss and settings.

    Of two runs with the same settings and seed the first that was evaluated counts, and a warning
    names the other: counting both would make the spread over seeds smaller than it is.
    """
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(json.dumps(settings_of(result), sort_keys=True), []).append(result)
    settings = [json.loads(key) for key in groups]
    found = []
    for mine, runs in zip(settings, groups.values(), strict=True):
        by_seed: dict[int, Result] = {}
        for run in sorted(runs, key=lambda one: one.evaluation is None):
            if by_seed.setdefault(run.seed, run) is not run:
                say(f"warning: {run.path} is left out: {by_seed[run.seed].path} has its seed and "
                    "settings")  # fmt: skip
        ordered = [by_seed[seed] for seed in sorted(by_seed)]
        label = _label(mine, [other for other in settings if other["loss"] == mine["loss"]])
        found.append(MethodRuns(label, mine, tuple(ordered), _is_baseline(mine)))
    return sorted(found, key=_order)


def settings_of(result: Result) -> dict[str, Any]:
    """Everything about a run but its seed: the recipe, defaults resolved; policy and data."""
    values = dict(result.recipe)
    several = len(result.record.get("references") or []) > 1
    combination = result.record.get("combination") or {}
    for word in COMBINATION:
        values[word] = combination.get(word) if several else None
    if values["weights_layout"] == "paper":
        values["weights_layout"] = None
    values |= result.record.get("hyper") or {}
    values["policy"] = Path((result.record.get("policy") or {}).get("model") or "").name
    dataset = (result.record.get("dataset") or {}).get("source")
    values["dataset"] = Path(dataset).name if dataset else None
    values["identities"] = list(result.record.get("references") or [])
    for word in ("policy_identity", "groups_hash"):
        values[word] = result.record.get(word)
    kept = {key: one for key, one in values.items() if key not in NO_SETTING}
    return {**kept, "loss": result.recipe.get("loss")}


def differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    """The keys in which some settings differ; hashes only where nothing else tells them apart."""
    keys = sorted({key for one in settings for key in one})
    found = [key for key in keys if len({json.dumps(one.get(key)) for one in settings}) > 1]
    for hashed in HASHES:
        others = [key for key in found if key != hashed]
        if _kinds(settings, others) == _kinds(settings, found):
            found = others
    return found


def _kinds(settings: Sequence[dict[str, Any]], keys: Sequence[str]) -> int:
    return len({json.dumps([one.get(key) for key in keys]) for one in settings})


def shown(value: Any) -> str:
    """A setting as a label shows it."""
    if value is None:
        return "–"
    if isinstance(value, list):
        return "+".join(map(shown, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _label(mine: dict[str, Any], rivals: Sequence[dict[str, Any]]) -> str:
    """The loss and every setting that tells it from its rivals, the telling ones first."""
    keys = differing(rivals)
    ordered = [key for key in BRIEFLY if key in keys] + [key for key in keys if key not in BRIEFLY]
    words = [BRIEFLY.get(key, f"{key}={{}}").format(shown(mine.get(key))) for key in ordered]
    return " ".join([str(mine["loss"]), *words])


def _is_baseline(settings: dict[str, Any]) -> bool:
    return settings["loss"] == "dpo" and len(settings.get("refs") or []) == 1


def _order(one: MethodRuns) -> tuple[Any, ...]:
    """Baselines first, then by the words of the label, numbers by size."""
    words: list[tuple[int, float, str]] = []
    for word in one.label.split():
        try:
            words.append((0, float(word.rpartition("=")[2]), word))
        except ValueError:
            words.append((1, 0.0, word))
    return (not one.baseline, words)
