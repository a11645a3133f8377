"""`RUN/outcomes/<split>.answers.jsonl`: what a policy answered, before training and after.

Each line is a prompt with its responses, in the form of data (docs/data.md), so that answers can be
read, compared and trained on like any others.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mrpo_tools.errors import UsageError
from mrpo_tools.files import make_directory, whole_lines, write_whole
from mrpo_tools.groups import Group, group_from_dict
from mrpo_tools.runs.outcomes import OUTCOMES

TRAINED, UNTRAINED = "trained", "untrained"
"""Who wrote an answer: the policy after training, or before."""


@dataclass(frozen=True)
class Judged:
    """An answer with its marks.

    Attributes:
        content: the text.
        score: marks of the rule that leads.
        model: `trained` or `untrained`.
        decoding: `greedy` or `sampled`.
        finish_reason: `stop`, or `length` where the token limit cut it.
    """

    content: str
    score: float
    model: str
    decoding: str
    finish_reason: str


@dataclass(frozen=True)
class Prompted:
    """A prompt with its answers: a group of the data gives the prompt, its name and its split."""

    group: Group
    answers: list[Judged]


def answers_file(run: Path, split: str) -> Path:
    """Where a run's answers to the prompts of a split are."""
    return run / OUTCOMES / f"{split}.answers.jsonl"


def write_answers(path: Path, rows: Sequence[Prompted]) -> None:
    """Write the file in one step.

    Raises:
        ResourceError: the disk is full, or refuses.
    """
    make_directory(path.parent)
    lines = [
        json.dumps(
            row.group.as_dict() | {"responses": [asdict(answer) for answer in row.answers]},
            ensure_ascii=False,
        )
        for row in rows
    ]
    write_whole(path, "".join(f"{line}\n" for line in lines).encode())


def read_answers(path: Path) -> list[Prompted]:
    """Every prompt with its answers; none where there is no file.

    Raises:
        UsageError: it cannot be read.
    """
    if not path.exists():
        return []
    try:
        rows = [json.loads(line) for line in whole_lines(path)]
        return [
            Prompted(group_from_dict(row), [Judged(**answer) for answer in row["responses"]])
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} cannot be read: {error}", "mrpo evaluate RUN --rule … writes it anew"
        ) from None
