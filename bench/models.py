"""Models for the benchmarks: random weights, and a tokenizer trained on the data at hand."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
VOCABULARY = 8192


def make_tokenizer(texts: Iterable[str]):
    """A byte-level BPE of 8,192 tokens with a chat template."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>", "<|system|>"]
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        texts, vocab_size=VOCABULARY, special_tokens=special, show_progress=False
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special[3:]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(directory: Path, texts: Iterable[str], **size: int) -> int:
    """A Llama of about 33 million parameters, or of another size, written once; returns how many
    there are."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = make_tokenizer(texts)
    usual = {
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    }
    config = LlamaConfig(
        **{**usual, **size},
        vocab_size=VOCABULARY,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return sum(parameter.numel() for parameter in model.parameters())
