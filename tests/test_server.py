"""Requests to a server: asked until they are answered, stopped with a reason, no key told."""

from __future__ import annotations

import contextlib
import email.utils
import itertools
import random
import socket
import threading
import time
from dataclasses import replace

import pytest
from fake_server import FAULTS, RESTART, Completer, FakeServer, RefusedByServer, mixed, said

from mrpo_tools.errors import ServerError, UsageError
from mrpo_tools.server import Client, Completion, Completions, Refused, Server, together
from mrpo_tools.server.client import retry_after
from mrpo_tools.server.completions import Prompt, Way

PATH = "/v1/completions"
KEY = "sk-a-secret-0123456789"
WAY = Way(max_tokens=4, temperature=1.0)
QUICK = {"first_wait": 0.01, "timeout": 0.5, "attempts": 12}


@pytest.fixture
def client_of():
    """A client of a fake server, closed at the end of the test."""
    with contextlib.ExitStack() as stack:

        def make(server: FakeServer, environment=None, **words) -> Client:
            asked = Server(server.url, **{**QUICK, **words})
            return stack.enter_context(Client(asked, environment or {}, random.Random(0)))

        yield make


def prompts(count: int) -> list[Prompt]:
    return [Prompt([1, 7, number], f"p{number}") for number in range(count)]


def ask(completions: Completions, items, concurrency: int = 8) -> dict[int, Completion]:
    """Completions of numbered prompts, each of which comes back once."""
    answers: dict[int, Completion] = {}

    def complete(item):
        number, prompt = item
        return completions.complete(prompt, WAY, seed=number)

    for batch in together(complete, list(enumerate(items)), concurrency):
        for (number, _), completion in batch:
            assert number not in answers
            answers[number] = completion
    return answers


def test_every_fault_and_a_restart_and_nothing_is_lost_or_mixed_up(client_of):
    """What comes back is what the endpoint says of that very prompt and seed."""
    with FakeServer({PATH: Completer()}, faults=mixed(seed=3), key=KEY, late=0.8) as server:
        client = client_of(server, {"OPENAI_API_KEY": KEY})
        answers = ask(Completions(client), prompts(80))
        client.close()
    assert server.happened() == {*FAULTS, RESTART}
    expected = {n: Completion(*said([1, 7, n], n)) for n in range(80)}
    assert answers == expected
    answered = [body["seed"] for body in server.answered(PATH)]
    assert sorted(answered) == list(range(80))  # what was answered whole was not asked again


def test_waits_double_with_jitter(client_of):
    with FakeServer({PATH: Completer()}, faults=itertools.repeat("error")) as server:
        client = client_of(server, first_wait=0.04, attempts=5)
        with pytest.raises(ServerError, match=r"5 attempts failed, the last: HTTP 500"):
            client.post("/completions", {"prompt": [1]}, dict)
    times = [each.at for each in server.requests]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(gaps) == 4
    for number, gap in enumerate(gaps):
        assert 0.5 * 0.04 * 2**number <= gap < 0.04 * 2**number + 0.5


def test_nobody_asks_before_the_time_that_a_busy_server_names(client_of):
    """Neither the request that was told so, nor others."""
    faults = iter(["busy"])
    with FakeServer({PATH: Completer()}, faults=faults, retry_after="0.6") as server:
        client = client_of(server)
        completions = Completions(client)
        started = time.monotonic()
        assert len(ask(completions, prompts(3), concurrency=1)) == 3
    assert server.requests[1].at - server.requests[0].at >= 0.6
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("said", "seconds"),
    [(None, 0), ("", 0), ("7", 7), ("1.5", 1.5), ("-3", 0), ("soon", 0), ("nan", 0), ("1e9", 600)],
)
def test_what_a_retry_after_means(said, seconds):
    assert retry_after(said) == seconds


def test_a_retry_after_may_be_a_date():
    date = email.utils.formatdate(time.time() + 90, usegmt=True)
    assert 85 < retry_after(date) <= 90


