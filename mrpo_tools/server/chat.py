"""`/v1/chat/completions` of one model: a question in, a text out, at temperature 0.

Servers differ in what a request may say (a JSON object wished for, a seed, how the token limit is
called), so forms are tried from the fullest to the barest, and the first that is answered is kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mrpo_tools.server.client import Body, Client, Refused

PATH = "/chat/completions"
_JSON: Mapping[str, Any] = {"response_format": {"type": "json_object"}}
_FORMS: tuple[tuple[str, bool, Mapping[str, Any]], ...] = (
    ("max_tokens", True, _JSON),
    ("max_tokens", True, {}),
    ("max_completion_tokens", True, _JSON),
    ("max_completion_tokens", True, {}),
    ("max_tokens", False, {}),
    ("max_completion_tokens", False, {}),
)
"""The limit's name, whether a seed is sent, and what else."""
UNKNOWN_WORD = frozenset({400, 422})
"""What a server answers to a request whose words it does not know, or whose content it refuses."""
_POLICY = re.compile(r"content[ _-]*(filter|policy|management)|safety|moderation", re.IGNORECASE)


@dataclass(frozen=True)
class ChatReply:
    """What a server answered.

    Attributes:
        text: of the message.
        finish_reason: `stop`, `length`, or `refused` where the server or the model will not say.
        reasoning: what the model thought, where the server keeps it apart.
        prompt_tokens: as the server counts them; None where it does not say.
        completion_tokens: likewise.
    """

    text: str
    finish_reason: str = "stop"
    reasoning: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Chat:
    """Chat completions of one model of a server, from any number of threads.

    Args:
        client: of the server.
        model: as the server calls it.
        max_tokens: of a reply.
    """

    def __init__(self, client: Client, model: str, max_tokens: int) -> None:
        self.client, self.model, self.max_tokens = client, model, max_tokens
        self._form: int | None = None

    def ask(self, messages: Sequence[Mapping[str, str]], seed: int = 0) -> ChatReply:
        """The reply to some messages.

        Args:
            messages: of `role` and `content`.
            seed: sent where the server takes one.

        Raises:
            Refused: the server will not, in any form.
            ServerError: every attempt failed.
        """
        form = self._form or 0
        while True:
            try:
                reply = self.client.post(PATH, self._body(messages, seed, form), _reply)
            except Refused as error:
                if error.status not in UNKNOWN_WORD:
                    raise
                if form == self._form or _POLICY.search(error.what):
                    return ChatReply("", "refused", error.what)
                form = form + 1 if self._form is None else self._form
                if form == len(_FORMS):
                    raise
            else:
                self._form = form
                return self._keyless(reply)

    def _keyless(self, reply: ChatReply) -> ChatReply:
        reasoning = reply.reasoning and self.client.without_key(reply.reasoning)
        return replace(reply, text=self.client.without_key(reply.text), reasoning=reasoning)

    def _body(self, messages: Sequence[Mapping[str, str]], seed: int, form: int) -> dict[str, Any]:
        limit, seeded, others = _FORMS[form]
        seeds = {"seed": seed} if seeded else {}
        return {
            "model": self.model, "messages": list(messages), "temperature": 0.0,
            limit: self.max_tokens, "n": 1, "stream": False, **seeds, **others,
        }  # fmt: skip


def _reply(body: Body) -> ChatReply:
    [choice] = body["choices"]
    message, finish = choice["message"], choice["finish_reason"]
    text, refusal = message.get("content") or "", message.get("refusal")
    if not isinstance(text, str) or not isinstance(finish, str | None):
        raise ValueError("the message has no text")
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    usage = body.get("usage") or {}
    if refusal or finish == "content_filter":
        finish, reasoning = "refused", str(refusal or text or "content filter")
    return ChatReply(
        text,
        finish if finish in ("length", "refused") else "stop",
        reasoning if isinstance(reasoning, str) else None,
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
    )


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None
