"""Every adapter on rows written by hand from the published schema of its data set."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_data import write_lines

from mrpo_tools.errors import DataError, UsageError
from mrpo_tools.groups import Group
from mrpo_tools.sources import ADAPTERS, KNOWN, Source, load_groups

Rows = list[dict[str, Any]]
Responses = list[tuple[str, float | None, bool | None]]
# What a group should be: "role: content" of the prompt, then (content, score, chosen) of each.
Expected = tuple[list[str], Responses]
TIE = 0.5


def message(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def assistant(text: str) -> dict[str, str]:
    return message("assistant", text)


def talk(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    """A conversation: the user's text, the assistant's, the user's, …"""
    head = [message("system", system)] if system else []
    return head + list(map(message, itertools.cycle(["user", "assistant"]), texts))


def turn(speaker: str, text: str) -> dict[str, str]:
    return {"from": speaker, "value": text}


def judged(response: str, overall: float, fine: float, ratings: str = "3 3 3 3") -> dict[str, Any]:
    """A completion of UltraFeedback, with the ratings of four aspects."""
    aspects = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    annotations = {
        aspect: {"Rating": rating, "Rationale": "…"}
        for aspect, rating in zip(aspects, ratings.split(), strict=True)
    }
    return {
        "model": "alpaca-7b", "principle": "honesty", "custom_system_prompt": "Be honest.",
        "response": response, "critique": "…", "overall_score": overall,
        "fine-grained_score": fine, "annotations": annotations,
    }  # fmt: skip


def ranked(*answers: tuple[str, str] | str) -> Rows:
    """Nectar's answers with who wrote them, from the best to the worst."""
    return [
        {"answer": answer, "model": model, "rank": float(rank)}
        for rank, (answer, model) in enumerate(answers, 1)
    ]


def helpsteer(prompt: str, response: str, *attributes: int) -> dict[str, Any]:
    names = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
    return {"prompt": prompt, "response": response, **dict(zip(names, attributes, strict=True))}


def pair(chosen: str, rejected: str, *scores: float) -> Responses:
    high, low = scores or (None, None)
    return [(chosen, high, True), (rejected, low, False)]


def scores(*responses: tuple[str, float]) -> Responses:
    return [(text, score, None) for text, score in responses]


def judged_pair(first: str, second: str, points: float = TIE) -> Responses:
    """Two responses by a verdict; the first has so many points of one."""
    label = None if points == TIE else points > TIE
    return [
        (first, points, label),
        (second, pytest.approx(1 - points), None if label is None else not label),
    ]


def reply(text: str, rank: int | None, *replies: dict[str, Any]) -> dict[str, Any]:
    """An answer of a tree, and what was asked then."""
    return {"message_id": text, "text": text, "role": "assistant", "lang": "en", "rank": rank,
            "replies": list(replies)}  # fmt: skip


def ask(text: str, *replies: dict[str, Any]) -> dict[str, Any]:
    return {"message_id": text, "text": text, "role": "prompter", "replies": list(replies)}


