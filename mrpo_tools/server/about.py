"""What a server says of itself: its engine, that engine's version, the model, its context."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from mrpo_tools.errors import ServerError
from mrpo_tools.server.client import QUICK, Body, Client, Refused, Server
from mrpo_tools.server.completions import served_model

VLLM = "vllm"


@dataclass(frozen=True)
class About:
    """A model that an engine serves.

    Attributes:
        version: of the engine, as it says.
        model: as the server calls it.
        root: where the server has it from, if it says so: a hub id or a path there.
        context: tokens of prompt and answer together; None where it does not say.
    """

    version: str
    model: str
    root: str | None = None
    context: int | None = None


def ask_about(server: Server) -> About:
    """What a server says of itself and of the model that is asked for.

    Raises:
        ServerError: it does not answer, does not serve the model, or is no vLLM.
    """
    with Client(replace(server, attempts=min(server.attempts, QUICK))) as client:
        return about(client)


def about(client: Client) -> About:
    """The same by a client that is there."""
    try:
        model = served_model(client)
    except Refused as error:
        raise _foreign(client, error.what) from None
    card = client.get("/models", lambda body: _card(body, model))
    owner = card.get("owned_by")
    try:
        version = client.get("/version", _version, under=client.server.root)
    except Refused as error:
        raise _foreign(client, f"it says it is {owner!r}, and {error.what}") from None
    root, context = card.get("root"), card.get("max_model_len")
    return About(
        version,
        model,
        root if isinstance(root, str) else None,
        context if isinstance(context, int) else None,
    )


def _card(body: Body, model: str) -> dict[str, Any]:
    [card] = [each for each in body["data"] if each["id"] == model][:1]
    return dict(card)


def _version(body: Body) -> str:
    version = body["version"]
    if not isinstance(version, str) or not version:
        raise ValueError("no version")
    return version


def _foreign(client: Client, reason: str) -> ServerError:
    return ServerError(
        f"{client.server.base} does not speak vLLM's protocol: {reason}",
        "log-probs are asked of vLLM alone: python -m vllm.entrypoints.openai.api_server --model …",
    )
