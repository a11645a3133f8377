"""A recipe of rounds: an ordinary recipe, and under `rounds:` what is done between trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, model_validator

from mrpo_tools.config import PROJECT_FILE, Recipe, Words, find_recipe, parse, read_yaml
from mrpo_tools.errors import UsageError
from mrpo_tools.maths import objectives
from mrpo_tools.methods.method import find_loss, objective_of
from mrpo_tools.sampling import Sampling
from mrpo_tools.words import KeptStatus, RoundStart

KEY = "rounds"
BASE, HISTORY = "base", "history"
"""Names in `references` that mean the first policy, and those of earlier rounds."""
SET_BY_ROUNDS = {
    "refs": "references", "policy": "start", "behaviour": "the round's policy",
    "split": "the round's samples",
}  # fmt: skip
"""Keys of a recipe that a round sets itself, and what says it."""


class RoundPlan(Words):
    """What is done between trainings."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    count: int = Field(default=3, ge=1)
    """Rounds, unless `--rounds` says how many."""
    policy: str | None = None
    """The first policy: a reference of the project; unset, its first one."""
    references: list[str] = Field(default_factory=lambda: [BASE])
    """`base` is the first policy, `history` those of earlier rounds; others are the project's."""
    history: int | None = Field(default=None, ge=1)
    """So many of the last rounds' policies; unset, all."""
    start: RoundStart = "last"
    """Where each training begins."""
    by_round: list[dict[str, Any]] = Field(default_factory=list)
    """Keys of the recipe for round 1, 2, …; the last of them holds for later rounds."""
    keep: float = Field(default=0.0, ge=0, le=1)
    """Share of the earlier rounds' groups that are trained on again."""
    prompts: int | None = Field(default=None, ge=1)
    """Prompts of a round, others in each until all have been asked; unset, all in each."""
    n: int = Field(default=5, ge=2)
    """Answers to each prompt."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Only the likeliest tokens that together have this probability are drawn."""
    top_k: int = Field(default=0, ge=0)
    """Only so many of the likeliest tokens are drawn; 0: all."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Of an answer."""
    keep_status: tuple[KeptStatus, ...] = ()
    """Answers that are trained on though something is amiss with them: `truncated`, …"""
    seed: int = 0
    """What decides the answers and which prompts and groups are taken."""
    samples: int = Field(default=4, ge=1)
    """Answers to each prompt of `eval_split`, by which a round is measured, drawn at T 1."""

    @model_validator(mode="after")
    def _begins_with_base(self) -> RoundPlan:
        if self.references[:1] != [BASE]:
            raise ValueError("references begins with base: reference 1 is the first policy")
        return self

    def sampling(self, number: int) -> Sampling:
        """How the answers of round `number` are drawn."""
        return Sampling(
            n=self.n, temperature=self.temperature, top_p=self.top_p, top_k=self.top_k,
            max_new_tokens=self.max_new_tokens, seed=self.seed + number,
        )  # fmt: skip

    @property
    def measuring(self) -> Sampling:
        """How the answers that measure a round are drawn."""
        return Sampling(self.samples, 1.0, max_new_tokens=self.max_new_tokens)


@dataclass(frozen=True)
class RoundRecipe:
    """A recipe of rounds.

    Attributes:
        train: the recipe's words that every round trains with.
        plan: what is done between trainings.
    """

    train: Mapping[str, Any]
    plan: RoundPlan

    @property
    def _objective(self) -> objectives.Objective:
        return objective_of(find_loss(str(self.train.get("loss") or "mrpo")))

    @property
    def needs_pairs(self) -> bool:
        """Whether the samples stand beside the data's own labelled pairs."""
        return self._objective.samples and not self._objective.scores

    def references(self, base: str, earlier: Sequence[str]) -> list[str]:
        """The references of a round, reference 1 first.

        Args:
            base: the first policy.
            earlier: policies of earlier rounds, the last one first.
        """
        history = list(earlier[: self.plan.history])
        names: list[str] = []
        for word in self.plan.references:
            names += {BASE: [base], HISTORY: history}.get(word, [word])
        return list(dict.fromkeys(names))

    def recipe(self, base: str, earlier: Sequence[str], start: str | None) -> Recipe:
        """What a round trains by.

        Args:
            base: the first policy.
            earlier: policies of earlier rounds, the last one first.
            start: path of the policy to begin from; None begins from reference 1.
        """
        own = self.plan.by_round[: len(earlier) + 1][-1:]
        words = {**self.train, **(own[0] if own else {})}
        words |= {"refs": self.references(base, earlier), "policy": start}
        if self._objective.samples:
            words["behaviour"] = next(iter(earlier), base)
        if self.needs_pairs:
            words |= {"score": None, "held_out_score": None}  # they measure; labels train
        return parse(Recipe, words, f"round {len(earlier) + 1}")


def load_round_recipe(path: Path, over: Mapping[str, Any] | None = None) -> RoundRecipe:
    """A recipe of rounds.

    Args:
        path: a YAML file, or the name of one that mrpo brings along.
        over: keys over those of the file; `rounds.n` is one of the plan.

    Raises:
        UsageError: it cannot be read, names no scorer, or says what a round sets itself.
    """
    file = find_recipe(path)
    values = read_yaml(file, "mrpo recipe --rounds > recipe.yaml writes one with every key")
    if file.name == PROJECT_FILE and {"dataset", "references"} & values.keys():
        raise UsageError(f"{file} is the project, not a recipe")
    plan = dict(values.pop(KEY, None) or {})
    for key, value in (over or {}).items():
        owner, _, rest = key.partition(".")
        if owner == KEY and rest:
            plan[rest] = value
        else:
            values[key] = value
    if not values.get("score"):
        raise UsageError(
            f"{file}: a round trains on the scores of its samples, and nothing says whose",
            "score: NAME of a scorer, `scorers:` in mrpo.yaml",
        )
    each = [values, *(plan.get("by_round") or [])]
    own = [key for key in SET_BY_ROUNDS if any(words.get(key) for words in each)]
    if own:
        raise UsageError(
            "\n".join(f"{file}: {key} is set by each round: {SET_BY_ROUNDS[key]}" for key in own),
            f"leave it out, or say it under `{KEY}:`",
        )
    recipe = RoundRecipe(values, parse(RoundPlan, plan, f"{file}: {KEY}"))
    for number in range(max(len(recipe.plan.by_round), 1)):  # refused now, not after samples
        recipe.recipe(BASE, [f"round-{each}" for each in range(number, 0, -1)], None)
    return recipe
