"""A small real HTTP server on 127.0.0.1 that speaks the OpenAI protocol, with faults on a plan.

    with FakeServer({"/v1/completions": Completer()}, faults=mixed(seed=1)) as server:
        ask(server.url)
    assert server.answered("/v1/completions") == [...]

An endpoint is a function from the request's body to the reply's; `/v1/models` is always there, and
`pages` are what else can be got: JSON, or a text as it is. A fault is taken from the plan for each
POST, in the order of their coming. Whatever is sent is kept in `requests`, and errors repeat the
request's key, as some servers do.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]
Endpoint = Callable[[Body], Body]

FAULTS = ("error", "busy", "late", "torn", "cut", "dropped", "strange")
"""500; 429 with Retry-After; an answer after the client's patience; half of a JSON text; half of
the bytes that were promised; no answer; an object that is no answer."""
RESTART = "restart"
"""Every connection ends, and for a moment nobody listens."""


def mixed(seed: int, share: float = 0.5, restarts: int = 1) -> Iterator[str | None]:
    """For `share` of the requests a fault of any kind, and early on a restart or more."""
    rng = random.Random(seed)
    at = set(rng.sample(range(5, 40), restarts))
    number = 0
    while True:
        if number in at:
            yield RESTART
        else:
            yield rng.choice(FAULTS) if rng.random() < share else None
        number += 1


class RefusedByServer(Exception):
    """An endpoint's way to answer with a status of HTTP of its own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Request:
    """One POST: when it came, what it said, what was done to it, and whether its answer was sent
    whole and in time."""

    at: float
    path: str
    headers: Mapping[str, str]
    body: Body
    fault: str | None
    answered: bool = False


class Completer:
    """`/v1/completions`: a text that is a function of the prompt and the seed.

    Args:
        takes_ids: refuse prompts of ids where not.
        takes_own_words: refuse what engines have beyond the protocol where not.
        count: tokens of a text prompt.
        reply: (prompt, seed) -> (text, finish_reason).
    """

    def __init__(
        self,
        *,
        takes_ids: bool = True,
        takes_own_words: bool = True,
        count: Callable[[str], int] = len,
        reply: Callable[[Any, int], tuple[str, str]] | None = None,
    ) -> None:
        self.takes_ids, self.takes_own_words, self.count = takes_ids, takes_own_words, count
        self.reply = reply or said

    def __call__(self, body: Body) -> Body:
        prompt = body["prompt"]
        if isinstance(prompt, list) and not self.takes_ids:
            raise RefusedByServer(422, "prompt: Input should be a valid string")
        if "min_p" in body and not self.takes_own_words:
            raise RefusedByServer(400, "Unrecognized request argument supplied: min_p")
        text, finish_reason = self.reply(prompt, body["seed"])
        counted = len(prompt) if isinstance(prompt, list) else self.count(prompt)
        choice = {"index": 0, "text": text, "finish_reason": finish_reason, "logprobs": None}
        return {
            "object": "text_completion",
            "model": body["model"],
            "choices": [choice],
            "usage": {"prompt_tokens": counted, "completion_tokens": 1},
        }


def said(prompt: Any, seed: int) -> tuple[str, str]:
    """A text of its own for each prompt and seed; one in eight is cut."""
    digest = hashlib.sha256(json.dumps([prompt, seed]).encode()).hexdigest()
    return f" answer {digest[:12]} ", "length" if digest[0] in "01" else "stop"


FENCED = re.compile(
    r"<(?P<name>\w+) (?P<mark>[0-9a-f]{12})>\n(.*?)\n</(?P=name) (?P=mark)>", re.DOTALL
)
"""What a judge's template puts between marks."""


class Judging:
    """`/v1/chat/completions` of a judge, whose opinion is a function of what it is shown.

    Args:
        opinion: (prompt, first, second) -> label, or (prompt, answer) -> rating; a third, or
            fourth, argument `seed` where it takes one.
        words: a label -> the message's text; JSON by default.
        finish_reason: of every reply.
        message: what else stands in every message.
        json_object: refuse `response_format` where not.
        limit: the word for the token limit that is known.
    """

    def __init__(
        self,
        opinion: Callable[..., Any],
        *,
        words: Callable[[str], str] | None = None,
        finish_reason: str = "stop",
        message: Mapping[str, Any] | None = None,
        json_object: bool = True,
        limit: str = "max_tokens",
    ) -> None:
        self.opinion, self.words = opinion, words or as_json
        self.finish_reason, self.message = finish_reason, dict(message or {})
        self.json_object, self.limit = json_object, limit
        self.seeded = "seed" in inspect.signature(opinion).parameters

    def __call__(self, body: Body) -> Body:
        if "response_format" in body and not self.json_object:
            raise RefusedByServer(400, "Unrecognized request argument: response_format")
        if self.limit not in body:
            raise RefusedByServer(400, f"Unsupported parameter; use {self.limit}")
        assert body["temperature"] == 0
        texts = [text for _, _, text in FENCED.findall(body["messages"][-1]["content"])]
        seed = {"seed": body["seed"]} if self.seeded else {}
        text = self.words(self.opinion(*texts, **seed))
        content = {"role": "assistant", "content": text, **self.message}
        choice = {"index": 0, "message": content, "finish_reason": self.finish_reason}
        counted = sum(len(turn["content"]) for turn in body["messages"]) // 4
        usage = {"prompt_tokens": counted, "completion_tokens": 10}
        return {"object": "chat.completion", "choices": [choice], "usage": usage}


