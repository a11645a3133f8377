"""The arms of the study, as recipes: arms.yaml says what each changes of the common one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mrpo_tools import Recipe

FILE = Path(__file__).parent / "arms.yaml"
SPLIT_FILE = FILE.with_name("arms_split.yaml")
"""Of the second design."""
WAVES = ("first", "second", "after")


@dataclass(frozen=True)
class Arms:
    """What is trained.

    Attributes:
        common: keys of every recipe.
        rates: the learning rates of every arm.
        waves: the words of each arm by name, for each wave.
        temperatures: at which the untrained policy answers, for comparison.
        round_one: the arm and learning rate whose policy begins the next round.
    """

    common: Mapping[str, Any]
    rates: tuple[float, ...]
    waves: Mapping[str, Mapping[str, Mapping[str, Any]]]
    temperatures: tuple[float, ...]
    round_one: tuple[str, float]

    def recipe(self, arm: str, rate: float, seed: int) -> Recipe:
        """The recipe of one run."""
        words = next(wave[arm] for wave in self.waves.values() if arm in wave)
        mine = {**self.common, **words, "learning_rate": rate, "seed": seed}
        if len(words["refs"]) == 1:
            del mine["epsilon_max"]  # it means nothing
        return Recipe(**mine)

    def is_round_two(self, arm: str) -> bool:
        """Whether an arm begins from the policy of round one."""
        return arm.startswith("round_")


def load_arms(file: Path = FILE) -> Arms:
    """Read the arms."""
    words = yaml.safe_load(file.read_text(encoding="utf-8"))
    one = words["round_one"]
    return Arms(
        common=words["common"],
        rates=tuple(words["learning_rates"]),
        waves={wave: words.get(wave, {}) for wave in WAVES},
        temperatures=tuple(words.get("temperatures", ())),
        round_one=(one["arm"], one["learning_rate"]),
    )
