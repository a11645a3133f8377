"""References of any size whose weights are holes: a configuration, and a file with the names and
shapes of all tensors in its header and nothing behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from mrpo_tools.config import Reference
from mrpo_tools.references.identity import Identity
from mrpo_tools.references.model_files import ModelFiles
from mrpo_tools.references.resolved import ResolvedReference

LLAMA_8B = LlamaConfig(
    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=False,
)  # fmt: skip
LLAMA_70B = LlamaConfig(
    vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
    num_attention_heads=64, num_key_value_heads=8, tie_word_embeddings=False,
)  # fmt: skip


def hollow(directory: Path, config: Any) -> Path:
    """Write a model without weights, in bfloat16; takes no room on disk."""
    directory.mkdir()
    config.save_pretrained(directory)
    with torch.device("meta"):
        tensors = AutoModelForCausalLM.from_config(config).state_dict()
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    told = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(told).to_bytes(8, "little") + told)
        file.truncate(8 + len(told) + end)
    return directory


def referred(directory: Path, **words: Any) -> ResolvedReference:
    """A reference to such a model, whose weights nobody hashes."""
    reference = Reference(model=str(directory), **{"dtype": "bfloat16", **words})
    adapter = None if reference.adapter is None else Path(reference.adapter)
    files = ModelFiles(directory, adapter)
    return ResolvedReference("big", reference, files, reference.dtype or "", Identity({}), ())