SAMPLES: dict[str, tuple[Rows, list[Expected]]] = {
    "canonical": ([
        {"prompt": "1+1?",
         "responses": [{"content": "2", "score": 1}, {"content": "3", "score": 0.5}]},
        {"prompt": talk("Hi", system="Short."),
         "responses": [{"content": "Yo", "chosen": True}, {"content": "No", "chosen": False}],
         "id": 7},
        {"prompt": "Q", "responses": [{"content": "a"}, {"content": "b"}, {"content": "c"}]},
    ], [
        (["user: 1+1?"], scores(("2", 1.0), ("3", 0.5))),
        (["system: Short.", "user: Hi"], pair("Yo", "No")),
        (["user: Q"], [("a", None, None), ("b", None, None), ("c", None, None)]),
    ]),
    "outputs": ([
        {"idx": 1, "prompt": "Why?", "rubric": "[…]",
         "responses": [{"model": "m", "output": "So.", "scores": [5, 4], "score": 4.5},
                       {"model": "n", "output": "No.", "scores": [1, 1], "score": 1.0}]},
        {"prompt": "A?", "responses": [{"output": "x", "score": 2}, {"output": "y", "score": 3}]},
        {"prompt": talk("B?"), "responses": [{"output": "x"}, {"output": "y"}]},
    ], [
        (["user: Why?"], scores(("So.", 4.5), ("No.", 1.0))),
        (["user: A?"], scores(("x", 2.0), ("y", 3.0))),
        (["user: B?"], [("x", None, None), ("y", None, None)]),
    ]),
    "ultrafeedback": ([
        {"source": "evol_instruct", "instruction": "Name a prime.", "models": ["alpaca-7b", "bard"],
         "completions": [judged("7", 9.0, 4.25, "5 4 5 3"), judged("8", 2.0, 1.5, "1 N/A 2 N/A")],
         "correct_answers": ["None"], "incorrect_answers": ["None"]},
        {"source": "flan_v2", "instruction": "A?", "models": [],
         "completions": [judged("x", 1, 1), judged("y", 8.5, 8.5), judged("z", 4, 4)]},
        {"source": "flan_v2", "instruction": "B?", "models": [],
         "completions": [judged("x", 7, 7), judged("y", 7, 7)]},
    ], [
        (["user: Name a prime."], scores(("7", 9.0), ("8", 2.0))),
        (["user: A?"], scores(("x", 1.0), ("y", 8.5), ("z", 4.0))),
        (["user: B?"], scores(("x", 7.0), ("y", 7.0))),
    ]),
    "code-ultrafeedback": ([
        {"instruction": "Q", "preference": "style",
         "responses": [{"model": "m", "response": "a"}, {"model": "n", "response": "b"}],
         "annotations": [{"model": "n", "rating": "2", "rationale": "r"},
                         {"model": "m", "rating": "5", "rationale": "s"}]},
        *({"instruction": asked, "responses": [{"model": "m", "response": "a"},
                                               {"model": "n", "response": "b"}],
           "annotations": [{"model": "m", "rating": "1"}, {"model": "n", "rating": "3"}]}
          for asked in "RS"),
    ], [
        (["user: Q"], scores(("a", 5.0), ("b", 2.0))),
        (["user: R"], scores(("a", 1.0), ("b", 3.0))),
        (["user: S"], scores(("a", 1.0), ("b", 3.0))),
    ]),
    "nectar": ([
        {"prompt": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Joke?\n\nAssistant: ",
         "answers": ranked(("Knock knock.", "gpt-4"), ("No.", "llama"), ("…", "anon")), "turns": 2,
         "num_responses": 3, "source": ["sharegpt"], "good_natured": True},
        {"prompt": "\n\nHuman: A?\n\nAssistant: ", "answers": ranked("xm", "ym"), "turns": 1},
        {"prompt": "\n\nHuman: B?\n\nAssistant: ",
         "answers": ranked("am", "bm", "cm", "dm", "em", "fm", "gm"), "turns": 1},
    ], [
        (["user: Hi", "assistant: Hello!", "user: Joke?"],
         scores(("Knock knock.", -1.0), ("No.", -2.0), ("…", -3.0))),
        (["user: A?"], scores(("x", -1.0), ("y", -2.0))),
        (["user: B?"], scores(*zip("abcdefg", range(-1, -8, -1), strict=True))),
    ]),
    "helpsteer": ([
        helpsteer("c#", "A language.", 3, 4, 4, 2, 1),
        helpsteer("c#", "A key of music.", 0, 1, 2, 1, 1),
        helpsteer("Hi<extra_id_1>Assistant\nHello\n<extra_id_1>User\nBye", "Bye!", 4, 4, 4, 0, 0),
        helpsteer("Hi<extra_id_1>Assistant\nHello\n<extra_id_1>User\nBye", "Stay.", 1, 4, 4, 0, 0),
    ], [
        (["user: c#"], scores(("A language.", 3.0), ("A key of music.", 0.0))),
        (["user: Hi", "assistant: Hello", "user: Bye"], scores(("Bye!", 4.0), ("Stay.", 1.0))),
    ]),
    "helpsteer2-preference": ([
        {"split": "train", "prompt": "c#", "response_1": "A", "response_2": "B",
         "preference_strength": 2, "preference_statement": "…"},
        {"split": "val", "prompt": "d", "response_1": "A", "response_2": "B",
         "preference_strength": 0},
        {"prompt": "e", "response_1": "A", "response_2": "B", "preference_strength": -3},
    ], [
        (["user: c#"], [("A", -1.0, False), ("B", 1.0, True)]),
        (["user: d"], scores(("A", 0.0), ("B", 0.0))),
        (["user: e"], pair("A", "B", 1.5, -1.5)),
    ]),
    "helpsteer3": ([
        {"domain": "code", "language": "python", "context": talk("Sort?", "How?", "Up."),
         "response1": "sorted(x)", "response2": "x", "overall_preference": -3,
         "individual_preference": [{"score": -3, "reasoning": "…"}]},
        {"context": talk("Q"), "response1": "a", "response2": "b", "overall_preference": 1},
        {"context": talk("R"), "response1": "a", "response2": "b", "overall_preference": 0},
    ], [
        (["user: Sort?", "assistant: How?", "user: Up."], pair("sorted(x)", "x", 1.5, -1.5)),
        (["user: Q"], [("a", -0.5, False), ("b", 0.5, True)]),
        (["user: R"], scores(("a", 0.0), ("b", 0.0))),
    ]),
    "alpaca-farm": ([
        {"instruction": "Add", "input": "1 2", "output_1": "3", "output_2": "4", "preference": 1,
         "raw_preference": 1},
        {"instruction": "Q", "output_1": "a", "generator_1": "gpt4", "dataset": "koala",
         "output_2": "b", "generator_2": "mine", "annotator": "weighted", "preference": 1.75},
        {"instruction": "R", "input": "", "output_1": "a", "output_2": "b", "preference": 0},
        {"instruction": "S", "input": "", "output_1": "a", "output_2": "b", "preference": 1.5},
    ], [
        (["user: Add\n1 2"], judged_pair("3", "4", 1.0)),
        (["user: Q"], judged_pair("a", "b", 0.25)),
        (["user: R"], judged_pair("a", "b")),
        (["user: S"], judged_pair("a", "b")),
    ]),
    "llmbar": ([
        {"input": "Say yes", "output_1": "yes", "output_2": "no", "label": 1},
        {"input": "Say no", "output_1": "yes", "output_2": "no", "label": 2},
        {"input": "Q", "output_1": "a", "output_2": "b", "label": 2},
    ], [
        (["user: Say yes"], judged_pair("yes", "no", 1.0)),
        (["user: Say no"], judged_pair("yes", "no", 0.0)),
        (["user: Q"], judged_pair("a", "b", 0.0)),
    ]),
    "pandalm": ([
        {"idx": 0, "motivation_app": "Grammarly", "cmp_key": "opt-7b_pythia-6.9b",
         "instruction": "Edit", "input": "he go", "response1": "he goes", "response2": "go",
         "annotator1": 1, "annotator2": 1, "annotator3": 2},
        {"idx": 1, "instruction": "Q", "input": "", "response1": "a", "response2": "b",
         "annotator1": 2, "annotator2": 2, "annotator3": 2},
        {"idx": 2, "instruction": "R", "input": "", "response1": "a", "response2": "b",
         "annotator1": 0, "annotator2": 1, "annotator3": 2},
        {"idx": 3, "instruction": "S", "input": "", "response1": "a", "response2": "b",
         "annotator1": 2},
    ], [
        (["user: Edit\nhe go"], judged_pair("he goes", "go", 2 / 3)),
        (["user: Q"], judged_pair("a", "b", 0.0)),
        (["user: R"], judged_pair("a", "b")),
        (["user: S"], judged_pair("a", "b", 0.0)),
    ]),
    "lmsys": ([
        {"id": 30192, "model_a": "gpt-4", "model_b": "koala", "prompt": '["Is it \\u00e9?"]',
         "response_a": '["Yes."]', "response_b": '["No\\n"]', "winner_model_a": 1,
         "winner_model_b": 0, "winner_tie": 0},
        {"id": 2, "model_a": "m", "model_b": "n", "prompt": '["Q", "R"]',
         "response_a": '["a", "b"]', "response_b": '["a", "c"]', "winner_model_a": 0,
         "winner_model_b": 1, "winner_tie": 0},
        {"id": 3, "model_a": "m", "model_b": "n", "prompt": '["Q"]', "response_a": '["a"]',
         "response_b": '["b"]', "winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1},
    ], [
        (["user: Is it é?"], judged_pair("Yes.", "No\n", 1.0)),
        (["user: Q", "assistant: a", "user: R"], judged_pair("b", "c", 0.0)),
        (["user: Q"], judged_pair("a", "b")),
    ]),
    "arena": ([
        {"question_id": "58210e39", "model_a": "chatglm-6b", "model_b": "koala-13b",
         "winner": "model_b", "judge": "arena_user_973", "conversation_a": talk("Q", "a"),
         "conversation_b": talk("Q", "b"), "turn": 1, "anony": True, "language": "English",
         "tstamp": 1682351591.1, "openai_moderation": {"flagged": False}},
        {"question_id": 81, "model_a": "alpaca-13b", "model_b": "gpt-4", "winner": "model_a",
         "judge": "expert_2", "conversation_a": talk("Q", "a", "R", "c"),
         "conversation_b": talk("Q", "b", "R", "d"), "turn": 1},
        {"model_a": "m", "model_b": "n", "winner": "tie (bothbad)",
         "conversation_a": talk("Q", "a"), "conversation_b": talk("Q", "b")},
        {"model_a": "m", "model_b": "n", "winner": "tie", "turn": 2,
         "conversation_a": talk("Q", "a", "R", "b"), "conversation_b": talk("Q", "a", "R", "c")},
    ], [
        (["user: Q"], judged_pair("a", "b", 0.0)),
        (["user: Q"], judged_pair("a", "b", 1.0)),
        (["user: Q"], judged_pair("a", "b")),
        (["user: Q", "assistant: a", "user: R"], judged_pair("b", "c")),
    ]),
    "prometheus": ([
        {"orig_instruction": asked, "orig_response_A": "a", "orig_response_B": "b",
         "orig_preference": better, "instruction": "###Task", "output": "[RESULT] A"}
        for asked, better in (("Q", "A"), ("R", "B"), ("S", "A"))
    ], [
        (["user: Q"], judged_pair("a", "b", 1.0)),
        (["user: R"], judged_pair("a", "b", 0.0)),
        (["user: S"], judged_pair("a", "b", 1.0)),
    ]),
    "shp": ([
        {"post_id": "mr0w2o", "domain": "askculinary_train", "history": "Salt?",
         "c_root_id_A": "x", "created_at_utc_A": 1618461287, "score_A": 340, "score_B": 166,
         "human_ref_A": "Yes.", "human_ref_B": "No.", "labels": 1, "score_ratio": 2.048},
        {"post_id": "b", "history": "Q", "score_A": 2, "score_B": 9, "human_ref_A": "a",
         "human_ref_B": "b", "labels": 0},
        {"post_id": "c", "history": "R", "human_ref_A": "a", "human_ref_B": "b", "labels": 0},
    ], [
        (["user: Salt?"], judged_pair("Yes.", "No.", 1.0)),
        (["user: Q"], judged_pair("a", "b", 0.0)),
        (["user: R"], judged_pair("a", "b", 0.0)),
    ]),
    "safe-rlhf": ([
        {"prompt": "Q", "response_0": "a", "response_1": "b", "is_response_0_safe": True,
         "is_response_1_safe": False, "better_response_id": 1, "safer_response_id": 0},
        {"prompt": "R", "response_0": "a", "response_1": "b", "better_response_id": 0,
         "safer_response_id": 0},
        {"prompt": "S", "response_0": "a", "response_1": "b", "better_response_id": 1,
         "safer_response_id": 1},
    ], [
        (["user: Q"], judged_pair("a", "b", 0.0)),
        (["user: R"], judged_pair("a", "b", 1.0)),
        (["user: S"], judged_pair("a", "b", 0.0)),
    ]),
    "summarize-from-feedback": ([
        {"info": {"id": "t3_34xale", "post": "I met her.", "title": "Her", "subreddit": "AskWomen",
                  "site": None, "article": None},
         "summaries": [{"text": " He met her.", "policy": "sup4_ppo_rm3", "note": "ok"},
                       {"text": " She left.", "policy": "ref", "note": ""}],
         "choice": 0, "worker": "w", "batch": "batch22", "split": "valid1",
         "extra": {"confidence": 5}},
        {"info": {"id": "cnn", "article": "Rain fell.", "post": None, "title": None,
                  "site": "cnn"},
         "summaries": [{"text": "a"}, {"text": "b"}], "choice": 1, "split": "train"},
        {"info": {"post": "P", "title": "T"}, "summaries": [{"text": "a"}, {"text": "b"}],
         "choice": 1},
    ], [
        (["user: SUBREDDIT: r/AskWomen\n\nTITLE: Her\n\nPOST: I met her.\n\nTL;DR:"],
         judged_pair(" He met her.", " She left.", 1.0)),
        (["user: Rain fell.\n\nTL;DR:"], judged_pair("a", "b", 0.0)),
        (["user: TITLE: T\n\nPOST: P\n\nTL;DR:"], judged_pair("a", "b", 0.0)),
    ]),
    "winner": ([
        {"prompt": "Q", "a": "x", "b": "y", "winner": "Model_A"},
        {"prompt": talk("R"), "a": [assistant("x")], "b": assistant("y"), "winner": "response 2"},
        {"prompt": "S", "a": "x", "b": "y", "winner": "tie"},
        {"prompt": "T", "a": "x", "b": "y", "winner": 1},
    ], [
        (["user: Q"], judged_pair("x", "y", 1.0)),
        (["user: R"], judged_pair("x", "y", 0.0)),
        (["user: S"], judged_pair("x", "y")),
        (["user: T"], judged_pair("x", "y", 1.0)),
    ]),
    "winner-index": ([
        {"prompt": "Q", "a": "x", "b": "y", "winner_index": 0},
        {"prompt": "R", "a": "x", "b": "y", "winner_index": 1},
        {"prompt": "S", "a": "x", "b": "y", "winner_index": 1},
    ], [
        (["user: Q"], judged_pair("x", "y", 1.0)),
        (["user: R"], judged_pair("x", "y", 0.0)),
        (["user: S"], judged_pair("x", "y", 0.0)),
    ]),
    "a-wins": ([
        {"prompt": "Q", "a": "x", "b": "y", "a_wins": True},
        {"prompt": "R", "a": "x", "b": "y", "a_wins": False},
        {"prompt": "S", "a": "x", "b": "y", "a_wins": 1},
    ], [
        (["user: Q"], judged_pair("x", "y", 1.0)),
        (["user: R"], judged_pair("x", "y", 0.0)),
        (["user: S"], judged_pair("x", "y", 1.0)),
    ]),
    "two-scores": ([
        {"prompt": "Q", "a": "x", "b": "y", "score_a": 0.25, "score_b": -0.25},
        {"prompt": talk("R"), "a": "x", "b": "y", "score_a": 1, "score_b": 3},
        {"prompt": "S", "a": "x", "b": "y", "score_a": 0, "score_b": 0},
    ], [
        (["user: Q"], pair("x", "y", 0.25, -0.25)),
        (["user: R"], [("x", 1.0, False), ("y", 3.0, True)]),
        (["user: S"], scores(("x", 0.0), ("y", 0.0))),
    ]),
    "alpaca-eval": ([
        {"dataset": "koala", "instruction": "Q", "output": "a", "generator": "m"},
        {"instruction": "Q", "output": "b", "generator": "n"},
        {"instruction": "R", "output": "c", "generator": "m"},
        {"instruction": "R", "output": "d", "generator": "n"},
    ], [
        (["user: Q"], [("a", None, None), ("b", None, None)]),
        (["user: R"], [("c", None, None), ("d", None, None)]),
    ]),
    "arena-hard": ([
        {"uid": key, "ans_id": "x", "model": model, "tstamp": 1.5, "metadata": {"token_len": 1},
         "messages": [{"role": "user", "content": asked},
                      {"role": "assistant", "content": {"answer": said}}]}
        for key, model, asked, said in (
            ("1", "m", "Q", "a"), ("1", "n", "Q", "b"), ("2", "m", "R", "c"), ("2", "n", "R", "d"),
        )
    ], [
        (["user: Q"], [("a", None, None), ("b", None, None)]),
        (["user: R"], [("c", None, None), ("d", None, None)]),
    ]),
    "stack-exchange": ([
        {"qid": 31371917, "question": "<p>Sort?</p>", "date": "2015/07/12", "metadata": ["u"],
         "answers": [{"answer_id": 1, "author": "A", "author_id": 2, "author_profile": "u",
                      "pm_score": 4, "selected": True, "text": "sorted(x)"},
                     {"answer_id": 2, "pm_score": -1, "selected": False, "text": "x"}]},
        {"question": "Q", "answers": [{"text": "a", "pm_score": 0}, {"text": "b", "pm_score": 0}]},
        {"question": "R", "answers": [{"text": "a", "pm_score": 1}, {"text": "b", "pm_score": 2},
                                      {"text": "c", "pm_score": 3}]},
    ], [
        (["user: <p>Sort?</p>"], scores(("sorted(x)", 4.0), ("x", -1.0))),
        (["user: Q"], scores(("a", 0.0), ("b", 0.0))),
        (["user: R"], scores(("a", 1.0), ("b", 2.0), ("c", 3.0))),
    ]),
    "open-assistant": ([
        {"message_tree_id": "t1", "tree_state": "ready_for_export", "prompt": ask(
            "Q", reply("a", 1, ask("R", reply("c", 0), reply("d", 1))),
            reply("b", 0, ask("only", reply("one answer", 0))))},
        {"message_tree_id": "t2", "prompt": ask("S", reply("x", 0), reply("y", 1), reply("z", 2))},
        {"message_tree_id": "t3", "prompt": ask("T", reply("x", 1), reply("y", 0))},
    ], [
        (["user: Q"], scores(("a", -1.0), ("b", 0.0))),
        (["user: Q", "assistant: a", "user: R"], scores(("c", 0.0), ("d", -1.0))),
        (["user: S"], scores(("x", 0.0), ("y", -1.0), ("z", -2.0))),
        (["user: T"], scores(("x", -1.0), ("y", 0.0))),
    ]),
    "openai": ([
        {"input": {"messages": talk("Q", system="S"), "tools": [], "parallel_tool_calls": True},
         "preferred_output": [assistant("a")], "non_preferred_output": [assistant("b")]},
        {"input": {"messages": talk("Q", "a", "R")}, "preferred_output": [assistant("b")],
         "non_preferred_output": [assistant("c")]},
        {"input": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Long "},
                                                             {"type": "text", "text": "ago"}]}]},
         "preferred_output": [assistant("a")], "non_preferred_output": [assistant("b")]},
    ], [
        (["system: S", "user: Q"], pair("a", "b")),
        (["user: Q", "assistant: a", "user: R"], pair("b", "c")),
        (["user: Long ago"], pair("a", "b")),
    ]),
    "simpo": ([
        {"prompt_id": "ab12", "prompt": "Q", "all_generated_responses": ["a", "b", "a", "c"],
         "all_rm_scores": [0.1, 0.3, 0.2, 0.0], "chosen": talk("Q", "b"),
         "rejected": talk("Q", "c")},
        {"prompt": "R", "all_generated_responses": ["a", "b"], "all_rm_scores": [-3, 0.5]},
        {"prompt": "S", "all_generated_responses": ["c", "d"], "all_rm_scores": [0.5, 0.5]},
    ], [
        (["user: Q"], scores(("a", pytest.approx(0.15)), ("b", 0.3), ("c", 0.0))),
        (["user: R"], scores(("a", -3.0), ("b", 0.5))),
        (["user: S"], scores(("c", 0.5), ("d", 0.5))),
    ]),
    "rewards": ([
        {"prompt": "Q", "responses": ["a", "b"], "rewards": [-1.5, 2]},
        {"prompt": talk("R"), "responses": ["a", "b"], "rewards": [0, 0.25]},
        {"prompt": "S", "responses": ["a", "b", "c"], "rewards": [3, 2, 1]},
    ], [
        (["user: Q"], scores(("a", -1.5), ("b", 2.0))),
        (["user: R"], scores(("a", 0.0), ("b", 0.25))),
        (["user: S"], scores(("a", 3.0), ("b", 2.0), ("c", 1.0))),
    ]),
    "completions": ([
        {"prompt": "Q", "completions": ["a", "b", "c"], "scores": [0.5, -1, 2]},
        {"prompt": talk("R"), "completions": ["a", "b"], "scores": [0, 0.25]},
        {"prompt": "S", "completions": ["a", "b"], "scores": [1, 1]},
    ], [
        (["user: Q"], scores(("a", 0.5), ("b", -1.0), ("c", 2.0))),
        (["user: R"], scores(("a", 0.0), ("b", 0.25))),
        (["user: S"], scores(("a", 1.0), ("b", 1.0))),
    ]),
    "rewarded": ([
        {"prompt": "Q", "response": "a", "reward": 0.5},
        {"prompt": talk("R"), "response": assistant("x"), "reward": 1},
        {"prompt": "Q", "response": "b", "reward": -2},
        {"prompt": talk("R"), "response": [assistant("y")], "reward": 1},
    ], [
        (["user: Q"], scores(("a", 0.5), ("b", -2.0))),
        (["user: R"], scores(("x", 1.0), ("y", 1.0))),
    ]),
    "step-dpo": ([
        {"prompt": "Q", "initial_reason_steps": "Step 1: x\nStep 2:", "chosen": " y",
         "rejected": " z", "full_chosen": " y\nStep 3", "answer": "2"},
        {"prompt": "R", "initial_reason_steps": "", "chosen": "y", "rejected": "z"},
        {"prompt": "S", "initial_reason_steps": "Step 1:", "chosen": "y", "rejected": "z"},
    ], [
        (["user: Q", "assistant: Step 1: x\nStep 2:"], pair(" y", " z")),
        (["user: R"], pair("y", "z")),
        (["user: S", "assistant: Step 1:"], pair("y", "z")),
    ]),
    "transcript-pairs": ([
        {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Hello", "rejected": "Go"},
        {"prompt": "Human: A\n\nAssistant: B\n\nHuman: C\n\nAssistant:", "chosen": "D",
         "rejected": "E"},
        {"prompt": "Human: Tell me\n\nAssistant: ", "chosen": "x\n\ny", "rejected": "z"},
    ], [
        (["user: Hi"], pair("Hello", "Go")),
        (["user: A", "assistant: B", "user: C"], pair("D", "E")),
        (["user: Tell me"], pair("x\n\ny", "z")),
    ]),
    "pairs": ([
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        {"prompt": "Q", "chosen": "a", "rejected": "b", "chosen_score": 3, "rejected_score": 1},
        {"prompt": talk("Q"), "chosen": "a", "rejected": "b"},
    ], [
        (["user: The sky is"], pair(" blue.", " green.")),
        (["user: Q"], pair("a", "b", 3.0, 1.0)),
        (["user: Q"], pair("a", "b")),
    ]),
    "conversational": ([
        {"prompt": talk("What color is the sky?"), "chosen": [assistant("It is blue.")],
         "rejected": [assistant("It is green.")]},
        {"prompt": talk("Q", system="S"), "chosen": [assistant("a")], "rejected": [assistant("b")],
         "score_chosen": 1, "score_rejected": 0.5},
        {"prompt": talk("Q", "A", "R"), "chosen": [assistant("a")], "rejected": [assistant("b")]},
    ], [
        (["user: What color is the sky?"], pair("It is blue.", "It is green.")),
        (["system: S", "user: Q"], pair("a", "b", 1.0, 0.5)),
        (["user: Q", "assistant: A", "user: R"], pair("a", "b")),
    ]),
    "binarized": ([
        {"prompt": "Q", "prompt_id": "f00", "chosen": talk("Q", "a"), "rejected": talk("Q", "b"),
         "messages": talk("Q", "a"), "score_chosen": 8.0, "score_rejected": 5.0},
        {"prompt": "R", "chosen": [assistant("a")], "rejected": [assistant("b")],
         "chosen-rating": 4, "chosen-model": "m", "rejected-rating": 2, "rejected-model": "n"},
        {"prompt": "T", "chosen": talk("T", "a", "U", "b"), "rejected": talk("T", "a", "U", "c"),
         "chosen_rating": 3.5, "rejected_rating": 0.5},
    ], [
        (["user: Q"], pair("a", "b", 8.0, 5.0)),
        (["user: R"], pair("a", "b", 4.0, 2.0)),
        (["user: T", "assistant: a", "user: U"], pair("b", "c", 3.5, 0.5)),
    ]),
    "sets": ([
        {"prompt": "Q", "chosen": ["a", "b"], "rejected": ["c", "d"]},
        {"prompt": "R", "chosen": ["a"], "rejected": ["b", "c"]},
        {"prompt": talk("S"), "chosen": ["a", "b"], "rejected": ["c"]},
    ], [
        (["user: Q"],
         [("a", None, True), ("b", None, True), ("c", None, False), ("d", None, False)]),
        (["user: R"], [("a", None, True), ("b", None, False), ("c", None, False)]),
        (["user: S"], [("a", None, True), ("b", None, True), ("c", None, False)]),
    ]),
    "sets-conversational": ([
        {"prompt": talk("Q"), "chosen": [[assistant("a")], talk("Q", "b")],
         "rejected": [[assistant("c")]]},
        {"prompt": "R", "chosen": [[assistant("a")]], "rejected": [[assistant("b")]]},
        {"prompt": talk("S"), "chosen": [talk("S", "a")],
         "rejected": [[assistant("b")], [assistant("c")]]},
    ], [
        (["user: Q"], [("a", None, True), ("b", None, True), ("c", None, False)]),
        (["user: R"], pair("a", "b")),
        (["user: S"], [("a", None, True), ("b", None, False), ("c", None, False)]),
    ]),
    "comparison-gpt4": ([
        {"instruction": "Primes?", "input": "", "output": ["2, 3", "4"]},
        {"instruction": "Shorten", "input": "4/16", "output": ["1/4", "4"]},
        {"instruction": "Why?", "input": "  ", "output": ["So.", "No."]},
    ], [
        (["user: Primes?"], pair("2, 3", "4")),
        (["user: Shorten\n4/16"], pair("1/4", "4")),
        (["user: Why?"], pair("So.", "No.")),
    ]),
    "distilabel": ([
        {"metadata": "{}", "instruction": "1+1", "chosen_response": "2", "chosen_rating": 9.0,
         "rejected_response": "3", "rejected_rating": 1.0},
        {"instruction": "1+2", "chosen_response": "3", "chosen_rating": None,
         "rejected_response": "4", "rejected_rating": None},
        {"prompt": "1+3", "chosen_response": "4", "rejected_response": "5"},
    ], [
        (["user: 1+1"], pair("2", "3", 9.0, 1.0)),
        (["user: 1+2"], pair("3", "4")),
        (["user: 1+3"], pair("4", "5")),
    ]),
    "alpaca": ([
        {"instruction": "Add", "input": "1 2", "system": "Calculate.", "history": [["Hi", "Hello"]],
         "chosen": "3", "rejected": "4"},
        {"instruction": "Add", "input": "", "chosen": "3", "rejected": "4"},
        {"instruction": "Say", "chosen": assistant("a"), "rejected": assistant("b")},
    ], [
        (["system: Calculate.", "user: Hi", "assistant: Hello", "user: Add\n1 2"], pair("3", "4")),
        (["user: Add"], pair("3", "4")),
        (["user: Say"], pair("a", "b")),
    ]),
    "sharegpt": ([
        {"conversations": [turn("system", "Be kind."), turn("human", "Hi"), turn("gpt", "Hello"),
                           turn("human", "Bye")],
         "chosen": turn("gpt", "Bye!"), "rejected": turn("gpt", "Stay.")},
        {"conversations": [turn("human", "Q")], "system": "Short.", "chosen": turn("gpt", "a"),
         "rejected": turn("gpt", "b")},
        {"conversations": [turn("human", "R")], "chosen": turn("gpt", "c"),
         "rejected": turn("gpt", "d")},
    ], [
        (["system: Be kind.", "user: Hi", "assistant: Hello", "user: Bye"], pair("Bye!", "Stay.")),
        (["system: Short.", "user: Q"], pair("a", "b")),
        (["user: R"], pair("c", "d")),
    ]),
    "question": ([
        {"system": "", "question": "Q", "chosen": "a", "rejected": "b"},
        {"system": "You are kind.", "question": "R", "chosen": "a", "rejected": "b"},
        {"system": None, "question": "S", "chosen": "a", "rejected": "b"},
    ], [
        (["user: Q"], pair("a", "b")),
        (["system: You are kind.", "user: R"], pair("a", "b")),
        (["user: S"], pair("a", "b")),
    ]),
    "unpaired": ([
        {"prompt": "Q", "completion": "a", "label": True},
        {"prompt": talk("R"), "completion": [assistant("x")], "label": False},
        {"prompt": "Q", "completion": "b", "label": False},
        {"prompt": talk("R"), "completion": [assistant("y")], "label": True},
    ], [
        (["user: Q"], pair("a", "b")),
        (["user: R"], [("x", None, False), ("y", None, True)]),
    ]),
    "conversational-implicit": ([
        {"chosen": talk("Q", "a", "R", "b"), "rejected": talk("Q", "a", "R", "c"),
         "chosen_score": 2.5, "rejected_score": 1.0},
        {"chosen": talk("Q", "a"), "rejected": talk("Q", "b")},
        {"chosen": talk("R", "a", system="S"), "rejected": talk("R", "b", system="S")},
    ], [
        (["user: Q", "assistant: a", "user: R"], pair("b", "c", 2.5, 1.0)),
        (["user: Q"], pair("a", "b")),
        (["system: S", "user: R"], pair("a", "b")),
    ]),
    "transcripts": ([
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Q\n\nAssistant: Yes.\n\n:)",
         "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Q\n\nAssistant: No."},
        {"chosen": "\n\nHuman: A\n\nHuman: B\n\nAssistant: x",
         "rejected": "\n\nHuman: A\n\nHuman: B\n\nAssistant: y"},
        {"chosen": "\n\nHuman: Q\n\nAssistant: a\n\nHuman: R\n\nAssistant: b",
         "rejected": "\n\nHuman: Q\n\nAssistant: a\n\nHuman: R\n\nAssistant: c"},
    ], [
        (["user: Hi", "assistant: Hello", "user: Q"], pair("Yes.\n\n:)", "No.")),
        (["user: A\n\nB"], pair("x", "y")),
        (["user: Q", "assistant: a", "user: R"], pair("b", "c")),
    ]),
    "implicit": ([
        {"chosen": "The sky is blue.", "rejected": "The sky is black."},
        {"chosen": "Go on", "rejected": "Go off"},
        {"chosen": "One two three", "rejected": "One two four"},
    ], [
        (["user: The sky is"], pair(" blue.", " black.")),
        (["user: Go"], pair(" on", " off")),
        (["user: One two"], pair(" three", " four")),
    ]),
}  # fmt: skip

