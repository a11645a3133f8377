"""Adapters of two responses, a first and a second, and a verdict that names the better one.

A verdict is the points of the first response, as in a game: 1 where it is better, 0 where the
second is, ½ where neither is. The second has the rest. What a column's numbers mean differs from
data set to data set (a 1 is the first here and the second there), so each way of writing a verdict
is a function of its own, and each layout says which is its.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from mrpo_tools.groups import Response, user_prompt
from mrpo_tools.messages import Message
from mrpo_tools.sources.adapters.adapter import Parsed
from mrpo_tools.sources.adapters.conversation import (
    Prompt,
    alpaca_prompt,
    common_turns,
    completion_of,
    messages,
    prompt_of,
)
from mrpo_tools.sources.adapters.fields import Field, as_number, as_truth
from mrpo_tools.sources.adapters.transcripts import transcript_prompt

SAFE_RLHF_SCORES = ("better", "safer")
STRENGTH = 3
"""HelpSteer's preferences go from -3 (the first is much better) to 3."""
TIE = 0.5
_KIND = re.compile(r"^(model|response|output|answer|conversation|assistant|option)[ _-]?")
_NAMES = {"a": 1.0, "1": 1.0, "first": 1.0, "b": 0.0, "2": 0.0, "second": 0.0}
_TURNS = "a JSON list of texts"
_TIES = re.compile(r"(tie|draw|both ?_?bad|neither)\b.*")


def compared(
    prompt: Prompt,
    answers: Sequence[Response],
    scores: Sequence[float],
    models: Sequence[str | None] = (None, None),
) -> Parsed:
    """Two responses by their scores; equal ones are a tie, and nothing is labelled."""
    return prompt, [
        replace(
            answers[place],
            score=scores[place] + 0.0,
            chosen=None if scores[0] == scores[1] else scores[place] > scores[1 - place],
            model=models[place],
        )
        for place in (0, 1)
    ]


def _judged(
    row: Field, prompt: Prompt, columns: Sequence[str], points: float, models: Sequence[str] = ()
) -> Parsed:
    """The responses of two columns; the first has so many points."""
    answers = [completion_of(row[column], prompt) for column in columns]
    names = [row[model].optional_text() for model in models] or [None, None]
    return compared(prompt, answers, (points, 1 - points), names)


def one_or_two(verdict: Field) -> float:
    """1 the first, 2 the second, between them how sure; 0 neither."""
    number = as_number(verdict.value)
    if number is None or not (number == 0 or 1 <= number <= 2):
        verdict.expected("1 (the first), 2 (the second), a number between, or 0 (neither)")
        return TIE
    return 2.0 - number if number else TIE


def index(verdict: Field) -> float:
    """0 the first, 1 the second."""
    return 0.0 if _bit(verdict, "0 (the first) or 1 (the second)") else 1.0


def first_wins(verdict: Field) -> float:
    """1 or true the first, 0 or false the second."""
    return 1.0 if _bit(verdict, "1 (the first) or 0 (the second)") else 0.0


def _bit(verdict: Field, expected: str) -> bool:
    truth = as_truth(verdict.value)
    if truth is None:
        verdict.expected(expected)
    return truth is True


def name(verdict: Field) -> float:
    """`a`, `model_a`, `first`, 1 …; `b`, … 2; `tie`, `draw`, `both_bad`. A 0 may mean anything."""
    number = as_number(verdict.value)
    word = f"{number:g}" if number is not None else str(verdict.value).strip().lower()
    if isinstance(verdict.value, (str, int, float)) and not isinstance(verdict.value, bool):
        if _TIES.fullmatch(word):
            return TIE
        if (points := _NAMES.get(_KIND.sub("", word))) is not None:
            return points
    verdict.expected(
        "a, b or tie, or 1 or 2; where 0 is a and 1 is b, map the column to winner_index, "
        "where 1 is a and 0 is b, to a_wins"
    )
    return TIE


def one_of_three(first: Field, second: Field, neither: Field) -> float:
    """Three columns of which one is 1 and the others 0."""
    marks = [_bit(field, "0 or 1") for field in (first, second, neither)]
    if sum(marks) != 1:
        first.bad(f"{sum(marks)} of the three verdicts are 1, expected one")
    return (1.0, 0.0, TIE)[marks.index(True)] if any(marks) else TIE


def read_winner(row: Field) -> Parsed:
    """`prompt, a, b, winner`: the better one by its name, or as 1 or 2."""
    return _judged(row, prompt_of(row["prompt"]), "ab", name(row["winner"]))


def read_winner_index(row: Field) -> Parsed:
    """`prompt, a, b, winner_index`: 0 is a, 1 is b."""
    return _judged(row, prompt_of(row["prompt"]), "ab", index(row["winner_index"]))


def read_a_wins(row: Field) -> Parsed:
    """`prompt, a, b, a_wins`: 1 or true is a, 0 or false is b."""
    return _judged(row, prompt_of(row["prompt"]), "ab", first_wins(row["a_wins"]))


def read_two_scores(row: Field) -> Parsed:
    """`prompt, a, b, score_a, score_b`: each answer with a score of its own."""
    prompt = prompt_of(row["prompt"])
    answers = [completion_of(row[column], prompt) for column in "ab"]
    return compared(prompt, answers, [row[f"score_{column}"].number() for column in "ab"])


_OUTPUTS = ("output_1", "output_2")


