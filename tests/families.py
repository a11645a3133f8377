"""A tiny random model of every family of causal LMs that transformers knows.

A family is a `model_type` of transformers; some stand here in several configurations. Sizes come
from `SMALL`, as far as a family's configuration has a field of that name; `OWN` says what else it
needs. Windows are 8 tokens, layers of all kinds alternate, and weights are large enough for the
context to decide: a leak shows. `ABSENT` says of every other name why it is not here.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from independent import response_logp
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mrpo_tools.scorer.scorer import ResponseScorer, response_logps
from mrpo_tools.scorer.self_check import self_check
from mrpo_tools.scorer.trees import Row

CPU = torch.device("cpu")
EXACT = 1e-5
"""nats per token that may be between two ways of computing a response in float32."""
VOCABULARY = 200
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "is_decoder": True, "tie_word_embeddings": False,
    # widths
    "hidden_size": 32, "n_embd": 32, "d_model": 32, "embed_dim": 32, "intermediate_size": 64,
    "ffn_dim": 64, "n_inner": 64, "decoder_ffn_dim": 64, "encoder_ffn_dim": 64, "head_dim": 8,
    "initializer_range": 0.3, "init_std": 0.3,
    # depths and heads
    "num_hidden_layers": 4, "n_layer": 4, "n_layers": 4, "num_layers": 4, "decoder_layers": 4,
    "encoder_layers": 1, "num_attention_heads": 4, "n_head": 4, "n_heads": 4,
    "decoder_attention_heads": 4, "encoder_attention_heads": 4, "num_key_value_heads": 2,
    # lengths and windows
    "max_position_embeddings": 64, "n_positions": 64, "max_seq_len": 64, "sliding_window": 8,
    "use_sliding_window": True, "max_window_layers": 2,
    # experts
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_k": 2, "n_shared_experts": 1, "num_shared_experts": 1, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32,
    # latent and indexed attention
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "qk_head_dim": 16, "index_head_dim": 8, "index_n_heads": 16, "index_topk": 8,
    "rotary_dim": 8,
    # linear attention and state spaces
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8,
    "mamba_chunk_size": 8, "state_size": 8, "time_step_rank": 4, "chunk_size": 8,
}  # fmt: skip
MAY_BE_UNSET = {"sliding_window", "initializer_range"}
"""Fields of `SMALL` that are set even where a family's default is None."""

WINDOWS = ["sliding_attention", "full_attention"] * 2
LINEAR = ["linear_attention", "full_attention"] * 2
ROPE = {"rope_theta": 10000.0}
TWO_ROPES = {"sliding_attention": {"rope_type": "default", **ROPE},
             "full_attention": {"rope_type": "default", "rope_theta": 1e6}}  # fmt: skip
FACTORS = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
           "original_max_position_embeddings": 32}  # fmt: skip


def rotary(kind: str, **more: Any) -> dict[str, Any]:
    """The configuration of positions that are scaled by a rule of transformers."""
    return {"rope_parameters": {"rope_type": kind, **ROPE, **more}}


MIXED = {"layer_types": WINDOWS}
UNGROUPED = {"num_key_value_heads": 4}
GENTLE = {"initializer_range": 0.2}
"""Linear attention with larger weights makes 2e-5 nats of float32's rounding."""
SIGHT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
         "num_attention_heads": 2, "image_size": 16, "patch_size": 8}  # fmt: skip
"""The half of a model that reads pictures, where a family cannot be made without."""
WIDER = {"1": {"head_dim": 16}, "3": {"head_dim": 16}}
INKLING = {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8,
           "sliding_window_size": 8, "rel_extent": 32, "d_rel": 4,
           "layer_types": ["hybrid_sliding", "hybrid"] * 2}  # fmt: skip

