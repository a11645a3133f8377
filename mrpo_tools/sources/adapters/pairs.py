"""Adapters of preference pairs: one chosen and one rejected response."""

from __future__ import annotations

from dataclasses import replace

from mrpo_tools.groups import Response, user_prompt
from mrpo_tools.messages import Message
from mrpo_tools.sources.adapters.adapter import Parsed
from mrpo_tools.sources.adapters.conversation import (
    Prompt,
    alpaca_prompt,
    common_text,
    common_turns,
    completion_of,
    messages,
    prompt_of,
)
from mrpo_tools.sources.adapters.fields import Field
from mrpo_tools.sources.adapters.transcripts import transcript, transcript_prompt

_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
    ("rating_chosen", "rating_rejected"),
)
_MODELS = (("chosen_model", "rejected_model"), ("chosen-model", "rejected-model"))
_PROMPTS = ("instruction", "prompt", "question", "input", "messages")


def pair(row: Field, prompt: Prompt, chosen: Response, rejected: Response) -> Parsed:
    """A pair, with the scores and models of whichever columns the row has for both of them."""
    scores: list[float | None] = [None, None]
    for columns in _SCORES:
        if row.has(*columns):
            scores = [row[column].number() for column in columns]
    models: list[str | None] = [None, None]
    for columns in _MODELS:
        if row.has(*columns):
            models = [row[column].optional_text() for column in columns]
    return prompt, [
        replace(chosen, score=scores[0], chosen=True, model=models[0]),
        replace(rejected, score=scores[1], chosen=False, model=models[1]),
    ]


def has_one_sided_score(row: Field) -> bool:
    """Whether one of a pair's two scores is there and the other is not, so that none is used."""
    scored = [[row.has(column) for column in columns] for columns in _SCORES]
    return any(map(any, scored)) and not any(map(all, scored))


def _answers(row: Field, prompt: Prompt) -> Parsed:
    chosen, rejected = (completion_of(row[column], prompt) for column in ("chosen", "rejected"))
    return pair(row, prompt, chosen, rejected)


def read_pairs(row: Field) -> Parsed:
    """`prompt, chosen, rejected`: texts, or messages with the answers as one-message lists."""
    return _answers(row, prompt_of(row["prompt"]))


def read_steps(row: Field) -> Parsed:
    """`prompt, initial_reason_steps, chosen, rejected`: the next step of a solution that begins."""
    prompt = user_prompt(row["prompt"].text())
    begun = row["initial_reason_steps"].optional_text()
    prompt = (*prompt, Message("assistant", begun)) if begun else prompt
    return _answers(row, prompt)


def read_binarized(row: Field) -> Parsed:
    """`prompt` text, `chosen, rejected` messages: the answers, or the whole conversations."""
    answers = (row["chosen"].value, row["rejected"].value)
    if any(isinstance(answer, (list, tuple)) and len(answer) == 1 for answer in answers):
        return read_pairs(row)
    parsed = read_conversations(row)
    row.forgive("prompt", {turn.content for turn in parsed[0]})
    return parsed


def read_conversations(row: Field) -> Parsed:
    """`chosen, rejected`: two conversations; the turns they share are the prompt."""
    chosen, rejected = row["chosen"], row["rejected"]
    turns = common_turns(chosen, rejected, messages(chosen), messages(rejected))
    return pair(row, *turns)


def read_implicit(row: Field) -> Parsed:
    """`chosen, rejected`: two texts; the words they begin with are the prompt."""
    return pair(row, *common_text(row["chosen"], row["rejected"]))


def read_transcripts(row: Field) -> Parsed:
    """`chosen, rejected`: two transcripts; the turns they share are the prompt."""
    chosen, rejected = row["chosen"], row["rejected"]
    turns = common_turns(chosen, rejected, transcript(chosen), transcript(rejected))
    return pair(row, *turns)


def read_transcript_pairs(row: Field) -> Parsed:
    """`prompt` a transcript, `chosen, rejected` texts that may follow it after a space."""
    prompt = transcript_prompt(row["prompt"])
    texts = (row[column].text().lstrip() for column in ("chosen", "rejected"))
    return pair(row, prompt, *map(Response, texts))


def read_output_pair(row: Field) -> Parsed:
    """`instruction, input, output: [chosen, rejected]`."""
    chosen, rejected = row["output"].items(2, of="[chosen, rejected]")
    return pair(row, alpaca_prompt(row), Response(chosen.text()), Response(rejected.text()))


def read_alpaca(row: Field) -> Parsed:
    """`instruction, input?, history?, chosen, rejected`."""
    return _answers(row, alpaca_prompt(row))


def read_sharegpt(row: Field) -> Parsed:
    """`conversations, chosen, rejected` with `from` and `value`."""
    return _answers(row, prompt_of(row["conversations"]))


def read_question(row: Field) -> Parsed:
    """`question, chosen, rejected`."""
    return _answers(row, user_prompt(row["question"].text()))


def read_openai(row: Field) -> Parsed:
    """`input: {messages, tools?}, preferred_output, non_preferred_output`."""
    asked = row["input"]
    asked.uses("messages", "tools")
    prompt = prompt_of(asked["messages"])
    columns = ("preferred_output", "non_preferred_output")
    return pair(row, prompt, *(completion_of(row[column], prompt) for column in columns))


def read_distilabel(row: Field) -> Parsed:
    """`instruction` (or `prompt`, …), `chosen_response, rejected_response` and their ratings."""
    column = next((column for column in _PROMPTS if row.has(column)), _PROMPTS[0])
    prompt = prompt_of(row[column])
    columns = ("chosen_response", "rejected_response")
    return pair(row, prompt, *(completion_of(row[column], prompt) for column in columns))
