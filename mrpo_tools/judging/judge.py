"""Who judges: a model of a server, asked by a template; and what makes two verdicts the same."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from mrpo_tools.judging.template import DEFAULT, RATING, Template, load_template
from mrpo_tools.references.identity import Identity
from mrpo_tools.server import Client, Server, served_model

JUDGING_VERSION = 1
"""Raised whenever the same reply would be read as another verdict."""
MAX_TOKENS = 1024
"""Of a judge's reply."""


@dataclass(frozen=True)
class Judge:
    """A judge that can be asked.

    Attributes:
        server: with the model's name.
        template: what is asked.
        max_tokens: of a reply.
    """

    server: Server
    template: Template
    max_tokens: int = MAX_TOKENS

    @property
    def model(self) -> str:
        """As the server calls it."""
        return str(self.server.model)

    @property
    def name(self) -> str:
        """As tables and the cache call it: `gpt-4o-pairwise`."""
        plain = re.sub(r"[^A-Za-z0-9._-]+|\.{2,}", "-", self.model).lstrip(".-_") or "judge"
        return f"{plain[:40]}-{re.sub(r'[^A-Za-z0-9_-]+', '-', self.template.name)[:20]}"

    @cached_property
    def identity(self) -> Identity:
        """Endpoint, model, template and settings; not whether JSON was asked for by name."""
        where = urlsplit(self.server.base)
        return Identity(
            {
                "judge": f"{where.netloc.lower()}{where.path}",
                "judging_version": JUDGING_VERSION,
                "max_tokens": self.max_tokens,
                "model": self.model,
                "temperature": 0.0,
                "template": self.template.hash,
            }
        )

    @property
    def words(self) -> Mapping[str, Any]:
        """As a record keeps them; no key."""
        word = f"{self.server.base}#{self.model}"
        return {"judge": word, "template": self.template.name, "max_tokens": self.max_tokens}


def judge_of(
    word: str,
    template: str | None = None,
    *,
    of_pairs: bool = True,
    max_tokens: int = MAX_TOKENS,
    concurrency: int = 16,
    timeout: float = 600.0,
    environment: Mapping[str, str] = os.environ,
) -> Judge:
    """A judge by `URL#MODEL`; without a model the server is asked which one it serves.

    Args:
        word: `http://host:port/v1#model`.
        template: preset or file; None takes the default.
        of_pairs: whether it compares two answers or rates one.
        max_tokens: see `Judge`.
        concurrency: requests at a time.
        timeout: seconds of one.
        environment: where the key is.

    Raises:
        ServerError: several models, and none is named.
        UsageError: no such server or template.
    """
    url, _, model = word.partition("#")
    server = Server(url, model or None, concurrency=concurrency, timeout=timeout)
    loaded = load_template(template or (DEFAULT if of_pairs else RATING), of_pairs=of_pairs)
    if not model:
        with Client(server, environment) as client:
            server = replace(server, model=served_model(client))
    return Judge(server, loaded, max_tokens)
