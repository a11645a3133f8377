"""A run that is pushed: what the hub gets, and a token that nothing else gets."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from fake_hub import hub
from stores import write_lines

TOKEN = "hf_CanaryCanaryCanaryCanary"
SECRETS = {
    "HF_TOKEN": TOKEN,
    "WANDB_API_KEY": "wandb_canary",
    "AWS_SECRET_ACCESS_KEY": "aws_canary",
}


@pytest.mark.parametrize("refuses", [False, True])
def test_the_hub_gets_the_finished_run(refuses, some_groups, cached, tmp_path):
    """Adapter, tokenizer, card, recipe and figures, and no checkpoint; where the hub refuses, the
    run is finished all the same, and the command is named. Keys of the environment are in no file
    and in no output."""
    data = write_lines(tmp_path / "data.jsonl", (group.as_dict() for group in some_groups))
    run = tmp_path / "run"
    with hub(refuses=refuses) as held:
        environment = {**os.environ, **SECRETS, "HF_ENDPOINT": held.url, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "mrpo_tools", "train", "--dataset", str(data), "--cache",
             str(cached.path), "--loss", "dpo", "--refs", "llama", "--output", str(run),
             "--set", "split=all", "--set", "max_steps=1",
             "--set", "trainer={push_to_hub: true, hub_model_id: me/run, hub_strategy: end}"],
            capture_output=True, text=True, env={**environment, "HF_HUB_OFFLINE": "0"},
        )  # fmt: skip
    assert done.returncode == (1 if refuses else 0), done.stderr
    assert (run / "metrics.json").exists()
    assert f"Bearer {TOKEN}" in held.tokens
    assert held.repositories[0]["name"] == "run"
    if refuses:
        assert "the run is finished, but the hub does not take it" in done.stderr
        assert f"hf upload me/run {run}" in done.stderr
    else:
        assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md",
                "recipe.yaml", "metrics.json"} <= held.files.keys()  # fmt: skip
        assert not any("checkpoint" in path for path in held.files)
        assert held.files["README.md"] == (run / "README.md").read_bytes()
        assert b"against the cached log-probs of: llama" in held.files["README.md"]
    outputs = [done.stdout.encode(), done.stderr.encode()]
    files = [path.read_bytes() for path in run.rglob("*") if path.is_file()]
    for secret in SECRETS.values():
        assert not any(secret.encode() in text for text in [*outputs, *files])
