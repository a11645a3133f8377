"""Log-probs of given tokens, by vLLM's `prompt_logprobs` of `/v1/completions`.

Our ids go in as the prompt, one token is generated and thrown away, and each token of the prompt
comes back under its id with its log-prob. The first one has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mrpo_tools.errors import ServerError
from mrpo_tools.server.client import QUICK, Body, Client, Refused

PATH = "/completions"
NEUTRAL: Mapping[str, Any] = {
    "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
    "presence_penalty": 0.0, "frequency_penalty": 0.0, "n": 1, "stream": False,
}  # fmt: skip
"""Words that would change log-probs if an engine let them, with the values that change nothing."""
PROBE = (1, 2, 3)
"""Ids that every vocabulary has."""
CLAMPED = -9999.0
"""What vLLM writes for minus infinity."""
TOKEN_ID = "token_id:"

Position = Mapping[int, float]
"""Tokens that may stand at a position, with their log-probs in nats."""


class Next(NamedTuple):
    """The token that an engine would go on with, and its log-prob as a generated one."""

    token: int
    logp: float


class PromptLogprobs:
    """Log-probs of token ids, from any number of threads.

    Args:
        client: of the server.
        model: as the server calls it.
    """

    def __init__(self, client: Client, model: str) -> None:
        self.client, self.model = client, model

    def settle(self) -> None:
        """Ask for three tokens.

        Raises:
            ServerError: the server takes no token ids, or gives no log-probs of a prompt.
        """
        try:
            body = self._body(PROBE, {"prompt_logprobs": 0})
            given = self.client.post(PATH, body, lambda reply: _choice(reply).get(WORD), QUICK)
        except Refused as error:
            raise self._unfit(f"it takes no token ids or no {WORD}: {error.what}") from None
        if given is None:
            raise self._unfit(f"it gives no {WORD}")
        self.of(PROBE, QUICK)

    def of(self, ids: Sequence[int], attempts: int | None = None, **words: Any) -> list[float]:
        """Log-probs of the ids after the first one, nats; what is no log-prob is as it came.

        Args:
            ids: two or more.
            attempts: None for the server's.
            words: of the request, over the neutral ones.

        Raises:
            Refused: the server will not.
            ServerError: every attempt failed; a reply that is not of these ids, position by
                position, is a failed one.
        """
        body = self._body(ids, {"prompt_logprobs": 0, **words})
        read = self.client.post(PATH, body, lambda reply: _positions(reply, ids), attempts)
        return [each[token] for each, token in zip(read, ids[1:], strict=True)]

    def likeliest(self, ids: Sequence[int], count: int) -> list[Position]:
        """The likeliest tokens at each position after the first, the prompt's own besides."""
        body = self._body(ids, {"prompt_logprobs": count})
        return self.client.post(PATH, body, lambda reply: _positions(reply, ids))

    def next(self, ids: Sequence[int]) -> Next:
        """The token that follows at temperature 0."""
        words = {"temperature": 0.0, "logprobs": 1, "return_tokens_as_token_ids": True}
        return self.client.post(PATH, self._body(ids, words), _next)

    def _body(self, ids: Sequence[int], words: Mapping[str, Any]) -> dict[str, Any]:
        return {"model": self.model, "prompt": list(ids), "max_tokens": 1, **NEUTRAL, **words}

    def _unfit(self, reason: str) -> ServerError:
        return ServerError(
            f"{self.client.server.base} cannot compute log-probs of our ids: {reason}",
            "serve the model with vLLM (docs/served_references.md), without speculative decoding",
        )


WORD = "prompt_logprobs"


def _choice(body: Body) -> Mapping[str, Any]:
    [choice] = body["choices"]
    if not isinstance(choice, dict):
        raise TypeError("the choice is no object")
    return choice


def _positions(body: Body, ids: Sequence[int]) -> list[Position]:
    """What stands at each position after the first.

    Raises:
        ValueError: the reply is not of these ids.
    """
    counted, entries = body["usage"]["prompt_tokens"], _choice(body)[WORD]
    if counted != len(ids) or len(entries) != len(ids):
        raise ValueError(f"log-probs of {len(entries)} tokens, {counted} counted, {len(ids)} asked")
    if entries[0] is not None:
        raise ValueError("the first token has a log-prob, so another one stands before it")
    return [
        _position(entry, token, place)
        for place, (entry, token) in enumerate(zip(entries[1:], ids[1:], strict=True), 1)
    ]


def _position(entry: Mapping[str, Any], token: int, place: int) -> Position:
    position = {int(key): _number(value["logprob"]) for key, value in entry.items()}
    if token not in position:
        raise ValueError(f"token {place} of the prompt is {token}, not {sorted(position)[:3]}")
    return position


def _number(value: object) -> float:
    """A number, possibly none that can be a log-prob; minus infinity where vLLM clamped it."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"a log-prob is {value!r}")
    return -float("inf") if value == CLAMPED else float(value)


def _next(body: Body) -> Next:
    logprobs = _choice(body)["logprobs"]
    [token], [logp] = logprobs["tokens"], logprobs["token_logprobs"]
    if not token.startswith(TOKEN_ID):
        raise ValueError(f"a token is {token!r}")
    return Next(int(token.removeprefix(TOKEN_ID)), _number(logp))
