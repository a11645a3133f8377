"""Question files of judged benchmarks, and answers in the form that each one's judge reads.

AlpacaEval asks one instruction, Arena-Hard (v2) one prompt, MT-Bench two turns, the second of
which follows the first answer. The fields are those that are published; the code that judges them
stays with the benchmarks, or with `mrpo judge`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrpo_tools.errors import DataError, disk_error
from mrpo_tools.files import whole_file
from mrpo_tools.groups import Group, Response, content_id
from mrpo_tools.messages import Message
from mrpo_tools.sources.adapters.fields import Field
from mrpo_tools.sources.load import read_rows
from mrpo_tools.sources.readers.rows import Problem
from mrpo_tools.words import AnswersForm

JsonRow = Mapping[str, Any]
Ask = Callable[[Sequence[Group]], Sequence[Group]]
"""Groups of prompts to groups with an answer each."""


@dataclass(frozen=True)
class Form:
    """How a benchmark asks and wants to be answered.

    Attributes:
        columns: of a question, which a message names.
        turns: of a question, what is asked, in this order.
        row: a question, its answers in the order of the turns, and who gave them, to a row.
        suffix: of the file of answers: lines, or one list.
    """

    columns: str
    turns: Callable[[Field], list[str]]
    row: Callable[[JsonRow, Sequence[str], str], JsonRow]
    suffix: str = ".jsonl"


@dataclass(frozen=True)
class Question:
    """A row of a question file.

    Attributes:
        row: as it is published.
        turns: what is asked, one after the other.
    """

    row: JsonRow
    turns: tuple[str, ...]


@dataclass(frozen=True)
class Answered:
    """A question with its answers.

    Attributes:
        question: what was asked.
        responses: one a turn.
    """

    question: Question
    responses: tuple[Response, ...]


def _alpaca_eval(row: JsonRow, answers: Sequence[str], model: str) -> JsonRow:
    """`instruction, output, generator, dataset?`."""
    about = {key: row[key] for key in ("dataset", "datasplit") if key in row}
    return {**about, "instruction": row["instruction"], "output": answers[0], "generator": model}


def _arena_hard(row: JsonRow, answers: Sequence[str], model: str) -> JsonRow:
    """`uid, ans_id, model, messages, tstamp`; the answer's content is an object."""
    return {
        "uid": row["uid"],
        "ans_id": content_id([row["uid"], model, *answers]),
        "model": model,
        "messages": [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": {"answer": answers[0]}},
        ],
        "tstamp": time.time(),
    }


def _mt_bench(row: JsonRow, answers: Sequence[str], model: str) -> JsonRow:
    """`question_id, answer_id, model_id, choices: [{index, turns}], tstamp`."""
    return {
        "question_id": row["question_id"],
        "answer_id": content_id([row["question_id"], model, *answers]),
        "model_id": model,
        "choices": [{"index": 0, "turns": list(answers)}],
        "tstamp": time.time(),
    }


def _named(key: str, name: str) -> Callable[[Field], list[str]]:
    """One question in a column; another one names it."""

    def turns(row: Field) -> list[str]:
        row[name].name()
        return [row[key].text()]

    return turns


def _two_turns(row: Field) -> list[str]:
    row["question_id"].name()
    turns = [turn.text() for turn in row["turns"].items(of="a list of texts")]
    if not turns:
        row["turns"].expected("a list of texts")
    return turns


FORMS: dict[AnswersForm, Form] = {
    "alpaca_eval": Form(
        "instruction", lambda row: [row["instruction"].text()], _alpaca_eval, ".json"
    ),
    "arena_hard": Form("uid, prompt", _named("prompt", "uid"), _arena_hard),
    "mt_bench": Form("question_id, turns", _two_turns, _mt_bench),
}


def read_questions(
    source: str | Path, form: AnswersForm, limit: int | None = None
) -> list[Question]:
    """The questions of a benchmark, from any file or hub data set that holds its rows.

    Args:
        source: as data is named.
        form: whose questions they are.
        limit: the first so many.

    Raises:
        DataError: rows that cannot be read, or are no questions of this benchmark.
        UsageError: the source is not there.
    """
    problems: list[Problem] = []
    questions: list[Question] = []
    for number, row in enumerate(read_rows(source), 1):
        turns = FORMS[form].turns(Field(row, "", f"{source}: row {number}", problems))
        questions.append(Question(row, tuple(turns)))
    if problems:
        raise DataError(
            f"{source}: not the questions of {form}, which have {FORMS[form].columns}",
            problems,
            "name the benchmark's file of questions: --dataset FILE",
        )
    return questions[:limit]


def answer(questions: Sequence[Question], ask: Ask) -> list[Answered]:
    """Every turn of every question, each after the answers to those before it.

    Args:
        questions: of a benchmark.
        ask: answers prompts; equal ones may come back once.
    """
    said: list[tuple[Message, ...]] = [()] * len(questions)
    answers: list[tuple[Response, ...]] = [()] * len(questions)
    for turn in range(max(len(question.turns) for question in questions)):
        asked = {
            number: Group((*said[number], Message("user", question.turns[turn])), ())
            for number, question in enumerate(questions)
            if turn < len(question.turns)
        }
        found = {group.prompt_id: group.responses[0] for group in ask(list(asked.values()))}
        for number, group in asked.items():
            response = found[group.prompt_id]
            said[number] = (*group.prompt, Message("assistant", response.content))
            answers[number] += (response,)
    return [Answered(*pair) for pair in zip(questions, answers, strict=True)]


def rows_of(answered: Sequence[Answered], form: AnswersForm, model: str) -> Iterator[JsonRow]:
    """The rows of the benchmark's file of answers."""
    for each in answered:
        texts = [response.content for response in each.responses]
        yield FORMS[form].row(each.question.row, texts, model)


def write_answered(path: Path, answered: Sequence[Answered], form: AnswersForm, model: str) -> None:
    """Write a benchmark's file of answers; it appears whole.

    Raises:
        ResourceError: the disk is full, or refuses.
    """
    rows = list(rows_of(answered, form, model))
    if FORMS[form].suffix == ".json":
        text = json.dumps(rows, indent=2, ensure_ascii=False) + "\n"
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        with whole_file(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise disk_error(path, error) from None
