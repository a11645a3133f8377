"""The model that a real server serves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mrpo_tools.demo.tiny_tokenizers import TOKENIZERS


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory, demo_groups) -> Path:
    """Random weights with heads of 32; answers end now and then, as its end is often likely."""
    texts = [text.content for group in demo_groups[:300] for text in group.responses]
    texts += [turn.content for group in demo_groups[:300] for turn in group.prompt]
    tokenizer = TOKENIZERS["llama"](texts)
    ids = {f"{word}_token_id": getattr(tokenizer, f"{word}_token_id")
           for word in ("bos", "eos", "pad")}  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=2048, initializer_range=0.2, **ids,
        )
    )  # fmt: skip
    with torch.no_grad():
        model.lm_head.weight *= 1.5  # some nats of entropy: many first tokens, of unlike shares
        model.lm_head.weight[tokenizer.eos_token_id] *= 1.5
        halves = [token for name, token in tokenizer.get_vocab().items() if name.startswith("<0x")]
        model.lm_head.weight[halves] = 0  # never the likeliest: half a character is no text
    folder = tmp_path_factory.mktemp("served") / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
