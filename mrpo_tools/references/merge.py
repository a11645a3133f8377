"""Merging: a base model and its LoRA adapter as one ordinary model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mrpo_tools.config import Reference
from mrpo_tools.errors import ResourceError, UsageError
from mrpo_tools.files import whole_directory
from mrpo_tools.references.devices import memory_errors
from mrpo_tools.references.loading import load_model, load_tokenizer, merge_adapter
from mrpo_tools.references.resolved import resolve


def merge(reference: Reference, output: Path) -> Path:
    """Write the merged model with its tokenizer, for `from_pretrained` and any inference engine.

    Weights trained in 4 bits are merged into the unquantised base: its log-probs are near those
    that were trained, not equal to them.

    Args:
        reference: a model with an adapter, as `Run.trained_policy` gives it.
        output: a new or empty directory.

    Raises:
        UsageError: there is no adapter, or something is in the directory.
    """
    if output.exists() and (output.is_file() or any(output.iterdir())):
        raise UsageError(f"{output} is not empty", "choose another --output")
    resolved = resolve("model", reference)
    if resolved.files.adapter is None:
        raise UsageError(f"{reference.model} has no adapter to merge", "it is whole already")
    with memory_errors("merging", "merge on a machine with more memory"):
        model: Any = merge_adapter(
            load_model(resolved.files, reference, resolved.dtype, quantized=False)
        )
    tokenizer = load_tokenizer(resolved.files, reference)
    try:
        with whole_directory(output) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        raise ResourceError(f"cannot write to {output}: {error}", "free some space") from None
    return output