SAME_AS_SMALL = [
    "afmoe", "apertus", "arcee", "bart", "beam", "bert", "bert-generation", "big_bird",
    "bigbird_pegasus", "biogpt", "bitnet", "blenderbot", "blenderbot-small", "bloom",
    "camembert", "codegen", "cwm", "data2vec-text", "diffllama", "doge", "electra", "ernie",
    "ernie4_5", "exaone4", "exaone_moe", "falcon_mamba", "flex_olmo", "flint", "gemma",
    "gemma2", "glm", "glm4", "glm4_moe", "gpt2", "gpt_bigcode", "gpt_neox", "gpt_neox_japanese",
    "gpt_oss", "gptj", "granite", "granite_swa", "granitemoe", "granitemoe_swa",
    "granitemoeshared", "helium", "hy_v3", "hy_v4", "hyperclovax", "jais2", "lfm3", "llama",
    "mamba", "marian", "mbart", "megatron-bert", "mimo_v2_flash", "minimax_m2", "ministral3",
    "mistral", "mixtral", "modernbert-decoder", "moshi", "mpt", "mvp", "nanochat", "olmo",
    "olmo2", "olmo3", "olmo_hybrid", "olmoe", "openai-gpt", "opt", "pegasus", "persimmon",
    "phi", "phi3", "phimoe", "plbart", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "roberta",
    "roberta-prelayernorm", "roformer", "rwkv", "seed_oss", "smollm3", "solar_open", "stablelm",
    "starcoder2", "trocr", "vaultgemma", "whisper", "xglm", "xlm-roberta", "xlm-roberta-xl",
]  # fmt: skip
"""Families that need nothing of their own."""

OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("gemma3_text", "kolibri1", "mellum"), MIXED),
    **dict.fromkeys(("axk1", "axk2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa",
                     "minicpm3", "youtu"), UNGROUPED),
    **dict.fromkeys(("minimax", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"), GENTLE),
    "llama, linear": rotary("linear", factor=4.0),
    "llama, dynamic": {"max_position_embeddings": 32, **rotary("dynamic", factor=4.0)},
    "llama, llama3": rotary("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                            original_max_position_embeddings=32),
    "llama, yarn": rotary("yarn", factor=4.0, original_max_position_embeddings=32),
    "llama, longrope": rotary("longrope", **FACTORS),
    "phi3, longrope": {"original_max_position_embeddings": 32, **rotary("longrope", **FACTORS)},
    "mistral, no window": {"sliding_window": None},
    "mixtral, no window": {"sliding_window": None},
    "qwen2, no window": {"use_sliding_window": False},
    "qwen3, no window": {"use_sliding_window": False},
    "aria_text": {"moe_num_experts": 4},
    "bailing_hybrid": {"num_key_value_heads": 4, "layer_types": LINEAR},
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere": {"logit_scale": 0.8},
    "cohere2": {"logit_scale": 0.8, "layer_types": WINDOWS},
    "cohere2_moe": {"logit_scale": 0.8, "layer_types": WINDOWS},
    "cohere_compass_text": {"layer_types": WINDOWS, "rope_parameters": TWO_ROPES},
    "ctrl": {"dff": 64},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, **ROPE},
             "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 32, "moe_num_experts": 4,
                            "moe_top_k": 2}},
    "deepseek_v2": {"num_key_value_heads": 4, "num_experts_per_tok": 2},
    "deepseek_v4": {"o_groups": 2, "o_lora_rank": 16,
                    "compress_rates": {"compressed_sparse_attention": 2,
                                       "heavily_compressed_attention": 4}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
              "layer_types": WINDOWS},
    "dots3_note_text": {"num_key_value_heads": 4, "head_dim": 16, "per_layer_config": {},
                        "shared_experts_intermediate_size": 32,
                        "layer_types": ["indexed_attention", "sliding_attention"] * 2},
    "ernie4_5_moe": {"moe_num_experts": 4},
    "falcon": {"alibi": False},
    "falcon, alibi": {"alibi": True},
    "falcon, new decoder": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon_h1": {"mamba_d_ssm": 64},
    "fuyu": {"text_config": "persimmon"},
    "gemma3": {"text_config": "gemma3_text", "mm_tokens_per_image": 4},
    "gemma3n_text": {"num_kv_shared_layers": 2, "layer_types": WINDOWS, "intermediate_size": 64,
                     "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8,
                     "laurel_rank": 8, "activation_sparsity_pattern": [0.0] * 4},
    "gemma4": {"text_config": "gemma4_text"},
    "gemma4_text": {"layer_types": WINDOWS, "per_layer_config": WIDER,
                    "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8},
    "gemma4_unified_text": {"layer_types": WINDOWS, "per_layer_config": WIDER},
    "gpt_neo": {"num_heads": 4, "attention_types": [[["global", "local"], 2]], "window_size": 8},
    "granitemoehybrid": {"layer_types": LINEAR},
    "hrm_text": {"initializer_range": 0.1},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4, "moe_topk": 2},
    "inkling_text": {**INKLING, "logits_mup_width_multiplier": 1.0},
    "inkling2_text": {**INKLING, "unpadded_vocab_size": VOCABULARY},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "jetmoe": {"kv_channels": 8},
    "kimi_linear": {"num_key_value_heads": 4, "layer_types": LINEAR, "linear_head_dim": 8,
                    "linear_num_heads": 4},
    "laguna": {"layer_types": WINDOWS, "num_attention_heads_per_layer": [4] * 4},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "llama4_text": {"attention_chunk_size": 8},
    "longcat_flash": {"num_layers": 2, "num_key_value_heads": 4, "ffn_hidden_size": 64,
                      "moe_topk": 2, "zero_expert_num": 2, "expert_ffn_hidden_size": 32},
    "mamba2": {"num_heads": 8, "n_groups": 1},
    "minimax_m3_vl_text": {"index_n_heads": 4, "index_block_size": 4, "index_topk_blocks": 2,
                           "dense_intermediate_size": 64,
                           "layer_types": ["minimax_m3_sparse", "full_attention"] * 2},
    "ministral": {"head_dim": 8, "layer_types": WINDOWS},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {"ssm_state_size": 8, "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 1,
                   "moe_shared_expert_intermediate_size": 32},
    "qwen4_exp_text": {"hc_lowrank": 8, "output_gate_type": "sigmoid", "indexer_n_heads": 16,
                       "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
                       "indexer_compress_ratio": 2,
                       "layer_types": ["linear_attention", "indexed_attention"] * 2},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 8, "w_init_variance_scale": 1.0,
                        "final_w_init_variance_scale": 1.0,
                        "block_types": ["recurrent", "attention"]},
    "reformer": {"attention_head_size": 8, "axial_pos_shape": [8, 8], "num_attention_heads": 4,
                 "axial_pos_embds_dim": [16, 16], "feed_forward_size": 64},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 32},
    "roc_bert": {"shape_vocab_size": 20, "pronunciation_vocab_size": 20},
    "xlm": {"emb_dim": 32, "causal": True},
    "xlnet": {"d_inner": 64, "d_head": 8, "attn_type": "uni"},
    "xlstm": {"num_heads": 4},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_key_value_heads": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2,
              **GENTLE},
    "zamba2": {"num_key_value_heads": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2,
               "mamba_headdim": 8, **GENTLE},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16,
             "layer_types": ["hybrid", "hybrid_sliding"] * 2},
}  # fmt: skip
"""What other configurations have beside `SMALL`; a comma ends the name of the family."""

