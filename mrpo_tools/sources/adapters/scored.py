"""Adapters of groups: a prompt with many responses, or one response a row, with their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

from mrpo_tools.groups import Response, user_prompt
from mrpo_tools.messages import Message
from mrpo_tools.sources.adapters.adapter import Parsed
from mrpo_tools.sources.adapters.conversation import (
    SAID_BESIDES,
    Prompt,
    answer_of,
    completion_of,
    ending_with_user,
    prompt_of,
    said_in,
    tree_turn,
)
from mrpo_tools.sources.adapters.fields import Field
from mrpo_tools.sources.adapters.transcripts import transcript_prompt
from mrpo_tools.words import Status

ULTRAFEEDBACK_SCORES = ("overall", "fine-grained", "mean")
_ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
HELPSTEER_SCORES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity", "mean")


def read_canonical(row: Field) -> Parsed:
    """`prompt, responses: [{content, score?, chosen?, model?, tool_calls?, …}], sampler?`."""
    row.reads("sampler")
    return _responses(row, "content")


def read_outputs(row: Field) -> Parsed:
    """`prompt, responses: [{output, score?, chosen?, model?}]`."""
    return _responses(row, "output")


def _responses(row: Field, content: str) -> Parsed:
    prompt = prompt_of(row["prompt"])
    responses = row["responses"].items(of=f"a list of objects with '{content}'")
    return prompt, [_response(response, content) for response in responses]


def _response(response: Field, content: str) -> Response:
    response.uses(content, "score", "chosen", "model", "finish_reason", "status", *SAID_BESIDES)
    finish_reason = response["finish_reason"].optional_text()
    is_silent = finish_reason is not None and response[content].value == ""
    status = "empty" if is_silent else _status(response, finish_reason)
    said = Response("") if is_silent else answer_of(said_in(response, "assistant", content))
    return replace(
        said,
        score=response["score"].number() if response.has("score") else None,
        chosen=response["chosen"].boolean() if response.has("chosen") else None,
        model=response["model"].optional_text(),
        finish_reason=finish_reason,
        status=status,
    )


def _status(response: Field, finish_reason: str | None) -> Status | None:
    """What is amiss with an answer that says something; of one that was cut nobody need say it."""
    if response.has("status"):
        statuses: tuple[Status, ...] = get_args(Status)
        return response["status"].one_of(statuses)
    return "truncated" if finish_reason == "length" else None


def read_ultrafeedback(row: Field, score: str) -> Parsed:
    """`instruction, completions: [{response, overall_score, annotations, …}]`."""
    prompt = user_prompt(row["instruction"].text())
    return prompt, [
        Response(
            content=completion["response"].text(),
            score=_judged(completion, score),
            model=completion["model"].optional_text(),
        )
        for completion in row["completions"].items()
    ]


def read_code_ultrafeedback(row: Field) -> Parsed:
    """`instruction, responses: [{model, response}], annotations: [{model, rating}]`."""
    ratings = {note["model"].text(): _rating(note["rating"]) for note in row["annotations"].items()}
    return user_prompt(row["instruction"].text()), [
        Response(
            content=response["response"].text(),
            score=ratings.get(response["model"].text()),
            model=response["model"].optional_text(),
        )
        for response in row["responses"].items()
    ]


def _judged(completion: Field, score: str) -> float:
    if score == "overall":
        return completion["overall_score"].number()
    if score == "fine-grained":
        return completion["fine-grained_score"].number()
    annotations = completion["annotations"]
    ratings = [_rating(annotations[aspect]["Rating"]) for aspect in _ASPECTS]
    numbers = [rating for rating in ratings if rating is not None]
    if not numbers:
        annotations.bad("every Rating is 'N/A', expected a number for one aspect at least")
    return _mean(numbers)


def _rating(field: Field) -> float | None:
    """A rating of 1-5, which the data writes as text; None for N/A."""
    text = field.value.strip() if isinstance(field.value, str) else ""
    if text == "N/A":
        return None
    if text.isascii() and text.isdecimal() and len(text) < 3:
        return float(text)
    field.expected("a number in quotes, or 'N/A'")
    return 0.0


def read_helpsteer(row: Field, score: str) -> Parsed:
    """`prompt, response, helpfulness, correctness, coherence, complexity, verbosity`."""
    names = HELPSTEER_SCORES[:-1] if score == "mean" else (score,)
    value = _mean([row[name].number() for name in names])
    return transcript_prompt(row["prompt"]), [Response(row["response"].text(), value)]


def read_nectar(row: Field) -> Parsed:
    """`prompt` a transcript, `answers: [{answer, rank, model}]`; rank 1 is best, so score -1."""
    return transcript_prompt(row["prompt"]), [
        Response(
            content=answer["answer"].text(),
            score=0.0 - answer["rank"].number(),
            model=answer["model"].optional_text(),
        )
        for answer in row["answers"].items()
    ]


def read_simpo(row: Field) -> Parsed:
    """`prompt, all_generated_responses, all_rm_scores`."""
    return _parallel(row, "all_generated_responses", "all_rm_scores")


def read_rewards(row: Field) -> Parsed:
    """`prompt, responses: [text, …], rewards: [number, …]`."""
    return _parallel(row, "responses", "rewards")


def read_completions(row: Field) -> Parsed:
    """`prompt, completions: [text, …], scores: [number, …]`."""
    return _parallel(row, "completions", "scores")


def read_rewarded(row: Field) -> Parsed:
    """`prompt, response, reward`: one response a row."""
    prompt = prompt_of(row["prompt"])
    answer = completion_of(row["response"], prompt)
    return prompt, [replace(answer, score=row["reward"].number())]


def read_alpaca_eval(row: Field) -> Parsed:
    """`instruction, output, generator`: one response a row."""
    response = Response(row["output"].text(), model=row["generator"].name())
    return user_prompt(row["instruction"].text()), [response]


def read_arena_hard(row: Field) -> Parsed:
    """`uid, model, messages: [{role, content}, …, {role, content: {answer}}]`: one response a row.

    The content of the prompt's turns is text, that of the answer an object, as it was published.
    """
    *turns, said = row["messages"].items(of="a list of messages") or [row["messages"]]
    prompt = tuple(Message(turn["role"].text(), turn["content"].text()) for turn in turns)
    response = Response(said["content"]["answer"].text(), model=row["model"].name())
    return ending_with_user(row["messages"], prompt), [response]


def read_stack_exchange(row: Field) -> Parsed:
    """`question, answers: [{text, pm_score}]`."""
    return user_prompt(row["question"].text()), [
        Response(answer["text"].text(), answer["pm_score"].number())
        for answer in row["answers"].items()
    ]


def read_tree(row: Field) -> list[Parsed]:
    """Open-Assistant's `prompt: {text, role, replies: [{text, role, rank, replies}]}`.

    A group for every question: the turns that lead to it and all its answers; the best has rank 0.
    """
    groups: list[Parsed] = []
    nodes: list[tuple[Prompt, Field]] = [((), row["prompt"])]
    while nodes:
        before, node = nodes.pop()
        turns = (*before, tree_turn(node))
        replies = node["replies"].items() if node.has("replies") else []
        nodes += [(turns, reply) for reply in reversed(replies)]
        if replies and turns[-1].role == "user":
            prompt = ending_with_user(node, turns)
            groups.append((prompt, [_ranked(reply) for reply in replies]))
    return groups


def _ranked(reply: Field) -> Response:
    rank = 0.0 - reply["rank"].number() if reply.has("rank") else None
    return Response(reply["text"].text(), rank)


def _parallel(row: Field, responses: str, scores: str) -> Parsed:
    texts = row[responses].items()
    numbers = row[scores].items(len(texts), of=f"{len(texts)} numbers, one for each response")
    return prompt_of(row["prompt"]), [
        Response(text.text(), number.number()) for text, number in zip(texts, numbers, strict=True)
    ]


def read_sets(row: Field) -> Parsed:
    """`prompt, chosen: [answer, …], rejected: [answer, …]`, answers as text or messages."""
    prompt = prompt_of(row["prompt"])
    return prompt, [
        replace(completion_of(answer, prompt), chosen=column == "chosen")
        for column in ("chosen", "rejected")
        for answer in row[column].items()
    ]


def read_unpaired(row: Field) -> Parsed:
    """`prompt, completion, label`: one response a row."""
    prompt = prompt_of(row["prompt"])
    answer = completion_of(row["completion"], prompt)
    return prompt, [replace(answer, chosen=row["label"].boolean())]


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0
