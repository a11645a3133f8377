"""Adapters of preference pairs: one chosen and one rejected response."""

from __future__ import annotations

from mrpo_tools.groups import Message, Response, user_prompt
from mrpo_tools.sources.adapters.adapter import Parsed
from mrpo_tools.sources.adapters.conversation import (
    Prompt,
    common_text,
    common_turns,
    completion_of,
    ending_with_user,
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
)
_MODELS = (("chosen_model", "rejected_model"), ("chosen-model", "rejected-model"))
_PROMPTS = ("instruction", "prompt", "question", "input")


def pair(row: Field, prompt: Prompt, chosen: str, rejected: str) -> Parsed:
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
        Response(chosen, scores[0], chosen=True, model=models[0]),
        Response(rejected, scores[1], chosen=False, model=models[1]),
    ]


def _answers(row: Field, prompt: Prompt) -> Parsed:
    chosen, rejected = (completion_of(row[column], prompt) for column in ("chosen", "rejected"))
    return pair(row, prompt, chosen, rejected)


def read_pairs(row: Field) -> Parsed:
    """`prompt, chosen, rejected`: texts, or messages with the answers as one-message lists."""
    return _answers(row, prompt_of(row["prompt"]))


def read_binarized(row: Field) -> Parsed:
    """`prompt` text, `chosen, rejected` messages: the answers, or the whole conversations."""
    answers = (row["chosen"].value, row["rejected"].value)
    if any(isinstance(answer, (list, tuple)) and len(answer) == 1 for answer in answers):
        return read_pairs(row)
    return read_conversations(row)


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
    return pair(row, prompt, *(row[column].text().lstrip() for column in ("chosen", "rejected")))


def read_output_pair(row: Field) -> Parsed:
    """`instruction, input, output: [chosen, rejected]`."""
    chosen, rejected = row["output"].items(2, of="[chosen, rejected]")
    return pair(row, _alpaca_prompt(row), chosen.text(), rejected.text())


def read_alpaca(row: Field) -> Parsed:
    """`instruction, input?, system?, history?, chosen, rejected`."""
    return _answers(row, _alpaca_prompt(row))


def _alpaca_prompt(row: Field) -> Prompt:
    """The input follows the instruction on the next line, as LLaMA-Factory joins them."""
    asked = "\n".join(filter(None, [row["instruction"].text(), row["input"].optional_text()]))
    prompt = user_prompt(asked, row["system"].optional_text())
    if not row.has("history"):
        return prompt
    past = [turn.items(2, of="[question, answer]") for turn in row["history"].items()]
    turns = [
        Message(role, said.text())
        for turn in past
        for role, said in zip(("user", "assistant"), turn, strict=True)
    ]
    return (*prompt[:-1], *turns, prompt[-1])


def read_sharegpt(row: Field) -> Parsed:
    """`conversations, chosen, rejected` with `from` and `value`; `system` may be a column."""
    prompt = messages(row["conversations"])
    system = row["system"].optional_text()
    if system and prompt[:1] and prompt[0].role != "system":
        prompt = (Message("system", system), *prompt)
    return _answers(row, ending_with_user(row["conversations"], prompt))


def read_question(row: Field) -> Parsed:
    """`system?, question, chosen, rejected`."""
    return _answers(row, user_prompt(row["question"].text(), row["system"].optional_text()))


def read_distilabel(row: Field) -> Parsed:
    """`instruction` (or `prompt`, …), `chosen_response, rejected_response` and their ratings."""
    column = next((column for column in _PROMPTS if row.has(column)), _PROMPTS[0])
    prompt = prompt_of(row[column])
    return pair(row, prompt, row["chosen_response"].text(), row["rejected_response"].text())


def read_helpsteer3(row: Field) -> Parsed:
    """`context, response1, response2, overall_preference`."""
    return _by_preference(row, prompt_of(row["context"]), "response", "overall_preference")


def read_helpsteer2_preference(row: Field) -> Parsed:
    """`prompt, response_1, response_2, preference_strength`."""
    prompt = transcript_prompt(row["prompt"])
    return _by_preference(row, prompt, "response_", "preference_strength")


def _by_preference(row: Field, prompt: Prompt, response: str, preference: str) -> Parsed:
    """-3: the first is much better, 3: the second is. The difference of the scores says so.

    Without a preference (0) the scores are equal and nothing is labelled.
    """
    strength = row[preference].number()
    return prompt, [
        Response(
            content=row[f"{response}{number}"].text(),
            score=sign * strength / 2 + 0.0,
            chosen=None if strength == 0 else sign * strength > 0,
        )
        for number, sign in ((1, -1), (2, 1))
    ]
