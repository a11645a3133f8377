"""A reference behind a real vLLM: the whole way of `mrpo precompute`, against the weights here.

MRPO_VLLM_PYTHON is the Python of an environment with vLLM. Figures are printed;
docs/served_references.md has those of one run.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from running import NAME, PYTHON, metric, running
from safetensors.torch import load_file, save_file
from stores import write_groups

from mrpo_tools.cache import Cache
from mrpo_tools.maths.noise import Noise
from mrpo_tools.server import Client, PromptLogprobs, Server

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(not PYTHON, reason="MRPO_VLLM_PYTHON names no Python with vLLM"),
    pytest.mark.timeout(3600),
]
GROUPS = 60
HITS = "vllm:prefix_cache_hits_total"
PROMPTS = "vllm:prompt_tokens_total"


@pytest.fixture
def data(demo_groups, here) -> Path:
    return write_groups(here / "data.jsonl", demo_groups[:GROUPS])


@pytest.fixture(scope="session")
def float32(tiny_llama, tmp_path_factory) -> Iterator[str]:
    with running(tiny_llama, tmp_path_factory.mktemp("log") / "vllm.log") as url:
        yield url


def tell(*words: object) -> None:
    """A line that no fixture captures."""
    print("\n", *words, file=sys.__stdout__, flush=True)


def project(model: Path, url: str, **words: Any) -> None:
    """`there` behind the server, and `here` of the same weights."""
    dtype = words.pop("dtype", "float32")
    here = {"model": str(model), "dtype": dtype, "max_length": 1000}
    references = {"here": here, "there": {**here, "server": url, **words}}
    Path("mrpo.yaml").write_text(json.dumps({"cache": "cache", "references": references}))


def rows(name: str) -> dict[str, tuple[float, int]]:
    """(nats, tokens) by response."""
    [store] = Cache("cache").named(name)
    columns = store.table().select(("response_id", "status", "logp", "num_tokens")).to_pydict()
    assert set(columns["status"]) == {"ok"}
    each = zip(columns["response_id"], columns["logp"], columns["num_tokens"], strict=True)
    return {key: (logp, tokens) for key, logp, tokens in each}


def compared(kind: str) -> Noise:
    """The cached numbers of both, printed: worst, root mean square and mean, nats a token."""
    here, there = rows("here"), rows("there")
    assert here.keys() == there.keys()
    apart = [(there[key][0] - logp, tokens) for key, (logp, tokens) in here.items()]
    tokens = sum(count for _, count in apart)
    worst = max(abs(nats) / count for nats, count in apart)
    bias = math.fsum(nats for nats, _ in apart) / tokens
    rms = math.sqrt(math.fsum(nats**2 / count for nats, count in apart) / len(apart))
    tell(
        f"{kind}: {len(apart)} responses, {tokens} tokens: worst {worst:.1e}, "
        f"root mean square {rms:.1e}, mean {bias:+.1e} nats a token"
    )
    return Noise(rms, bias, tokens)


def calibration() -> dict[str, Any]:
    [store] = Cache("cache").named("there")
    [about] = {json.dumps(dict(record.calibration)) for record in store.recorded()}
    tell("calibration:", about)
    return json.loads(about)


def test_cached_numbers_are_those_of_the_weights(tiny_llama, float32, data, mrpo):
    """Prompt tokens are as the dry run says, and what the calibration asks besides."""
    project(tiny_llama, float32)
    dry = mrpo("precompute --ref there --dataset data.jsonl --dry-run").out
    tell(f"{dry}")
    [said] = json.loads(mrpo("precompute --ref there --dataset data.jsonl --dry-run --json").out)
    prompts = metric(float32, PROMPTS)
    started = time.monotonic()
    shown = mrpo("precompute --ref there --dataset data.jsonl")
    seconds = time.monotonic() - started
    computed = metric(float32, PROMPTS) - prompts
    tell(f"{shown.out}\n{seconds:.1f} s; vLLM computed {computed:.0f} prompt tokens")
    assert computed >= said["tokens"] > 1.5 * said["unique_tokens"]
    mrpo("precompute --ref here --dataset data.jsonl")
    noise = compared("float32")
    assert noise.rms < 1e-5
    assert abs(noise.bias) < 1e-6
    about = calibration()
    assert about["against"] == "weights"
    assert about["lines"] == 64
    [store] = Cache("cache").named("there")
    assert re.fullmatch(r"0\.\d+.*", store.identity.fields["engine_version"])
    again = mrpo("precompute --ref there --dataset data.jsonl --json").out
    assert json.loads(again)[0]["scored"] == 0


def test_the_prefix_cache_takes_no_part(float32):
    """A prompt of several blocks, twice: an answer to it finds it cached, its log-probs do not."""
    ids = [5 + number % 400 for number in range(900)]
    with Client(Server(float32)) as client:
        asked = PromptLogprobs(client, NAME)
        hits = [metric(float32, HITS)]
        first = asked.of(ids)
        for ask in (asked.of, asked.next, asked.of):
            again = ask(ids)
            hits.append(metric(float32, HITS))
    tell(f"tokens of 900 found in the prefix cache: {[b - a for a, b in pairwise(hits)]}")
    assert hits[0] == hits[1] < hits[2] == hits[3]
    assert again == first


@pytest.mark.parametrize("concurrency", [1, 4, 16])
def test_throughput(tiny_llama, float32, data, mrpo, concurrency):
    project(tiny_llama, float32, calibration="server", concurrency=concurrency)
    shown = json.loads(mrpo("precompute --ref there --dataset data.jsonl --json").out)[0]
    seconds = shown["seconds"]
    tell(f"{concurrency} at a time: {shown['tokens']} tokens in {seconds:.1f} s with calibration")
    assert shown["scored"] > 200


def test_other_weights_than_the_declared_are_refused(tiny_llama, float32, data, mrpo, tmp_path):
    """The server has the model; what is declared is a revision with weights 0.1 % away."""
    other = Path(shutil.copytree(tiny_llama, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    torch.manual_seed(1)
    moved = {name: w + 1e-3 * w.std() * torch.randn_like(w) for name, w in weights.items()}
    save_file(moved, other / "model.safetensors", {"format": "pt"})
    project(other, float32)
    err = mrpo("precompute --ref there --dataset data.jsonl", 1).err
    tell(err)
    assert "against the weights here" in err
    assert not Cache("cache").named("there")


def test_a_longer_max_length_than_is_served_is_refused(tiny_llama, float32, data, mrpo):
    project(tiny_llama, float32)
    text = Path("mrpo.yaml").read_text().replace("1000", "1024")
    Path("mrpo.yaml").write_text(text)
    err = mrpo("precompute --ref there --dataset data.jsonl", 1).err
    tell(err)
    assert "takes 1,024 tokens with the one that it generates, and max_length" in err
    assert not Cache("cache").named("there")


def test_processed_log_probs_of_a_prompt_are_the_raw_ones(tiny_llama, data, mrpo, tmp_path):
    """And where all tokens are given, that they add up to 1 is checked."""
    words = ("--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1")
    with running(tiny_llama, tmp_path / "vllm.log", *words) as url:
        project(tiny_llama, url, logprobs_mode="processed_logprobs")
        mrpo("precompute --dataset data.jsonl")
    assert compared("processed").rms < 1e-5
    calibration()


def test_16_bits_are_noise_and_are_refused_where_float32_is_declared(
    tiny_llama, data, mrpo, tmp_path
):
    """float16: the worker of vLLM 0.32's CPU build dies of bfloat16 on this kind of CPU (AMX)."""
    with running(tiny_llama, tmp_path / "vllm.log", dtype="float16") as url:
        project(tiny_llama, url)
        err = mrpo("precompute --ref there --dataset data.jsonl", 1).err
        tell(err)
        assert not Cache("cache").named("there")
        project(tiny_llama, url, dtype="float16")
        mrpo("precompute --dataset data.jsonl")
        noise, about = compared("float16"), calibration()
        assert about["against"] == "weights"
        assert noise.rms < 4 * about["weights"]["rms"]
