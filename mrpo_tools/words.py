"""The names that a user chooses among: once for recipes, options, mathematics and docs. No torch.

A choice is a `Literal`, so that types and values cannot drift apart; `choices` lists its names in
the order in which help texts show them, and `phrases` says what each of them means.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

_PHRASES: dict[Any, dict[str, str]] = {}

DataForm = Literal["canonical", "trl", "llama-factory", "openrlhf"]
"""The forms that data is written in."""
_PHRASES[DataForm] = {
    "canonical": "a prompt with all its responses: mrpo's own",
    "trl": "pairs as TRL's trainers read them",
    "llama-factory": "pairs as LLaMA-Factory reads them",
    "openrlhf": "pairs as OpenRLHF reads them",
}

AnswersForm = Literal["alpaca_eval", "arena_hard", "mt_bench"]
"""Whose questions are answered, and in whose form."""
_PHRASES[AnswersForm] = {
    "alpaca_eval": "instruction, output, generator: one JSON list",
    "arena_hard": "Arena-Hard v2's messages, a line for each question",
    "mt_bench": "two turns, the second after the first answer",
}

Dtype = Literal["float32", "bfloat16", "float16"]
_PHRASES[Dtype] = {
    "float32": "exact, and the fastest on a CPU",
    "bfloat16": "half the memory; what accelerators are fast in",
    "float16": "half the memory, for cards without bfloat16",
}
Quantization = Literal["nf4"]
_PHRASES[Quantization] = {"nf4": "weights in 4 bits, a quarter of the memory"}
DeviceMap = Literal["auto"]
"""Where the layers of a reference lie, in transformers' word."""
_PHRASES[DeviceMap] = {"auto": "its layers spread over all GPUs that are seen"}
Overlong = Literal["skip", "truncate", "keep_end"]
_PHRASES[Overlong] = {
    "skip": "it gets no number and is counted",
    "truncate": "its end is cut, and its number marked",
    "keep_end": "of a long prompt the end is read, and the numbers marked",
}
Truncated = Literal["drop", "keep"]
"""Whether responses that a reference read cut, themselves or their prompt, take part."""
_PHRASES[Truncated] = {
    "drop": "they are left out, and counted",
    "keep": "the number of what was read stands for them",
}
Status = Literal["truncated", "empty", "duplicate"]
"""What is amiss with a sampled answer, so that it is left out of training unless it is kept."""
_PHRASES[Status] = {
    "truncated": "the token limit cut it",
    "empty": "it says nothing",
    "duplicate": "an earlier finished answer to the same prompt says the same",
}
KeptStatus = Literal["truncated", "empty"]
"""The statuses whose answers can be kept; a duplicate is one response with what it repeats."""
_PHRASES[KeptStatus] = {
    name: phrase for name, phrase in _PHRASES[Status].items() if name != "duplicate"
}
System = Literal["fold", "drop", "error"]
_PHRASES[System] = {
    "fold": "goes before the first user message",
    "drop": "is left out",
    "error": "is refused",
}
AddedTokens = Literal["plain", "keep"]
_PHRASES[AddedTokens] = {
    "plain": "read as the text that they are",
    "keep": "read as the tokens",
}
Attention = Literal["auto", "tree", "sdpa", "eager"]
_PHRASES[Attention] = {
    "auto": "the fastest that agrees with the model itself",
    "tree": "a prompt shared by its responses is computed once",
    "sdpa": "torch's own kernel, a row for each response",
    "eager": "plain matrix products: slow, and works anywhere",
}

ServedEngine = Literal["vllm"]
"""The engines whose servers are asked for a reference's log-probs."""
_PHRASES[ServedEngine] = {"vllm": "prompt_logprobs of token ids"}
LogprobsMode = Literal["raw_logprobs", "processed_logprobs"]
"""What a server's log-probs are of, as it was started."""
_PHRASES[LogprobsMode] = {
    "raw_logprobs": "the model's own logits",
    "processed_logprobs": "what is left after sampling rules; of a prompt the same",
}
Calibration = Literal["auto", "weights", "server"]
"""What a server's log-probs are compared with before the first is kept."""
_PHRASES[Calibration] = {
    "auto": "the weights, where they lie here and fit; else as server",
    "weights": "the weights, which must lie here and fit",
    "server": "themselves alone: asked again, otherwise, in other company",
}

Loss = Literal[
    "mrpo", "mean_ref", "inpo", "mnpo", "dpo", "multi_dpo", "ipo", "slic", "rrhf", "cpo",
    "kto_pair", "orpo", "r_dpo", "simpo", "sppo", "sft", "mpo", "w_mpo", "swepo", "mpo_1vsk",
    "mpo_reference_free", "infonca", "nca", "plackett_luce", "grpo_offline", "mppo_point_ce",
    "mppo_point_mse", "mppo_pair_single", "mppo_pair_mns", "mppo_pair_mnm", "mppo_pair_mcs",
    "mppo_pair_mcm", "mppo_list_mle", "rlhf", "kd",
]  # fmt: skip
"""What is optimised; `mrpo losses NAME` says what each is."""

