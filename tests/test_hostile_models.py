"""Model directories made to do harm: each ends in one line, and nothing of theirs is run or
followed."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_changes import edit_json, read_json

ROW = {"prompt": "What is 2 + 2?", "chosen": "It is 4.", "rejected": "It is 5."}
CONFIG, TOKENIZER, SETTINGS = "config.json", "tokenizer.json", "tokenizer_config.json"
INDEX, GENERATION = "model.safetensors.index.json", "generation_config.json"
WEIGHTS, TEMPLATE, ADAPTER = "model.safetensors", "chat_template.jinja", "adapter_config.json"
LIMIT_SECONDS = 60


@pytest.fixture
def hostile(tiny_models, here, mrpo) -> Iterator[Callable[..., Any]]:
    """`hostile(spoil)` is what precompute prints of a spoilt copy of a model; `code` must be its
    exit code, or be None."""
    (here / "rows.jsonl").write_text(json.dumps(ROW) + "\n")

    def run(spoil: Callable[[Path], object], code: int | None = 2, model: str = "llama") -> Any:
        shutil.rmtree("model", ignore_errors=True)
        shutil.rmtree("cache", ignore_errors=True)
        shutil.copytree(tiny_models[model], "model")
        spoil(here / "model")
        return attempt(mrpo, "precompute --ref a=./model --dataset rows.jsonl", code)

    yield run


def attempt(mrpo: Any, line: str, code: int | None) -> Any:
    """What a command prints, within the limit and in one line."""
    from mrpo_tools.cli import run

    started = time.monotonic()
    with_limit = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(LIMIT_SECONDS)
    try:
        ended = run(line.split())
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, with_limit)
    return ended, time.monotonic() - started


def too_long(*_: object) -> None:
    raise AssertionError("it hangs")
