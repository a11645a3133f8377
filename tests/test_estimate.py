"""A dry run counts what precompute then computes, and loads and writes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from reference_changes import edit_json
from stores import write_groups

from mrpo_tools.cache import Cache
from mrpo_tools.cli import run
from mrpo_tools.errors import UsageError
from mrpo_tools.precomputing.estimate import estimate
from mrpo_tools.precomputing.precompute import precompute
from mrpo_tools.references.resolved import resolve


def test_a_dry_run_counts_the_split_and_the_shard(references, some_groups, tmp_path):
    """What it counts is what precompute then scores."""
    cache = Cache(tmp_path / "cache")
    groups = [
        group.with_split(("train", "test")[n % 2]) for n, group in enumerate(some_groups[:12])
    ]
    resolved = resolve("llama", references["llama"])
    for split, shard in (("test", (0, 1)), ("test", (1, 3)), (None, (0, 2))):
        expected = estimate(resolved, groups, cache, split, shard)
        other = Cache(tmp_path / f"{split}-{shard[0]}")
        summary = precompute({"llama": references["llama"]}, groups, other, "some", split, shard)[0]
        assert summary.computed["ok"] == expected.responses > 0
    with pytest.raises(UsageError, match="no group is in split 'typo'"):
        estimate(resolved, groups, cache, "typo")


def test_a_dry_run_loads_no_weights_and_writes_nothing(
    tiny_models, some_groups, tmp_path, capsys, monkeypatch
):
    """Tokens of the dry run are those that scoring then computes; it does without weights that
    can be loaded."""
    monkeypatch.chdir(tmp_path)
    write_groups(Path("data.jsonl"), some_groups)
    unloadable = Path(shutil.copytree(tiny_models["llama"], "unloadable"))
    edit_json(unloadable / "config.json", intermediate_size=65)
    words = ["precompute", "--dataset", "data.jsonl", "--json", "--ref"]
    assert run([*words, "llama=./unloadable", "--dry-run"]) == 0
    estimate = json.loads(capsys.readouterr().out)[0]
    assert not Path("cache").exists()
    assert run([*words, "llama=./unloadable"]) == 2
    assert "cannot be loaded" in capsys.readouterr().err
    assert run([*words, f"llama={tiny_models['llama']}"]) == 0
    scored = json.loads(capsys.readouterr().out)[0]
    assert estimate["responses"] == scored["scored"]
    assert estimate["unique_tokens"] == scored["tokens"] <= estimate["tokens"]
    assert estimate["padding"] == 0
    weights = (tiny_models["llama"] / "model.safetensors").stat().st_size
    assert weights < estimate["memory_bytes"] < 100 * weights
    parts = sum(path.stat().st_size for path in Path("cache").rglob("part-*.parquet"))
    assert 0 < estimate["disk_bytes"] < parts  # a small part is mostly footer
    assert 0 < estimate["seconds"] < 60