# Which of the samples has the columns that a named data set publishes.
PUBLISHED = {
    "ultrafeedback": ("ultrafeedback", 0), "ultrafeedback-binarized": ("binarized", 0),
    "helpsteer": ("helpsteer", 0), "helpsteer2": ("helpsteer", 0),
    "helpsteer-binarized": ("binarized", 2), "helpsteer3": ("helpsteer3", 0),
    "nectar": ("nectar", 0), "nectar-binarized": ("transcript-pairs", 0),
    "hh-rlhf": ("transcripts", 0), "comparison-gpt4": ("comparison-gpt4", 0),
    "neural-dpo": ("question", 1), "distilabel-math": ("distilabel", 0),
    "orca-dpo": ("question", 0),
}  # fmt: skip


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Source]:
    """`load(rows, …)` reads them from a file."""
    return lambda rows, **options: load_groups(write_lines(tmp_path / "x.jsonl", rows), **options)


def plain(group: Group) -> Expected:
    return (
        [f"{turn.role}: {turn.content}" for turn in group.prompt],
        [(r.content, r.score, r.chosen) for r in group.responses],
    )


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_is_recognised_and_read(name: str, load) -> None:
    rows, expected = SAMPLES[name]
    source = load(rows)
    assert source.adapter == name
    assert source.reason.startswith("columns " + next(iter(ADAPTERS[name].columns)))
    assert [plain(group) for group in source.groups] == expected


