"""One replicate: models, data, cached numbers and controls, drawn anew from its seed.

What is there is not made again, so a study that was stopped goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controls import import_controls
from models import PLANS, Beliefs, make_model
from sampled import answer_texts
from tasks import draw_prompts
from transformers import AutoModelForCausalLM, AutoTokenizer

from data import draw_answers, write_groups
from mrpo_tools import Cache, Reference, load_groups, precompute
from mrpo_tools.groups import Group, in_split

ROUND_ONE = "round_one"


@dataclass(frozen=True)
class Size:
    """How large a replicate is.

    Attributes:
        train: prompts of the split; the others likewise.
        steps: of the models' own training.
        rows: of the texts that they learn from.
        measured: the split whose prompts are answered: `validation` to choose settings.
        split_beliefs: models know some facts and mistake others, see `draw_beliefs`.
    """

    train: int = 320
    validation: int = 200
    test: int = 500
    steps: int = 240
    rows: int = 8192
    measured: str = "test"
    split_beliefs: bool = False


class Replicate:
    """A directory with everything that the runs of one replicate share."""

    def __init__(self, folder: Path, seed: int, size: Size) -> None:
        self.folder, self.seed, self.size = folder, seed, size
        self.models = folder / "models"
        self.cache = Cache(folder / "cache")
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "ready").exists():
            self._make()
            (folder / "ready").touch()
        self.groups = load_groups(str(folder / "data.jsonl")).groups
        self.base = self.load("base")
        self.tokenizer = AutoTokenizer.from_pretrained(self.models / "base")

    @property
    def references(self) -> dict[str, Reference]:
        """Every model by name, that of round one too once it is there."""
        names = [name for name in (*PLANS, ROUND_ONE) if (self.models / name).exists()]
        return {name: Reference(model=str(self.models / name), dtype="float32") for name in names}

    def load(self, name: str | Path) -> Any:
        """A model by name or path."""
        return AutoModelForCausalLM.from_pretrained(self.models / name).eval()

    def prompts(self, split: str) -> list[str]:
        """The texts of a split's prompts."""
        return [group.prompt[-1].content for group in in_split(self.groups, split)]

    def _make(self) -> None:
        size = self.size
        beliefs: dict[str, Beliefs] = {
            name: make_model(
                name, self.models, self.seed, size.steps, size.rows, split=size.split_beliefs
            )
            for name in PLANS
        }
        sizes = {"train": self.size.train, "validation": self.size.validation,
                 "test": self.size.test}  # fmt: skip
        prompts = draw_prompts(sizes, self.seed)
        answers = draw_answers(beliefs["base"], list(prompts), self.seed)
        write_groups(self.folder / "data.jsonl", prompts, answers, self.seed)
        groups = in_split(load_groups(str(self.folder / "data.jsonl")).groups, "train")
        precompute(self.references, groups, self.cache, "study")
        import_controls(self.cache, groups, self.models, self.seed)

    def second_round(self) -> Sequence[Group]:
        """The data of the next round: the first round's policy answers new prompts.

        Made once, when that policy has been moved to its place among the models.
        """
        file = self.folder / "second.jsonl"
        if not file.exists():
            prompts = draw_prompts({"train": self.size.train}, self.seed + 500)
            texts = answer_texts(
                self.load(ROUND_ONE), self.tokenizer, list(prompts), self.seed + 500
            )
            write_groups(file, prompts, texts, self.seed + 500)
        groups = load_groups(str(file)).groups
        wanted = {name: self.references[name] for name in ("base", ROUND_ONE)}
        precompute(wanted, groups, self.cache, "second")
        return groups
