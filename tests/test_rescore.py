"""Stored numbers computed once more: sound ones agree, false ones and other weights do not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from stores import said

from mrpo_tools.cache import Cache
from mrpo_tools.errors import CacheStale
from mrpo_tools.precomputing.precompute import precompute
from mrpo_tools.precomputing.rescore import rescore
from mrpo_tools.references.resolved import resolve


def test_rescore_agrees_with_a_sound_cache_and_not_with_a_false_one(cached, tmp_path, capsys):
    """A part whose hash is right and whose number is wrong: only the model can tell."""
    path = Path(shutil.copytree(cached.path, tmp_path / "cache"))
    words = ["cache", "verify", "--cache", str(path), "--rescore", "16", "--json"]
    rescored = json.loads(said(capsys, *words))["rescored"]
    assert [row["rows"] for row in rescored] == [16] * 3
    assert all(float(row["nats per token"]) < 1e-5 for row in rescored)
    store = Cache(path).find("llama")
    part = store.parts()[0]
    logps = pa.array([logp - 0.5 for logp in part.table["logp"].to_pylist()])
    part.path.unlink()
    store.write(part.table.set_column(2, "logp", logps), part.created, part.records)
    text = said(capsys, "cache", "verify", "--cache", str(path), "--rescore", "4", "--ref",
                "llama", code=3)  # fmt: skip
    assert "nats per token apart" in text


def test_rescore_of_two_identities_of_one_name(references, some_groups, tmp_path, capsys,
                                               monkeypatch):  # fmt: skip
    """The project has words for one of them; the other is asked as it was scored."""
    cache = Cache(tmp_path / "cache")
    long = references["llama"]
    short = long.model_copy(update={"max_length": 64})
    for words in (long, short):
        precompute({"llama": words}, some_groups[:4], cache, "some")
    monkeypatch.chdir(tmp_path)
    check = ["cache", "verify", "--cache", "cache", "--rescore", "3", "--json"]
    Path("mrpo.yaml").write_text(f"references: {{llama: {{model: {long.model}, max_length: 64}}}}")
    for _ in range(2):
        rows = json.loads(said(capsys, *check))["rescored"]
        assert sorted(row["rescored"] for row in rows) == sorted(map(str, cache.references()))
        assert [row["rows"] for row in rows] == [3, 3]
        Path("mrpo.yaml").write_text("references: {llama: {model: ./gone}}")


def test_rescoring_other_weights_is_refused(cached, references, some_groups):
    store = cached.find("llama")
    with pytest.raises(CacheStale, match="of another identity"):
        rescore(cached, store, resolve("llama", references["qwen"]), 4)
