"""The table of adapters. Detection takes the one that fits most rows, the first of equals."""

from __future__ import annotations

from mrpo_tools.sources.adapters import pairs, scored
from mrpo_tools.sources.adapters.adapter import (
    ANSWER,
    CHOSEN_REJECTED,
    CONVERSATIONS,
    LABEL,
    MESSAGE,
    MESSAGES,
    NUMBER,
    NUMBERS,
    PROMPT,
    TEXT,
    TEXTS,
    TRANSCRIPT,
    Adapter,
    objects_with,
)

_ULTRAFEEDBACK_SPLITS = {
    "train_prefs": "train",
    "test_prefs": "test",
    "train_sft": None,
    "test_sft": None,
    "train_gen": None,
    "test_gen": None,
}

_TABLE = (
    Adapter(
        "canonical",
        "the form this package writes: a prompt with its responses",
        columns={"prompt": PROMPT, "responses": objects_with("content")},
        read=scored.read_canonical,
    ),
    Adapter(
        "outputs",
        "a prompt with responses called output, as prometheus-eval has them",
        columns={"prompt": PROMPT, "responses": objects_with("output")},
        read=scored.read_outputs,
    ),
    Adapter(
        "ultrafeedback",
        "UltraFeedback: an instruction with judged completions",
        columns={"instruction": TEXT, "completions": objects_with("response", "annotations")},
        read=scored.read_ultrafeedback,
        scores=scored.ULTRAFEEDBACK_SCORES,
    ),
    Adapter(
        "nectar",
        "Nectar: a transcript with ranked answers; the score is minus the rank",
        columns={"prompt": TEXT, "answers": objects_with("answer", "rank")},
        read=scored.read_nectar,
    ),
    Adapter(
        "helpsteer",
        "HelpSteer and HelpSteer2: a response and five attributes of 0-4 a row",
        columns={"prompt": TEXT, "response": TEXT, "helpfulness": NUMBER, "verbosity": NUMBER},
        read=scored.read_helpsteer,
        scores=scored.HELPSTEER_SCORES,
        one_response_a_row=True,
    ),
    Adapter(
        "helpsteer2-preference",
        "HelpSteer2's preferences of -3 (first) to 3 (second), halved as scores",
        columns={
            "prompt": TEXT,
            "response_1": TEXT,
            "response_2": TEXT,
            "preference_strength": NUMBER,
        },
        read=pairs.read_helpsteer2_preference,
    ),
    Adapter(
        "helpsteer3",
        "HelpSteer3's preferences of -3 (first) to 3 (second), halved as scores",
        columns={
            "context": MESSAGES,
            "response1": TEXT,
            "response2": TEXT,
            "overall_preference": NUMBER,
        },
        read=pairs.read_helpsteer3,
    ),
    Adapter(
        "simpo",
        "SimPO's responses of a policy with the scores of a reward model",
        columns={"prompt": TEXT, "all_generated_responses": TEXTS, "all_rm_scores": NUMBERS},
        read=scored.read_simpo,
    ),
    Adapter(
        "rewards",
        "RLHFlow's lists of responses and of rewards",
        columns={"prompt": PROMPT, "responses": TEXTS, "rewards": NUMBERS},
        read=scored.read_rewards,
    ),
    Adapter(
        "transcript-pairs",
        "pairs whose prompt is a transcript, as in Nectar binarized",
        columns={"prompt": TRANSCRIPT, "chosen": TEXT, "rejected": TEXT},
        read=pairs.read_transcript_pairs,
    ),
    Adapter(
        "pairs",
        "TRL's pairs of texts",
        columns={"prompt": PROMPT, "chosen": TEXT, "rejected": TEXT},
        read=pairs.read_pairs,
    ),
    Adapter(
        "conversational",
        "TRL's pairs of messages",
        columns={"prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES},
        read=pairs.read_pairs,
    ),
    Adapter(
        "binarized",
        "UltraFeedback and HelpSteer binarized: a prompt beside two whole conversations",
        columns={"prompt": TEXT, "chosen": MESSAGES, "rejected": MESSAGES},
        read=pairs.read_binarized,
        splits=_ULTRAFEEDBACK_SPLITS,
    ),
    Adapter(
        "sets",
        "a set of chosen and a set of rejected answers",
        columns={"prompt": PROMPT, "chosen": TEXTS, "rejected": TEXTS},
        read=scored.read_sets,
    ),
    Adapter(
        "sets-conversational",
        "a set of chosen and a set of rejected answers as lists of messages",
        columns={"prompt": PROMPT, "chosen": CONVERSATIONS, "rejected": CONVERSATIONS},
        read=scored.read_sets,
    ),
    Adapter(
        "comparison-gpt4",
        "instructions with two ordered outputs",
        columns={"instruction": TEXT, "output": CHOSEN_REJECTED},
        read=pairs.read_output_pair,
    ),
    Adapter(
        "distilabel",
        "distilabel's chosen_response and rejected_response, with their ratings",
        columns={"chosen_response": TEXT, "rejected_response": TEXT},
        read=pairs.read_distilabel,
    ),
    Adapter(
        "alpaca",
        "LLaMA-Factory's pairs for an instruction",
        columns={"instruction": TEXT, "chosen": ANSWER, "rejected": ANSWER},
        read=pairs.read_alpaca,
    ),
    Adapter(
        "sharegpt",
        "LLaMA-Factory's pairs of turns for a conversation",
        columns={"conversations": MESSAGES, "chosen": MESSAGE, "rejected": MESSAGE},
        read=pairs.read_sharegpt,
    ),
    Adapter(
        "question",
        "Orca's and Neural-DPO's pairs for a question, with a system message",
        columns={"question": TEXT, "chosen": ANSWER, "rejected": ANSWER},
        read=pairs.read_question,
    ),
    Adapter(
        "unpaired",
        "TRL's unpaired preferences: a completion and its label a row",
        columns={"prompt": PROMPT, "completion": ANSWER, "label": LABEL},
        read=scored.read_unpaired,
        one_response_a_row=True,
    ),
    Adapter(
        "conversational-implicit",
        "TRL's and OpenRLHF's two conversations that begin with the same prompt",
        columns={"chosen": MESSAGES, "rejected": MESSAGES},
        read=pairs.read_conversations,
    ),
    Adapter(
        "transcripts",
        "HH-RLHF: two transcripts that begin with the same prompt",
        columns={"chosen": TRANSCRIPT, "rejected": TRANSCRIPT},
        read=pairs.read_transcripts,
    ),
    Adapter(
        "implicit",
        "TRL's two texts that begin with the same prompt",
        columns={"chosen": TEXT, "rejected": TEXT},
        read=pairs.read_implicit,
    ),
)

ADAPTERS = {adapter.name: adapter for adapter in _TABLE}