def test_a_server_that_is_gone_ends_the_work_with_a_reason_and_the_next_step(client_of):
    with FakeServer({PATH: Completer()}) as server:
        completions = Completions(client_of(server, attempts=3))
    started = time.monotonic()
    with pytest.raises(
        ServerError, match=r"5 requests in a row came to nothing; .*3 attempts"
    ) as e:
        ask(completions, prompts(200), concurrency=4)
    assert "the same command goes on" in e.value.hint
    assert time.monotonic() - started < 20


def test_what_is_refused_is_asked_once_and_the_others_are_answered(client_of):
    def reply(prompt, seed):
        if seed == 5:
            raise RefusedByServer(400, "this prompt is too long")
        return said(prompt, seed)

    done = []
    with FakeServer({PATH: Completer(reply=reply)}) as server:
        completions = Completions(client_of(server))
        items = list(enumerate(prompts(20)))
        asked = together(
            lambda item: completions.complete(item[1], WAY, seed=item[0]), items, concurrency=3
        )
        with pytest.raises(ServerError, match=r"1 of 20 .*HTTP 400: this prompt is too long"):
            done.extend(number for batch in asked for (number, _), _ in batch)
    assert sorted(done) == [n for n in range(20) if n != 5]
    assert sum(each.body["seed"] == 5 for each in server.requests) == 1


def test_the_key_is_sent_and_told_to_nobody(capfd, client_of):
    """A server repeats it in errors of every kind."""
    for faults, key in ((itertools.repeat("error"), KEY), (iter(()), "another")):
        with FakeServer({PATH: Completer()}, faults=faults, key=key) as server:
            client = client_of(server, {"MRPO_SERVER_KEY": f" {KEY}\n"}, attempts=2)
            with pytest.raises(ServerError) as error:
                Completions(client).complete(prompts(1)[0], WAY, seed=1)
            assert KEY not in f"{error.value} {error.value.hint} {error.value!r}"
            assert "***" in str(error.value)
            assert KEY not in repr(client) + repr(client.server) + str(vars(client.server))
    assert KEY not in "".join(capfd.readouterr())
    with FakeServer({PATH: Completer()}, key=KEY) as server:
        Completions(client_of(server, {"OPENAI_API_KEY": KEY})).complete(prompts(1)[0], WAY, seed=1)
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


def test_no_key_no_header(client_of):
    with FakeServer({PATH: Completer()}) as server:
        Completions(client_of(server, {"MRPO_SERVER_KEY": ""})).complete(prompts(1)[0], WAY, seed=1)
    assert "authorization" not in server.requests[0].headers


@pytest.mark.parametrize(
    "url", [f"http://user:{KEY}@host/v1", f"http://host/v1?key={KEY}", "host:8000", "ftp://host"]
)
def test_urls_that_cannot_be_meant_or_would_be_shown(url):
    with pytest.raises(UsageError) as error:
        Server(url)
    assert KEY not in f"{error.value} {error.value.hint}"


def test_the_path_of_the_protocol_is_added_where_there_is_none():
    assert Server("http://host:8000").base == Server("http://host:8000/v1/").base
    assert Server("https://host/openai/v1").base == "https://host/openai/v1"


def test_a_key_that_fits_in_no_header():
    with pytest.raises(UsageError, match="MRPO_SERVER_KEY has characters") as error:
        Client(Server("http://host"), {"MRPO_SERVER_KEY": "sk-é-secret"})
    assert "secret" not in str(error.value)


def test_the_model_is_looked_up_first(client_of):
    with FakeServer({PATH: Completer()}, models=("one", "two")) as server:
        assert Completions(client_of(server, model="two")).model == "two"
        with pytest.raises(ServerError, match=r"several models; it serves: one, two"):
            Completions(client_of(server))
        with pytest.raises(ServerError, match=r"does not serve 'three'; it serves: one, two"):
            Completions(client_of(server, model="three"))
    assert server.requests == []
    with FakeServer({PATH: Completer()}) as server:
        assert Completions(client_of(server)).model == "tiny"