ABSENT = {
    "blt": "its patches of bytes are cut by a second model",
    "cpmant": "its logits depend on later tokens",
    "dots3_note": "reads pictures and sound; its text half is `dots3_note_text`",
    "emu3": "reads pictures as tokens of a second model",
    "gemma3n": "needs timm for its pictures; its text half is `gemma3n_text`",
    "gemma4_assistant": "drafts for a larger model, whose hidden states it reads",
    "gemma4_unified": "reads pictures and sound; its text half is `gemma4_unified_text`",
    "gemma4_unified_assistant": "drafts for a larger model, whose hidden states it reads",
    "git": "describes pictures",
    "got_ocr2": "reads pictures; its text half is `qwen2`",
    "gpt-sw3": "is `gpt2`",
    "internlm3": "is `llama`",
    "iquestcoder": "is `llama`",
    "llama4": "is loaded as its text half, `llama4_text`",
    "mllama": "reads pictures by cross-attention",
    "moss_transcribe_diarize": "reads sound; its text half is `qwen3`",
    "musicgen": "makes sound",
    "musicgen_melody": "makes sound",
    "phi4_multimodal": "reads pictures and sound",
    "prophetnet": "its logits depend on later tokens",
    "qwen3_5": "is loaded as its text half, `qwen3_5_text`",
    "qwen3_5_moe": "is loaded as its text half, `qwen3_5_moe_text`",
    "qwen4_exp": "is loaded as its text half, `qwen4_exp_text`",
}
"""The other names of transformers' causal LMs: `model_type` -> why it has no row."""
FAMILIES: dict[str, dict[str, Any]] = {**{name: {} for name in SAME_AS_SMALL}, **OWN}