def test_every_adapter_has_a_sample_of_three_rows_and_a_line_about_it() -> None:
    assert list(SAMPLES) == list(ADAPTERS)
    assert all(len(rows) >= 3 for rows, _ in SAMPLES.values())
    for adapter in ADAPTERS.values():
        assert 10 < len(adapter.about) < 90, adapter.name
        assert not adapter.about.endswith("."), adapter.name


@pytest.mark.parametrize(
    ("adapter", "score", "expected"),
    [
        ("ultrafeedback", "overall", [9.0, 2.0]),
        ("ultrafeedback", "fine-grained", [4.25, 1.5]),
        ("ultrafeedback", "mean", [(5 + 4 + 5 + 3) / 4, (1 + 2) / 2]),
        ("helpsteer", "correctness", [4.0, 1.0]),
        ("helpsteer", "mean", [(3 + 4 + 4 + 2 + 1) / 5, (0 + 1 + 2 + 1 + 1) / 5]),
    ],
)
def test_the_kind_of_score_can_be_chosen(adapter: str, score: str, expected: list, load) -> None:
    groups = load(SAMPLES[adapter][0], score=score).groups
    assert [response.score for response in groups[0].responses] == expected


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"score": "helpfullness"},
         "--score helpfullness: the adapter helpsteer has one of helpfulness, correctness, "
         "coherence, complexity, verbosity, mean", "did you mean helpfulness?"),
        ({"mapping": {"prompt": "promt"}}, "--map prompt=promt: there is no column 'promt'",
         "did you mean prompt?"),
    ],
)  # fmt: skip
def test_an_unknown_score_or_column_is_refused(options, message, hint, load) -> None:
    with pytest.raises(UsageError) as error:
        load(SAMPLES["helpsteer"][0], **options)
    assert (str(error.value), error.value.hint) == (message, hint)


