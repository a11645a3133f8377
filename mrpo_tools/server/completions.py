"""`/v1/completions` of one model: token ids where the server takes them, else text.

Servers differ in what a request may say, so the first prompt is tried in several forms, and the
first form that is answered, with as many tokens of prompt as we count, is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mrpo_tools.errors import ServerError, UsageError
from mrpo_tools.server.client import Body, Client, Refused

PATH = "/completions"
FINISHED = ("stop", "length")

PromptForm = Literal["ids", "text"]

OWN_WORDS: tuple[Mapping[str, Any], ...] = (
    {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "repeat_penalty": 1.0},
    {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
    {},
)
"""What engines have beyond the protocol, with the values that change nothing (what 'every token' is
called differs): else an engine takes these from the model's files, or has defaults of its own."""


@dataclass(frozen=True)
class Completion:
    """What a server answered: the text, and `stop` or `length`."""

    text: str
    finish_reason: str


@dataclass(frozen=True)
class Prompt:
    """A prompt as ids, and as the text that has these ids; None where no text has."""

    ids: Sequence[int]
    text: str | None


@dataclass(frozen=True)
class Way:
    """How completions are drawn.

    Attributes:
        max_tokens: of one.
        temperature: 0 for the likeliest token each time.
        top_p: see `sampling.Sampling`.
        top_k: 0 for every token.
        stop_ids: tokens that end an answer, besides those that the server knows of.
    """

    max_tokens: int
    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    stop_ids: tuple[int, ...] = ()

    def body(self, own_words: Mapping[str, Any]) -> dict[str, Any]:
        """The request's words, with an engine's own where it has any."""
        words: dict[str, Any] = {
            "max_tokens": self.max_tokens, "temperature": self.temperature, "top_p": self.top_p,
            "n": 1, "presence_penalty": 0.0, "frequency_penalty": 0.0, "stream": False,
        }  # fmt: skip
        if own_words:
            words |= {**own_words, "stop_token_ids": list(self.stop_ids)}
            words |= {"top_k": self.top_k} if self.top_k else {}
        return words


class Completions:
    """Completions of one model of a server.

    Args:
        client: of the server.

    Attributes:
        model: as the server calls it.
        form: in which prompts are sent; set by `settle`.

    Raises:
        ServerError: the server does not serve the model, or several and none is named.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self.model = served_model(client)
        self.form: PromptForm = "ids"
        self._own_words: Mapping[str, Any] = OWN_WORDS[0]

    def settle(self, prompt: Prompt, way: Way) -> None:
        """Find the form that the server takes, by one token after a prompt.

        Raises:
            ServerError: it takes none, or counts other tokens than ours; says each reason.
            UsageError: top-k is wished for and cannot be said.
        """
        reasons: dict[str, None] = {}
        for form in ("ids", "text"):
            for own_words in OWN_WORDS:
                self.form, self._own_words = form, own_words
                try:
                    body = self._body(prompt, way, seed=0) | {"max_tokens": 1}
                    counted, _ = self.client.post(PATH, body, _completion)
                except (Refused, _NoText) as error:
                    reasons[f"{form}: {error}"] = None
                    continue
                if counted != len(prompt.ids):
                    reasons[f"{form}: {_miscounted(counted, len(prompt.ids))}"] = None
                    break
                if way.top_k and not own_words:
                    raise UsageError("the server knows no top_k", "leave --top-k out")
                return
        raise ServerError(
            f"{self.client.server.base} takes no form of our prompts: {'; '.join(reasons)}",
            "serve the model with vLLM, which takes token ids, or sample without --server",
        )

    def complete(self, prompt: Prompt, way: Way, seed: int) -> Completion:
        """One completion.

        Args:
            prompt: ids and text.
            way: how it is drawn.
            seed: below 2^31.

        Raises:
            ServerError: see `Client.post`; or the server counts other tokens than ours, or this
                prompt has no text where text must be sent.
        """
        counted, completion = self.client.post(PATH, self._body(prompt, way, seed), _completion)
        if counted != len(prompt.ids):
            raise ServerError(_miscounted(counted, len(prompt.ids)), "see docs/generate.md")
        return completion

    def _body(self, prompt: Prompt, way: Way, seed: int) -> dict[str, Any]:
        if self.form == "text" and prompt.text is None:
            raise _NoText(
                "no text has a prompt's very ids (it names control tokens, or the template and the "
                "tokenizer both begin the text)",
                "a server that takes token ids",
            )
        said = list(prompt.ids) if self.form == "ids" else prompt.text
        words = way.body(self._own_words)
        return {"model": self.model, "prompt": said, "seed": seed, **words}


class _NoText(ServerError):
    """A prompt has no text that could be sent in place of its ids."""


def served_model(client: Client) -> str:
    """What the server calls the model that is asked.

    Raises:
        ServerError: it has none of that name, or several where none is named.
    """
    names = client.get("/models", lambda body: [str(each["id"]) for each in body["data"]])
    wanted, listed = client.server.model, ", ".join(names) or "none"
    if wanted in names:
        return str(wanted)
    if wanted is None and len(names) == 1:
        return names[0]
    asked = "serves several models" if wanted is None else f"does not serve {wanted!r}"
    raise ServerError(
        f"{client.server.base} {asked}; it serves: {listed}",
        "name one: --server-model NAME, or server_model: NAME of a reference",
    )


def _completion(body: Body) -> tuple[int, Completion]:
    [choice] = body["choices"]
    text, finish_reason = choice["text"], choice["finish_reason"]
    if not isinstance(text, str) or finish_reason not in FINISHED:
        raise ValueError(f"finish_reason {finish_reason!r}")
    if not body.get("usage"):
        raise ServerError(
            "the server does not say how many tokens a prompt has, so prompts cannot be checked",
            "a server that fills `usage`, as vLLM does",
        )
    return int(body["usage"]["prompt_tokens"]), Completion(text, finish_reason)


def _miscounted(counted: int, expected: int) -> str:
    return (
        f"the server counts {counted:,} tokens of a prompt of {expected:,}: its tokenizer, or what "
        "it adds, is not the model's here"
    )
