"""A server that is not what was meant: one line, before anything is scored, and nothing is lost."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_server import Completer, FakeServer, mixed
from lying_server import PATH, Teller, serving
from served import NAME, loading_with, numbers, reference_of
from stores import write_groups

from mrpo_tools.cache import Cache
from mrpo_tools.config import Reference
from mrpo_tools.errors import ServerError
from mrpo_tools.precomputing.precompute import precompute
from mrpo_tools.references.resolved import resolve
from mrpo_tools.server import About, GaveUp

VERSION = {"/version": {"version": "0.32.0"}}
SECRET = "hunter2-0123456789"


@pytest.fixture
def folder(tiny_models) -> Path:
    return tiny_models["llama"]


@pytest.fixture(scope="module")
def teller(tiny_models) -> Teller:
    return Teller(tiny_models["llama"])


@pytest.fixture(scope="module")
def half(teller, tiny_models, some_groups, tmp_path_factory) -> Path:
    """A cache with half of the numbers, from an honest server; treat it as read-only."""
    cache = Cache(tmp_path_factory.mktemp("half") / "cache")
    with serving(teller) as honest:
        words = {NAME: reference_of(tiny_models["llama"], honest, calibration="server")}
        precompute(words, some_groups[:3], cache, "data", load=loading_with())
    return cache.path


@pytest.fixture
def command(folder, half, some_groups, here, mrpo) -> Callable[..., str]:
    """`command(url, code)` is the error of `mrpo precompute`, one line and its hint, where half of
    the numbers are cached, and nothing of them is lost."""
    cache = Cache(shutil.copytree(half, "cache"))
    before = numbers(cache)
    write_groups(Path("data.jsonl"), some_groups[:6])

    def precomputing(url: str, code: int = 1, **words: Any) -> str:
        reference = {"model": str(folder), "dtype": "float32", "max_length": 500, "server": url}
        project = {"cache": "cache", "references": {NAME: {**reference, **words}}}
        Path("mrpo.yaml").write_text(json.dumps(project))
        err = mrpo("precompute --dataset data.jsonl", code).err
        assert numbers(cache) == before
        assert "Traceback" not in err
        [line] = [line for line in err.splitlines() if line.startswith("error:")]
        return f"{line}\n{err.split(line)[1]}"

    return precomputing


def scored(server: FakeServer) -> int:
    """Requests for log-probs beyond those of three made-up ids."""
    return sum(len(request.body["prompt"]) > 3 for request in server.requests)


def test_nobody_listens(command):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    error = command(f"http://127.0.0.1:{port}")
    assert f"http://127.0.0.1:{port}/v1/models: 3 attempts failed, the last: " in error
    assert "refused" in error


def test_a_web_page(command):
    pages = {"/v1/models": "<!doctype html><html><body>Welcome to nginx!</body></html>"}
    with FakeServer({}, pages=pages) as server:
        error = command(server.url)
    assert "3 attempts failed, the last: a reply that cannot be read" in error


def test_another_port_where_json_is_spoken(command):
    with FakeServer({}, pages={"/v1/models": {"detail": "hello"}}) as server:
        error = command(server.url)
    assert "a reply that cannot be read: KeyError('data')" in error


def test_a_server_without_the_protocol(command):
    """Not even a list of models."""
    with FakeServer({}, pages={}) as server:
        error = command(f"{server.url}/api")
    assert "does not speak vLLM's protocol: " in error
    assert "HTTP 404: Not Found" in error


def test_another_engine(command):
    """It lists models as ollama and llama.cpp do, and has no version where vLLM has it."""
    pages = {"/api/version": {"version": "0.9.0"}}
    with FakeServer({PATH: Completer()}, card={"owned_by": "library"}, pages=pages) as server:
        error = command(server.url)
        assert not server.requests
    assert "does not speak vLLM's protocol: it says it is 'library', and " in error
    assert "python -m vllm.entrypoints.openai.api_server" in error


def test_another_model(command, teller):
    with serving(teller, models=("small", "large")) as server:
        assert "serves several models; it serves: small, large" in command(server.url)
        error = command(server.url, server_model="tiny")
        assert not server.requests
    assert "does not serve 'tiny'; it serves: small, large" in error
    assert "server_model: NAME" in error


def test_another_model_of_the_hub(folder):
    """What vLLM was started with is told by the server, and compared where both are hub ids."""
    from mrpo_tools.references.locate import Found

    def download(*_: object) -> Found:
        return "0" * 40, folder

    with serving(object(), card={"root": "org/other"}) as server:
        words = Reference(model="org/tiny", dtype="float32", server=server.url, max_length=500)
        resolved = resolve(NAME, words, download=download)
        with pytest.raises(ServerError, match=r"serves org/other, and reference 'served' is org/t"):
            loading_with()(resolved, "", None)
        server.card["root"] = "org/tiny"
        with pytest.raises(ServerError) as error:  # of what comes after
            loading_with()(resolved, "", None)
        assert "serves org/" not in error.value.what


def test_a_shorter_context(command, folder):
    with serving(Teller(folder, context=400)) as server:
        error = command(server.url)
        assert not server.requests
    assert "takes 400 tokens with the one that it generates, and max_length of refer" in error
    assert "max_length: 399" in error
    assert "--max-model-len 501" in error


def test_a_context_of_just_that_length(folder, some_groups, tmp_path):
    """The longest line and the token that is generated fit."""
    with serving(Teller(folder, context=501)) as server:
        words = {NAME: reference_of(folder, server, calibration="server")}
        [summary] = precompute(words, some_groups[:3], Cache(tmp_path), "x", load=loading_with())
    assert summary.computed["ok"] > 0


class Silent(Teller):
    """Takes the word, and gives nothing."""

    def __call__(self, body):
        return super().__call__({name: body[name] for name in body if name != "prompt_logprobs"})


def test_no_log_probs_of_a_prompt(command, folder):
    with serving(Silent(folder)) as server:
        assert "cannot compute log-probs of our ids: it gives no prompt_logprobs" in command(
            server.url
        )
        assert scored(server) == 0


@pytest.mark.parametrize("what", ["ids", "prompt_logprobs"])
def test_what_a_request_needs_is_refused(command, folder, what):
    class Refusing(Teller):
        def __call__(self, body):
            from fake_server import RefusedByServer

            raise RefusedByServer(400, f"{what} are not supported")

    with serving(Refusing(folder)) as server:
        error = command(server.url)
        assert len(server.requests) == 1
    assert "it takes no token ids or no prompt_logprobs: " in error
    assert f"HTTP 400: {what} are not supported" in error


def test_a_key_that_is_missing_or_wrong(command, teller, monkeypatch):
    """Of the server's words, which repeat it, the key is struck out."""
    for name in ("MRPO_SERVER_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with serving(teller, key="right") as server:
        assert "HTTP 401 (the key of MRPO_SERVER_KEY or OPENAI_API_KEY)" in command(server.url)
        monkeypatch.setenv("MRPO_SERVER_KEY", SECRET)
        error = command(server.url)
        assert not server.requests
    assert "Incorrect API key provided: Bearer ***" in error
    assert SECRET not in error


def test_a_key_that_is_right_stands_in_no_record(folder, teller, some_groups, here, monkeypatch):
    monkeypatch.setenv("MRPO_SERVER_KEY", SECRET)
    write_groups(Path("data.jsonl"), some_groups[:3])
    with serving(teller, key=SECRET) as server:
        words = reference_of(folder, server, calibration="server").model_dump(exclude_none=True)
        Path("mrpo.yaml").write_text(json.dumps({"references": {NAME: words}}))
        from mrpo_tools.cli import run

        assert run(["precompute", "--dataset", "data.jsonl"]) == 0
    files = [path for path in here.rglob("*") if path.is_file()]
    assert len(files) >= 4
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    "url",
    [f"http://me:{SECRET}@127.0.0.1:1", f"http://{SECRET}@127.0.0.1:1/v1", f"me:{SECRET}@host:8000",
     f"http://127.0.0.1:1/v1?key={SECRET}", f"http://127.0.0.1:1/v1#{SECRET}"],
)  # fmt: skip
def test_a_url_with_a_secret(command, mrpo, url):
    """It is refused when mrpo.yaml is read, by whatever command, and not repeated."""
    error = command(url, 2)
    assert "the URL holds more than host and path" in error
    assert "MRPO_SERVER_KEY" in error
    assert SECRET not in error
    with pytest.raises(ValueError, match="holds more than host and path"):
        Reference(model="m", dtype="float32", server=url)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"dtype": None}, "a server does not say its dtype"),
        ({"engine": "ollama"}, "asked of vllm alone; the other engines' protocols are not built"),
        ({"engine": "vlm"}, "engine"),
        ({"quantization": "nf4"}, "served_quantization is the server's"),
        ({"device_map": "auto"}, "device_map is of weights that are loaded here"),
        ({"concurrency": 0}, "concurrency"),
        ({"timeout": 0}, "timeout"),
        ({"server": None, "engine": "vllm"}, "engine goes with server alone"),
        ({"calibration": "weight"}, "calibration"),
    ],
)
def test_words_that_do_not_fit(command, words, reason):
    assert reason in command("http://127.0.0.1:1", 2, **words)