def family_of(name: str) -> str:
    """The `model_type` of a row of `FAMILIES`."""
    return name.partition(",")[0]


def configuration(name: str) -> Any:
    """The configuration of a row of `FAMILIES`."""
    model_type, own = family_of(name), FAMILIES[name]
    if "text_config" in own:
        text = configuration(own["text_config"]).to_dict()
        return CONFIG_MAPPING[model_type](**{"vision_config": SIGHT, **own, "text_config": text})
    kind = CONFIG_MAPPING[model_type]
    fields = kind().to_dict()
    aliases = getattr(kind, "attribute_map", {})
    sizes = {
        field: size
        for field, size in SMALL.items()
        for own_name in [aliases.get(field, field)]
        if own_name in fields and (fields[own_name] is not None or field in MAY_BE_UNSET)
    }
    return kind(**{**sizes, **own})


def tiny_model(name: str, seed: int = 0) -> PreTrainedModel:
    """A model of a row of `FAMILIES` in float32, with random weights that depend on the seed."""
    torch.manual_seed(seed)
    config = configuration(name)
    model = AutoModelForCausalLM.from_config(config)
    spread = getattr(config.get_text_config(), "initializer_range", SMALL["initializer_range"])
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding | Conv1D):
            nn.init.normal_(module.weight, std=spread)
    return model.eval()


def random_trees(seed: int, counts: Sequence[int]) -> list[Row]:
    """Prompts of 1 to 40 tokens with so many responses of 1 to 20 tokens."""
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high + 1, (1,), generator=generator))
        return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()

    prompts = itertools.cycle((5, 40, 1, 12, 20))
    starts = itertools.accumulate(counts, initial=0)
    return [
        Row(ids(size, size), [ids(1, 20) for _ in range(count)], range(start, start + count))
        for count, size, start in zip(counts, prompts, starts, strict=False)
    ]


SAMPLES = {"single": random_trees(0, [1] * 5), "several": random_trees(0, [3, 2, 2, 2, 1])}
"""What a self-check may see: one response a prompt, or more."""
OTHERS = random_trees(1, [1, 1, 1, 3, 2, 2, 1, 4])


class Measured(NamedTuple):
    """How a family's log-probs are computed, and how far they are from each row alone.

    Attributes:
        route: that the self-check took.
        refused: why faster ones were not, by name.
        worst: the largest difference of a response, nats per token.
    """

    route: str
    refused: Mapping[str, str]
    worst: float


@torch.no_grad()
def measure(name: str) -> dict[str, Measured]:
    """Choose a route by each of `SAMPLES` and compute the log-probs of `OTHERS` by it, in small
    batches and in one; the truth is a model that has seen nothing before, one row at a time."""
    model = tiny_model(name)
    truth = {
        key: float(response_logp(copy.deepcopy(model), tree.prompt, response)) / len(response)
        for tree in OTHERS
        for key, response in zip(tree.keys, tree.responses, strict=True)
    }
    found = {}
    for kind, sample in SAMPLES.items():
        scorer = ResponseScorer(copy.deepcopy(model))
        checked = self_check(scorer, sample, CPU)
        worst = max(
            abs(logp / length - truth[key])
            for max_tokens in (100, 100_000)
            for batch in scorer.batches(OTHERS, max_tokens)
            for key, length, logp in _computed(scorer, batch)
        )
        found[kind] = Measured(scorer.route.name, checked.refused, worst)
    return found


def _computed(scorer: ResponseScorer, batch: list[Row]) -> Iterator[tuple[int, int, float]]:
    """Of each response in a batch: its key, its length, its log-prob."""
    keys = [key for row in batch for key in row.keys]
    lengths = [len(response) for row in batch for response in row.responses]
    yield from zip(keys, lengths, response_logps(scorer, batch, CPU), strict=True)
