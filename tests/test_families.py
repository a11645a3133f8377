"""No family of causal LMs leaks: whatever a sample taught the self-check, other rows are right."""

from __future__ import annotations

import pytest
import torch
from families import ABSENT, EXACT, FAMILIES, OTHERS, SAMPLES, family_of, measure, tiny_model
from independent import response_logp
from test_docs import ROOT, measured, script
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

EVERY_TIME = {
    "apertus", "bamba", "bitnet", "bloom", "cohere2", "dbrx", "deepseek_v3", "deepseek_v32",
    "diffllama", "ernie4_5_moe", "exaone4", "falcon", "falcon, alibi", "falcon_h1", "falcon_mamba",
    "gemma2", "gemma3_text", "glm4", "glm4_moe", "gpt2", "gpt_neo", "gpt_neox", "gpt_oss", "gptj",
    "granitemoehybrid", "jamba", "lfm2", "llama, dynamic", "llama, llama3", "llama, longrope",
    "llama, yarn", "llama4_text", "mamba2", "minimax", "mistral", "mixtral", "mpt", "nemotron",
    "olmo2", "olmoe", "opt", "phi", "phi3", "qwen2_moe", "qwen3", "qwen3_5_text", "qwen3_moe",
    "qwen3_next", "roberta", "rwkv", "smollm3", "starcoder2", "zamba2",
}  # fmt: skip
"""One of each kind; the others are for the long tier."""
ROWS = [
    pytest.param(name, marks=() if name in EVERY_TIME else pytest.mark.long) for name in FAMILIES
]


@pytest.fixture
def known(name: str) -> str:
    """The row, if the installed release has its family."""
    if family_of(name) not in CONFIG_MAPPING:
        pytest.skip("not in this release of transformers")
    return name


@pytest.mark.parametrize("name", ROWS)
def test_log_probs_are_those_of_each_row_alone(known):
    """Whether the sample had one response a prompt or several, other rows of both kinds are right
    in batches of any size: to 1e-5 nats a token."""
    for kind, found in measure(known).items():
        assert found.worst <= EXACT, (kind, found)


@torch.no_grad()
@pytest.mark.parametrize("name", ROWS)
def test_a_leak_would_show(known):
    """The same prompt read backwards moves log-probs by far more than what is allowed."""
    model = tiny_model(known)
    moves = [
        float(response_logp(model, tree.prompt, response) - response_logp(model, other, response))
        / len(response)
        for tree in OTHERS
        for other in [tree.prompt[::-1]]
        for response in tree.responses
    ]
    assert max(map(abs, moves)) > 1000 * EXACT


def test_the_page_is_what_was_measured():
    """docs/families.md is made of docs/families.json, in which no family is wrong."""
    page = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    assert page == script("docs/generate.py").families_page(), (
        "python docs/generate.py writes it anew"
    )
    rows = measured("families.json")["rows"]
    assert [row["name"] for row in rows] == list(FAMILIES)
    assert all(row[kind]["worst"] <= EXACT for row in rows for kind in SAMPLES)


def test_every_family_of_transformers_has_a_row_or_a_reason():
    rows = {family_of(name) for name in FAMILIES}
    assert set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) <= rows | ABSENT.keys()
    assert rows.isdisjoint(ABSENT)
    assert FAMILIES.keys() >= EVERY_TIME