def test_weights_that_are_wished_for_and_are_not_here(command, folder, teller, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    with serving(teller) as server:
        error = command(server.url, 2, model=str(bare), calibration="weights")
        assert scored(server) == 0
    assert "cannot be compared with its weights: the weights do not lie here" in error
    assert "calibration: server" in error


def test_faults_and_restarts_lose_nothing(folder, teller, some_groups, tmp_path):
    """A third of the requests fails in every way there is, and the server restarts twice: all
    numbers come, and are those of an undisturbed run."""
    groups = some_groups[:4]
    with serving(teller) as server:
        words = {NAME: reference_of(folder, server, calibration="server")}
        precompute(words, groups, Cache(tmp_path / "whole"), "x", load=loading_with())
    faults = mixed(seed=3, share=0.33, restarts=2)
    with serving(teller, faults=faults, late=0.4) as server:
        words = {NAME: reference_of(folder, server, calibration="server")}
        load = loading_with(attempts=30, timeout=0.25)
        precompute(words, groups, Cache(tmp_path / "tried"), "x", load=load)
        assert server.happened() >= {"error", "busy", "late", "torn", "cut", "dropped", "restart"}
    assert numbers(Cache(tmp_path / "tried")) == numbers(Cache(tmp_path / "whole"))


class Dying(Teller):
    """After so many requests it hangs."""

    last = 10**9

    def __call__(self, body):
        if self.asked >= self.last:
            from fake_server import RefusedByServer

            raise RefusedByServer(503, "shutting down")
        return super().__call__(body)


def test_a_server_that_dies_costs_what_came_since_the_last_check(
    folder, teller, some_groups, tmp_path
):
    """What was checked is kept; at another URL the same command goes on, and pays for the rest."""
    groups, cache, dying = some_groups[:10], Cache(tmp_path / "cache"), Dying(folder)
    load = loading_with(check_rows=8, attempts=2)
    with serving(teller) as server:
        words = {NAME: reference_of(folder, server, calibration="server")}
        precompute(words, groups, Cache(tmp_path / "whole"), "x", load=load)
        asked = len(server.requests)
    right = numbers(Cache(tmp_path / "whole"))
    dying.last = asked - len(right) // 2
    with serving(dying) as server:
        words = {NAME: reference_of(folder, server, calibration="server")}
        with pytest.raises(ServerError) as error:
            precompute(words, groups, cache, "x", load=load)
    assert isinstance(error.value, ServerError | GaveUp)
    assert "HTTP 503: shutting down" in error.value.what
    kept = numbers(cache)
    assert 0 < len(kept) < len(right)
    with serving(teller) as server:
        words = {NAME: reference_of(folder, server, calibration="server", concurrency=2)}
        [summary] = precompute(words, groups, cache, "x", load=load)
    assert summary.reused == len(kept)
    assert summary.computed["ok"] == len(right) - len(kept)
    assert numbers(cache) == right


IDENTITY = {
    "version": ({}, About("0.33.0", "tiny"), {"engine_version"}),
    "the model's name there": ({}, About("0.32.0", "huge"), {"served_model"}),
    "mode": ({"logprobs_mode": "processed_logprobs"}, None, {"logprobs_mode"}),
    "dtype": ({"dtype": "bfloat16"}, None, {"dtype"}),
    "quantisation": ({"served_quantization": "fp8"}, None, {"quantization"}),
    "max_length": ({"max_length": 300}, None, {"max_length"}),
    "the end of long prompts": ({"overlong": "keep_end", "max_prompt_length": 90}, None,
                                {"overlong", "max_prompt_length"}),
    "where it is": ({"server": "https://elsewhere:8000/v1"}, None, set()),
    "where it has the model from": ({}, About("0.32.0", "tiny", "/other", 900), set()),
    "how it is asked": ({"concurrency": 64, "timeout": 5.0}, None, set()),
    "what it is compared with": ({"calibration": "server"}, None, set()),
    "defaults in words": ({"engine": "vllm", "logprobs_mode": "raw_logprobs"}, None, set()),
    "speed of what is not done here": ({"batch_tokens": 64, "attention": "eager"}, None, set()),
}  # fmt: skip
"""Words of a served reference, what its server says, and the fields that tell of it."""


def served_identity(folder: Path, words: dict[str, Any], said: About | None = None):
    reference = Reference(
        **{"model": str(folder), "dtype": "float32", "server": "http://h", "max_length": 500,
           **words}
    )  # fmt: skip
    return resolve(NAME, reference, ask=lambda _: said or About("0.32.0", "tiny")).identity


@pytest.mark.parametrize("name", IDENTITY)
def test_what_is_identity_and_what_is_not(folder, name):
    words, said, fields = IDENTITY[name]
    base = served_identity(folder, {})
    differing = served_identity(folder, words, said).differences(base)
    assert {each.field for each in differing} == fields


def test_a_served_identity_is_never_that_of_weights_here(folder):
    """Whatever is said of it, and the other way round: no field of a server is in the other."""
    here = resolve(NAME, Reference(model=str(folder), dtype="float32", max_length=500)).identity
    there = served_identity(folder, {})
    assert {each.field for each in there.differences(here)} == {
        "engine", "engine_version", "logprobs_mode", "served_model",
    }  # fmt: skip
    assert not {"engine", "engine_version", "logprobs_mode", "served_model"} & here.fields.keys()


def test_numbers_of_a_server_are_not_used_for_weights_here(folder, teller, some_groups, tmp_path):
    cache = Cache(tmp_path / "cache")
    with serving(teller) as server:
        served = reference_of(folder, server, calibration="server")
        precompute({NAME: served}, some_groups[:3], cache, "x", load=loading_with())
    own = Reference(model=str(folder), dtype="float32", max_length=500)
    [summary] = precompute({NAME: own}, some_groups[:3], cache, "x")
    assert (summary.reused, len(cache.named(NAME))) == (0, 2)


def test_the_cache_is_enough_when_the_server_is_gone(
    folder, tiny_models, teller, some_groups, here, mrpo
):
    """Whatever works from cached numbers works without the server; what asks it says that it is
    not there."""
    write_groups(Path("data.jsonl"), some_groups[:8])
    with serving(teller) as server:
        served = reference_of(folder, server, calibration="server").model_dump(exclude_none=True)
        references = {NAME: served, "qwen": {"model": str(tiny_models["qwen"]), "dtype": "float32"}}
        project = {"cache": "cache", "references": references, "dataset": {"source": "data.jsonl"}}
        Path("mrpo.yaml").write_text(json.dumps(project))
        mrpo("precompute")
    assert NAME in mrpo("cache status").out
    mrpo("cache verify")
    assert mrpo("sql 'select count(*) as n from logps'").out
    mrpo("rank")
    trained = mrpo(f"train --loss mrpo --refs {NAME},qwen --output runs/a --max-steps 2").err
    assert "engine, engine_version, logprobs_mode, served_model differ from cached" in trained
    assert "3 attempts failed" in mrpo("cache verify --rescore 2", 1).err


def test_a_dry_run_says_what_is_asked(folder, teller, some_groups, here, mrpo):
    """Requests are those that come, a prompt is counted for every response, and none is asked."""
    from mrpo_tools.precomputing.encoded import encode, trees_of
    from mrpo_tools.references.resolved import renderer_of

    write_groups(Path("data.jsonl"), some_groups[:6])
    with serving(teller) as server:
        words = reference_of(folder, server, calibration="server")
        Path("mrpo.yaml").write_text(
            json.dumps({"references": {NAME: words.model_dump(exclude_none=True)}})
        )
        shown = mrpo("precompute --dataset data.jsonl --dry-run").out
        [told] = json.loads(mrpo("precompute --dataset data.jsonl --dry-run --json").out)
        assert not server.requests
        assert not Path("cache").exists()
        trees = trees_of(encode(renderer_of(resolve(NAME, words)), some_groups[:6]))
        prompts = sum(len(tree.prompt) * len(tree.responses) for tree in trees)
        answers = sum(len(ids) for tree in trees for ids in tree.responses)
        once = sum(len(tree.prompt) for tree in trees)
        assert (told["tokens"], told["unique_tokens"]) == (prompts + answers, once + answers)
        assert told["requests"] == told["responses"] == sum(len(t.responses) for t in trees)
        mrpo("precompute --dataset data.jsonl")
        checks = 2  # a line again, and one that is a little other, when all has come
        settling, most = 2, told["calibration_requests"]
        assert len(server.requests) <= told["requests"] + most + checks + settling
    assert "N responses compute their prompt N times" in shown
    assert "vLLM bypasses its prefix cache" in shown
    assert "memory" not in shown