def read_alpaca_farm(row: Field) -> Parsed:
    """`instruction, input?, output_1, output_2, preference`: 1 or 2, or how sure between them."""
    points = one_or_two(row["preference"])
    return _judged(row, alpaca_prompt(row), _OUTPUTS, points, ("generator_1", "generator_2"))


def read_llmbar(row: Field) -> Parsed:
    """`input, output_1, output_2, label`: 1 or 2."""
    return _judged(row, user_prompt(row["input"].text()), _OUTPUTS, one_or_two(row["label"]))


def read_pandalm(row: Field) -> Parsed:
    """`instruction, input?, response1, response2, annotator1, …`: 1, 2 or 0; their mean counts."""
    votes = [one_or_two(row[f"annotator{n}"]) for n in (1, 2, 3) if row.has(f"annotator{n}")]
    points = sum(votes) / len(votes) if votes else TIE
    return _judged(row, alpaca_prompt(row), ("response1", "response2"), points)


def read_lmsys(row: Field) -> Parsed:
    """`prompt, response_a, response_b`: the turns as JSON lists; `winner_model_a, …_b, winner_tie`.

    The two share their first question; where they go on, there is no one answer to compare.
    """
    asked, *said = (
        [turn.text() for turn in row[column].decoded(_TURNS).items(of=_TURNS)]
        for column in ("prompt", "response_a", "response_b")
    )
    if any(len(texts) != len(asked) for texts in said):
        row["prompt"].bad("holds more or fewer turns than the responses, expected as many")
        return (), []
    talks = [_talk(asked, texts) for texts in said]
    marks = (row["winner_model_a"], row["winner_model_b"], row["winner_tie"])
    return _of_conversations(row, ("response_a", "response_b"), talks, one_of_three(*marks))


def _talk(asked: Sequence[str], said: Sequence[str]) -> Prompt:
    turns = zip(asked, said, strict=True)
    return tuple(
        Message(role, text)
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    )


def read_prometheus(row: Field) -> Parsed:
    """`orig_instruction, orig_response_A, orig_response_B, orig_preference`: A, B or a tie."""
    prompt = user_prompt(row["orig_instruction"].text())
    columns = ("orig_response_A", "orig_response_B")
    return _judged(row, prompt, columns, name(row["orig_preference"]))


def read_arena(row: Field) -> Parsed:
    """`conversation_a, conversation_b, winner`; `turn` says how many answers were judged.

    The conversations may be JSON text.
    """
    columns = ("conversation_a", "conversation_b")
    talks = [messages(row[column].decoded("a list of messages")) for column in columns]
    if row.has("turn"):
        judged = int(row["turn"].number(1, 1000))
        talks = [turns[: 2 * judged] for turns in talks]
    return _of_conversations(row, columns, talks, name(row["winner"]))


def _of_conversations(
    row: Field, columns: Sequence[str], talks: Sequence[Prompt], points: float
) -> Parsed:
    prompt, *answers = common_turns(row[columns[0]], row[columns[1]], talks[0], talks[1])
    models = [row[model].optional_text() for model in ("model_a", "model_b")]
    return compared(prompt, answers, (points, 1 - points), models)


def read_shp(row: Field) -> Parsed:
    """`history, human_ref_A, human_ref_B, labels`: 1 is A, 0 is B."""
    prompt = user_prompt(row["history"].text())
    return _judged(row, prompt, ("human_ref_A", "human_ref_B"), first_wins(row["labels"]))


def read_safe_rlhf(row: Field, score: str) -> Parsed:
    """`prompt, response_0, response_1, better_response_id, safer_response_id`: 0 or 1."""
    prompt = user_prompt(row["prompt"].text())
    points = index(row[f"{score}_response_id"])
    return _judged(row, prompt, ("response_0", "response_1"), points)


def read_summaries(row: Field) -> Parsed:
    """`info: {title, post or article}, summaries: [{text}, {text}], choice`: 0 or 1."""
    summaries = row["summaries"].items(2, of="two summaries")
    points = index(row["choice"])
    answers = [Response(summary["text"].text()) for summary in summaries]
    models = [summary["policy"].optional_text() for summary in summaries]
    return compared(_to_summarise(row["info"]), answers, (points, 1 - points), models)


def _to_summarise(info: Field) -> Prompt:
    """The post as the paper's models saw it: subreddit, title, post and `TL;DR:`."""
    if not info.has("post"):
        return user_prompt(f"{info['article'].text()}\n\nTL;DR:")
    heads = (("SUBREDDIT: r/", "subreddit"), ("TITLE: ", "title"), ("POST: ", "post"))
    parts = [head + info[key].text() for head, key in heads if key == "post" or info.has(key)]
    return user_prompt("\n\n".join([*parts, "TL;DR:"]))


def read_helpsteer3(row: Field) -> Parsed:
    """`context, response1, response2, overall_preference`."""
    return _by_strength(row, prompt_of(row["context"]), "response", "overall_preference")


def read_helpsteer2_preference(row: Field) -> Parsed:
    """`prompt, response_1, response_2, preference_strength`."""
    prompt = transcript_prompt(row["prompt"])
    return _by_strength(row, prompt, "response_", "preference_strength")


def _by_strength(row: Field, prompt: Prompt, response: str, strength: str) -> Parsed:
    """-3: the first is much better, 3: the second is. The difference of the scores says so."""
    half = row[strength].number(-STRENGTH, STRENGTH) / 2
    answers = [Response(row[f"{response}{number}"].text()) for number in (1, 2)]
    return compared(prompt, answers, (-half, half))