FORMS = {
    "ids, an engine's own words": (Completer(), [1, 7, 0], True),
    "ids, the protocol's words": (Completer(takes_own_words=False), [1, 7, 0], False),
    "text": (Completer(takes_ids=False, count=lambda text: 3), "p0", True),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_form_that_a_server_takes_is_found(name, client_of):
    endpoint, sent, own_words = FORMS[name]
    [prompt] = prompts(1)
    with FakeServer({PATH: endpoint}) as server:
        completions = Completions(client_of(server))
        completions.settle(prompt, WAY)
        assert server.requests[-1].body["max_tokens"] == 1
        completions.complete(prompt, replace(WAY, stop_ids=(2, 5)), seed=9)
    body = server.requests[-1].body
    assert body["prompt"] == sent
    assert {"model": "tiny", "seed": 9, "temperature": 1.0, "max_tokens": 4}.items() <= body.items()
    assert ("top_k" in body and body["stop_token_ids"] == [2, 5]) == own_words


def test_a_server_that_counts_other_tokens_is_refused(client_of):
    """One that adds a BOS to texts; one whose tokenizer is another."""
    [prompt] = prompts(1)
    for endpoint in (
        Completer(takes_ids=False, count=lambda text: 4),
        lambda body: {**Completer()(body), "usage": {"prompt_tokens": 5}},
    ):
        with FakeServer({PATH: endpoint}) as server:
            completions = Completions(client_of(server))
            with pytest.raises(ServerError, match=r"counts [45] tokens of a prompt of 3") as error:
                completions.settle(prompt, WAY)
            assert "no form of our prompts" in str(error.value)
    with (
        FakeServer({PATH: lambda body: {**Completer()(body), "usage": None}}) as server,
        pytest.raises(ServerError, match="does not say how many tokens"),
    ):
        Completions(client_of(server)).settle(prompt, WAY)
    later = itertools.chain([3], itertools.repeat(4))
    with FakeServer(
        {PATH: lambda body: {**Completer()(body), "usage": {"prompt_tokens": next(later)}}}
    ) as server:
        completions = Completions(client_of(server))
        completions.settle(prompt, WAY)
        with pytest.raises(ServerError, match="counts 4 tokens of a prompt of 3"):
            completions.complete(prompt, WAY, seed=1)


def test_a_prompt_that_no_text_has_needs_ids(client_of):
    with (
        FakeServer({PATH: Completer(takes_ids=False)}) as server,
        pytest.raises(ServerError, match=r"no text has a prompt's very ids"),
    ):
        Completions(client_of(server)).settle(Prompt([1, 2], None), WAY)


def test_top_k_is_said_or_refused(client_of):
    way = replace(WAY, top_k=7)
    with FakeServer({PATH: Completer()}) as server:
        Completions(client_of(server)).settle(prompts(1)[0], way)
        assert server.requests[-1].body["top_k"] == 7
    with (
        FakeServer({PATH: Completer(takes_own_words=False)}) as server,
        pytest.raises(UsageError, match="knows no top_k"),
    ):
        Completions(client_of(server)).settle(prompts(1)[0], way)


def test_a_refusal_says_its_status(client_of):
    with (
        FakeServer({}) as server,
        pytest.raises(Refused, match="HTTP 404: no /v1/completions") as error,
    ):
        client_of(server).post("/completions", {}, dict)
    assert error.value.status == 404


def test_after_the_end_nobody_waits():
    with socket.create_server(("127.0.0.1", 0)) as silent:  # listens and never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        client = Client(Server(url, first_wait=60.0, timeout=0.2), {}, random.Random(0))
        work = together(lambda _: client.get("/models", dict), range(3), 3)
        threading.Timer(0.6, client.close).start()
        started = time.monotonic()
        with pytest.raises(ServerError, match="the work was ended"):
            list(work)
        assert time.monotonic() - started < 10
