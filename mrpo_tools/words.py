"""The names that a user chooses among: once for recipes, options, mathematics and docs. No torch.

A choice is a `Literal`, so that types and values cannot drift apart; `choices` lists its names in
the order in which help texts show them.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

DataForm = Literal["canonical", "trl", "llama-factory", "openrlhf"]
"""The forms that data is written in."""

Dtype = Literal["float32", "bfloat16", "float16"]
Quantization = Literal["nf4"]
Overlong = Literal["skip", "truncate"]
Truncated = Literal["drop", "keep"]
"""Whether responses that a reference read cut (`overlong: truncate`) take part."""
System = Literal["fold", "drop", "error"]
AddedTokens = Literal["plain", "keep"]
Attention = Literal["auto", "tree", "sdpa", "eager"]

Combine = Literal["harmonic", "geometric", "arithmetic", "separate"]
"""How K references become one; `separate` leaves them K."""
Weights = Literal["confidence", "uniform", "fixed", "accuracy"]
WeightsLayout = Literal["paper", "swapped"]
TrustRegion = Literal["adaptive", "fixed", "none"]

Chosen = Literal["auto", "mean", "top1", "top_bottom"]
"""Which responses of a scored group count as chosen."""
DeterministicPairing = Literal["best_worst", "best_vs_rest", "all"]
"""The pairings that draw nothing, so that pairs can be written to a file."""
Pairing = Literal["best_worst", "best_random", DeterministicPairing]
"""Which pairs a group makes. A name that stands twice counts once, where it stands first."""

ResultFormat = Literal["table", "csv", "json", "jsonl", "markdown", "parquet"]
"""How the result of a query is written."""
PairsFormat = Literal["trl", "jsonl", "parquet"]
"""How exported pairs are written."""
TableFormat = Literal["markdown", "latex", "csv", "json"]
"""What a comparison of runs is written as."""

Finetuning = Literal["lora", "full"]
Scheduler = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant",
    "constant_with_warmup", "inverse_sqrt",
]  # fmt: skip


def choices(words: Any) -> tuple[str, ...]:
    """The names of a choice: `choices(Overlong)` is `("skip", "truncate")`."""
    return get_args(words)
