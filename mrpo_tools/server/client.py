"""One JSON request to an OpenAI-compatible server, tried again as long as that can help.

Asked again is what the network lost, what is no JSON or not what was asked for, and what the server
itself calls passing: 408, 409, 425, 429, 5xx. Waits double from one attempt to the next, with
jitter, and no request is sent before the time that a `Retry-After` names.
"""

from __future__ import annotations

import contextlib
import email.utils
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from mrpo_tools.errors import ServerError, UsageError

if TYPE_CHECKING:
    import httpx2

Body = Mapping[str, Any]
Value = TypeVar("Value")

KEYS = ("MRPO_SERVER_KEY", "OPENAI_API_KEY")
"""Variables that may hold the server's key; the first that is set counts."""
PASSING = frozenset({408, 409, 425, 429})
"""What a server answers that may answer otherwise later, besides 5xx."""
LONGEST_WAIT = 60.0
LONGEST_PROMISE = 600.0
"""Seconds between two attempts at most, and of a `Retry-After`."""
QUICK = 3
"""Attempts, where somebody waits for the first answer."""
CONNECT_SECONDS = 10.0
SHOWN = 300
"""Characters of a server's own words in an error."""
GOES_ON = "see whether the server is well; the same command goes on from here"


@dataclass(frozen=True)
class Server:
    """Where a server is and how it is asked.

    Attributes:
        url: `http://host:8000/v1`; without a path, `/v1` is meant.
        model: as the server calls it; None takes the one that it serves.
        concurrency: requests at a time.
        timeout: seconds of one request.
        attempts: of one request, before it is given up.
        first_wait: seconds before the second attempt, about; each later one doubles.

    Raises:
        UsageError: no such server can be meant, or the URL holds a secret.
    """

    url: str
    model: str | None = None
    concurrency: int = 16
    timeout: float = 600.0
    attempts: int = 8
    first_wait: float = 1.0

    def __post_init__(self) -> None:
        if any(mark in self.url for mark in "@?#"):
            raise UsageError(
                "the server's URL holds more than host and path, and would be shown",
                f"export {KEYS[0]}=… for the key; the URL is http://HOST:PORT/v1",
            )
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{self.url!r} is no server's URL", "http://HOST:PORT/v1")
        if self.concurrency < 1 or self.attempts < 1 or not self.timeout > 0:
            raise UsageError("concurrency, attempts and timeout of a server are above 0")

    @property
    def base(self) -> str:
        """The URL that paths are added to."""
        url = self.url.rstrip("/")
        return url if urlsplit(url).path else f"{url}/v1"

    @property
    def root(self) -> str:
        """The URL without the protocol's `/v1`, where an engine answers what is its own."""
        return self.base.removesuffix("/v1")


class Refused(ServerError):
    """The server answers that it will not: another attempt would be answered so too.

    Args:
        what: in words.
        status: of HTTP.
    """

    def __init__(self, what: str, status: int) -> None:
        super().__init__(what, GOES_ON)
        self.status = status