Combine = Literal["harmonic", "geometric", "arithmetic", "separate"]
"""How K references become one; `separate` leaves them K."""
_PHRASES[Combine] = {
    "harmonic": "MRPO's: cautious, near the lowest",
    "geometric": "the mean of log-probs",
    "arithmetic": "the mean of probabilities, near the highest",
    "separate": "not at all: for multi_dpo alone",
}
Weights = Literal["confidence", "uniform", "fixed", "accuracy"]
_PHRASES[Weights] = {
    "confidence": "MRPO's: how far apart it rates a group's responses",
    "uniform": "each the same",
    "fixed": "those of fixed_weights",
    "accuracy": "how often it is right, above chance, on held-out groups",
}
WeightsLayout = Literal["paper", "swapped"]
_PHRASES[WeightsLayout] = {
    "paper": "each weight at its own reference",
    "swapped": "at the other of two, as the published code has it",
}
TrustRegion = Literal["adaptive", "fixed", "none"]
_PHRASES[TrustRegion] = {
    "adaptive": "MRPO's: a group's unlikely responses get more room",
    "fixed": "epsilon_max everywhere",
    "none": "nothing is clipped",
}

Chosen = Literal["auto", "mean", "top1", "top_bottom"]
"""Which responses of a scored group count as chosen."""
_PHRASES[Chosen] = {
    "auto": "those with a label; without labels as mean",
    "mean": "those scored above their group's mean",
    "top1": "the best one",
    "top_bottom": "the best few, against the worst few alone",
}
DeterministicPairing = Literal["best_worst", "best_vs_rest", "all"]
"""The pairings that draw nothing, so that pairs can be written to a file."""
Pairing = Literal["best_worst", "best_random", DeterministicPairing]
"""Which pairs a group makes. A name that stands twice counts once, where it stands first."""
_PHRASES[Pairing] = {
    "best_worst": "the best against the worst",
    "best_random": "the best against one drawn anew each epoch",
    "best_vs_rest": "the best against each worse one",
    "all": "every better against every worse one",
}
_PHRASES[DeterministicPairing] = {
    name: phrase for name, phrase in _PHRASES[Pairing].items() if name != "best_random"
}

ResultFormat = Literal["table", "csv", "json", "jsonl", "markdown", "parquet"]
"""How the result of a query is written."""
_PHRASES[ResultFormat] = {
    "table": "for people, at a terminal",
    "csv": "for spreadsheets",
    "json": "one list of objects",
    "jsonl": "an object a line",
    "markdown": "a table for an issue or a README",
    "parquet": "for other programs, with types",
}
PairsFormat = Literal["trl", "jsonl", "parquet"]
"""How exported pairs are written."""
_PHRASES[PairsFormat] = {
    "trl": "Parquet with what TRL's trainers read, and no more",
    "jsonl": "an object a line, with ids, scores and splits",
    "parquet": "the same as Parquet",
}
TableFormat = Literal["markdown", "latex", "csv", "json"]
"""What a comparison of runs is written as."""
_PHRASES[TableFormat] = {
    "markdown": "a table for an issue or a README",
    "latex": "a tabular for a paper",
    "csv": "a line for each method and metric, unrounded",
    "json": "everything, every seed's value too",
}

Advantage = Literal["normalized", "centred", "leave_one_out"]
"""What a sample's reward is compared with, and whether the spread divides it."""
_PHRASES[Advantage] = {
    "normalized": "the group's mean, in units of its spread (GRPO)",
    "centred": "the group's mean",
    "leave_one_out": "the mean of the others: the unbiased one",
}

RoundStart = Literal["last", "base"]
"""Where each round's training begins."""
_PHRASES[RoundStart] = {
    "last": "the last round's policy",
    "base": "the first policy, anew each round",
}

Finetuning = Literal["lora", "full"]
_PHRASES[Finetuning] = {
    "lora": "a small adapter; the weights stay",
    "full": "all weights",
}
Wrapping = Literal["ddp", "fsdp2", "zero2", "zero3"]
"""How a policy is spread over several processes."""
_PHRASES[Wrapping] = {
    "ddp": "all of it in each",
    "fsdp2": "parameters, gradients, optimizer in parts",
    "zero2": "gradients and optimizer in parts (DeepSpeed)",
    "zero3": "parameters too (DeepSpeed)",
}
Scheduler = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant",
    "constant_with_warmup", "inverse_sqrt",
]  # fmt: skip
_PHRASES[Scheduler] = {
    "linear": "in a straight line to 0",
    "cosine": "slowly, fast, slowly to 0",
    "cosine_with_restarts": "as cosine: transformers' schedule with one cycle",
    "polynomial": "in a straight line to nearly 0",
    "constant": "not at all, and without warm-up",
    "constant_with_warmup": "not at all after the warm-up",
    "inverse_sqrt": "as one over the root of the step",
}


def choices(words: Any) -> tuple[str, ...]:
    """The names of a choice: `choices(Overlong)` is `("skip", "truncate", "keep_end")`."""
    return get_args(words)


def phrases(words: Any) -> Mapping[str, str]:
    """What each name of a choice means, in a few words; empty of a choice that has none."""
    return _PHRASES.get(words, {})
