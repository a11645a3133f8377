"""Tiny models of the three architectures and a project around them, made once a session."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: a second one mostly waits
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

REFERENCES = ("llama", "mistral", "qwen")
SIZE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "initializer_range": 0.2,
}


@pytest.fixture(scope="session", autouse=True)
def private_memo(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the memory of file hashes out of the user's own cache directory."""
    from mrpo_tools.references.loading import quiet_libraries

    quiet_libraries()
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("xdg"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def mrpo(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """`mrpo("data show x", 2)` is what a command line prints (`out`, `err`) and must end with 2."""
    from mrpo_tools.cli import run

    def typed(line: str, code: int = 0) -> Any:
        capsys.readouterr()
        ended = run(shlex.split(line))
        printed = capsys.readouterr()
        assert ended == code, printed.err
        return printed

    return typed


@pytest.fixture(scope="session")
def demo_groups():
    """The committed demo data."""
    from mrpo_tools.sources import load_groups

    return load_groups(Path(__file__).parent.parent / "data" / "demo.jsonl").groups


def model_config(name: str, tokenizer):
    """Mistral with a window shorter than its rows, Qwen2 with mixed layers and tied embeddings."""
    from transformers import LlamaConfig, MistralConfig, Qwen2Config

    kind, own = {
        "llama": (LlamaConfig, {}),
        "mistral": (MistralConfig, {"sliding_window": 8}),
        "qwen": (Qwen2Config, {"tie_word_embeddings": True, "use_sliding_window": True,
                               "sliding_window": 8, "max_window_layers": 1}),
    }[name]  # fmt: skip
    ids = {f"{word}_token_id": getattr(tokenizer, f"{word}_token_id")
           for word in ("bos", "eos", "pad")}  # fmt: skip
    return kind(vocab_size=len(tokenizer), **SIZE, **ids, **own)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory, demo_groups) -> dict[str, Path]:
    """Random-weight models with the demo's three trained tokenizers and templates."""
    import torch
    from transformers import AutoModelForCausalLM

    from mrpo_tools.demo.tiny_tokenizers import TOKENIZERS

    texts = [text.content for group in demo_groups[:300] for text in group.responses]
    texts += [turn.content for group in demo_groups[:300] for turn in group.prompt]
    root = tmp_path_factory.mktemp("models")
    for index, name in enumerate(REFERENCES):
        torch.manual_seed(index)
        tokenizer = TOKENIZERS[name](texts)
        model = AutoModelForCausalLM.from_config(model_config(name, tokenizer))
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: root / name for name in REFERENCES}


@pytest.fixture
def model(tiny_models, tmp_path) -> Path:
    """A copy of a model to change, with two made-up adapters of it in directories beside it."""
    copy = Path(shutil.copytree(tiny_models["llama"], tmp_path / "model"))
    config = {"peft_type": "LORA", "base_model_name_or_path": str(copy)}
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
        (tmp_path / name / "adapter_model.safetensors").write_bytes(name.encode())
    return copy


@pytest.fixture(scope="session")
def references(tiny_models):
    """The three models as the project file would name them."""
    from mrpo_tools.config import Reference

    return {name: Reference(model=str(path), dtype="float32") for name, path in tiny_models.items()}


@pytest.fixture(scope="session")
def some_groups(demo_groups):
    """Ragged groups of two to four responses, with and without a system message."""
    from dataclasses import replace

    rng = random.Random(0)
    return [
        replace(group, responses=group.responses[: rng.choice([2, 3, 4])])
        for group in demo_groups[:40]
    ]


@pytest.fixture(scope="session")
def cached(tmp_path_factory: pytest.TempPathFactory, references, some_groups):
    """A cache in which the three references have scored `some_groups`; treat it as read-only."""
    from mrpo_tools.cache import Cache
    from mrpo_tools.precomputing.precompute import precompute

    cache = Cache(tmp_path_factory.mktemp("cached") / "cache")
    precompute(references, some_groups, cache, "some")
    return cache


@pytest.fixture(scope="session")
def tiny_reward(tmp_path_factory: pytest.TempPathFactory, demo_groups) -> Path:
    """A reward model fitted on the demo's scores; treat it as read-only."""
    from mrpo_tools.demo.tiny_reward import make_reward_model

    train = [group for group in demo_groups if group.split == "train"]
    return make_reward_model(tmp_path_factory.mktemp("reward") / "tiny", train[:150], epochs=4)


@pytest.fixture
def blocked(tmp_path: Path) -> dict[str, str]:
    """An environment of a process in which torch cannot be imported."""
    package = tmp_path / "blocked" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('torch is blocked')\n")
    root = Path(__file__).parent.parent
    return {**os.environ, "PYTHONPATH": f"{package.parent}{os.pathsep}{root}"}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory):
    """A cache of made-up numbers of three references; treat it as read-only."""
    from sql_world import World

    return World(tmp_path_factory.mktemp("sql") / "cache")


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory):
    """The same with labels in place of scores."""
    from sql_world import World

    return World(tmp_path_factory.mktemp("sql") / "cache", labels=True)


@pytest.fixture(scope="module")
def database(world):
    """`world` opened for queries."""
    from mrpo_tools.sql import open_sql

    with open_sql(world.cache.path) as opened:
        yield opened


@pytest.fixture
def store(tmp_path: Path):
    """Where the first part of a made-up identity will be."""
    from stores import IDENTITY

    from mrpo_tools.cache import Cache

    return Cache(tmp_path / "cache").store("llama", IDENTITY)


@pytest.fixture
def cache(store):
    """The cache of `store`."""
    from mrpo_tools.cache import Cache

    return Cache(store.directory.parent.parent)