class _Again(Exception):
    """This attempt failed, and another may not; `after` seconds from now, if the server says so."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


class Client:
    """Requests to one server, from any number of threads. A context manager.

    Args:
        server: which one.
        environment: where the key is.
        jitter: draws the waits.

    Raises:
        UsageError: the extra `server` is not installed, or the key fits in no header.
    """

    def __init__(
        self,
        server: Server,
        environment: Mapping[str, str] = os.environ,
        jitter: random.Random | None = None,
    ) -> None:
        self.server = server
        self._key = _key(environment)
        self._jitter = jitter or random.Random()
        self._closed = threading.Event()
        self._not_before = 0.0
        self._http = self._connections()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for nothing any more; requests on their way end with an error."""
        self._closed.set()
        with contextlib.suppress(RuntimeError):  # it says that requests are on their way
            self._http.close()

    def get(self, path: str, read: Callable[[Body], Value], under: str | None = None) -> Value:
        """What `read` makes of the reply to a GET; see `post`.

        Args:
            path: as for `post`.
            read: as for `post`.
            under: a URL in place of the server's.
        """
        return self._tried("GET", f"{under or self.server.base}{path}", None, read)

    def post(
        self, path: str, body: Body, read: Callable[[Body], Value], attempts: int | None = None
    ) -> Value:
        """What `read` makes of the reply to a POST.

        Args:
            path: under the server's URL: `/completions`.
            body: of JSON.
            read: raises KeyError, TypeError, IndexError or ValueError where the reply, an object,
                is not what was asked for; the request is then tried again.
            attempts: None for the server's.

        Raises:
            Refused: the server will not (4xx), so this was asked once.
            ServerError: every attempt failed; says how the last one did.
        """
        return self._tried("POST", f"{self.server.base}{path}", body, read, attempts)

    def _tried(
        self,
        method: str,
        url: str,
        body: Body | None,
        read: Callable[[Body], Value],
        attempts: int | None = None,
    ) -> Value:
        reason, attempts = "", attempts or self.server.attempts
        for attempt in range(attempts):
            self._wait(attempt)
            try:
                return self._once(method, url, body, read)
            except _Again as failure:
                reason = str(failure)
                if failure.after:
                    self._not_before = max(self._not_before, time.monotonic() + failure.after)
        raise ServerError(
            f"{url}: {attempts} attempts failed, the last: {reason}",
            GOES_ON,
        )

    def _wait(self, attempt: int) -> None:
        """Until the next attempt may be made; half of a wait is drawn."""
        seconds = 0.0
        if attempt:
            full = min(self.server.first_wait * 2 ** (attempt - 1), LONGEST_WAIT)
            seconds = full * self._jitter.uniform(0.5, 1.0)
        seconds = max(seconds, self._not_before - time.monotonic())
        if self._closed.wait(seconds) if seconds > 0 else self._closed.is_set():
            raise ServerError(f"{self.server.base}: the work was ended")

    def _once(
        self, method: str, url: str, body: Body | None, read: Callable[[Body], Value]
    ) -> Value:
        import httpx2

        try:
            reply = self._http.request(method, url, json=body)
        except httpx2.TimeoutException:
            raise _Again(f"no answer in {self.server.timeout:g} s") from None
        except (httpx2.RequestError, RuntimeError) as error:  # a closed client is a RuntimeError
            raise _Again(self._said(str(error) or type(error).__name__)) from None
        if reply.status_code in PASSING or reply.status_code >= 500:
            raise _Again(self._status(reply), retry_after(reply.headers.get("retry-after")))
        if not reply.is_success:
            what = f"{url}: {self._status(reply)}"
            raise Refused(what, reply.status_code)
        try:
            value = reply.json()
            if not isinstance(value, dict):
                raise TypeError("no object")
            return read(value)
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise _Again(f"a reply that cannot be read: {self._said(repr(error))}") from None

    def _status(self, reply: httpx2.Response) -> str:
        """`HTTP 401: …` in the server's own words."""
        try:
            value = reply.json()
            error = value.get("error", value)
            words = error.get("message", error) if isinstance(error, dict) else error
        except (ValueError, AttributeError):
            words = reply.text
        said = self._said(str(words))
        hint = f" (the key of {' or '.join(KEYS)})" if reply.status_code == 401 else ""
        return f"HTTP {reply.status_code}{hint}{': ' if said else ''}{said}"

    def without_key(self, text: str) -> str:
        """A text in which the key, should it stand there, is struck out."""
        return text.replace(self._key, "***") if self._key else text

    def _said(self, text: str) -> str:
        """Another's words on one line, and never the key, which a server may repeat."""
        shown = " ".join(self.without_key(text).split())
        return shown if len(shown) <= SHOWN else f"{shown[: SHOWN - 1]}…"

    def _connections(self) -> httpx2.Client:
        try:
            import httpx2
        except ImportError:
            raise UsageError(
                "a server needs the extra `server`", "pip install 'mrpo-tools[server]'"
            ) from None
        room = self.server.concurrency
        return httpx2.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx2.Timeout(self.server.timeout, connect=CONNECT_SECONDS),
            limits=httpx2.Limits(max_connections=room, max_keepalive_connections=room),
        )


def retry_after(value: str | None) -> float:
    """Seconds that a `Retry-After` asks for, as a number or a date; 0 where there is none."""
    if not value:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(seconds, 0.0), LONGEST_PROMISE) if seconds == seconds else 0.0


def _key(environment: Mapping[str, str]) -> str:
    for name in KEYS:
        if key := environment.get(name, "").strip():
            if not (key.isascii() and key.isprintable()):
                raise UsageError(f"the key in {name} has characters that no header can hold")
            return key
    return ""