def test_a_rating_may_not_be_any_text(load) -> None:
    ratings = ("N/A N/A N/A N/A", "good 1 1 1")
    row = {"instruction": "Q", "completions": [judged(text, 1, 1, text) for text in ratings]}
    with pytest.raises(DataError) as error:
        load([row], score="mean")
    assert [f"{problem.field}: {problem.reason}" for problem in error.value.problems] == [
        "completions[0].annotations: every Rating is 'N/A', expected a number for one aspect at "
        "least",
        "completions[1].annotations.instruction_following.Rating: found the text 'good', "
        "expected a number in quotes, or 'N/A'",
    ]


def test_models_are_kept(load) -> None:
    for name, place, models in (("nectar", 0, ["gpt-4", "llama", "anon"]),
                                ("binarized", 1, ["m", "n"])):  # fmt: skip
        group = load(SAMPLES[name][0]).groups[place]
        assert [response.model for response in group.responses] == models


def test_a_prompt_with_one_response_is_left_out_and_counted(load) -> None:
    source = load([*SAMPLES["helpsteer"][0], helpsteer("alone", "x", 1, 1, 1, 1, 1)])
    assert len(source.groups) == 2
    assert source.counts["prompts_with_one_response"] == 1


def test_only_the_preference_splits_of_ultrafeedback_binarized_count(tmp_path: Path) -> None:
    for split in ("train_prefs", "test_prefs", "train_sft", "test_gen", "validation"):
        row = {"prompt": split, "chosen": talk(split, "a"), "rejected": talk(split, "b")}
        write_lines(tmp_path / f"{split}.jsonl", [row])
    source = load_groups(tmp_path)
    splits = {group.prompt[0].content: group.split for group in source.groups}
    assert splits == {"train_prefs": "train", "test_prefs": "test", "validation": "validation"}
    assert source.counts["rows_of_other_splits"] == 2