def as_json(label: Any) -> str:
    """A judge's reply as it should be."""
    return json.dumps({"reasoning": f"I looked, and {label} it is", "verdict": label})


class FakeServer:
    """The server, running as long as the block.

    Args:
        endpoints: by path.
        faults: what happens to each POST; None answers it. Its end means that all goes well.
        key: the one that is wished for; None takes any.
        late: seconds that a late answer takes.
        down: seconds that a restart takes.
        retry_after: what a busy server says.
        card: what `/v1/models` says of every model, beside its name.
        pages: by path; those of the protocol can be replaced.
    """

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint],
        *,
        faults: Iterator[str | None] | None = None,
        models: tuple[str, ...] = ("tiny",),
        key: str | None = None,
        late: float = 1.0,
        down: float = 0.2,
        retry_after: str = "0.02",
        card: Mapping[str, Any] | None = None,
        pages: Mapping[str, Any] | None = None,
    ) -> None:
        self.endpoints, self.models, self.key = endpoints, models, key
        self.faults = faults or iter(())
        self.late, self.down, self.retry_after = late, down, retry_after
        self.card, self.pages = dict(card or {}), dict(pages or {})
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listen(0)
        self.port = self._server.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answered(self, path: str) -> list[Body]:
        """The bodies of the requests that were answered."""
        return [each.body for each in self.requests if each.path == path and each.answered]

    def happened(self) -> set[str]:
        """The faults that there were."""
        return {each.fault for each in self.requests if each.fault}

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def restart(self) -> None:
        """End everything, wait, listen again."""
        self._end()
        time.sleep(self.down)
        self._listen(self.port)

    def _listen(self, port: int) -> None:
        self._server = _Listener(("127.0.0.1", port), _handler(self))
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def _end(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        with self.lock:
            connections, self._open = self._open, set()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def noted(self, path: str, headers: Mapping[str, str], body: Body) -> Request:
        """Keep a POST, with what is to happen to it."""
        with self.lock:
            lower = {name.lower(): value for name, value in headers.items()}
            fault = next(self.faults, None)
            self.requests.append(Request(time.monotonic(), path, lower, body, fault))
            return self.requests[-1]

    def send(self, connection: socket.socket, content: bytes, request: Request | None) -> None:
        """All bytes of a reply, before a restart or not at all."""
        with self.lock:
            if connection not in self._open:
                raise ConnectionResetError
            connection.sendall(content)
            if request is not None:
                request.answered = True

    def connected(self, connection: socket.socket) -> None:
        with self.lock:
            self._open.add(connection)


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128


def _handler(server: FakeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            server.connected(self.connection)

        def handle(self) -> None:
            with contextlib.suppress(OSError, ValueError):  # the client went away
                super().handle()

        def finish(self) -> None:
            with contextlib.suppress(OSError, ValueError):
                super().finish()

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if self._is_unknown():
                return
            if self.path in server.pages:
                self._send(200, server.pages[self.path])
            elif self.path == "/v1/models":
                cards = [{"id": name, **server.card} for name in server.models]
                self._send(200, {"object": "list", "data": cards})
            else:
                self._send(404, {"error": {"message": "Not Found"}})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self._is_unknown():
                return
            request = server.noted(self.path, dict(self.headers.items()), body)
            if request.fault == RESTART:
                threading.Thread(target=server.restart, daemon=True).start()
                self.close_connection = True
            elif self.path not in server.endpoints:
                self._send(404, {"error": {"message": f"no {self.path}"}})
            else:
                self._answer(request)

        def _is_unknown(self) -> bool:
            given = self.headers.get("Authorization", "")
            unknown = server.key is not None and given != f"Bearer {server.key}"
            if unknown:
                self._send(401, {"error": {"message": f"Incorrect API key provided: {given}"}})
            return unknown

        def _answer(self, request: Request) -> None:
            given, fault = self.headers.get("Authorization", ""), request.fault
            if fault == "error":
                self._send(500, {"error": {"message": f"internal error for {given}"}})
            elif fault == "busy":
                words = {"error": {"message": f"too many requests by {given}"}}
                self._send(429, words, {"Retry-After": server.retry_after})
            elif fault == "dropped":
                self.close_connection = True
            elif fault == "strange":
                self._send(200, {"object": "text_completion", "choices": []})
            else:
                self._reply(request)

        def _reply(self, request: Request) -> None:
            fault = request.fault
            try:
                reply = server.endpoints[self.path](request.body)
            except RefusedByServer as error:
                self._send(error.status, {"error": {"message": str(error)}})
                return
            if fault == "late":
                time.sleep(server.late)
            half = fault if fault in ("torn", "cut") else None
            self._send(200, reply, half=half, request=None if fault else request)

        def _send(
            self,
            status: int,
            value: Body | str,
            headers: Mapping[str, str] | None = None,
            half: str | None = None,
            request: Request | None = None,
        ) -> None:
            content = (value if isinstance(value, str) else json.dumps(value)).encode()
            sent = content[: len(content) // 2] if half else content
            promised = str(len(sent if half == "torn" else content))
            lines = {"Content-Type": "application/json", "Content-Length": promised}
            head = "".join(
                f"{name}: {text}\r\n" for name, text in {**lines, **(headers or {})}.items()
            )
            whole = f"HTTP/1.1 {status} -\r\n{head}\r\n".encode() + sent
            server.send(self.connection, whole, request)
            self.close_connection = half is not None

    return Handler