def test_an_adapter_can_be_asked_for(load) -> None:
    rows = [{"prompt": "Human: A\n\nAssistant:", "chosen": "b", "rejected": "c"}]
    assert load(rows).adapter == "transcript-pairs"
    source = load(rows, adapter="pairs")
    assert (source.adapter, source.reason) == ("pairs", "asked for")
    assert source.groups[0].prompt[0].content == rows[0]["prompt"]


def test_columns_can_be_mapped_and_problems_name_those_of_the_file(load) -> None:
    row = {"ask": "Q", "good": "a", "bad": "b", "prompt": 5}
    mapping = {"prompt": "ask", "chosen": "good", "rejected": "bad"}
    assert plain(load([row], mapping=mapping).groups[0]) == (["user: Q"], pair("a", "b"))
    with pytest.raises(DataError) as error:
        load([row | {"bad": None}], mapping=mapping)
    assert [problem.field for problem in error.value.problems] == ["bad"]


def test_the_named_data_sets_are_those_of_the_papers() -> None:
    """MRPO's Tables 6 and 7, train/test of 364/3276, 502/502, 2178/242 and 90 % of Nectar; and the
    sets that MPO, SWEPO and MPPO train on. Every name stands for an owner's set, never a hash."""
    published = {
        "comparison-gpt4": ("wangrongsheng/comparison_gpt4_data_en", 3276 / (364 + 3276)),
        "neural-dpo": ("NeuralNovel/Neural-DPO", 502 / (502 + 502)),
        "distilabel-math": ("argilla/distilabel-math-preference-dpo", 242 / (2178 + 242)),
        "nectar-binarized": ("HongchengGao/Nectar_binarized", 1 - 0.9),
        "helpsteer-binarized": ("sablo/HelpSteer_binarized", 0),
        "ultrafeedback-binarized": ("HuggingFaceH4/ultrafeedback_binarized", 0),
    }
    for name, (hub_id, share) in published.items():
        assert KNOWN[name].hub_id == hub_id
        assert KNOWN[name].test_size == pytest.approx(share, abs=1e-9), name
    others = {"ultrafeedback", "helpsteer", "helpsteer3", "nectar", "hh-rlhf", "orca-dpo"}
    assert others | published.keys() <= KNOWN.keys()
    for data in KNOWN.values():
        assert re.fullmatch(r"[^/]+/[A-Za-z0-9_-]+", data.hub_id)
        assert 0 <= data.test_size < 1
